"""Values computed once from pictures, row by row, in memory-mapped files of a folder.

Every file states what it was computed from, so an interrupted computation continues where it stopped, and only with the
same inputs. The index is written last. Several processes compute different files.
"""

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kandinsky22.checkpoints.json_files import read_json
from kandinsky22.checkpoints.safetensors_file import open_tensors
from kandinsky22.files import atomic_write
from kandinsky22.training.processes import ALONE, Processes

INDEX = "index.json"
SHARD = re.compile(r"\d{5,}\.safetensors")
INDEX_TYPES = {"fingerprint": str, "count": int, "rows": int, "shape": list, "dtype": str, "crc32": dict}
BATCH = 16  # rows computed at once

Compute = Callable[[range], Tensor]
"""Rows -> their values [n, ...], of any dtype and on any device."""
Progress = Callable[[int, int], None]
"""(rows done, rows in all) in this process"""


def load_or_compute(
    folder: Path,
    fingerprint: str,
    count: int,
    compute: Compute,
    *,
    rows: int = 2048,
    dtype: torch.dtype = torch.float16,
    processes: Processes = ALONE,
    progress: Progress | None = None,
) -> "Shards":
    """The values of `count` rows, which are computed unless the folder has them. A collective call of all processes.

    `fingerprint` identifies all that the values depend on. Raises `ValueError` and `FloatingPointError` as `fill` does.
    """
    fill(
        folder,
        fingerprint,
        count,
        compute,
        rows=rows,
        dtype=dtype,
        rank=processes.rank,
        processes=processes.count,
        progress=progress,
    )
    processes.wait()
    if processes.first:
        write_index(folder, fingerprint, count)
    processes.wait()
    return Shards(folder, fingerprint, count)


