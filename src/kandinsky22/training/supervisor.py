"""Starting training processes, and restarting them after a crash from the last complete checkpoint.

A fresh `torchrun` is started instead of torch's own restarts, which are unreliable with gloo: more than half of them
failed or hung when they were tried. On a cluster the scheduler restarts jobs; it runs
`torchrun ... -m kandinsky22 train ...`.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from kandinsky22.console import echo
from kandinsky22.files import atomic_write
from kandinsky22.training import checkpoints
from kandinsky22.training.processes import SUPERVISOR

TRAIN = ("-m", "kandinsky22", "train")
STOP_REASON = "stopped.txt"  # file of a run that stopped for a reason which a restart does not change
STOPPED = 2  # exit status of a process that wrote its reason
OPTIONS = ("--processes", "--relaunch")  # of the supervisor, not passed on to the processes that it starts


def is_needed(processes: int, relaunches: int) -> bool:
    """Whether this process must start others, and was not started by a supervisor or `torchrun` itself."""
    return (processes > 1 or relaunches > 0) and not is_supervised() and "TORCHELASTIC_RUN_ID" not in os.environ


def is_supervised() -> bool:
    """Whether a supervisor started this process."""
    return SUPERVISOR in os.environ


def write_stop_reason(folder: Path, error: Exception) -> None:
    """Store why this process stops, so that the supervisor does not restart it to stop for the same reason."""
    with atomic_write(folder / STOP_REASON) as partial:
        partial.write_text(" ".join(str(error).split()), encoding="utf-8")


def supervise(
    arguments: Sequence[str], folder: Path, processes: int, relaunches: int, program: Sequence[str] = TRAIN
) -> int:
    """Run `kandinsky22 train` in `processes` processes, and restart it after a crash.

    It is restarted at most `relaunches` times in a row without a new checkpoint in `folder`, the run's folder. Returns
    the exit status 0; raises `ValueError` with the reason why a process stopped, or after too many crashes.
    """
    module = (*program, *_passed_on(arguments))
    torchrun = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        "--max-restarts",
        "0",
    )
    launch = (*torchrun, *module) if processes > 1 else module
    reason, left = folder / STOP_REASON, relaunches
    while True:
        reason.unlink(missing_ok=True)
        before = checkpoints.steps(folder)
        status = _run([sys.executable, *launch])
        if status == 0:
            return 0
        if reason.exists():
            raise ValueError(reason.read_text(encoding="utf-8"))
        left = relaunches if checkpoints.steps(folder)[-1:] != before[-1:] else left
        if left == 0:
            times = f" {relaunches} times without a new checkpoint" if relaunches else ""
            raise ValueError(
                f"training crashed{times} (exit status {status}); the same command goes on from the last checkpoint"
            )
        left -= 1
        echo(f"kandinsky22: training crashed (exit status {status}); going on from the last checkpoint", error=True)


def _run(command: Sequence[str]) -> int:
    """Run a command and return its exit status; signals that stop this process stop it too."""
    environment = {
        **os.environ,
        SUPERVISOR: str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    with subprocess.Popen(command, env=environment) as process:
        handler = signal.signal(signal.SIGTERM, _exit)
        try:
            return process.wait()
        except (KeyboardInterrupt, SystemExit) as error:
            process.send_signal(signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM)
            process.wait()
            raise
        finally:
            signal.signal(signal.SIGTERM, handler)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM: a process that is stopped on purpose has not crashed, and is not restarted."""
    raise SystemExit(128 + number)


def _passed_on(arguments: Sequence[str]) -> list[str]:
    """The arguments without the supervisor's own options."""
    result: list[str] = []
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument in OPTIONS:
            skip = True
        elif not argument.startswith(tuple(f"{name}=" for name in OPTIONS)):
            result.append(argument)
    return result
