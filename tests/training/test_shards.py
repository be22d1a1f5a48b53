"""What is computed once: the right rows, from the right things, and a stopped computation goes on."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kandinsky22.training.shards import INDEX, Shards, computed, fill, seal

COUNT, ROWS = 100, 24


def squares(rows: range) -> Tensor:
    """[n, 2, 3] of which row i is i**2 in every place but one."""
    values = torch.tensor(rows, dtype=torch.float32)[:, None, None].expand(-1, 2, 3).clone() ** 2
    values[:, 1, 2] = torch.tensor(rows)
    return values


def of(rows: list[int]) -> Tensor:
    return torch.cat([squares(range(i, i + 1)) for i in rows])


def written(folder: Path, **options: int) -> Shards:
    return computed(folder, "a", COUNT, squares, rows=ROWS, dtype=torch.float32, **options)  # type: ignore[arg-type]


def test_rows_come_in_the_order_and_as_often_as_they_are_named(tmp_path: Path) -> None:
    shards = written(tmp_path)
    assert len(shards) == COUNT and shards.shape == (2, 3) and shards.dtype == torch.float32
    rows = [99, 0, 50, 50, 24, 23, 99, 1]
    assert torch.equal(shards[torch.tensor(rows)], of(rows))
    assert torch.equal(shards[20:50], of([*range(20, 50)])) and torch.equal(shards[-1:], of([99]))
    assert shards[:0].shape == shards[torch.tensor([], dtype=torch.int64)].shape == (0, 2, 3)
    for wrong in (-1, 100):
        with pytest.raises(IndexError, match="from 0 to 99"):
            shards[torch.tensor([wrong])]


def test_what_is_given_is_not_the_file(tmp_path: Path) -> None:
    shards = written(tmp_path)
    shards[:10].fill_(7)
    assert torch.equal(shards[:10], of([*range(10)]))


def test_batches_are_small_and_within_a_shard(tmp_path: Path) -> None:
    asked: list[range] = []
    steps: list[tuple[int, int]] = []
    computed(
        tmp_path,
        "a",
        COUNT,
        lambda rows: asked.append(rows) or squares(rows),
        rows=ROWS,
        progress=lambda *s: steps.append(s),
    )
    assert [i for rows in asked for i in rows] == [*range(COUNT)]
    assert all(len(rows) <= 16 and rows.start // ROWS == (rows.stop - 1) // ROWS for rows in asked)
    assert steps[-1] == (COUNT, COUNT) and steps == sorted(steps)


def test_values_are_kept_in_the_dtype_that_was_asked_for(tmp_path: Path) -> None:
    shards = computed(tmp_path, "a", COUNT, squares, rows=ROWS, dtype=torch.bfloat16)
    assert torch.equal(shards[:], of([*range(COUNT)]).bfloat16())
    shards.verify()


def test_a_stopped_computation_goes_on_where_it_was(tmp_path: Path) -> None:
    asked: list[int] = []

    def stopped(rows: range) -> Tensor:
        if rows.start >= 60:
            raise KeyboardInterrupt
        asked.extend(rows)
        return squares(rows)

    with pytest.raises(KeyboardInterrupt):
        computed(tmp_path, "a", COUNT, stopped, rows=ROWS, dtype=torch.float32)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.safetensors", "00001.safetensors"]
    with pytest.raises(ValueError, match="is not complete"):
        Shards(tmp_path, "a", COUNT)
    asked.clear()
    shards = computed(
        tmp_path, "a", COUNT, lambda rows: asked.extend(rows) or squares(rows), rows=ROWS, dtype=torch.float32
    )
    assert asked == [*range(2 * ROWS, COUNT)]
    assert torch.equal(shards[:], of([*range(COUNT)]))
    asked.clear()
    written(tmp_path)
    assert asked == []


def test_what_was_computed_from_something_else_is_refused(tmp_path: Path) -> None:
    """Also where it is not complete yet."""
    fill(tmp_path, "a", COUNT, squares, rows=ROWS, rank=1, processes=2)
    for other in (("b", COUNT, ROWS), ("a", COUNT + 1, ROWS), ("a", COUNT, ROWS + 1)):
        with pytest.raises(ValueError, match=rf"{tmp_path.name} was computed with .*remove the folder"):
            computed(tmp_path, *other[:2], squares, rows=other[2])
    with pytest.raises(ValueError, match=r"with dtype torch\.float16, and it is now torch\.float32"):
        written(tmp_path)
    computed(tmp_path, "a", COUNT, squares, rows=ROWS)
    for fingerprint, count in (("b", COUNT), ("a", COUNT + 1)):
        with pytest.raises(ValueError, match=rf"{tmp_path.name} was computed with .*remove the folder"):
            Shards(tmp_path, fingerprint, count)


def test_several_processes_share_the_shards_out(tmp_path: Path) -> None:
    asked: dict[int, list[int]] = {0: [], 1: []}
    for rank in (1, 0):
        if rank == 0:
            with pytest.raises(ValueError, match=r"00000\.safetensors is missing"):
                seal(tmp_path, "a", COUNT)
        fill(
            tmp_path,
            "a",
            COUNT,
            lambda rows, rank=rank: asked[rank].extend(rows) or squares(rows),
            rows=ROWS,
            dtype=torch.float32,
            rank=rank,
            processes=2,
        )
    assert asked[1] == [*range(24, 48), *range(72, 96)] and sorted(asked[0] + asked[1]) == [*range(COUNT)]
    seal(tmp_path, "a", COUNT)
    assert torch.equal(Shards(tmp_path, "a", COUNT)[:], of([*range(COUNT)]))


def test_a_damaged_shard_is_named_and_only_that_one_computed_again(tmp_path: Path) -> None:
    written(tmp_path).verify()
    second = tmp_path / "00001.safetensors"
    whole = second.read_bytes()
    for damaged in (whole[:-4], whole + b"0000", b""):
        second.write_bytes(damaged)
        for again in (lambda: Shards(tmp_path, "a", COUNT), lambda: written(tmp_path)):
            with pytest.raises(ValueError, match=r"00001\.safetensors is damaged; remove this file"):
                again()
    second.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    shards = Shards(tmp_path, "a", COUNT)
    with pytest.raises(ValueError, match=r"00001\.safetensors is damaged"):
        shards.verify()
    second.unlink()
    with pytest.raises(ValueError, match=r"00001\.safetensors is missing"):
        Shards(tmp_path, "a", COUNT)
    written(tmp_path).verify()


def test_the_index_says_what_is_there(tmp_path: Path) -> None:
    written(tmp_path)
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


def test_values_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"rows 16 to 31 is not finite in torch\.float16"):
        computed(tmp_path, "a", COUNT, lambda rows: squares(rows) * 100, rows=ROWS * 2)
    assert [*tmp_path.iterdir()] == []


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not say how much memory is held")
def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    """Two files of 32 MiB; rows of 32 KiB."""
    fill(tmp_path, "a", 2048, lambda rows: torch.ones(len(rows), 16, 1024), rows=1024)
    seal(tmp_path, "a", 2048)
    before = resident()
    shards = Shards(tmp_path, "a", 2048)
    assert torch.equal(shards[torch.tensor([1, 700, 2047])], torch.ones(3, 16, 1024).half())
    assert resident() - before < 8 << 20
