"""Generation at scale: kills, shards, poison, full disks; the pictures are those of a run to which nothing happened."""

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
from kandinsky22.backends.local import Here
from kandinsky22.backends.pool import Loading
from kandinsky22.evaluation import captions
from kandinsky22.evaluation.captions import Captioned, Captions
from kandinsky22.evaluation.generate import Standing, begin, estimate, failed, generate, is_whole, logged
from kandinsky22.evaluation.manifest import Run, Shard
from kandinsky22.imaging.images import read_recipe
from kandinsky22.request import Request
from kandinsky22.request.events import Backend
from tests.backends.fakes import Obedient, Plain
from tests.evaluation.generate_program import BATCH, REQUEST

ROOT = Path(__file__).parents[2]
KILLS = 3  # amid painting; runs/kill_evaluation.py kills the command itself fifty times
PATIENCE = 240  # seconds; who takes longer hangs


def captioned(*prompts: str) -> Captions:
    return Captions(tuple(Captioned(f"{k:03}", prompt) for k, prompt in enumerate(prompts)), "abc")


RINGS = captioned(*(f"ring {k}" for k in range(20)))


def run_of(backend: Backend, folder: Path, said: Captions = RINGS) -> Run:
    return begin(backend, folder, said, text2img(""))


def hashes(folder: Path) -> dict[str, str]:
    return {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "pictures").iterdir()}


def test_pictures_are_written_logged_and_carry_their_requests(tmp_path: Path) -> None:
    painter = Here(Obedient(tmp_path), 3)
    run = run_of(painter, tmp_path / "run")
    standings = list(generate(painter, run))
    assert standings[0] == Standing(0, 20, 0, None, None)
    assert [standing.done for standing in standings] == [*range(21)]
    assert standings[-1].left == 0 and standings[5].left > 0 and standings[5].rate > 0  # type: ignore[operator]
    log = logged(run)
    assert {name: record["sha256"] for name, record in log.items()} == hashes(run.folder)
    assert all(record["worker"] == os.getpid() and record["milliseconds"] >= 0 for record in log.values())
    assert read_recipe(run.picture(run.items[4])).request == run.pack(run.items[4:5]).requests["004"]
    assert sorted(path.name for path in run.folder.iterdir()) == [
        ".lock",
        "log-1-of-1.jsonl",
        "manifest.jsonl",
        "pictures",
        "run.json",
    ]
    assert list(generate(painter, run)) == [Standing(20, 20, 0, None, None)]


def test_any_backend_will_do(tmp_path: Path) -> None:
    """One that can tell nothing beforehand paints one picture to be known by."""
    run = run_of(Plain(tmp_path), tmp_path / "run")
    assert run.batch == 1 and run.template.height == 64 and run.about["dtype"] == "float32"
    assert list(generate(Plain(tmp_path), run))[-1].done == 20
    assert len(Obedient(tmp_path).tried) == 21


def test_what_was_torn_is_painted_anew_with_its_pack(tmp_path: Path) -> None:
    painter = Here(Obedient(tmp_path), 3)
    run = run_of(painter, tmp_path / "run")
    list(generate(painter, run))
    before, log = hashes(run.folder), run.log(Shard())
    run.picture(run.items[4]).write_bytes(run.picture(run.items[4]).read_bytes()[:-1])
    run.picture(run.items[19]).unlink()
    (run.folder / "painting-1-of-1").mkdir()
    (run.folder / "painting-1-of-1" / ".000.png.1.part").write_text("torn")
    log.write_bytes(log.read_bytes()[:-9])
    assert [standing.done for standing in generate(painter, run)] == [15, 16, 17, 18, 19, 20]
    assert Obedient(tmp_path).tried[20:] == [f"ring {k}" for k in (3, 4, 5, 18, 19)]
    assert hashes(run.folder) == before == {name: record["sha256"] for name, record in logged(run).items()}
    assert not (run.folder / "painting-1-of-1").exists()


@pytest.mark.parametrize("batch", [1, 3])
def test_poison_is_tried_three_times_recorded_and_passed_over(tmp_path: Path, batch: int) -> None:
    painter = Here(Obedient(tmp_path), batch)
    run = run_of(painter, tmp_path / "run", captioned("a", "poison", "c", "d", "e"))
    last = list(generate(painter, run))[-1]
    assert (last.done, last.of, last.failed, last.left) == (4, 5, 1, 0)
    assert failed(run) == {"001": {"id": "001", "error": "KeyError: 'poison'", "tries": 3}}
    assert Obedient(tmp_path).tried.count("poison") == 3
    assert list(generate(painter, run)) == [Standing(4, 5, 1, None, None)]
    assert Obedient(tmp_path).tried.count("poison") == 3
    list(generate(painter, run, retry=True))
    assert Obedient(tmp_path).tried.count("poison") == 6


