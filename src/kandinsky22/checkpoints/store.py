"""Reading and writing the published folder layout.

A network is built on the meta device, so no memory is allocated before its weights arrive; its tensors are checked by
name and shape against the file's header before the first is read. A folder that is read is never written to.
"""

import copy
import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Generic, TypeVar
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kandinsky22.checkpoints import catalog
from kandinsky22.checkpoints.about import CheckpointError, read_json, write_json
from kandinsky22.files import atomic_write
from kandinsky22.models.config import Config

N = TypeVar("N", bound=nn.Module)
C = TypeVar("C", bound=Config)

WEIGHT_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
IGNORED = ".position_ids"  # a constant that old files of CLIP hold
MAPPED = 128 << 20  # bytes of a file that are mapped at a time while it is read
HASHED_WHOLE = 64 << 20  # bytes; of larger files, the fingerprint reads the header and samples
SAMPLES = 256


def weights_file(folder: Path, variant: str | None = None) -> Path:
    """The weights in a network's folder, or the index of the several files they are in: see `catalog.weights`."""
    names = (
        catalog.weights((path.name for path in folder.iterdir() if path.is_file()), variant) if folder.is_dir() else []
    )
    if names:
        return folder / names[0]
    raise CheckpointError(
        f"{folder} has no weights; it should hold {WEIGHT_NAMES[0]}.safetensors or {WEIGHT_NAMES[1]}.safetensors"
    )


def weights_files(path: Path) -> list[Path]:
    """The files that hold the tensors of what `weights_file` found. Raises `ValueError` and `OSError` for a bad index."""
    if path.suffix != ".json":
        return [path]
    index = json.loads(path.read_text(encoding="utf-8"))
    where = index.get("weight_map") if isinstance(index, dict) else None
    names = sorted(set(map(str, where.values()))) if isinstance(where, dict) else []
    if not names or not all(catalog.WEIGHTS_NAME.fullmatch(name) for name in names):
        raise ValueError("it does not say in which files beside it the tensors are")
    return [path.with_name(name) for name in names]


RANDOM = {Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_}


