"""Arrays in .npy files, which may come from anyone."""

from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from kandinsky22.files import atomic_write, first_line, open_regular


def write_rows(path: Path, shape: tuple[int, ...], rows: Iterable[np.ndarray]) -> None:
    """Write a uint8 array of this shape, row by row.

    Not by a memory map, since a process that writes to one on a full disk is killed. Raises `OSError`.
    """
    with atomic_write(path) as partial, partial.open("wb") as file:
        npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for row in rows:
            file.write(row.astype(np.uint8, copy=False).tobytes())


def map_rows(path: Path, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """A uint8 array, of this shape if one is given, mapped into memory; what is written to it does not change the file.

    Raises `ValueError` for any other file.
    """
    with open_regular(path) as file:
        found, dtype = read_header(file)
    if dtype != np.uint8 or (shape is not None and found != shape):
        raise ValueError(f"{path} has {dtype} {list(found)!s:.100}, not uint8 {'' if shape is None else list(shape)}")
    try:
        pixels: np.ndarray = np.load(path, mmap_mode="c")
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} is damaged: {first_line(error)}") from error
    return pixels


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and the dtype of the array in a file, which is read no further. Raises `ValueError`."""
    try:
        read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
    except Exception as error:  # a damaged header can raise anything
        raise ValueError(f"it is no array: {first_line(error)}") from error
    if not all(0 <= side < 2**63 for side in shape):
        raise ValueError("it is no array: its shape is out of range")
    return shape, dtype
