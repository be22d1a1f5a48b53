"""Readers that go away, closed streams and Ctrl-C: pictures are finished, and every command ends with one sentence."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kandinsky22.imaging.images import read_recipe

SOURCE = Path(__file__).parents[2] / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "COLUMNS": "1000"}
FEW_STEPS = ["--seed", "3", "--steps", "2", "--prior-num-inference-steps", "2"]


def kandinsky(*arguments: str) -> list[str]:
    return [sys.executable, "-u", "-m", "kandinsky22", *arguments]


def paint(model: Path, *more: str) -> list[str]:
    return kandinsky("a red circle", "--model", str(model), *FEW_STEPS, "-n", "2", *more)


def shell(folder: Path, words: str, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of the shell in which "$@" is the command."""
    return subprocess.run(
        ["bash", "-c", words, "bash", *command],
        cwd=folder,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
    )


def assert_painted(folder: Path) -> None:
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "a-red-circle-3.png",
        "a-red-circle-4.png",
    ]
    assert read_recipe(folder / "out" / "a-red-circle-4.png").request.seed == 4


@pytest.mark.parametrize(
    ("words", "status", "errors"),
    [
        ('"$@" | true; exit ${PIPESTATUS[0]}', 141, ""),
        ('"$@" >&-', 0, ""),
        ('"$@" 2>&-', 0, ""),
        ('"$@" <&- >&- 2>&-', 0, ""),
        ('"$@" > /dev/full', 2, "kandinsky22: the output could not be written: No space left on device\n"),
        ('"$@" 2> /dev/full', 0, ""),
    ],
)
def test_pictures_are_finished_without_a_reader(
    words: str, status: int, errors: str, tiny_model: Path, tmp_path: Path
) -> None:
    done = shell(tmp_path, words, paint(tiny_model, "-q"))
    assert (done.returncode, done.stderr) == (status, errors)
    assert_painted(tmp_path)


@pytest.mark.parametrize("place", ["--output", "--model", "--image"])
def test_the_home_folder_of_an_unknown_user_is_one_sentence(place: str, tiny_model: Path, tmp_path: Path) -> None:
    task = ["img2img", "a"] if place == "--image" else ["a"]
    done = shell(tmp_path, '"$@"', kandinsky(*task, "--model", str(tiny_model), place, "~nosuchuser/x"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "~nosuchuser/x begins with the home" in done.stderr


def test_painting_needs_no_environment(tiny_model: Path, tmp_path: Path) -> None:
    done = shell(tmp_path, f'env -i PYTHONPATH={SOURCE} "$@"', paint(tiny_model))
    assert done.returncode == 0, done.stderr
    assert_painted(tmp_path)


NO_HOME = """
import os, pwd, sys
def unknown(user):
    raise KeyError(user)
pwd.getpwuid = unknown  # as for a user of a container whom its passwords do not list
os.environ.pop("HOME", None)
sys.argv[1:] = {arguments}
from kandinsky22.cli import main
main()
"""


def test_a_user_without_a_home_folder_is_one_sentence_or_paints(tiny_model: Path, tmp_path: Path) -> None:
    arguments = repr(paint(tiny_model)[4:])
    command = [sys.executable, "-c", NO_HOME.format(arguments=arguments)]
    unset = "unset XDG_CACHE_HOME KANDINSKY22_CACHE HF_HOME; "
    done = shell(tmp_path, unset + '"$@"', command)
    is_refused = done.returncode == 2 and "name a folder in KANDINSKY22_CACHE" in done.stderr
    assert done.returncode == 0 or (is_refused and done.stderr.count("\n") == 1)
    assert shell(tmp_path, unset + 'KANDINSKY22_CACHE=cache "$@"', command).returncode == 0
    assert_painted(tmp_path)


# Training in two processes.


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A folder, beside pictures to train with."""
    (tmp_path / "own").mkdir()
    for k in range(12):
        pixels = np.random.default_rng(k).integers(0, 256, (160, 160, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "own" / f"{k}.png")
    return tmp_path / "run"


def train(run_folder: Path, *more: str) -> list[str]:
    options = ["--data", str(run_folder.parent / "own"), "--side", "64", "--batch", "2", "--every", "1"]
    return kandinsky("train", "movq-decoder", *options, "--steps", "3", "--folder", str(run_folder), *more)


def until_first_step(process: subprocess.Popen[str]) -> Iterator[str]:
    """The lines that a run prints until its first step is done."""
    assert process.stdout is not None
    for line in process.stdout:
        yield line
        if line.startswith("step 1 of"):
            return


def messages(errors: str) -> list[str]:
    """The lines that are about an error, and not about progress, which a slow machine has more of."""
    return [line for line in errors.splitlines() if not re.search(r": \d+ of \d+, about", line)]


def children(process: int) -> list[int]:
    """The processes that were started by one."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid, parent in map(str.split, listed.splitlines()) if int(parent) == process]


@pytest.mark.slow
def test_ctrl_c_ends_both_processes_with_one_sentence_and_training_goes_on_later(run_folder: Path) -> None:
    two = train(run_folder, "--processes", "2", "--steps", "5000")  # so many that it still runs when it is stopped
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    first_steps = []
    for _ in range(2):
        with subprocess.Popen(two, start_new_session=True, **pipes) as process:
            assert process.stdout is not None
            first_steps.append(next(int(line.split()[1]) for line in process.stdout if line.startswith("step ")))
            workers = children(process.pid)
            os.killpg(process.pid, signal.SIGINT)
            _, errors = process.communicate()
        (message,) = messages(errors)
        assert process.returncode == 130 and re.fullmatch(
            r"kandinsky22: stopped.* the same command (goes on|begins again.*)", message
        )
        assert len(workers) == 2 and not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert first_steps[0] == 1 < first_steps[1]


def test_a_refusal_in_two_processes_is_one_sentence(run_folder: Path) -> None:
    for picture in (run_folder.parent / "own").iterdir():
        picture.write_bytes(b"no picture")
    done = subprocess.run(train(run_folder, "--processes", "2"), capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 2 and len(messages(done.stderr)) == 1


def test_a_folder_removed_amid_training_is_noticed(run_folder: Path) -> None:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    with subprocess.Popen(train(run_folder), **pipes) as process:
        assert list(until_first_step(process))[-1].startswith("step 1 of 3")
        run_folder.rename(run_folder.with_name("elsewhere"))  # at once, unlike a removal
        _, errors = process.communicate()
    place = run_folder / "movq-decoder"
    message = f"kandinsky22: {place} was removed or replaced while it was in use; give the command again"
    assert (process.returncode, messages(errors)) == (2, [message])