class Uninitialised(TorchFunctionMode):
    """While it is entered, tensors are not filled with random numbers. On the meta device there is nothing to fill, and yet
    torch would spend over a second on importing what decides so."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in RANDOM:
            return args[0] if args else (kwargs or {})["tensor"]
        return function(*args, **(kwargs or {}))


class Stored(Generic[N, C]):
    """A network in a folder: checked, not yet read.

    Raises `CheckpointError` for a configuration that is not this network's, and listing every tensor that is missing,
    extra or misshapen.
    """

    def __init__(self, folder: Path, network: Callable[[C], N], config: type[C]) -> None:
        self.folder = folder
        try:
            with torch.device("meta"), Uninitialised():
                self.config = config.from_dict(read_json(folder / "config.json"))
                self.outline: N = network(self.config)  # without its weights
        except CheckpointError:
            raise
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
        self.path = weights_file(folder)
        wanted = {name: tuple(value.shape) for name, value in self.outline.state_dict().items()}
        _compare(self.path, wanted, shapes(self.path))

    def load(self, dtype: torch.dtype, device: torch.device) -> N:
        """The network, for inference, read anew at each call. Beside what it becomes, only some `MAPPED` bytes of the file
        are held at a time; numbers that stay as they are, on a CPU, stay in the file until they are used."""
        with torch.inference_mode(False):  # else they could never be trained, whoever happened to need them first
            network, arrived = copy.deepcopy(self.outline), {}
            try:
                for name, value in _tensors(self.path):
                    arrived[name] = value.to(device, dtype)
            except (OSError, SafetensorError, RuntimeError, ValueError) as error:
                raise CheckpointError(f"{self.path} cannot be read ({error}); fetch it again") from error
            network.load_state_dict({name: arrived[name] for name in network.state_dict()}, assign=True)
        return network.eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """What the file holds its first tensor in."""
        return next(value.dtype for name, value in _tensors(self.path) if not name.endswith(IGNORED))

    @property
    def elements(self) -> int:
        """How many numbers the network is."""
        return sum(value.numel() for value in self.outline.state_dict().values())

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that tell these weights from others.

        SHA-256 over the configuration and the file; of large files, over their header, size and evenly spread samples,
        so that five gigabytes cost no more than a blink.
        """
        digest = hashlib.sha256(json.dumps(read_json(self.folder / "config.json"), sort_keys=True).encode())
        for path in [self.path, *weights_files(self.path)] if self.path.suffix == ".json" else [self.path]:
            size = path.stat().st_size
            with path.open("rb") as file:
                if size <= HASHED_WHOLE:
                    digest.update(file.read())
                    continue
                header = struct.unpack("<Q", file.read(8))[0] if path.suffix == ".safetensors" else 0
                digest.update(str(size).encode() + file.read(min(header, HASHED_WHOLE)))
                for k in range(SAMPLES):
                    file.seek((size - 4096) * k // (SAMPLES - 1))
                    digest.update(file.read(4096))
        return digest.hexdigest()[:12]


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file's tensors, or those of an index, without reading them.

    Raises `CheckpointError` for what is truncated or no such file.
    """
    found: dict[str, tuple[int, ...]] = {}
    part = path
    try:
        for part in weights_files(path):
            if part.suffix == ".bin":
                found |= {name: tuple(value.shape) for name, value in read_pickled(part).items()}
            else:
                with safe_open(part, framework="pt") as file:
                    found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{part} is damaged or incomplete ({error}); fetch it again") from error
    return {name: shape for name, shape in found.items() if not name.endswith(IGNORED)}


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin` file by name, memory-mapped where it is a zip. Runs nothing that is in it.

    Raises `ValueError` where it holds anything but tensors, and what torch raises for a damaged file.
    """
    with path.open("rb") as file:
        mapped = file.read(4) == b"PK\3\4"  # torch 1.5 and older wrote another kind, which has to be read whole
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError:
        raise ValueError("it holds more than tensors, which is not read from strangers' files") from None
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise ValueError("it does not hold names and tensors alone")
    return values


def save(folder: Path, network: nn.Module, *, dtype: torch.dtype, name: str = WEIGHT_NAMES[0]) -> None:
    """Write a network and its `config.json` as the published folders hold them."""
    config: Config = network.config  # type: ignore[assignment]  # every network of ours has one
    write_json(folder / "config.json", config.to_dict())
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in network.state_dict().items()}
    with atomic_write(folder / f"{name}.safetensors") as partial:
        save_file(tensors, partial, metadata={"format": "pt"})


def _tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors, one by one. What was read of a mapped file counts as memory until the mapping is gone, so it is
    mapped anew every `MAPPED` bytes; whoever keeps a tensor keeps its mapping."""
    for part in weights_files(path):
        whole_anyway = part.suffix == ".bin" and not is_zipfile(part)  # as torch 1.5 and older wrote
        file, mapped = _mapping(part), 0
        for name in list(file):
            if mapped >= MAPPED and not whole_anyway:
                file, mapped = _mapping(part), 0
            value = file[name]()
            mapped += value.nbytes
            yield name, value


def _mapping(path: Path) -> dict[str, Callable[[], Tensor]]:
    """What reads each tensor of a file."""
    if path.suffix == ".bin":
        values = read_pickled(path)
        return {name: partial(values.__getitem__, name) for name in values}
    file = safe_open(path, framework="pt").__enter__()  # it is closed when the last tensor goes
    return {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118  # no mapping


def _compare(path: Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [f"missing {name}" for name in wanted if name not in found]
    wrong += [f"extra {name}" for name in found if name not in wanted]
    wrong += [
        f"misshapen {name} {found[name]}, not {shape}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    if wrong:
        raise CheckpointError(f"{path} does not hold this network's tensors: {'; '.join(wrong)}")
