"""Files of a network's weights: finding them, and reading their tensors one at a time.

The formats are safetensors and torch's pickled files, each as one file or as several with an index.
"""

import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from io import RawIOBase
from pathlib import Path
from pickle import UnpicklingError
from typing import BinaryIO
from zipfile import BadZipFile, ZipFile, ZipInfo, is_zipfile

import torch
from safetensors import SafetensorError
from torch import Tensor

from kandinsky22.checkpoints.dtypes import SAFETENSORS_NAMES
from kandinsky22.checkpoints.json_files import CheckpointError, read_text
from kandinsky22.checkpoints.safetensors_file import FLOATS, open_tensors
from kandinsky22.checkpoints.weight_names import WEIGHT_FILE, choose_weights
from kandinsky22.files import first_line, open_regular, parse_json

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
    index = parse_json(read_text(path))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    names = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    if not names or not all(WEIGHT_FILE.fullmatch(name) for name in names):
        raise ValueError("it does not say in which files beside it the tensors are")
    return [path.with_name(name) for name in names]


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a file, or in the files of an index, without reading them.

    Raises `CheckpointError` for a file that is truncated, no weight file, or has other than floating-point numbers.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    part = path
    try:
        for part in weight_files(path):
            if part.suffix == ".bin":
                tensors = read_pickled(part)
                shapes |= {name: tuple(value.shape) for name, value in tensors.items()}
                dtypes |= {name: str(value.dtype).removeprefix("torch.") for name, value in tensors.items()}
            else:
                with open_tensors(part) as file:
                    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  # no mapping
                    shapes |= {name: tuple(values.get_shape()) for name, values in slices.items()}
                    dtypes |= {name: values.get_dtype() for name, values in slices.items()}
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{part} is damaged or incomplete ({first_line(error)}); fetch it again") from error
    for name, dtype in dtypes.items():
        if SAFETENSORS_NAMES.get(dtype, dtype) not in FLOATS and not name.endswith(IGNORED):
            raise CheckpointError(f"{path} has {dtype} numbers in {name:.200}, and weights are floating-point numbers")
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

    Raises `ValueError` where it is damaged, contains anything but tensors, or has fewer bytes than its tensors.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        mapped = file.read(4) == b"PK\3\4"  # torch 1.5 and older wrote another format, which must be read at once
        if mapped:
            check_uncompressed(file, size)
    try:
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UnpicklingError:
        raise ValueError("it contains more than tensors, which is not read from untrusted files") from None
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(first_line(error)) from None
    if not isinstance(values, dict) or not all(
        isinstance(name, str) and type(value) is Tensor and value.layout == torch.strided
        for name, value in values.items()
    ):
        raise ValueError("it does not contain names and tensors alone")
    if sum(value.numel() * value.itemsize for value in values.values()) > size:
        raise ValueError("its tensors have more bytes than the file")
    return dict(values)


def check_uncompressed(file: BinaryIO | RawIOBase, size: int) -> None:
    """Raises `ValueError` unless a file of `size` bytes is a zip with entries of no more bytes altogether."""
    if sum(entry.file_size for entry in zip_entries(file)) > size:
        raise ValueError("it is compressed, as no weights are")


def zip_entries(file: BinaryIO | RawIOBase) -> list[ZipInfo]:
    """The entries of a zip file. Raises `ValueError` where it is none or damaged."""
    try:
        with ZipFile(file) as archive:
            return archive.infolist()
    except (BadZipFile, NotImplementedError, OverflowError, struct.error) as error:
        raise ValueError(first_line(error)) from error


def _map_file(path: Path) -> dict[str, Callable[[], Tensor]]:
    """A function for each tensor of a file that reads it."""
    if path.suffix == ".bin":
        values = read_pickled(path)
        return {name: partial(values.__getitem__, name) for name in values}
    file = open_tensors(path).__enter__()  # closed when its last tensor is freed
    return {name: partial(file.get_tensor, name) for name in file.keys()}  # noqa: SIM118  # no mapping
