"""Reads checkpoints of torch.distributed.checkpoint that may come from anyone: no code in them is run.

Torch unpickles a checkpoint's metadata, and every entry that is no tensor, without any restriction. Here the metadata
may consist of the classes that describe tensors alone, and must describe tensors in files of the checkpoint's folder.
A tensor may not be compressed: some bytes would become gigabytes.
"""

import io
import pathlib
import pickle
import pickletools
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import NoneType
from typing import IO, Any, BinaryIO

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta, TensorStorageMetadata

from kandinsky22.checkpoints.weight_files import check_uncompressed
from kandinsky22.files import first_line, open_regular, require_regular

FILE = ".metadata"
MAX_BYTES = 1 << 28  # of the metadata: half a million tensors
DESCRIBING = (
    metadata.Metadata,
    metadata.TensorStorageMetadata,
    metadata.TensorProperties,
    metadata.ChunkStorageMetadata,
    metadata.StorageMeta,
    metadata._MEM_FORMAT_ENCODING,
    filesystem._StorageInfo,
    torch.Size,
    torch.serialization._get_layout,
)


def _no_path(*_: str) -> None:
    """In place of a path: joined to itself again and again, it would take all memory."""


class _Index(MetadataIndex):
    """The key of a tensor in a pickle. Hashing one that contains others, each of them twice, would take for ever."""

    def __hash__(self) -> int:
        if (
            type(self.fqn) is not str
            or type(self.offset) not in (torch.Size, NoneType)
            or type(self.index) not in (int, NoneType)
        ):
            raise ValueError("its metadata describes something other than tensors")
        return super().__hash__()


ALLOWED: Mapping[tuple[str, str], Any] = {
    **{(known.__module__, known.__qualname__): known for known in DESCRIBING},
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    (metadata.__name__, MetadataIndex.__qualname__): _Index,
    # Where it was written: the path is not used, and those of other systems cannot be made on this one.
    **{(module, name): _no_path for module in ("pathlib", "pathlib._local") for name in pathlib.__all__},
}
"""What metadata may name: (module, name) -> what is used for it."""
REPEATED = ("BINUNICODE", "SHORT_BINUNICODE", "GLOBAL", "STACK_GLOBAL", "REDUCE")
"""The operations of a pickle whose results it may contain several times: names, classes, and what they describe."""


class CheckpointReader(FileSystemReader):
    """Reads the checkpoint in a folder. Raises `ValueError` for metadata that describes anything but its tensors."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The description of the checkpoint's tensors."""
        self.described.storage_meta = StorageMeta(load_id=self.load_id)
        return self.described

    @cached_property
    def described(self) -> Metadata:
        """What `read_metadata` returns, read once."""
        folder = Path(self.path)
        with open_regular(folder / FILE, MAX_BYTES) as file:
            described = _unpickle(file)
        _check(described, folder)
        places = described.storage_data.items()
        described.storage_data = {MetadataIndex(key.fqn, key.offset, key.index): place for key, place in places}
        return described

    def _slice_file(self, file: IO[bytes], sinfo: Any) -> IO[bytes]:
        """The part of a file that is one tensor, which torch would also unpack."""
        check_uncompressed(_FilePart(file, sinfo.offset, sinfo.length), sinfo.length)
        return super()._slice_file(file, sinfo)


class _FilePart(io.RawIOBase):
    """Some bytes of an open file, as a file: torch's own cannot seek from the end, as zips are read."""

    def __init__(self, file: IO[bytes], offset: int, length: int) -> None:
        self.file, self.offset, self.length, self.position = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        if position < 0:
            raise OSError("a position before the start of the file")
        self.position = position
        return position

    def readinto(self, buffer: Any, /) -> int:
        self.file.seek(self.offset + self.position)
        content = self.file.read(max(0, min(len(buffer), self.length - self.position)))
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """A class by its name, if metadata may name it."""
        if (module, name) not in ALLOWED:
            raise ValueError(f"its metadata names {module}.{name}, which does not describe tensors")
        return ALLOWED[module, name]


def _unpickle(file: BinaryIO) -> Metadata:
    content = file.read()
    try:
        _check_operations(content)
        described = _Unpickler(io.BytesIO(content)).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"its metadata cannot be read: {first_line(error)}") from None
    if not isinstance(described, Metadata):
        raise ValueError("its metadata does not describe tensors")
    return described


def _check_operations(content: bytes) -> None:
    """Raises `ValueError` for a pickle that would take more memory or time than its length explains.

    Such are one that declares more bytes than it has, that chooses the numbers of its objects, for each of which memory
    is reserved, and that contains a tuple twice, whose hash is computed as often.
    """
    made, previous = [], ""
    for operation, argument, _ in pickletools.genops(content):
        match operation.name:
            case "MEMOIZE":
                made.append(previous)
            case "GET" | "BINGET" | "LONG_BINGET" if made[int(str(argument))] in REPEATED:
                pass
            case "GET" | "BINGET" | "LONG_BINGET" | "PUT" | "BINPUT" | "LONG_BINPUT" | "DUP":
                raise ValueError("it contains objects several times")
        previous = operation.name


def _check(described: Metadata, folder: Path) -> None:
    """Raises `ValueError` unless everything described is a tensor, stored in files within the folder."""
    tensors, places = (getattr(described, name, None) for name in ("state_dict_metadata", "storage_data"))
    are_tensors = isinstance(tensors, dict) and all(type(one) is TensorStorageMetadata for one in tensors.values())
    if not are_tensors or not isinstance(places, dict):
        raise ValueError("its metadata describes something other than tensors")
    sizes: dict[str, int] = {}
    for index, place in places.items():
        if type(index) is not _Index or type(place) is not filesystem._StorageInfo:
            raise ValueError("its metadata describes something other than tensors")
        name, begin, length = (getattr(place, name, None) for name in ("relative_path", "offset", "length"))
        if getattr(place, "transform_descriptors", None):
            raise ValueError("its tensors are compressed, which this version does not write")
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"its metadata names a file outside its folder, {name!r:.100}")
        if name not in sizes:
            require_regular(folder / name)
            sizes[name] = (folder / name).stat().st_size
        if type(begin) is not int or type(length) is not int or min(begin, length, sizes[name] - begin - length) < 0:
            raise ValueError(f"{name} is incomplete")
