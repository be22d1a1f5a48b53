"""Files of a network's weights: finding them, and reading their tensors one at a time.

The formats are safetensors and torch's pickled files, each as one file or as several with an index.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.weight_names import WEIGHT_FILE, choose_weights

WEIGHT_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
IGNORED = ".position_ids"  # a constant in old files of CLIP
MAPPED = 128 << 20  # bytes of a file that are memory-mapped at a time while it is read


def find_weights(folder: Path, variant: str | None = None) -> Path:
    """The weights in a network's folder, or the index of the files that they are in; see `choose_weights`.

    Raises `CheckpointError` where there are none.
    """
    files = (path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else ()
    names = choose_weights(files, variant)
    if names:
        return folder / names[0]
    raise CheckpointError(
        f"{folder} has no weights; it should contain {WEIGHT_NAMES[0]}.safetensors or {WEIGHT_NAMES[1]}.safetensors"
    )


def weight_files(path: Path) -> list[Path]:
    """The files with the tensors of what `find_weights` found. Raises `ValueError` and `OSError` for a bad index."""
    if path.suffix != ".json":
        return [path]
    index = json.loads(path.read_text(encoding="utf-8"))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    if not names or not all(WEIGHT_FILE.fullmatch(name) for name in names):
        raise ValueError("it does not say in which files beside it the tensors are")
    return [path.with_name(name) for name in names]


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a file, or in the files of an index, without reading them.

    Raises `CheckpointError` for a file that is truncated or no weight file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    part = path
    try:
        for part in weight_files(path):
            if part.suffix == ".bin":
                shapes |= {name: tuple(value.shape) for name, value in read_pickled(part).items()}
            else:
                with safe_open(part, framework="pt") as file:
                    names = file.keys()
                    shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise CheckpointError(f"{part} is damaged or incomplete ({error}); fetch it again") from error
    return {name: shape for name, shape in shapes.items() if not name.endswith(IGNORED)}


def iter_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of a file, or of the files of an index, one by one.

    What was read of a mapped file counts as memory until it is unmapped, so the file is mapped again every `MAPPED`
    bytes; a tensor that the caller keeps keeps its mapping.
    """
    for part in weight_files(path):
        is_unmappable = part.suffix == ".bin" and not is_zipfile(part)  # as torch 1.5 and older wrote
        readers, mapped = _map_file(part), 0
        for name in list(readers):
            if mapped >= MAPPED and not is_unmappable:
                readers, mapped = _map_file(part), 0
            value = readers[name]()
            mapped += value.nbytes
            yield name, value


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin` file by name, memory-mapped where it is a zip. Runs no code from the file.

    Raises `ValueError` where it contains anything but tensors, and what torch raises for a damaged file.
    """
    with path.open("rb") as file:
        mapped = file.read(4) == b"PK\3\4"  # torch 1.5 and older wrote another format, which must be read at once
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError:
        raise ValueError("it contains more than tensors, which is not read from untrusted files") from None
    if not isinstance(values, dict) or not all(isinstance(value, Tensor) for value in values.values()):
        raise ValueError("it does not contain names and tensors alone")
    return values


def _map_file(path: Path) -> dict[str, Callable[[], Tensor]]:
    """A function for each tensor of a file that reads it."""
    if path.suffix == ".bin":
        values = read_pickled(path)
        return {name: partial(values.__getitem__, name) for name in values}
    file = safe_open(path, framework="pt").__enter__()  # closed when its last tensor is freed
    return {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118  # no mapping