@torch.no_grad()
def fill(
    folder: Path,
    fingerprint: str,
    count: int,
    compute: Compute,
    *,
    rows: int = 2048,
    dtype: torch.dtype = torch.float16,
    rank: int = 0,
    processes: int = 1,
    progress: Progress | None = None,
) -> None:
    """Compute the missing ones of the shards rank::processes, `rows` rows each; `compute` gets up to 16 rows, in order.

    Raises `ValueError` if the folder has a shard that is damaged or was computed from something else, and
    `FloatingPointError` for values that are not finite in `dtype`.
    """
    metadata = {"fingerprint": fingerprint, "count": str(count), "rows": str(rows), "dtype": str(dtype)}
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        if SHARD.fullmatch(path.name):
            _require_equal(folder, metadata, _open(path)[1])
    assigned = [range(start, min(start + rows, count)) for start in range(0, count, rows)][rank::processes]
    done, total = 0, sum(map(len, assigned))
    for shard in assigned:
        path = folder / _name(shard.start // rows)
        if not path.exists():
            parts = []
            for start in range(shard.start, shard.stop, BATCH):
                batch = range(start, min(start + BATCH, shard.stop))
                parts.append(_as_stored(compute(batch), batch, dtype))
                if progress is not None:
                    progress(done + batch.stop - shard.start, total)
            values = torch.cat(parts)
            with atomic_write(path) as partial:
                save_file({"values": values}, partial, {**metadata, "crc32": str(_crc32(values))})
        done += len(shard)
        if progress is not None:
            progress(done, total)


def write_index(folder: Path, fingerprint: str, count: int) -> None:
    """Write the index, after all processes have filled their shards.

    Raises `ValueError` if a shard is missing, damaged or was computed from something else.
    """
    values, first = _open(folder / _name(0))
    _require_equal(folder, {"fingerprint": fingerprint, "count": str(count)}, first)
    rows, checksums = max(1, _stated(folder / _name(0), first, "rows")), {}
    for number in range(-(-count // rows)):
        metadata = _open(folder / _name(number))[1]
        _require_equal(folder, {key: first.get(key) for key in ("fingerprint", "count", "rows", "dtype")}, metadata)
        checksums[_name(number)] = _stated(folder / _name(number), metadata, "crc32")
    index = {
        "fingerprint": fingerprint,
        "count": count,
        "rows": rows,
        "shape": [*values.shape[1:]],
        "dtype": str(values.dtype),
        "crc32": checksums,
    }
    with atomic_write(folder / INDEX) as partial:
        partial.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


class Shards:
    """Stored values of `len()` rows, each of `shape` and `dtype`; rows are read from disk when they are indexed.

    Raises `ValueError` for a folder that is incomplete, was computed from something else, or has a shard that is
    missing or of a wrong length.
    """

    def __init__(self, folder: Path, fingerprint: str, count: int) -> None:
        self.folder = folder
        index = self._index()
        _require_equal(folder, {"fingerprint": fingerprint, "count": count}, index)
        self.count, self.rows = count, int(index["rows"])
        self.shape = torch.Size(index["shape"])
        self._checksums: dict[str, int] = index["crc32"]
        self._values = [_open(folder / name)[0] for name in self._checksums]
        for number, (name, values) in enumerate(zip(self._checksums, self._values, strict=True)):
            length = min(self.rows, count - number * self.rows)
            if values.shape != (length, *self.shape) or str(values.dtype) != index["dtype"]:
                raise _damaged(folder / name)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self._values[0].dtype

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """A copy of the values [B, ...] of rows, int64 [B], in any order and with repetitions.

        Raises `IndexError` for rows out of range.
        """
        if isinstance(rows, slice):
            rows = torch.arange(self.count)[rows]
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.count:
            raise IndexError(f"rows must be from 0 to {self.count - 1}, got {int(rows.min())} to {int(rows.max())}")
        values = torch.empty(len(rows), *self.shape, dtype=self.dtype)
        shards = rows // self.rows
        for number in shards.unique().tolist():
            in_shard = shards == number
            values[in_shard] = self._values[number][rows[in_shard] - number * self.rows]
        return values

    def verify(self) -> None:
        """Read all shards. Raises `ValueError` with the name of the first one whose checksum is wrong."""
        for name, checksum in self._checksums.items():
            if _crc32(_open(self.folder / name)[0]) != checksum:
                raise _damaged(self.folder / name)

    def _index(self) -> dict[str, Any]:
        path = self.folder / INDEX
        if not path.exists():
            raise ValueError(f"{self.folder} is not complete; compute the rest of it first")
        try:
            index = read_json(path)
            if not all(isinstance(index.get(name), kind) for name, kind in INDEX_TYPES.items()) or index["rows"] < 1:
                raise ValueError("it is not the index of shards")
            if not all(type(size) is int for size in index["shape"]):
                raise ValueError("its shape is not one of tensors")
            names, shards = [*index["crc32"]], -(-index["count"] // index["rows"])
            if len(names) != shards or names != [_name(number) for number in range(shards)]:
                raise ValueError("its shards are not those of its rows")
        except ValueError as error:
            raise ValueError(f"{path} cannot be read; remove it, and it is written again") from error
        return index


def _name(number: int) -> str:
    return f"{number:05}.safetensors"


def _as_stored(values: Tensor, batch: range, dtype: torch.dtype) -> Tensor:
    """Values as they are written; NaN and infinity, which would go unnoticed while learning from them, are refused."""
    assert len(values) == len(batch)
    values = values.to("cpu", dtype).contiguous()
    if not values.isfinite().all():
        raise FloatingPointError(
            f"what was computed of rows {batch.start} to {batch.stop - 1} is not finite in {dtype}; "
            "compute it in float32"
        )
    return values


def _open(path: Path) -> tuple[Tensor, dict[str, str]]:
    """The memory-mapped values of a shard, and its metadata."""
    try:
        with open_tensors(path) as file:
            return file.get_tensor("values"), file.metadata() or {}
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; compute it again") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise _damaged(path) from error


def _stated(path: Path, metadata: dict[str, str], key: str) -> int:
    """A whole number in a shard's metadata. Raises `ValueError` where there is none."""
    value = metadata.get(key, "")
    if not (value.isascii() and value.isdecimal() and len(value) < 20):
        raise _damaged(path)
    return int(value)


def _require_equal(folder: Path, expected: dict[str, Any], metadata: dict[str, Any]) -> None:
    """Raises `ValueError` if a folder was computed from something else."""
    for key, value in expected.items():
        if metadata.get(key) != value:
            raise ValueError(
                f"{folder} was computed with {key} {metadata.get(key)}, and it is now {value}; remove the folder to "
                "compute it again"
            )


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path} is damaged; remove this file, and it is computed again")


def _crc32(values: Tensor) -> int:
    return zlib.crc32(values.flatten().view(torch.uint8).numpy().data)