def test_what_was_cured_is_no_longer_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Here(Obedient(tmp_path), 3)
    run = run_of(painter, tmp_path / "run", captioned("a", "poison", "c", "d", "e"))
    list(generate(painter, run))
    monkeypatch.setattr(Obedient, "_obey", lambda *_: None)
    cured = run_of(painter, tmp_path / "cured", captioned("a", "poison", "c", "d", "e"))
    assert list(generate(painter, run, retry=True))[-1].failed == 0
    list(generate(painter, cured))
    assert failed(run) == {} and hashes(run.folder) == hashes(cured.folder)


def test_a_kill_amid_poison_changes_nothing(tmp_path: Path) -> None:
    """Whatever is there of the pack, it is painted as it was."""
    painter, said = Here(Obedient(tmp_path), 3), captioned("a", "poison", "c", "d", "e")
    whole, stopped = (run_of(painter, tmp_path / name, said) for name in ("whole", "stopped"))
    list(generate(painter, whole))
    for count in range(1, 5):
        with closing(generate(painter, stopped)) as standings:
            for _ in zip(range(count + 1), standings, strict=False):
                pass
    list(generate(painter, stopped))
    assert hashes(stopped.folder) == hashes(whole.folder)
    assert failed(stopped) == failed(whole)


def test_ten_failures_in_a_row_are_nobodys_fault(tmp_path: Path) -> None:
    painter = Here(Obedient(tmp_path))
    run = run_of(painter, tmp_path / "run", captioned("a", *(f"poison {k}" for k in range(11))))
    with pytest.raises(ValueError, match="10 captions in a row failed, the last because: KeyError: 'poison'"):
        list(generate(painter, run))
    assert failed(run) == {} and len(hashes(run.folder)) == 1


def test_shards_paint_side_by_side_what_one_run_paints(tmp_path: Path) -> None:
    painter = Here(Obedient(tmp_path), 3)
    alone, shared = (run_of(painter, tmp_path / name) for name in ("alone", "shared"))
    list(generate(painter, alone))
    first, second = (generate(painter, shared, shard=Shard(number, 2)) for number in (1, 2))
    standings = list(zip_longest(first, second))
    assert (standings[11][0].of, standings[8][1].of) == (11, 9)
    assert hashes(shared.folder) == hashes(alone.folder)
    assert sorted(path.name for path in shared.folder.glob("log*")) == ["log-1-of-2.jsonl", "log-2-of-2.jsonl"]
    assert next(generate(painter, shared)).done == 20


def test_a_shard_is_painted_by_one_process(tmp_path: Path) -> None:
    painter = Here(Obedient(tmp_path), 3)
    run = run_of(painter, tmp_path / "run")
    with closing(generate(painter, run, shard=Shard(1, 2))) as held:
        next(held)
        with pytest.raises(ValueError, match="another process is painting part 1/2"):
            next(generate(painter, run, shard=Shard(1, 2)))
        list(generate(painter, run, shard=Shard(2, 2)))
    list(generate(painter, run, shard=Shard(1, 2)))


def test_a_run_refuses_other_settings_and_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Here(Obedient(tmp_path), 3)
    run = run_of(painter, tmp_path / "run")
    with pytest.raises(ValueError, match=r"request\.decoder\.steps 3, and now it is 9"):
        begin(painter, tmp_path / "run", RINGS, text2img("", num_inference_steps=9))
    with pytest.raises(ValueError, match="begun with batch 3, and now it is 1"):
        next(generate(Obedient(tmp_path), run))
    monkeypatch.setitem(run.about, "weights", {"unet": "another"})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"begun with weights .*another.*, and this picture was painted with .*abc"):
        list(generate(painter, run))
    assert hashes(run.folder) == {}


