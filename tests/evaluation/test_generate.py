"""Painting a run folder: kills, shards, failing captions and full disks; the pictures are always the same."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import closing
from itertools import zip_longest
from pathlib import Path

import pytest
import torch

from kandinsky22 import text2img
from kandinsky22.backends.estimate import estimate
from kandinsky22.backends.pool import LoadKandinsky
from kandinsky22.backends.run_folder import Shard
from kandinsky22.backends.run_painting import RunProgress
from kandinsky22.backends.run_state import failed, is_complete_png, logged
from kandinsky22.backends.work_units import UnitPainter
from kandinsky22.evaluation import captions
from kandinsky22.evaluation.captions import Captioned, Captions
from kandinsky22.evaluation.generate import generate, open_run
from kandinsky22.evaluation.manifest import Run
from kandinsky22.imaging.images import read_recipe
from kandinsky22.request import Request
from kandinsky22.request.events import Backend
from tests.backends.fakes import FakeBackend
from tests.evaluation.generate_program import BATCH, REQUEST

ROOT = Path(__file__).parents[2]
KILLS = 3  # during painting; runs/kill_evaluation.py kills the command itself fifty times


def captioned(*prompts: str) -> Captions:
    return Captions(tuple(Captioned(f"{k:03}", prompt) for k, prompt in enumerate(prompts)), "abc")


RINGS = captioned(*(f"ring {k}" for k in range(20)))


def run_of(backend: Backend | UnitPainter, folder: Path, captions: Captions = RINGS) -> Run:
    return open_run(backend, folder, captions, text2img(""))


def hashes(folder: Path) -> dict[str, str]:
    return {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "pictures").iterdir()}


def test_pictures_are_written_logged_and_carry_their_requests(tmp_path: Path) -> None:
    backend = UnitPainter(FakeBackend(tmp_path), 3)
    run = run_of(backend, tmp_path / "run")
    progress = list(generate(backend, run))
    assert progress[0] == RunProgress(0, 20, 0, None, None)
    assert [now.done for now in progress] == [*range(21)]
    assert progress[-1].seconds_left == 0 and progress[5].seconds_left > 0 and progress[5].rate > 0  # type: ignore[operator]
    log = logged(run)
    assert {name: record["sha256"] for name, record in log.items()} == hashes(run.folder)
    assert all(record["worker"] == os.getpid() and record["milliseconds"] >= 0 for record in log.values())
    assert read_recipe(run.picture(run.items[4])).request == run.work_unit(run.items[4:5]).requests["004"]
    assert sorted(path.name for path in run.folder.iterdir()) == [
        ".lock",
        "log-1-of-1.jsonl",
        "manifest.jsonl",
        "pictures",
        "run.json",
    ]
    assert list(generate(backend, run)) == [RunProgress(20, 20, 0, None, None)]


def test_a_backend_by_itself_paints_each_request_alone(tmp_path: Path) -> None:
    backend = FakeBackend(tmp_path)
    run = run_of(backend, tmp_path / "run")
    assert run.batch == 1 and run.template.height == 64 and run.settings["dtype"] == "float32"
    assert list(generate(backend, run))[-1].done == 20
    assert len(backend.tried) == 20


def test_an_incomplete_picture_is_painted_again_with_its_work_unit(tmp_path: Path) -> None:
    backend = UnitPainter(FakeBackend(tmp_path), 3)
    run = run_of(backend, tmp_path / "run")
    list(generate(backend, run))
    before, log = hashes(run.folder), run.log(Shard())
    run.picture(run.items[4]).write_bytes(run.picture(run.items[4]).read_bytes()[:-1])
    run.picture(run.items[19]).unlink()
    (run.folder / "painting-1-of-1").mkdir()
    (run.folder / "painting-1-of-1" / ".000.png.1.part").write_text("torn")
    log.write_bytes(log.read_bytes()[:-9])
    assert [now.done for now in generate(backend, run)] == [15, 16, 17, 18, 19, 20]
    assert FakeBackend(tmp_path).tried[20:] == [f"ring {k}" for k in (3, 4, 5, 18, 19)]
    assert hashes(run.folder) == before == {name: record["sha256"] for name, record in logged(run).items()}
    assert not (run.folder / "painting-1-of-1").exists()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_caption_that_fails_is_tried_three_times_recorded_and_skipped(tmp_path: Path, batch: int) -> None:
    backend = UnitPainter(FakeBackend(tmp_path), batch)
    run = run_of(backend, tmp_path / "run", captioned("a", "poison", "c", "d", "e"))
    last = list(generate(backend, run))[-1]
    assert (last.done, last.total, last.failed, last.seconds_left) == (4, 5, 1, 0)
    assert failed(run) == {"001": {"id": "001", "error": "KeyError: 'poison'", "tries": 3}}
    assert FakeBackend(tmp_path).tried.count("poison") == 3
    assert list(generate(backend, run)) == [RunProgress(4, 5, 1, None, None)]
    assert FakeBackend(tmp_path).tried.count("poison") == 3
    list(generate(backend, run, retry=True))
    assert FakeBackend(tmp_path).tried.count("poison") == 6


def test_a_caption_that_succeeds_on_retry_is_no_longer_failed(tmp_path: Path) -> None:
    backend = UnitPainter(FakeBackend(tmp_path), 3)
    run = run_of(backend, tmp_path / "run", captioned("a", "poison", "c", "d", "e"))
    list(generate(backend, run))
    repaired = UnitPainter(FakeBackend(tmp_path, poison_fails=False), 3)
    never_failed = run_of(repaired, tmp_path / "never-failed", captioned("a", "poison", "c", "d", "e"))
    assert list(generate(repaired, run, retry=True))[-1].failed == 0
    list(generate(repaired, never_failed))
    assert failed(run) == {} and hashes(run.folder) == hashes(never_failed.folder)


def test_stopping_between_failures_changes_no_picture_and_no_failure(tmp_path: Path) -> None:
    """The work unit is painted again as one batch, however many of its pictures exist."""
    backend, captions = UnitPainter(FakeBackend(tmp_path), 3), captioned("a", "poison", "c", "d", "e")
    complete, stopped = (run_of(backend, tmp_path / name, captions) for name in ("complete", "stopped"))
    list(generate(backend, complete))
    for count in range(1, 5):
        with closing(generate(backend, stopped)) as progress:
            for _ in zip(range(count + 1), progress, strict=False):
                pass
    list(generate(backend, stopped))
    assert hashes(stopped.folder) == hashes(complete.folder)
    assert failed(stopped) == failed(complete)


def test_ten_failures_in_a_row_stop_the_run_and_are_not_recorded(tmp_path: Path) -> None:
    backend = UnitPainter(FakeBackend(tmp_path))
    run = run_of(backend, tmp_path / "run", captioned("a", *(f"poison {k}" for k in range(11))))
    with pytest.raises(ValueError, match="10 captions in a row failed, the last because: KeyError: 'poison'"):
        list(generate(backend, run))
    assert failed(run) == {} and len(hashes(run.folder)) == 1


def test_shards_in_parallel_paint_the_pictures_of_one_run(tmp_path: Path) -> None:
    backend = UnitPainter(FakeBackend(tmp_path), 3)
    alone, sharded = (run_of(backend, tmp_path / name) for name in ("alone", "sharded"))
    list(generate(backend, alone))
    first, second = (generate(backend, sharded, shard=Shard(number, 2)) for number in (1, 2))
    progress = list(zip_longest(first, second))
    assert (progress[11][0].total, progress[8][1].total) == (11, 9)
    assert hashes(sharded.folder) == hashes(alone.folder)
    assert sorted(path.name for path in sharded.folder.glob("log*")) == ["log-1-of-2.jsonl", "log-2-of-2.jsonl"]
    assert next(generate(backend, sharded)).done == 20


def test_a_shard_is_locked_while_it_is_painted(tmp_path: Path) -> None:
    backend = UnitPainter(FakeBackend(tmp_path), 3)
    run = run_of(backend, tmp_path / "run")
    with closing(generate(backend, run, shard=Shard(1, 2))) as first:
        next(first)
        with pytest.raises(OSError, match="another process is painting shard 1/2"):
            next(generate(backend, run, shard=Shard(1, 2)))
        list(generate(backend, run, shard=Shard(2, 2)))
    list(generate(backend, run, shard=Shard(1, 2)))


def test_a_run_refuses_other_settings_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = UnitPainter(FakeBackend(tmp_path), 3)
    run = run_of(backend, tmp_path / "run")
    with pytest.raises(ValueError, match=r"request\.decoder\.steps 2, and now it is 9"):
        open_run(backend, tmp_path / "run", RINGS, text2img("", num_inference_steps=9))
    with pytest.raises(ValueError, match="created with batch 3, and now it is 1"):
        next(generate(FakeBackend(tmp_path), run))
    monkeypatch.setitem(run.settings, "weights", {"unet": "another"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"created with weights .*another.*, and this picture was painted with .*abc"):
        list(generate(backend, run))
    assert hashes(run.folder) == {}


def test_estimates_extrapolate_disk_and_time_from_painted_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = UnitPainter(FakeBackend(tmp_path), 3)
    run = run_of(backend, tmp_path / "run")
    before = estimate(run)
    assert (before.pictures, before.calls, before.bytes) == (20, 40, 20 * (64 * 64 * 3 + 4096))
    assert before.seconds is None
    list(generate(backend, run, max_units=2))
    after = estimate(run, Shard(1, 2), processes=2)
    sizes = [path.stat().st_size for path in run.pictures.iterdir()]
    assert after.pictures == 8 and after.bytes == round(8 * sum(sizes) / 6)
    assert after.seconds == pytest.approx(sum(r["milliseconds"] for r in logged(run).values()) / 6 / 1000 * 8 / 2)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 999))
    with pytest.raises(
        ValueError, match=r"14 pictures need about .* GB and 9.99e-07 GB of the disk are free; make room"
    ):
        next(generate(backend, run))


def test_a_run_stops_as_soon_as_too_many_captions_have_failed(tmp_path: Path) -> None:
    backend = UnitPainter(FakeBackend(tmp_path))
    run = run_of(backend, tmp_path / "run", captioned("a", "poison 1", "b", "poison 2", "c", "d"))
    message = (
        r"2 of 6 captions failed, and the numbers need 5 pictures; see failed-\*\.jsonl in .*, then try these again"
    )
    with pytest.raises(ValueError, match=message):
        list(generate(backend, run, least=5))
    assert FakeBackend(tmp_path).tried[-1] == "c"  # the first after the second failure, and no other
    with pytest.raises(ValueError, match=message):
        next(generate(backend, run, least=5))
    progress = list(generate(backend, run, least=4))
    assert progress[-1].done == 4
    with pytest.raises(ValueError, match=message):
        list(generate(backend, run, least=5, retry=True))  # all failures are tried again first


def test_a_damaged_log_line_is_named(tmp_path: Path) -> None:
    backend = UnitPainter(FakeBackend(tmp_path), 3)
    run = run_of(backend, tmp_path / "run", captioned("a", "poison", "b", "c"))
    list(generate(backend, run))
    for damaged in (b"nonsense\n", b"[]\n", b"{}\n"):
        path = run.failures(Shard())
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + damaged)
        with pytest.raises(
            ValueError, match=r"failed-1-of-1\.jsonl, line 2, is damaged; remove that line and run again"
        ):
            failed(run)


def test_the_template_is_checked_before_anything_is_written(tmp_path: Path) -> None:
    def refuse(template: Request) -> None:
        raise ValueError(f"{template.height} will not do")

    with pytest.raises(ValueError, match="64 will not do"):
        open_run(UnitPainter(FakeBackend(tmp_path)), tmp_path / "run", RINGS, text2img(""), check=refuse)
    assert not (tmp_path / "run").exists()


def test_a_missing_or_short_file_is_no_complete_png(tmp_path: Path) -> None:
    assert not is_complete_png(tmp_path / "missing.png")
    (tmp_path / "short.png").write_bytes(b"\x89PNG")
    assert not is_complete_png(tmp_path / "short.png")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As the program has; the number of threads changes how sums are rounded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_run_killed_at_random_ends_with_the_same_pictures(tiny_model: Path, tmp_path: Path, one_thread: None) -> None:
    """kill -9 of the program while it paints or writes; its worker processes end with it."""
    captions_file = tmp_path / "captions.csv"
    captions_file.write_text("id,caption\n" + "".join(f"{k:03},a red circle and {k} stars\n" for k in range(24)))
    unbroken = UnitPainter(LoadKandinsky(str(tiny_model))(), BATCH)
    complete = open_run(unbroken, tmp_path / "complete", captions.read(captions_file), REQUEST)
    list(generate(unbroken, complete))

    rng, folder = random.Random(time.time_ns()), tmp_path / "killed"
    program = [sys.executable, "-m", "tests.evaluation.generate_program", tiny_model, captions_file, folder, "1/1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    kills = 0
    while kills < KILLS:
        with subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, text=True) as started:
            assert started.stdout is not None
            for _ in range(1 + rng.randrange(BATCH)):  # by then it may be complete
                started.stdout.readline()
            time.sleep(rng.uniform(0, 0.05))
            kills += started.poll() is None and len([*(folder / "pictures").glob("*.png")]) < 24
            started.kill()
        if len([*(folder / "pictures").glob("*.png")]) == 24:
            assert hashes(folder) == hashes(complete.folder)
            shutil.rmtree(folder)  # start over
    subprocess.run(program, env=environment, check=True, stdout=subprocess.DEVNULL)
    assert hashes(folder) == hashes(complete.folder)
    assert json.loads((folder / "run.json").read_text()) == json.loads((complete.folder / "run.json").read_text())
    assert {name: record["sha256"] for name, record in logged(complete).items()} == hashes(folder)
    assert len(hashes(folder)) == 24


def test_a_folder_removed_amid_painting_is_noticed(tmp_path: Path) -> None:
    backend = FakeBackend(tmp_path)
    run = run_of(backend, tmp_path / "run")
    with closing(generate(backend, run)) as progress:
        next(progress)
        next(progress)
        run.folder.rename(tmp_path / "elsewhere")
        with pytest.raises(OSError, match="run was removed or replaced while it was in use; give the command again"):
            list(progress)
    assert not run.folder.exists()
