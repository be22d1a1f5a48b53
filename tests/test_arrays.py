"""Arrays that are written row by row, and mapped: one of another kind, or damaged, is refused."""

import io
from pathlib import Path

import numpy as np
import pytest

from kandinsky22.arrays import map_rows, read_header, write_rows

ROWS = np.arange(12, dtype=np.uint8).reshape(3, 4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_rows(tmp_path / "a.npy", ROWS.shape, ROWS)
    return tmp_path / "a.npy"


def test_rows_are_an_array_that_numpy_reads(path: Path) -> None:
    assert np.array_equal(np.load(path), ROWS) and np.load(path).dtype == np.uint8


def test_a_mapped_array_can_be_changed_without_its_file(path: Path) -> None:
    mapped = map_rows(path, (3, 4))
    assert np.array_equal(mapped, ROWS)
    mapped[0] = 9
    assert np.array_equal(map_rows(path), ROWS)


def test_arrays_of_other_shapes_and_dtypes_are_refused(path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.npy has uint8 \[3, 4\], not uint8 \[3, 5\]"):
        map_rows(path, (3, 5))
    np.save(path, ROWS.astype(np.float32))
    with pytest.raises(ValueError, match="has float32"):
        map_rows(path)


def test_damaged_arrays_are_refused(path: Path) -> None:
    content = path.read_bytes()
    unclosed = content.replace(b"(3, 4)", b"(3, 4 ")
    negative = content.replace(b"(3, 4)", b"(-3,4)")
    large = content.replace(b"(3, 4)", b"(3, 9)")
    for damaged in (b"", content[:20], content[:-1], unclosed, negative, large, b"PK\x03\x04" + content):
        path.write_bytes(damaged)
        with pytest.raises(ValueError):
            map_rows(path)


def test_the_header_alone_is_read(path: Path) -> None:
    with path.open("rb") as file:
        assert read_header(file) == ((3, 4), np.uint8)
    with pytest.raises(ValueError, match="it is no array"):
        read_header(io.BytesIO(b"\x93NUMPY\x01\x00\x10\x00{'a': (1,2"))
