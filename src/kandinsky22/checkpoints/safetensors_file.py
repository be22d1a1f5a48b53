"""safetensors files as streams of bytes: headers, and one tensor after another, also in another dtype.

No file is ever in memory as a whole. The format (https://github.com/huggingface/safetensors#format): a length in eight
bytes, a header in JSON, and the tensors' bytes. torch is imported only for pickled files and to change the dtype.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from kandinsky22.checkpoints.dtypes import BYTES, SAFETENSORS_NAMES, torch_dtype
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.weight_names import WEIGHT_FILE
from kandinsky22.files import first_line, parse_json, require_regular

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"
CHUNK = 1 << 24
FLOATS = ("F64", "F32", "BF16", "F16")
METADATA = "__metadata__"
Read = Callable[[str], Iterable[bytes]]


class TensorEntry(NamedTuple):
    """A tensor in a header: its bytes are `begin` to `end` of those of the file's tensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def bytes(self) -> int:
        """How many bytes the tensor has."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class TensorFile:
    """A file of tensors: its path in a model's folder, its header, and `read`, which gives a tensor's bytes by name."""

    path: str
    header: str
    read: Read

    @property
    def entries(self) -> list[TensorEntry]:
        """Its tensors, in the file's order. Raises `ValueError` for an invalid header."""
        return entries(self.header)

    def key(self, name: str) -> str:
        """The name of a tensor among all of a model's, such as `decoder.unet.conv_in.weight`."""
        return ".".join((*PurePosixPath(self.path).parent.parts, name))


def open_tensors(path: Path, framework: str = "pt") -> Any:
    """An open safetensors file, a context manager: `safe_open` for regular files alone.

    Raises `OSError`, `SafetensorError` for a damaged file, and `ValueError` for what is no regular file.
    """
    require_regular(path)
    return safe_open(path, framework)


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """All tensors of a small file, by name. Raises `OSError`, and `ValueError` for a damaged file."""
    try:
        with open_tensors(path) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except SafetensorError as error:
        raise ValueError(first_line(error)) from error


def read_header(path: Path) -> tuple[str, int]:
    """A file's header, as text, and where the tensors' bytes begin. Raises `CheckpointError`."""
    try:
        with open_tensors(path, "np"):  # the library checks names, shapes and offsets against the file's length
            pass
        with path.open("rb") as file:
            length: int = struct.unpack("<Q", file.read(8))[0]
            return file.read(length).decode(), 8 + length
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({first_line(error)}); fetch it again") from error


def entries(header: str) -> list[TensorEntry]:
    """The tensors of a header, in the order of their bytes. Raises `ValueError` where these are not contiguous."""
    try:
        values = {name: value for name, value in parse_json(header).items() if name != METADATA}
        listed = [
            TensorEntry(name, value["dtype"], tuple(value["shape"]), *value["data_offsets"])
            for name, value in values.items()
        ]
        listed.sort(key=lambda entry: (entry.begin, entry.end))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its header is invalid: {error}") from error
    if any(one.end != next_.begin for one, next_ in pairwise(listed)) or (listed and listed[0].begin != 0):
        raise ValueError("its tensors are not contiguous")
    return listed


def make_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> str:
    """A header for tensors in this order: name, dtype, shape and number of bytes of each."""
    listed = list(tensors)
    ends = accumulate((size for *_, size in listed), initial=0)
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    for (name, dtype, shape, _), offsets in zip(listed, pairwise(ends), strict=True):
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
    return text + " " * (-len(text.encode()) % 8)  # aligns the numbers after it


def sort_key(dtype: str) -> int:
    """Sorts tensors so that each is aligned to the size of its numbers: the largest numbers first."""
    return -BYTES.get(dtype, 1)


def write(
    to: IO[bytes], header: str, tensors: Iterable[tuple[Read, TensorEntry]], wrote: Callable[[int], None]
) -> None:
    """Write a file of tensors; calls `wrote` with the number of bytes of every chunk."""
    text = header.encode()
    to.write(struct.pack("<Q", len(text)) + text)
    for read, entry in tensors:
        count = 0
        for chunk in read(entry.name):
            to.write(chunk)
            count += len(chunk)
            wrote(len(chunk))
        if count != entry.bytes:
            raise CheckpointError(
                f"{entry.name} ended after {count} bytes of {entry.bytes}: its file changed while it was read"
            )


def open_file(path: Path, name: str) -> TensorFile:
    """A file of tensors on disk, to be called `name`; a pickled one as it would be in safetensors.

    Raises `CheckpointError`.
    """
    if path.suffix == SUFFIX:
        header, start = read_header(path)
        return TensorFile(name, header, reader(path, start, {entry.name: entry for entry in entries(header)}))

    from kandinsky22.checkpoints.weight_files import read_pickled, tensor_shapes

    tensor_shapes(path)  # says what is wrong with a damaged file
    tensors = read_pickled(path)
    listed = []
    for key, value in tensors.items():
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in SAFETENSORS_NAMES:
            raise CheckpointError(f"{path}: {key} is {dtype}, which no network of Kandinsky 2.2 has")
        listed.append((key, SAFETENSORS_NAMES[dtype], tuple(value.shape), value.numel() * value.itemsize))
    listed.sort(key=lambda tensor: sort_key(tensor[1]))
    return TensorFile(name, make_header(listed, {"format": "pt"}), lambda key: [tensor_bytes(tensors[key])])


def reader(path: Path, start: int, entries: Mapping[str, TensorEntry]) -> Read:
    """A function that reads a tensor's bytes by name, from a file whose tensors' bytes begin at `start`."""

    def read(name: str) -> Iterator[bytes]:
        left = entries[name].bytes
        with path.open("rb") as file:
            file.seek(start + entries[name].begin)
            while left and (chunk := file.read(min(left, CHUNK))):
                left -= len(chunk)
                yield chunk

    return read


def in_dtype(file: TensorFile, dtype: str) -> TensorFile:
    """A network's file whose floating-point numbers are converted to a dtype, such as "F16", as they are read.

    Any other file is returned unchanged. Reading raises `ValueError` for finite numbers that would become infinite.
    """
    if not WEIGHT_FILE.fullmatch(PurePosixPath(file.path).name):
        return file
    before = {entry.name: entry for entry in file.entries}
    listed = []
    for e in before.values():
        is_float = e.dtype in FLOATS
        size = prod(e.shape) * BYTES[dtype] if is_float else e.bytes
        listed.append((e.name, dtype if is_float else e.dtype, e.shape, size))
    listed.sort(key=lambda tensor: sort_key(tensor[1]))

    def read(name: str) -> Iterable[bytes]:
        entry = before[name]
        return file.read(name) if entry.dtype == dtype or entry.dtype not in FLOATS else [_convert(file, entry, dtype)]

    return TensorFile(file.path, make_header(listed, parse_json(file.header).get(METADATA, {})), read)


def _convert(file: TensorFile, entry: TensorEntry, dtype: str) -> bytes:
    """The bytes of a tensor, converted to another dtype."""
    import torch

    data = bytearray(b"".join(file.read(entry.name)))
    before = torch.frombuffer(data, dtype=torch_dtype(entry.dtype)) if data else torch.empty(0)
    after = before.to(torch_dtype(dtype))
    if not torch.equal(after.isfinite(), before.isfinite()):
        raise ValueError(f"{file.path}: {entry.name} has numbers that are too large for {dtype}; use --dtype bfloat16")
    return tensor_bytes(after)


def tensor_bytes(tensor: Any) -> bytes:
    """The bytes of a tensor, as safetensors stores them."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
