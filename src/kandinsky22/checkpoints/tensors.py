"""Files of tensors as bytes: their headers, one tensor after another, in another dtype. Nothing is held whole.

The format is safetensors (https://github.com/huggingface/safetensors#format): a length in eight bytes, a header in JSON, and
the tensors' bytes. torch is imported for pickled files and other dtypes alone.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from kandinsky22.checkpoints import catalog
from kandinsky22.checkpoints.about import CheckpointError

SUFFIX = ".safetensors"
CHUNK = 1 << 24
SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
FLOATS = ("F64", "F32", "BF16", "F16")
TORCH_NAMES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16", "int64": "I64"}
METADATA = "__metadata__"
Read = Callable[[str], Iterable[bytes]]


class Entry(NamedTuple):
    """A tensor as a header has it; from begin to end among the bytes of its file's tensors."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def bytes(self) -> int:
        """How many it has."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Tensors:
    """A file of tensors as it is in a folder: at `place`, with `header`; `read` gives the bytes of each by its name."""

    place: str
    header: str
    read: Read

    @property
    def entries(self) -> list[Entry]:
        """Its tensors, in their order. Raises `ValueError` for what is no header."""
        return entries(self.header)

    def key(self, name: str) -> str:
        """What a tensor of it is called among all of a model's: `decoder.unet.conv_in.weight`."""
        return ".".join((*PurePosixPath(self.place).parent.parts, name))


def read_header(path: Path) -> tuple[str, int]:
    """A file's header as it stands there, and where the tensors' bytes begin. Raises `CheckpointError`."""
    try:
        with safe_open(path, framework="np"):  # the library checks names, shapes and offsets against the file's length
            pass
        with path.open("rb") as file:
            length: int = struct.unpack("<Q", file.read(8))[0]
            return file.read(length).decode(), 8 + length
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or incomplete ({error}); fetch it again") from error


def entries(header: str) -> list[Entry]:
    """The tensors that a header tells of, as they follow each other. Raises `ValueError` where they do not."""
    try:
        told = {name: of for name, of in json.loads(header).items() if name != METADATA}
        found = [Entry(name, of["dtype"], tuple(of["shape"]), *of["data_offsets"]) for name, of in told.items()]
        found.sort(key=lambda entry: (entry.begin, entry.end))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no header of tensors: {error}") from error
    if any(one.end != next_.begin for one, next_ in pairwise(found)) or (found and found[0].begin != 0):
        raise ValueError("its tensors do not follow each other")
    return found


def make_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> str:
    """A header for tensors in this order: name, dtype, shape and number of bytes of each."""
    listed = list(tensors)
    ends = accumulate((size for *_, size in listed), initial=0)
    told: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    for (name, dtype, shape, _), offsets in zip(listed, pairwise(ends), strict=True):
        told[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False)
    return text + " " * (-len(text.encode()) % 8)  # so that the numbers after it are aligned


def by_size(dtype: str) -> int:
    """Sorts tensors so that none lies across its own size: the widest numbers first."""
    return -SIZES.get(dtype, 1)


def write(to: IO[bytes], header: str, tensors: Iterable[tuple[Read, Entry]], wrote: Callable[[int], None]) -> None:
    """Write a file of tensors, telling `wrote` of every piece."""
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
                f"{entry.name} ended after {count} bytes of {entry.bytes}: its file was changed meanwhile"
            )


def on_disk(path: Path, place: str) -> Tensors:
    """A file of tensors, of either format; a pickled one as it would be in safetensors. Raises `CheckpointError`."""
    if path.suffix == SUFFIX:
        header, start = read_header(path)
        return Tensors(place, header, reader(path, start, {entry.name: entry for entry in entries(header)}))

    from kandinsky22.checkpoints.store import read_pickled, shapes

    shapes(path)  # says what is wrong with a file that is damaged
    tensors = read_pickled(path)
    listed = []
    for name, value in tensors.items():
        kind = str(value.dtype).removeprefix("torch.")
        if kind not in TORCH_NAMES:
            raise CheckpointError(f"{path}: {name} is {kind}, which no network of Kandinsky 2.2 has")
        listed.append((name, TORCH_NAMES[kind], tuple(value.shape), value.numel() * value.itemsize))
    listed.sort(key=lambda tensor: by_size(tensor[1]))
    return Tensors(place, make_header(listed, {"format": "pt"}), lambda name: [_bytes_of(tensors[name])])


def reader(path: Path, start: int, places: Mapping[str, Entry]) -> Read:
    """Gives the bytes of tensors by name from a file whose tensors' bytes begin at `start`."""

    def read(name: str) -> Iterator[bytes]:
        left = places[name].bytes
        with path.open("rb") as file:
            file.seek(start + places[name].begin)
            while left and (chunk := file.read(min(left, CHUNK))):
                left -= len(chunk)
                yield chunk

    return read


def in_dtype(file: Tensors, dtype: str) -> Tensors:
    """A network's file with its numbers in another dtype, such as "F16", as they are read; any other file as it is.

    Reading raises `ValueError` for numbers that are finite and would not be.
    """
    if not catalog.WEIGHTS_NAME.fullmatch(PurePosixPath(file.place).name):
        return file
    before = {entry.name: entry for entry in file.entries}
    listed = []
    for e in before.values():
        other = e.dtype in FLOATS
        listed.append(
            (e.name, dtype if other else e.dtype, e.shape, prod(e.shape) * SIZES[dtype] if other else e.bytes)
        )
    listed.sort(key=lambda tensor: by_size(tensor[1]))

    def read(name: str) -> Iterable[bytes]:
        entry = before[name]
        return file.read(name) if entry.dtype == dtype or entry.dtype not in FLOATS else [_recast(file, entry, dtype)]

    return Tensors(file.place, make_header(listed, json.loads(file.header).get(METADATA, {})), read)


def _recast(file: Tensors, entry: Entry, dtype: str) -> bytes:
    """The bytes of a tensor in another dtype."""
    import torch

    kinds = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    data = bytearray(b"".join(file.read(entry.name)))
    before = torch.frombuffer(data, dtype=kinds[entry.dtype]) if data else torch.empty(0)
    after = before.to(kinds[dtype])
    if not torch.equal(after.isfinite(), before.isfinite()):
        raise ValueError(f"{file.place}: {entry.name} has numbers that {dtype} cannot hold; use --dtype bfloat16")
    return _bytes_of(after)


def _bytes_of(tensor: Any) -> bytes:
    """The bytes of a tensor as they are stored."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
