"""Shards: rows are read as they were computed, other inputs are refused, and interrupted computations continue."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kandinsky22.training.shards import INDEX, Shards, fill, load_or_compute, write_index

COUNT, ROWS = 100, 24


def squares(rows: range) -> Tensor:
    """Values [n, 2, 3] whose row i is i**2, except i in one place."""
    values = torch.tensor(rows, dtype=torch.float32)[:, None, None].expand(-1, 2, 3).clone() ** 2
    values[:, 1, 2] = torch.tensor(rows)
    return values


def squares_of(rows: list[int]) -> Tensor:
    """`squares` of rows in any order."""
    return torch.cat([squares(range(i, i + 1)) for i in rows])


def compute_squares(folder: Path, **options: int) -> Shards:
    """Shards of `squares` in float32."""
    return load_or_compute(folder, "a", COUNT, squares, rows=ROWS, dtype=torch.float32, **options)  # type: ignore[arg-type]


def test_rows_are_read_in_any_order_and_with_repetitions(tmp_path: Path) -> None:
    shards = compute_squares(tmp_path)
    assert len(shards) == COUNT and shards.shape == (2, 3) and shards.dtype == torch.float32
    rows = [99, 0, 50, 50, 24, 23, 99, 1]
    assert torch.equal(shards[torch.tensor(rows)], squares_of(rows))
    assert torch.equal(shards[20:50], squares_of([*range(20, 50)])) and torch.equal(shards[-1:], squares_of([99]))
    assert shards[:0].shape == shards[torch.tensor([], dtype=torch.int64)].shape == (0, 2, 3)
    for wrong in (-1, 100):
        with pytest.raises(IndexError, match="from 0 to 99"):
            shards[torch.tensor([wrong])]


def test_values_read_are_a_copy(tmp_path: Path) -> None:
    shards = compute_squares(tmp_path)
    shards[:10].fill_(7)
    assert torch.equal(shards[:10], squares_of([*range(10)]))


def test_values_are_computed_in_small_batches_within_a_shard(tmp_path: Path) -> None:
    calls: list[range] = []
    steps: list[tuple[int, int]] = []
    load_or_compute(
        tmp_path,
        "a",
        COUNT,
        lambda rows: calls.append(rows) or squares(rows),
        rows=ROWS,
        progress=lambda *s: steps.append(s),
    )
    assert [i for rows in calls for i in rows] == [*range(COUNT)]
    assert all(len(rows) <= 16 and rows.start // ROWS == (rows.stop - 1) // ROWS for rows in calls)
    assert steps[-1] == (COUNT, COUNT) and steps == sorted(steps)


def test_values_are_stored_in_the_given_dtype(tmp_path: Path) -> None:
    shards = load_or_compute(tmp_path, "a", COUNT, squares, rows=ROWS, dtype=torch.bfloat16)
    assert torch.equal(shards[:], squares_of([*range(COUNT)]).bfloat16())
    shards.verify()


def test_interrupted_computation_continues_where_it_stopped(tmp_path: Path) -> None:
    calls: list[int] = []

    def interrupted(rows: range) -> Tensor:
        if rows.start >= 60:
            raise KeyboardInterrupt
        calls.extend(rows)
        return squares(rows)

    with pytest.raises(KeyboardInterrupt):
        load_or_compute(tmp_path, "a", COUNT, interrupted, rows=ROWS, dtype=torch.float32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.safetensors", "00001.safetensors"]
    with pytest.raises(ValueError, match="is not complete"):
        Shards(tmp_path, "a", COUNT)
    calls.clear()
    shards = load_or_compute(
        tmp_path, "a", COUNT, lambda rows: calls.extend(rows) or squares(rows), rows=ROWS, dtype=torch.float32
    )
    assert calls == [*range(2 * ROWS, COUNT)]
    assert torch.equal(shards[:], squares_of([*range(COUNT)]))
    calls.clear()
    compute_squares(tmp_path)
    assert calls == []


def test_values_computed_from_other_inputs_are_refused(tmp_path: Path) -> None:
    """Even if the folder is incomplete."""
    fill(tmp_path, "a", COUNT, squares, rows=ROWS, rank=1, processes=2)
    for other in (("b", COUNT, ROWS), ("a", COUNT + 1, ROWS), ("a", COUNT, ROWS + 1)):
        with pytest.raises(ValueError, match=rf"{tmp_path.name} was computed with .*remove the folder"):
            load_or_compute(tmp_path, *other[:2], squares, rows=other[2])
    with pytest.raises(ValueError, match=r"with dtype torch\.float16, and it is now torch\.float32"):
        compute_squares(tmp_path)
    load_or_compute(tmp_path, "a", COUNT, squares, rows=ROWS)
    for fingerprint, count in (("b", COUNT), ("a", COUNT + 1)):
        with pytest.raises(ValueError, match=rf"{tmp_path.name} was computed with .*remove the folder"):
            Shards(tmp_path, fingerprint, count)


def test_processes_compute_different_shards(tmp_path: Path) -> None:
    calls: dict[int, list[int]] = {0: [], 1: []}
    for rank in (1, 0):
        if rank == 0:
            with pytest.raises(ValueError, match=r"00000\.safetensors is missing"):
                write_index(tmp_path, "a", COUNT)
        fill(
            tmp_path,
            "a",
            COUNT,
            lambda rows, rank=rank: calls[rank].extend(rows) or squares(rows),
            rows=ROWS,
            dtype=torch.float32,
            rank=rank,
            processes=2,
        )
    assert calls[1] == [*range(24, 48), *range(72, 96)] and sorted(calls[0] + calls[1]) == [*range(COUNT)]
    write_index(tmp_path, "a", COUNT)
    assert torch.equal(Shards(tmp_path, "a", COUNT)[:], squares_of([*range(COUNT)]))


def test_damaged_shard_is_named_and_only_that_one_is_computed_again(tmp_path: Path) -> None:
    compute_squares(tmp_path).verify()
    second = tmp_path / "00001.safetensors"
    intact = second.read_bytes()
    for damaged in (intact[:-4], intact + b"0000", b""):
        second.write_bytes(damaged)
        for access in (lambda: Shards(tmp_path, "a", COUNT), lambda: compute_squares(tmp_path)):
            with pytest.raises(ValueError, match=r"00001\.safetensors is damaged; remove this file"):
                access()
    second.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    shards = Shards(tmp_path, "a", COUNT)
    with pytest.raises(ValueError, match=r"00001\.safetensors is damaged"):
        shards.verify()
    second.unlink()
    with pytest.raises(ValueError, match=r"00001\.safetensors is missing"):
        Shards(tmp_path, "a", COUNT)
    compute_squares(tmp_path).verify()


def test_index_describes_the_shards(tmp_path: Path) -> None:
    compute_squares(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    assert (index["fingerprint"], index["count"], index["shape"], index["dtype"]) == (
        "a",
        COUNT,
        [2, 3],
        "torch.float32",
    )
    assert [*index["crc32"]] == [f"{number:05}.safetensors" for number in range(5)]
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(ValueError, match="remove it"):
        Shards(tmp_path, "a", COUNT)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"rows 16 to 31 is not finite in torch\.float16"):
        load_or_compute(tmp_path, "a", COUNT, lambda rows: squares(rows) * 100, rows=ROWS * 2)
    assert [*tmp_path.iterdir()] == []


def resident() -> int:
    """The resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to measure resident memory")
def test_only_indexed_rows_are_read(tmp_path: Path) -> None:
    """Two files of 32 MiB; rows of 32 KiB."""
    fill(tmp_path, "a", 2048, lambda rows: torch.ones(len(rows), 16, 1024), rows=1024)
    write_index(tmp_path, "a", 2048)
    before = resident()
    shards = Shards(tmp_path, "a", 2048)
    assert torch.equal(shards[torch.tensor([1, 700, 2047])], torch.ones(3, 16, 1024).half())
    assert resident() - before < 8 << 20


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 0},
        {"rows": "24"},
        {"shape": 3},
        {"shape": [None]},
        {"count": 10**15, "rows": 1},
        {"crc32": {}},
        {"crc32": {"../secret.safetensors": 1}},
        {"dtype": None},
    ],
    ids=str,
)
def test_an_index_of_other_values_is_refused_with_its_file(tmp_path: Path, change: dict[str, object]) -> None:
    compute_squares(tmp_path)
    path = tmp_path / INDEX
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=f"{INDEX} cannot be read"):
        Shards(tmp_path, "a", COUNT)
