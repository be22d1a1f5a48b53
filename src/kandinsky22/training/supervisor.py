"""Starting processes, and starting them again: torch's own restarts in place are unreliable with gloo (more than half of them
failed or hung when it was tried), so a fresh `torchrun` goes on from the last complete checkpoint.

On a cluster, whatever starts its jobs does this; `torchrun ... -m kandinsky22 train ...` is all that it needs to know.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from kandinsky22.files import atomic_write
from kandinsky22.training import checkpoints
from kandinsky22.training.processes import SUPERVISOR

TRAIN = ("-m", "kandinsky22", "train")
WORD = "stopped.txt"
STOPPED = 2  # the status of a process that left word
OWN = ("--processes", "--relaunch")  # options that are meant for this, not for those that it starts


def wanted(processes: int, relaunches: int) -> bool:
    """Whether this process is to start others, and is not one of them itself."""
    return (processes > 1 or relaunches > 0) and not is_watched() and "TORCHELASTIC_RUN_ID" not in os.environ


def is_watched() -> bool:
    """Whether this process was started from here."""
    return SUPERVISOR in os.environ


def leave_word(folder: Path, error: Exception) -> None:
    """Say why this process stops, so that it is not started again to stop for the same reason."""
    with atomic_write(folder / WORD) as partial:
        partial.write_text(" ".join(str(error).split()), encoding="utf-8")


def supervise(
    arguments: Sequence[str], folder: Path, processes: int, relaunches: int, program: Sequence[str] = TRAIN
) -> int:
    """Run `kandinsky22 train` in as many processes, and after a crash again, at most `relaunches` times in a row without a
    new checkpoint in `folder`, the run's. Returns an exit status; raises `ValueError` with the reason of a process that
    stopped for one."""
    module = (*program, *_theirs(arguments))
    launch = (
        (
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
            "--max-restarts",
            "0",
            *module,
        )
        if processes > 1
        else module
    )
    word, left = folder / WORD, relaunches
    while True:
        word.unlink(missing_ok=True)
        before = checkpoints.steps(folder)
        status = _carried_out([sys.executable, *launch])
        if status == 0:
            return 0
        if word.exists():
            raise ValueError(word.read_text(encoding="utf-8"))
        left = relaunches if checkpoints.steps(folder)[-1:] != before[-1:] else left
        if left == 0:
            times = f" {relaunches} times without a new checkpoint" if relaunches else ""
            raise ValueError(
                f"training crashed{times} (exit status {status}); the same command goes on from the last checkpoint"
            )
        left -= 1
        print(
            f"kandinsky22: training crashed (exit status {status}); going on from the last checkpoint", file=sys.stderr
        )


def _carried_out(command: Sequence[str]) -> int:
    """Run a command to its end; whoever stops this process stops that one, too."""
    environment = {
        **os.environ,
        SUPERVISOR: str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    with subprocess.Popen(command, env=environment) as running:
        earlier = signal.signal(signal.SIGTERM, _stopped)
        try:
            return running.wait()
        except (KeyboardInterrupt, SystemExit) as stopped:
            running.send_signal(signal.SIGINT if isinstance(stopped, KeyboardInterrupt) else signal.SIGTERM)
            running.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, earlier)


def _stopped(number: int, frame: FrameType | None) -> NoReturn:
    """What is asked to stop has not crashed, and is not started again."""
    raise SystemExit(128 + number)


def _theirs(arguments: Sequence[str]) -> list[str]:
    """The arguments without those meant for this."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in OWN:
            skip = True
        elif not argument.startswith(tuple(f"{name}=" for name in OWN)):
            kept.append(argument)
    return kept
