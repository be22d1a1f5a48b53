"""Checkpoints of a run: folders in the format of torch.distributed.checkpoint, which any number of processes can go on from.

A checkpoint gets its name when all of it is written, so that one which a crash or a full disk tore never counts.
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

from kandinsky22.files import atomic_write
from kandinsky22.training.loop import Training
from kandinsky22.training.settings import Settings

FOLDER, STATE = "checkpoints", "state.json"
KEPT, TORN = 3, ".part"


def save(training: Training, folder: Path) -> None:
    """Write where `training` is to `folder/checkpoints`, and remove all but the last three. All processes must ask together.

    Raises `OSError` with the system's reason where it cannot be written, for instance on a full disk; the last checkpoint is
    then untouched.
    """
    processes = training.processes
    path = folder / FOLDER / f"{training.step:08d}"
    partial = path.with_suffix(TORN)

    def make_room() -> None:
        for torn in (folder / FOLDER).glob(f"*{TORN}"):
            shutil.rmtree(torn, ignore_errors=True)
        partial.mkdir(parents=True)

    def give_name() -> None:
        with atomic_write(partial / STATE) as state:
            state.write_text(json.dumps(training.state()), encoding="utf-8")
        shutil.rmtree(path, ignore_errors=True)
        partial.replace(path)
        for old in steps(folder)[:-KEPT]:
            removed = (folder / FOLDER / f"{old:08d}").replace(folder / FOLDER / f"{old:08d}{TORN}")
            shutil.rmtree(removed, ignore_errors=True)

    try:
        processes.told_by_first(make_room)
        with _quiet():
            state_dict_saver.save(training.tensors(), storage_writer=_Writer(partial), no_dist=processes.count == 1)
        processes.told_by_first(give_name)
    except (CheckpointException, OSError) as error:  # no RuntimeError: another process that died is not a full disk
        if processes.first:
            shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"the checkpoint of step {training.step} cannot be written to {folder} ({_cause(error)})"
        ) from error


def load(training: Training, folder: Path) -> bool:
    """Go on from the folder's last checkpoint, if it has one, whatever number of processes wrote it.

    Raises `ValueError` if that learnt from something else, or is of another network.
    """
    if not steps(folder):
        return False
    path = _last(folder)
    training.go_on_from(_state(folder))
    try:
        with _quiet():
            state_dict_loader.load(training.tensors(), checkpoint_id=path, no_dist=training.processes.count == 1)
    except (CheckpointException, ValueError) as error:  # nor is it a damaged file
        raise ValueError(
            f"{path} is not of this network, or damaged ({_cause(error)}); remove it to go on from an earlier one"
        ) from error
    return True


def settings(folder: Path) -> Settings:
    """What the run of the last checkpoint learns by; nothing where there is none."""
    if not steps(folder):
        return {}
    found: Settings = _state(folder).get("settings", {})
    return found


def sound(folder: Path) -> str:
    """What a run that stops here can be gone on from, in words."""
    earlier = steps(folder)
    return f"the checkpoint of step {earlier[-1]} is sound" if earlier else "there is no checkpoint yet"


def steps(folder: Path) -> list[int]:
    """The steps that have a complete checkpoint, in order."""
    here = folder / FOLDER
    return sorted(int(path.name) for path in here.iterdir() if path.name.isdigit()) if here.is_dir() else []


def _last(folder: Path) -> Path:
    return folder / FOLDER / f"{steps(folder)[-1]:08d}"


def _state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((_last(folder) / STATE).read_text(encoding="utf-8"))
    return state


class _Writer(FileSystemWriter):
    """Raises the system's error where a file cannot be written. Torch's own, which is raised on top of it as the torn file is
    closed, does not say why, and what is raised in another process arrives without what is beneath it."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this process's part."""
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            beneath: BaseException | None = error
            while beneath is not None and not isinstance(beneath, OSError):
                beneath = beneath.__cause__ or beneath.__context__
            raise beneath or error from None


def _cause(error: BaseException) -> str:
    """The innermost reason, in a line."""
    if isinstance(error, CheckpointException) and error.failures:
        failure = next(iter(error.failures.values()))
        error = failure[0] if isinstance(failure, tuple) else failure
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks that a single process, or gloo, is what it was told to use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
