"""One network in a folder of the published layout: its configuration and its weights, read and written.

A network is built on the meta device, so no memory is allocated before its weights are read; its tensors are compared
by name and shape with the file's header before the first one is read. A folder that is read is never written to.
"""

import copy
import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kandinsky22.checkpoints.json_files import CheckpointError, read_json, summary, write_json
from kandinsky22.checkpoints.weight_files import (
    IGNORED,
    WEIGHT_NAMES,
    find_weights,
    iter_tensors,
    tensor_shapes,
    weight_files,
)
from kandinsky22.files import atomic_write, first_line
from kandinsky22.models.config import Config

N = TypeVar("N", bound=nn.Module)
C = TypeVar("C", bound=Config)
N_co = TypeVar("N_co", bound=nn.Module, covariant=True)
C_co = TypeVar("C_co", bound=Config, covariant=True)

MAX_HASHED_BYTES = 64 << 20  # of larger files, the fingerprint reads the header and samples
SAMPLES = 256
DTYPE_KEY = "dtype"  # of a configuration: what transformers from version 5 loads the network in; it identifies nothing
SPARE = 64  # tensors that a network may allocate beside those of its file
INITIALISERS = {Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_}


class NetworkSource(Protocol[N_co, C_co]):
    """Where a network comes from: a folder (`Stored`), or a part of a pipeline (`components.Part`)."""

    @property
    def config(self) -> C_co:
        """The network's configuration."""
        ...

    @property
    def outline(self) -> N_co:
        """The network, on the meta device or loaded: for its modules and the shapes of its parameters."""
        ...

    @property
    def elements(self) -> int:
        """How many numbers the network's parameters and buffers have."""
        ...

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that identify the weights."""
        ...

    def load(self, dtype: torch.dtype, device: torch.device) -> N_co:
        """The network with its weights, for inference."""
        ...


class Uninitialised(TorchFunctionMode):
    """Within this mode tensors are not filled with random numbers.

    On the meta device there is nothing to fill, and yet torch would spend over a second on imports for it. With a
    `limit`, `ValueError` is raised once so many tensors were allocated.
    """

    def __init__(self, limit: int | None = None) -> None:
        super().__init__()
        self.limit, self.allocated = limit, 0

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in INITIALISERS:
            return args[0] if args else (kwargs or {})["tensor"]
        if function is torch.empty and self.limit is not None:
            self.allocated += 1
            if self.allocated > self.limit:
                raise ValueError(f"this network has more tensors than its file, which has {self.limit}")
        return function(*args, **(kwargs or {}))


def read_config(path: Path, kind: type[C]) -> C:
    """The configuration in a file. Raises `CheckpointError`."""
    values = read_json(path)
    try:
        return kind.from_dict(values)
    except (ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: {first_line(error)}") from error


class Stored(Generic[N, C]):
    """A network in a folder: checked, not yet read.

    variant: such as "fp16", the copy of the weights to prefer. Raises `CheckpointError` for a configuration that is not
    this network's, and naming the first tensors that are missing, extra or of another shape.
    """

    def __init__(self, folder: Path, network: Callable[[C], N], config: type[C], variant: str | None = None) -> None:
        self.folder = folder
        self.config = read_config(folder / "config.json", config)
        self.path = find_weights(folder, variant)
        shapes = tensor_shapes(self.path)
        if self.config.depth > len(shapes):
            raise CheckpointError(
                f"{folder / 'config.json'} describes {self.config.depth} layers, and {self.path.name} has "
                f"{len(shapes)} tensors; the folder holds parts of two models"
            )
        try:
            with torch.device("meta"), Uninitialised(limit=len(shapes) + SPARE):
                self.outline: N = network(self.config)  # without its weights
        except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError) as error:
            raise CheckpointError(f"{folder / 'config.json'}: {first_line(error)}") from error
        expected = {name: tuple(value.shape) for name, value in self.outline.state_dict().items()}
        _compare_shapes(self.path, expected, shapes)

    def load(self, dtype: torch.dtype, device: torch.device) -> N:
        """The network, for inference; read from the file at each call.

        Raises `CheckpointError` for damaged weights, and for numbers that are too large for the dtype.

        Beside the network itself, only some `MAPPED` bytes of the file are in memory at a time; numbers that keep their
        dtype, on a CPU, stay in the file until they are used.
        """
        with torch.inference_mode(False):  # weights loaded in inference mode could never be trained
            network, weights = copy.deepcopy(self.outline), {}
            try:
                for name, value in iter_tensors(self.path):
                    self._check_numbers(name, value, dtype)
                    weights[name] = value.to(device, dtype)
            except CheckpointError:
                raise
            except (OSError, SafetensorError, RuntimeError, ValueError) as error:
                raise CheckpointError(f"{self.path} cannot be read ({first_line(error)}); fetch it again") from error
            network.load_state_dict({name: weights[name] for name in network.state_dict()}, assign=True)
        return network.eval().requires_grad_(False)

    def _check_numbers(self, name: str, value: Tensor, dtype: torch.dtype) -> None:
        """Raises `ValueError` for numbers that are not finite, and `CheckpointError` where they are not in `dtype`."""
        if not value.numel():
            return
        extremes = value.aminmax()  # all numbers are finite if these are: one pass and no memory
        if not all(extreme.isfinite() for extreme in extremes):
            raise ValueError(f"{name} has numbers that are not finite")
        if not all(extreme.to(dtype).isfinite() for extreme in extremes):
            short = str(dtype).removeprefix("torch.")
            raise CheckpointError(f"{self.path}: {name} has numbers too large for {short}; use --dtype float32")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first tensor in the file."""
        return next(value.dtype for name, value in iter_tensors(self.path) if not name.endswith(IGNORED))

    @cached_property
    def elements(self) -> int:
        """How many numbers the network's parameters and buffers have."""
        return sum(value.numel() for value in self.outline.state_dict().values())

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that identify these weights.

        SHA-256 over the configuration and the file; of large files, over their header, size and evenly spread samples,
        so that it takes no time for five gigabytes either.
        """
        config = {key: value for key, value in read_json(self.folder / "config.json").items() if key != DTYPE_KEY}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for path in [self.path, *weight_files(self.path)] if self.path.suffix == ".json" else [self.path]:
            size = path.stat().st_size
            with path.open("rb") as file:
                if size <= MAX_HASHED_BYTES:
                    digest.update(file.read())
                    continue
                header = struct.unpack("<Q", file.read(8))[0] if path.suffix == ".safetensors" else 0
                digest.update(str(size).encode() + file.read(min(header, MAX_HASHED_BYTES)))
                for k in range(SAMPLES):
                    file.seek((size - 4096) * k // (SAMPLES - 1))
                    digest.update(file.read(4096))
        return digest.hexdigest()[:12]


def save(folder: Path, network: nn.Module, *, dtype: torch.dtype, name: str = WEIGHT_NAMES[0]) -> None:
    """Write a network and its `config.json` in the published layout."""
    config: Config = network.config  # type: ignore[assignment]  # each of this package's networks has one
    values = config.to_dict()
    if "model_type" in values:  # of transformers, which would load it in the dtype of the file, unlike diffusers
        values[DTYPE_KEY] = "float32"
    write_json(folder / "config.json", values)
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in network.state_dict().items()}
    with atomic_write(folder / f"{name}.safetensors") as partial:
        save_file(tensors, partial, metadata={"format": "pt"})


def _compare_shapes(path: Path, expected: Mapping[str, tuple[int, ...]], actual: Mapping[str, tuple[int, ...]]) -> None:
    wrong = [f"missing {name}" for name in expected if name not in actual]
    wrong += [f"extra {name}" for name in actual if name not in expected]
    wrong += [
        f"misshapen {name} {actual[name]}, not {shape}"
        for name, shape in expected.items()
        if actual.get(name, shape) != shape
    ]
    if wrong:
        raise CheckpointError(f"{path} does not contain this network's tensors: {summary(wrong)}")