def test_disk_and_time_are_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    painter = Here(Obedient(tmp_path), 3)
    run = run_of(painter, tmp_path / "run")
    before = estimate(run)
    assert (before.pictures, before.calls, before.bytes) == (20, 60, 20 * (64 * 64 * 3 + 4096))
    assert before.seconds is None
    list(generate(painter, run, packs=2))
    after = estimate(run, Shard(1, 2), processes=2)
    sizes = [path.stat().st_size for path in run.pictures.iterdir()]
    assert after.pictures == 8 and after.bytes == round(8 * sum(sizes) / 6)
    assert after.seconds == pytest.approx(sum(r["milliseconds"] for r in logged(run).values()) / 6 / 1000 * 8 / 2)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 999))
    with pytest.raises(
        ValueError, match=r"14 pictures need about .* GB and 9.99e-07 GB of the disk are free; make room"
    ):
        next(generate(painter, run))


def test_what_fails_is_noticed_as_soon_as_too_few_are_left(tmp_path: Path) -> None:
    painter = Here(Obedient(tmp_path))
    run = run_of(painter, tmp_path / "run", captioned("a", "poison 1", "b", "poison 2", "c", "d"))
    said = r"2 of 6 captions failed, and the numbers need 5 pictures; see failed-\*\.jsonl in .*, then try these again"
    with pytest.raises(ValueError, match=said):
        list(generate(painter, run, least=5))
    assert Obedient(tmp_path).tried[-1] == "c"  # the first after the second failure, and no other
    with pytest.raises(ValueError, match=said):
        next(generate(painter, run, least=5))
    standings = list(generate(painter, run, least=4))
    assert standings[-1].done == 4
    with pytest.raises(ValueError, match=said):
        list(generate(painter, run, least=5, retry=True))  # they are tried all the same


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    painter = Here(Obedient(tmp_path), 3)
    run = run_of(painter, tmp_path / "run", captioned("a", "poison", "b", "c"))
    list(generate(painter, run))
    for damaged in (b"nonsense\n", b"[]\n", b"{}\n"):
        path = run.failures(Shard())
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + damaged)
        with pytest.raises(
            ValueError, match=r"failed-1-of-1\.jsonl, line 2, is damaged; remove that line, and begin again"
        ):
            failed(run)


def test_a_template_is_shown_before_anything_is_written(tmp_path: Path) -> None:
    def refuse(template: Request) -> None:
        raise ValueError(f"{template.height} will not do")

    with pytest.raises(ValueError, match="64 will not do"):
        begin(Here(Obedient(tmp_path)), tmp_path / "run", RINGS, text2img(""), check=refuse)
    assert not (tmp_path / "run").exists()


def test_what_is_no_whole_picture(tmp_path: Path) -> None:
    assert not is_whole(tmp_path / "missing.png")
    (tmp_path / "short.png").write_bytes(b"\x89PNG")
    assert not is_whole(tmp_path / "short.png")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """The programs have one, and threads change how sums are rounded."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_killed_at_any_moment_it_ends_with_the_same_pictures(
    tiny_model: Path, tmp_path: Path, one_thread: None
) -> None:
    """The whole of it, its process and its own: kill -9 while it paints or writes."""
    said = tmp_path / "captions.csv"
    said.write_text("id,caption\n" + "".join(f"{k:03},a red circle and {k} stars\n" for k in range(24)))
    unbroken = Here(Loading(str(tiny_model))(), BATCH)
    whole = begin(unbroken, tmp_path / "whole", captions.read(said), REQUEST)
    list(generate(unbroken, whole))

    chance, folder = random.Random(time.time_ns()), tmp_path / "killed"
    program = [sys.executable, "-m", "tests.evaluation.generate_program", tiny_model, said, folder, "1/1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    amid = 0
    while amid < KILLS:
        with subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, text=True) as started:
            assert started.stdout is not None
            for _ in range(1 + chance.randrange(BATCH)):  # it may be whole by then
                started.stdout.readline()
            time.sleep(chance.uniform(0, 0.05))
            amid += started.poll() is None and len([*(folder / "pictures").glob("*.png")]) < 24
            started.kill()
        if len([*(folder / "pictures").glob("*.png")]) == 24:
            assert hashes(folder) == hashes(whole.folder)
            shutil.rmtree(folder)  # and once more
    subprocess.run(program, env=environment, check=True, timeout=PATIENCE, stdout=subprocess.DEVNULL)
    assert hashes(folder) == hashes(whole.folder)
    assert json.loads((folder / "run.json").read_text()) == json.loads((whole.folder / "run.json").read_text())
    assert {name: record["sha256"] for name, record in logged(whole).items()} == hashes(folder)
    assert len(hashes(folder)) == 24
