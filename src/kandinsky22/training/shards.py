"""What is computed once from pictures, row by row, in memory-mapped files of a folder.

Every file says what it was computed from, so a computation that was stopped goes on where it was, and never with something
else. The index is written last. Several processes share the files out.
"""

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kandinsky22.files import atomic_write
from kandinsky22.training.processes import ALONE, Processes

INDEX = "index.json"
SHARD = re.compile(r"\d{5,}\.safetensors")
BATCH = 16  # rows that are computed at once

Compute = Callable[[range], Tensor]
"""Rows -> their values [n, ...], of any dtype and on any device."""
Progress = Callable[[int, int], None]
"""(how many rows are done, of how many) in this process"""


def computed(
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
    """The values of `count` rows, computed where they are not there yet. All processes must ask together.

    `fingerprint` names all that the values follow from. Raises `ValueError` as `fill` does.
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
        seal(folder, fingerprint, count)
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
    """Compute the shards rank::processes that are not there yet, `rows` rows each. `compute` is asked for at most 16 rows
    at a time, in order.

    Raises `ValueError` for a folder that holds anything computed from something else and for a damaged shard, and
    `FloatingPointError` for values that are not finite in `dtype`.
    """
    about = {"fingerprint": fingerprint, "count": str(count), "rows": str(rows), "dtype": str(dtype)}
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        if SHARD.fullmatch(path.name):
            _check(folder, about, _mapped(path)[1])
    mine = [range(start, min(start + rows, count)) for start in range(0, count, rows)][rank::processes]
    done, of = 0, sum(map(len, mine))
    for shard in mine:
        path = folder / _name(shard.start // rows)
        if not path.exists():
            parts = []
            for start in range(shard.start, shard.stop, BATCH):
                batch = range(start, min(start + BATCH, shard.stop))
                parts.append(_kept(compute(batch), batch, dtype))
                if progress is not None:
                    progress(done + batch.stop - shard.start, of)
            values = torch.cat(parts)
            with atomic_write(path) as partial:
                save_file({"values": values}, partial, {**about, "crc32": str(_crc32(values))})
        done += len(shard)
        if progress is not None:
            progress(done, of)


def seal(folder: Path, fingerprint: str, count: int) -> None:
    """Write the index, once every process has filled its shards. Raises `ValueError` where one is missing, damaged or of
    something else."""
    values, first = _mapped(folder / _name(0))
    _check(folder, {"fingerprint": fingerprint, "count": str(count)}, first)
    rows, checksums = int(first["rows"]), {}
    for number in range(-(-count // rows)):
        about = _mapped(folder / _name(number))[1]
        _check(folder, {key: first[key] for key in ("fingerprint", "count", "rows", "dtype")}, about)
        checksums[_name(number)] = int(about["crc32"])
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
    """Computed values of `len()` rows, each of `shape` and `dtype`; only what is asked for is read.

    Raises `ValueError` for a folder that is not complete, was computed from something else, or has a shard that is missing
    or of a wrong length.
    """

    def __init__(self, folder: Path, fingerprint: str, count: int) -> None:
        self.folder = folder
        index = self._index()
        _check(folder, {"fingerprint": fingerprint, "count": count}, index)
        self.count, self.rows = count, int(index["rows"])
        self.shape = torch.Size(index["shape"])
        self._checksums: dict[str, int] = index["crc32"]
        self._values = [_mapped(folder / name)[0] for name in self._checksums]
        for number, (name, values) in enumerate(zip(self._checksums, self._values, strict=True)):
            here = min(self.rows, count - number * self.rows)
            if values.shape != (here, *self.shape) or str(values.dtype) != index["dtype"]:
                raise _damaged(folder / name)

    @property
    def dtype(self) -> torch.dtype:
        """Of the values."""
        return self._values[0].dtype

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """Values [B, ...] of rows, int64 [B], in their order and as often as they are named; in memory of their own.

        Raises `IndexError` for rows that there are not.
        """
        if isinstance(rows, slice):
            rows = torch.arange(self.count)[rows]
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < self.count:
            raise IndexError(f"rows must be from 0 to {self.count - 1}, got {int(rows.min())} to {int(rows.max())}")
        found = torch.empty(len(rows), *self.shape, dtype=self.dtype)
        shards = rows // self.rows
        for number in shards.unique().tolist():
            here = shards == number
            found[here] = self._values[number][rows[here] - number * self.rows]
        return found

    def verify(self) -> None:
        """Read everything. Raises `ValueError` with the name of the first shard that is not as it was written."""
        for name, checksum in self._checksums.items():
            if _crc32(_mapped(self.folder / name)[0]) != checksum:
                raise _damaged(self.folder / name)

    def _index(self) -> dict[str, Any]:
        path = self.folder / INDEX
        try:
            index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return index
        except FileNotFoundError:
            raise ValueError(f"{self.folder} is not complete; compute the rest of it first") from None
        except ValueError as error:
            raise ValueError(f"{path} cannot be read; remove it, and it is written anew") from error


def _name(number: int) -> str:
    return f"{number:05}.safetensors"


def _kept(values: Tensor, batch: range, dtype: torch.dtype) -> Tensor:
    """Values as they are written. Lost or infinite ones would go unnoticed until something has learnt from them."""
    assert len(values) == len(batch)
    values = values.to("cpu", dtype).contiguous()
    if not values.isfinite().all():
        raise FloatingPointError(
            f"what was computed of rows {batch.start} to {batch.stop - 1} is not finite in {dtype}; compute it in float32"
        )
    return values


def _mapped(path: Path) -> tuple[Tensor, dict[str, str]]:
    """The values of a shard, which stay in the file until they are used, and what the file says of itself."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("values"), file.metadata() or {}
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; compute it again") from None
    except (OSError, SafetensorError) as error:
        raise _damaged(path) from error


def _check(folder: Path, mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Raises `ValueError` where a folder was computed from something else."""
    for key, value in mine.items():
        if theirs.get(key) != value:
            raise ValueError(
                f"{folder} was computed with {key} {theirs.get(key)}, and it is now {value}; remove the folder to compute it anew"
            )


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path} is damaged; remove this file, and it is computed again")


def _crc32(values: Tensor) -> int:
    return zlib.crc32(values.flatten().view(torch.uint8).numpy().data)
