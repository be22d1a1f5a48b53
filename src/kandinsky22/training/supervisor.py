"""Starting training processes, and restarting them after a crash from the last complete checkpoint.

All are started again instead of by torch's own restarts, which are unreliable with gloo: more than half of them failed
or hung when they were tried. On a cluster the scheduler restarts jobs; it runs `torchrun ... -m kandinsky22 train ...`,
which reports every stop in forty lines of its own.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from kandinsky22.console import echo
from kandinsky22.files import atomic_write
from kandinsky22.training import checkpoints
from kandinsky22.training.processes import POLL, SUPERVISOR

TRAIN = ("-m", "kandinsky22", "train")
STOP_REASON = "stopped.txt"  # file of a run that stopped for a reason which a restart does not change
STOPPED = 2  # exit status of a process that wrote its reason
OPTIONS = ("--processes", "--relaunch", "--backend", "--address")  # not passed on to the processes that are started


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
    command = [sys.executable, *program, *passed_on(arguments)]
    reason, left = folder / STOP_REASON, relaunches
    while True:
        reason.unlink(missing_ok=True)
        before = checkpoints.steps(folder)
        status = _run(command, processes)
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


def launch_on_ray(arguments: Sequence[str], folder: Path, args: argparse.Namespace) -> None:
    """Train in workers of Ray Train. Raises `ValueError` if Ray is not installed, and with the reason of a stop."""
    try:
        from kandinsky22.training import ray_launcher
    except ModuleNotFoundError as error:
        raise ValueError(f"--backend ray needs {error.name}; install it: pip install 'kandinsky22[ray]'") from None
    ray_launcher.launch(arguments, folder, args)


def _run(command: Sequence[str], count: int) -> int:
    """Run a command in `count` processes, and return 0 or the exit status of the first that fails.

    When this function ends, in whatever way, the processes have ended. They have a session of their own: Ctrl-C in a
    terminal reaches this process alone, so that one process says what happened.
    """
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    environment = {"OMP_NUM_THREADS": "1", **os.environ, SUPERVISOR: str(os.getpid()), "WORLD_SIZE": str(count)}
    processes: list[subprocess.Popen[bytes]] = []
    handler = signal.signal(signal.SIGTERM, _exit)
    try:
        for rank in map(str, range(count)):
            own = {**environment, **address, "RANK": rank, "LOCAL_RANK": rank}
            processes.append(subprocess.Popen(command, env=own, start_new_session=True))
        while True:
            statuses = [process.poll() for process in processes]
            if any(statuses) or None not in statuses:
                return next(filter(None, statuses), 0)
            time.sleep(POLL)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        signal.signal(signal.SIGTERM, handler)


def _free_port() -> int:
    """A TCP port on which the processes can meet."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM: a process that is stopped on purpose has not crashed, and is not restarted."""
    raise SystemExit(128 + number)


def passed_on(arguments: Sequence[str]) -> list[str]:
    """The arguments without the options of what starts the processes."""
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
