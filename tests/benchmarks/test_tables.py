"""The tables of the benchmark: medians, ratios, joined files, agreement, limits; timings are made up."""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import speed
import tables
from tables import ALLOCATOR, OURS, PLAIN, THEIRS


def record(row: str = "unet", dtype: str = "float32", date: str = "2026-01-01", **more: Any) -> tables.Record:
    """A row in which ours takes 2 seconds (the median of three), diffusers 5, and 4 with the allocator setting."""
    turns = {OURS: [9.0, 2.0, 1.0], THEIRS: [5.0], ALLOCATOR: [4.0]}
    about = {"date": date, "command": "python speed.py", "machine": "two cores", "software": "torch"}
    timed = {
        program: [{"seconds": s, "cpu": s / 2, "peak": s * 1e9} for s in values] for program, values in turns.items()
    }
    return {
        "row": row,
        "model": "full",
        "published_size": True,
        "dtype": dtype,
        "threads": 2,
        "side": 512,
        "steps": 10,
        "prior_steps": 25,
        "about": about,
        "turns": timed,
        "agreement": {},
        "limits": None,
        **more,
    }


def cells(text: str, start: str) -> list[str]:
    """The cells of the only table row that starts with this text."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_row_shows_the_ratio_of_medians_and_its_target() -> None:
    row = record(agreement={"rms": 2.5e-6})
    assert tables.ratio(row) == 2.5 and tables.ratio(row, ALLOCATOR) == 2.0
    line = cells(tables.markdown([row]), "U-Net step")
    assert line[3:] == ["2 (1-9, n=3)", "5", "**2.50x** ✓", "4", "2.00x", "2.50x", "2x (2.8x)", "rms 2.5e-06"]
    missed = cells(
        tables.markdown([record("movq", turns=row["turns"] | {THEIRS: [{"seconds": 4.9, "cpu": 1}]})]), "MoVQ"
    )
    assert missed[5] == "**2.45x** ✗" and missed[9] == "2.5x (4x)"


def test_row_of_another_model_has_no_target_and_may_be_incomplete() -> None:
    alone = record(published_size=False, turns={OURS: [{"seconds": 1.5, "cpu": 1.5}]})
    assert cells(tables.markdown([alone]), "U-Net step")[3:10] == ["1.5", "", "****", "", "", "", ""]


def test_read_joins_files_and_takes_the_later_measurement_of_a_row(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    later = record(date="2026-02-02", steps=10, threads=2)
    tables.save(first, [record(), record("movq"), record(threads=1)])
    tables.save(second, [later])
    for order in ([first, second], [second, first]):
        joined = tables.read(order)
        assert len(joined) == 3
        (again,) = [r for r in joined if r["row"] == "unet" and r["threads"] == 2]
        assert again == later
    first.write_text("no")
    with pytest.raises(ValueError, match=r"first\.json cannot be read as results"):
        tables.read([first])


def test_agreement_is_relative_rms_and_levels(tmp_path: Path) -> None:
    paths = {OURS: tmp_path / "ours", THEIRS: tmp_path / "theirs"}
    reference = tmp_path / "reference"
    exact = np.random.default_rng(0).standard_normal((4, 50)).astype(np.float32)
    assert tables.agreement(paths, reference) == {}
    for path, off in ((paths[OURS], 1.01), (paths[THEIRS], 1.02), (reference, 1.0)):
        save_file({"output": exact * np.float32(off)}, path)
    found = tables.agreement(paths, reference)
    assert found == {
        "rms": pytest.approx(0.01 / 1.02, rel=1e-3),
        "rms, ours": pytest.approx(0.01, rel=1e-3),
        "rms, theirs": pytest.approx(0.02, rel=1e-3),
    }
    assert tables.agreement(paths, paths[THEIRS]).keys() == {"rms"}  # float32 refers to nothing else
    save_file({"output": exact * np.float32(1.04)}, paths.setdefault(PLAIN, tmp_path / "plain"))
    found = tables.agreement(paths, paths[THEIRS])
    assert found["rms, plain"] == pytest.approx(0.03 / 1.04, rel=1e-3)
    assert tables.agreed(found) == "rms 9.8e-03; from the plain network 2.9e-02"
    del paths[PLAIN]
    for path, level in ((paths[OURS], 10), (paths[THEIRS], 12)):
        save_file({"levels": np.array([[level, 3.0]], dtype=np.float32)}, path)
    assert tables.agreement(paths, paths[THEIRS]) == {"levels max": 2, "levels mean": 1}


@pytest.mark.parametrize("wrong", [np.zeros(3), np.ones(4), np.array([1, np.nan, 1])])
def test_relative_rms_refuses_results_that_are_zero_or_not_finite_or_unequal_in_shape(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="alike, finite and not all zero"):
        tables.relative_rms(wrong, np.zeros(3) if wrong.any() else wrong)


def test_fast_preset_is_compared_with_fifty_steps_measured_or_extrapolated() -> None:
    def whole(steps: int, seconds: float) -> tables.Record:
        return record("whole", "bfloat16", steps=steps, turns={THEIRS: [{"seconds": seconds, "cpu": seconds}]})

    fast, step = record("fast"), record("unet", "bfloat16")
    assert tables.fast_lines([fast, whole(10, 60), step])[0][4:6] == [
        "260 (10 steps measured, the rest by the step)",
        "**130x** ✓",
    ]
    assert tables.fast_lines([fast, whole(10, 60), whole(50, 12), step])[0][4:6] == ["12 (measured)", "**6.00x** ✓"]
    assert tables.fast_lines([fast, whole(10, 60), record("unet")]) == []  # a float32 step does not count


def test_memory_row_shows_the_share_of_the_peak() -> None:
    line = cells(tables.markdown([record("memory", "bfloat16")]), "whole text to image")
    assert line[1:] == ["bfloat16", "2.00", "5.00", "**0.40** ✓", "0.5 (0.4)"]


def test_attainable_time_is_the_longer_of_computing_and_reading() -> None:
    peaks = {"operations": 100e9, "bytes": 10e9}
    computes = {"operations": 100e9, "winograd": 50e9, "bytes": 1e9, "peaks": peaks}
    reads = computes | {"bytes": 20e9}
    assert [tables.attainable(computes, count) for count in ("operations", "winograd")] == [1.0, 0.5]
    assert [tables.attainable(reads, count) for count in ("operations", "winograd")] == [2.0, 2.0]
    assert cells(tables.markdown([record(limits=computes)]).partition("| limit")[2], "U-Net")[5:] == [
        "1 (0.5)",
        "50% (25%)",
        "20%",
    ]


def test_speed_measures_a_turn_of_both_programs_end_to_end(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The driver, a worker of each program, the file of results, and its table; importing diffusers takes most of the
    time."""
    out = tmp_path / "out.json"
    chosen = ["--model", str(tiny_model), "--rows", "movq", "--repeat", "1", "--threads", "1", "--no-allocator"]
    assert speed.main([*chosen, "--json", str(out)]) == 0
    (saved,) = json.loads(out.read_text())
    assert {name: len(turns) for name, turns in saved["turns"].items()} == {OURS: 1, THEIRS: 1}
    assert 0 < saved["agreement"]["rms"] < 1e-5 and 0 <= saved["agreement"]["rms, plain"] < 1e-5
    assert saved["limits"]["operations"] > saved["limits"]["winograd"] > 0
    measured = capsys.readouterr().out
    assert speed.main(["table", str(out)]) == 0
    assert capsys.readouterr().out == measured and cells(measured.partition("| limit")[0], "MoVQ decode, 64 px")


@pytest.mark.parametrize("wrong", [["--rows", "unet,nothing"], ["--rows", "box", "--model", "elsewhere"]])
def test_speed_refuses_unknown_rows(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        speed.parsed(wrong)


def test_worker_that_fails_after_its_last_turn_raises(tmp_path: Path) -> None:
    """Its result is written after its last report, and may be missing."""
    script = "import sys; sys.stdin.readline(); print('{}', flush=True); sys.stdin.read(); sys.exit({})"
    with (tmp_path / "log").open("w") as log:
        for code in (0, 3):
            worker = speed.Worker([sys.executable, "-c", script.format("{}", code)], dict(os.environ), log, "end")
            with pytest.raises(RuntimeError, match="it ended with 3") if code else nullcontext(), worker:
                assert worker.turn() == {}
