"""Hostile files, generated: pickles that run code, deep JSON, and files that declare more than they have."""

import io
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

DEEP_JSON = b"[" * 100_000 + b"]" * 100_000
DEEP_OBJECT = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
WRONG_JSON = (b"", b"{", b"[]", b"null", b'"text"', b"1e999", b"\xff\xfe{", DEEP_JSON, DEEP_OBJECT)
"""Texts that are no JSON object, or one that is nested too deeply."""


class Planted:
    """Creates the file `marker` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self.marker),)


def planted_pickle(marker: Path) -> bytes:
    """A pickle that creates a file."""
    return pickle.dumps({"weight": Planted(marker)}, protocol=2)


def planted_files(marker: Path) -> Mapping[str, bytes]:
    """The pickle in each container that some reader unpickles."""
    saved, array, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"weight": Planted(marker)}, saved)
    npy.write_array(array, np.array([Planted(marker)], dtype=object), allow_pickle=True)
    np.savez(archive, mu=np.array([Planted(marker)], dtype=object), sigma=np.array([Planted(marker)], dtype=object))
    return {
        "pickle": planted_pickle(marker),
        "torch": saved.getvalue(),
        "npy": array.getvalue(),
        "npz": archive.getvalue(),
    }


def planted_metadata(marker: Path, metadata: Metadata) -> Mapping[str, bytes]:
    """Metadata of a torch.distributed.checkpoint with the pickle, or with an entry that torch would unpickle."""
    with_object = pickle.loads(pickle.dumps(metadata))
    with_object.planner_data = Planted(marker)
    with_bytes = pickle.loads(pickle.dumps(metadata))
    name = next(iter(with_bytes.state_dict_metadata))
    with_bytes.state_dict_metadata[name] = BytesStorageMetadata()
    places = with_bytes.storage_data
    with_bytes.storage_data = {MetadataIndex(index.fqn): place for index, place in places.items()}
    return {
        "alone": planted_pickle(marker),
        "within": pickle.dumps(with_object),
        "as bytes": pickle.dumps(with_bytes),
    }


class Reduced:
    """When it is unpickled, what a function returns for arguments, with attributes changed."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def endless_metadata() -> Mapping[str, bytes]:
    """Some hundred bytes each that would take gigabytes, or years, to unpickle."""
    tuples: Any = ("a",)
    indices: Any = Reduced(MetadataIndex, ("a",))
    paths: Any = PurePosixPath("a")
    for number in range(60):
        tuples, paths = (tuples, tuples), Reduced(PurePosixPath, (paths, paths))
        indices = Reduced(MetadataIndex, (str(number),), {"fqn": indices, "offset": indices})
    values = {"tuples": tuples, "indices": indices, "paths": paths}
    as_keys = {name: b"\x80\x04}" + pickle.dumps(value, 4)[11:-1] + b"Ns." for name, value in values.items()}
    return as_keys | {"a number of 2^28 for an object": b"\x80\x02)r" + (2**28).to_bytes(4, "little") + b"."}


def pickled(tensor: torch.Tensor) -> bytes:
    """A `.bin` file of a tensor, which may be a view of fewer numbers."""
    saved = io.BytesIO()
    torch.save({"weight": tensor}, saved)
    return saved.getvalue()


def compressed(archive: bytes) -> bytes:
    """A zip file with its entries compressed, and so much smaller."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as before, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as after:
        for entry in before.infolist():
            after.writestr(entry.filename, before.read(entry))
    return packed.getvalue()


def array_header(shape: tuple[int, ...], dtype: str = "<f8") -> bytes:
    """An .npy file that declares a shape and has no numbers."""
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def npz(**arrays: bytes) -> bytes:
    """An .npz file of these .npy files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in arrays.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()
