"""Reading and writing the published folder layout.

A network is built on the meta device, so no memory is allocated before its weights arrive; its tensors are checked by
name and shape against the file's header before the first is read. A folder that is read is never written to.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kandinsky22.checkpoints.about import CheckpointError, read_json, write_json
from kandinsky22.files import whole
from kandinsky22.models.config import Config

N = TypeVar("N", bound=nn.Module)
C = TypeVar("C", bound=Config)

WEIGHT_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
IGNORED = ".position_ids"  # a constant that old files of CLIP hold
HASHED_WHOLE = 64 << 20  # bytes; of larger files, the fingerprint reads the header and samples
SAMPLES = 256


def weights_file(folder: Path) -> Path:
    """The weights in a network's folder: safetensors first, then the pickled kind, float32 before float16."""
    for suffix in (".safetensors", ".fp16.safetensors", ".bin"):
        for name in WEIGHT_NAMES:
            if (folder / (name + suffix)).is_file():
                return folder / (name + suffix)
    raise CheckpointError(
        f"{folder} has no weights; it should hold {WEIGHT_NAMES[0]}.safetensors or {WEIGHT_NAMES[1]}.safetensors"
    )


class Stored(Generic[N, C]):
    """A network in a folder: checked, not yet read.

    Raises `CheckpointError` for a configuration that is not this network's, and listing every tensor that is missing,
    extra or misshapen.
    """

    def __init__(self, folder: Path, network: Callable[[C], N], config: type[C]) -> None:
        self.folder = folder
        try:
            with torch.device("meta"):
                self.config = config.from_dict(read_json(folder / "config.json"))
                self._empty = network(self.config)
        except CheckpointError:
            raise
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
        self.path = weights_file(folder)
        wanted = {name: tuple(value.shape) for name, value in self._empty.state_dict().items()}
        _compare(self.path, wanted, shapes(self.path))

    def load(self, dtype: torch.dtype, device: torch.device) -> N:
        """The network, for inference. It may be called once."""
        with torch.inference_mode(False):  # else they could never be trained, whoever happened to need them first
            try:
                tensors = dict(_tensors(self.path))
            except (OSError, SafetensorError, RuntimeError, ValueError) as error:
                raise CheckpointError(f"{self.path} cannot be read ({error}); fetch it again") from error
            arrived = {name: tensors[name].to(device, dtype) for name in self._empty.state_dict()}
            self._empty.load_state_dict(arrived, assign=True)
        return self._empty.eval().requires_grad_(False)

    @property
    def elements(self) -> int:
        """How many numbers the network is."""
        return sum(value.numel() for value in self._empty.state_dict().values())

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that tell these weights from others.

        SHA-256 over the configuration and the file; of large files, over their header, size and evenly spread samples,
        so that five gigabytes cost no more than a blink.
        """
        digest = hashlib.sha256(json.dumps(read_json(self.folder / "config.json"), sort_keys=True).encode())
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            if size <= HASHED_WHOLE:
                digest.update(file.read())
            else:
                header = struct.unpack("<Q", file.read(8))[0] if self.path.suffix == ".safetensors" else 0
                digest.update(str(size).encode() + file.read(min(header, HASHED_WHOLE)))
                for k in range(SAMPLES):
                    file.seek((size - 4096) * k // (SAMPLES - 1))
                    digest.update(file.read(4096))
        return digest.hexdigest()[:12]


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a file's tensors, without reading them. Raises `CheckpointError` for a truncated file."""
    try:
        if path.suffix == ".bin":
            found = {name: tuple(value.shape) for name, value in _tensors(path)}
        else:
            with safe_open(path, framework="pt") as file:
                found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({error}); fetch it again") from error
    return {name: shape for name, shape in found.items() if not name.endswith(IGNORED)}


def save(folder: Path, network: nn.Module, *, dtype: torch.dtype, name: str = WEIGHT_NAMES[0]) -> None:
    """Write a network and its `config.json` as the published folders hold them."""
    config: Config = network.config  # type: ignore[assignment]  # every network of ours has one
    write_json(folder / "config.json", config.to_dict())
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in network.state_dict().items()}
    with whole(folder / f"{name}.safetensors") as partial:
        save_file(tensors, partial, metadata={"format": "pt"})


def cache() -> Path:
    """The user's cache for what is computed once; `KANDINSKY22_CACHE` moves it."""
    if chosen := os.environ.get("KANDINSKY22_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kandinsky22"


def _tensors(path: Path) -> list[tuple[str, Tensor]]:
    if path.suffix == ".bin":
        try:
            values = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except UnpicklingError:
            raise ValueError("it holds more than tensors, which is not read from strangers' files") from None
        if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
            raise ValueError("it does not hold names and tensors alone")
        return list(values.items())
    with safe_open(path, framework="pt") as file:
        return [(name, file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118  # no mapping


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
