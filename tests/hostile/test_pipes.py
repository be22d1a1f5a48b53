"""A pipe in the place of any file is refused or replaced, and never waited for."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kandinsky22.backends import logs, run_state
from kandinsky22.backends.run_folder import Shard
from kandinsky22.evaluation.manifest import Run
from kandinsky22.training.run_lock import run_lock
from tests.hostile.test_no_code_runs import Use, evaluate, read_evaluation, read_model, resume, train

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    """A test that waits for a pipe fails."""

    def fail(*_: object) -> None:
        raise AssertionError("a pipe was waited for")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def resume_alone(folder: Path) -> None:
    with run_lock(folder, 0):
        resume(folder)


def go_on(folder: Path) -> None:
    """Read an evaluation as a process that goes on with it."""
    read_evaluation(folder)
    found = Run.open(folder)
    run_state.unfinished_units(found, Shard(1, 1), retry=False)
    for log in folder.glob("*-1-of-1.jsonl"):
        logs.truncate_partial_line(log)


def train_locked(folder: Path) -> None:
    with run_lock(folder, 0):
        train(folder)


def evaluate_painted(folder: Path) -> None:
    evaluate(folder)
    for item in Run.open(folder).items:
        for path in Run.open(folder).paths(item):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")


def with_each_file_a_pipe(original: Path, copy: Path) -> Iterator[Path]:
    for path in sorted(path for path in original.rglob("*") if path.is_file()):
        target = copy / path.relative_to(original)
        target.unlink()
        os.mkfifo(target)
        yield target
        target.unlink()
        shutil.copy2(path, target)


@pytest.mark.parametrize(("write", "use"), [(train_locked, resume_alone), (evaluate_painted, go_on)])
def test_no_pipe_in_a_run_or_an_evaluation_is_waited_for(tmp_path: Path, write: Use, use: Use) -> None:
    original, copy = tmp_path / "original", tmp_path / "copy"
    write(original)
    shutil.copytree(original, copy)
    for _ in with_each_file_a_pipe(original, copy):
        with contextlib.suppress(ValueError, OSError):
            use(copy)
    use(copy)


def test_no_pipe_in_a_model_is_waited_for(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KANDINSKY22_CACHE", str(tmp_path / "cache"))
    original = shutil.copytree(tiny_model, tmp_path / "original", ignore=shutil.ignore_patterns("*-inpaint", "*-depth"))
    shutil.copytree(original, tmp_path / "copy")
    for _ in with_each_file_a_pipe(original, tmp_path / "copy"):
        with contextlib.suppress(ValueError, OSError):
            read_model(tmp_path / "copy")
    read_model(tmp_path / "copy")
