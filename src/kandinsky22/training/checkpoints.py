"""Checkpoints of a run, in the format of torch.distributed.checkpoint: any number of processes can resume from them.

A checkpoint is written under a temporary name and renamed when it is complete, so one that a crash or a full disk
interrupted is never resumed from.
"""

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from kandinsky22.checkpoints.json_files import read_json
from kandinsky22.files import atomic_write, first_line
from kandinsky22.training.checkpoint_reader import CheckpointReader
from kandinsky22.training.loop import Training
from kandinsky22.training.settings import Settings

FOLDER, STATE = "checkpoints", "state.json"
MAX_CHECKPOINTS, PARTIAL_SUFFIX = 3, ".part"


def save(training: Training, folder: Path) -> None:
    """Write a checkpoint to `folder/checkpoints/<step>` and remove all but the last three. All processes must call this
    together.

    Raises `OSError` with the system's reason where it cannot be written, for instance on a full disk; the previous
    checkpoints are then untouched.
    """
    processes = training.processes
    path = _path(folder, training.step)
    partial = path.with_suffix(PARTIAL_SUFFIX)

    def make_partial() -> None:
        for interrupted in (folder / FOLDER).glob(f"*{PARTIAL_SUFFIX}"):
            shutil.rmtree(interrupted, ignore_errors=True)
        partial.mkdir(parents=True)

    def complete() -> None:
        with atomic_write(partial / STATE) as state:
            state.write_text(json.dumps(training.state()), encoding="utf-8")
        shutil.rmtree(path, ignore_errors=True)
        partial.replace(path)
        for old in steps(folder)[:-MAX_CHECKPOINTS]:
            removed = _path(folder, old).replace(_path(folder, old).with_suffix(PARTIAL_SUFFIX))
            shutil.rmtree(removed, ignore_errors=True)

    try:
        processes.broadcast_from_rank0(make_partial)
        with _ignore_warnings():
            state_dict_saver.save(training.tensors(), storage_writer=_Writer(partial), no_dist=processes.count == 1)
        processes.broadcast_from_rank0(complete)
    except (CheckpointException, OSError) as error:  # not RuntimeError: that is another process that died
        if processes.first:
            shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"the checkpoint of step {training.step} cannot be written to {folder} ({_cause(error)})"
        ) from error


def load(training: Training, folder: Path, step: int | None = None) -> bool:
    """Load the folder's checkpoint of a step, by default the last one, written by any number of processes. Returns
    False if there is none.

    No code in it is run. Raises `ValueError` if it was trained with other settings or data, is of another network, or
    is damaged, and for a step without a checkpoint.
    """
    saved = steps(folder)
    if step is not None and step not in saved:
        there = f"those of steps {', '.join(map(str, saved))} are" if saved else "none is"
        raise ValueError(f"{folder} has no checkpoint of step {step}; {there} there")
    if not saved:
        return False
    path = _path(folder, saved[-1] if step is None else step)
    training.load_state(_state(path))
    try:
        with _ignore_warnings():
            reader = CheckpointReader(path)
            reader.read_metadata()  # torch would print a traceback where this raises
            state_dict_loader.load(training.tensors(), storage_reader=reader, no_dist=training.processes.count == 1)
    except (CheckpointException, OSError, ValueError) as error:  # another network's, or a damaged file
        raise ValueError(
            f"{path} is not of this network, or damaged ({_cause(error)}); remove it to resume from an earlier one"
        ) from error
    return True


def settings(folder: Path) -> Settings:
    """The settings of the last checkpoint; empty if there is none."""
    found: Settings = last_state(folder).get("settings", {})
    return found


def describe_last(folder: Path) -> str:
    """A clause for messages of a run that stops: which checkpoint it can be resumed from."""
    saved = steps(folder)
    return f"the checkpoint of step {saved[-1]} is sound" if saved else "there is no checkpoint yet"


def steps(folder: Path) -> list[int]:
    """The steps of the complete checkpoints, in order."""
    parent = folder / FOLDER
    return sorted(int(path.name) for path in parent.iterdir() if path.name.isdigit()) if parent.is_dir() else []


def _path(folder: Path, step: int) -> Path:
    return folder / FOLDER / f"{step:08d}"


def last_state(folder: Path) -> dict[str, Any]:
    """What `Training.state` gave for the last checkpoint; empty if there is none. Raises `ValueError` for a file of
    anything else."""
    saved = steps(folder)
    return _state(_path(folder, saved[-1])) if saved else {}


def _state(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / STATE
    state = {"start": 0, "finishing_rate": 0.0, **read_json(path)}
    are_steps = all(type(state.get(name)) is int and state[name] >= 0 for name in ("step", "steps", "start"))
    are_steps = are_steps and type(state["finishing_rate"]) in (int, float) and state["finishing_rate"] >= 0
    if not (are_steps and isinstance(state.get("learnt_from"), dict) and isinstance(state.get("settings", {}), dict)):
        raise ValueError(f"{path} is not the state of a run; remove its folder to resume from an earlier checkpoint")
    return state


class _Writer(FileSystemWriter):
    """Raises the system's `OSError` where a file cannot be written.

    Torch raises an error of its own on top of it when it closes the incomplete file. That error does not give the
    reason, and loses its cause on the way to another process.
    """

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this process's part."""
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            raise cause or error from None


def _cause(error: BaseException) -> str:
    """The innermost reason of an error, in one line."""
    if isinstance(error, CheckpointException) and error.failures:
        failure = next(iter(error.failures.values()))
        error = failure[0] if isinstance(failure, tuple) else failure
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)


@contextlib.contextmanager
def _ignore_warnings() -> Iterator[None]:
    """Suppresses torch's warnings about saving from a single process and about gloo, both of which are intended
    here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
