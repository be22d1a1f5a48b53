"""A run on disk: metrics, checkpoints and sample grids in one folder, and resuming from there."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from kandinsky22.checkpoints.safetensors_file import read_tensors
from kandinsky22.files import atomic_write, first_line, open_regular, parse_json
from kandinsky22.request.picture_file import read_picture
from kandinsky22.training import checkpoints, lora
from kandinsky22.training.loop import Training
from kandinsky22.training.metrics import Metrics, Validation
from kandinsky22.training.sample_grid import SampleGrid
from kandinsky22.training.throughput import Throughput

METRICS, SAMPLE_GRID, BEST, EVENTS = "metrics.jsonl", "sheet.png", "best.safetensors", "tensorboard"
EVERY = 250  # steps between checkpoints, each with a sample grid and validation
MAX_SECONDS = 240.0  # between checkpoints of a single process: the most work that an interruption loses


def resume(training: Training, folder: Path) -> bool:
    """Load the folder's last checkpoint and drop the metrics written after it. Returns False if there is none."""
    loaded = checkpoints.load(training, folder)
    if training.processes.first and (folder / METRICS).exists():
        _write_lines(folder, [line for line in read_metrics(folder) if line["step"] <= training.step])
    return loaded


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """A run's metrics as written, one line per step; a line that a crash left incomplete is skipped."""
    path = folder / METRICS
    if not path.exists():
        return []
    try:
        with open_regular(path) as file:
            lines = [parse_json(line) for line in file.read().decode("utf-8").splitlines() if line.endswith("}")]
        if not all(isinstance(line.get("step"), int) for line in lines):
            raise ValueError("a line has no step")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}); remove it to resume without its metrics") from error
    return lines


def read_best(folder: Path) -> dict[str, Tensor]:
    """The averaged weights with the lowest validation loss. Raises `ValueError` if there are none."""
    if not (folder / BEST).exists():
        raise ValueError(f"{folder} has no {BEST}; export a checkpoint with --step")
    return read_tensors(folder / BEST)


def write_metrics(folder: Path, *metrics: Metrics) -> None:
    """Replace a run's metrics."""
    _write_lines(folder, [step.to_json() for step in metrics])


def _write_lines(folder: Path, lines: Sequence[Mapping[str, float]]) -> None:
    with atomic_write(folder / METRICS) as partial:
        partial.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def run(
    training: Training,
    folder: Path,
    *,
    sample_grid: SampleGrid | None = None,
    every: int = EVERY,
    tensorboard: bool = False,
    saved: Callable[[], None] = lambda: None,
) -> Iterator[Metrics]:
    """Train to the end, writing metrics after each step, and a checkpoint and a sample grid every `every` steps and at
    the end; then `saved` is called. The weights that a run begins with are validated too, as those of step 0.

    Yields each step's metrics as they are written; with several processes, each yields its own. The averaged weights
    with the lowest validation loss are saved beside the checkpoints. Raises `OSError`, for instance on a full disk, and
    `FloatingPointError`; both messages name the checkpoint to resume from.
    """
    try:
        yield from _steps(training, folder, sample_grid, every, tensorboard, saved)
    except FloatingPointError as error:
        restart = "resume from it" if checkpoints.steps(folder) else "start again"
        raise FloatingPointError(
            f"{error}; {checkpoints.describe_last(folder)}: {restart} with a lower --learning-rate than "
            f"{training.recipe.learning_rate:g}"
        ) from error
    except OSError as error:
        reason = f"{error.filename or folder}: {error.strerror}" if error.strerror else str(error)
        raise OSError(f"{reason}; {checkpoints.describe_last(folder)}") from error


def _steps(
    training: Training,
    folder: Path,
    sample_grid: SampleGrid | None,
    every: int,
    tensorboard: bool,
    saved: Callable[[], None],
) -> Iterator[Metrics]:
    folder.mkdir(parents=True, exist_ok=True)
    if training.step >= training.steps:
        return
    writer = tensorboard_writer()(str(folder / EVENTS)) if tensorboard and training.processes.first else None
    if training.step == 0 and sample_grid is not None:
        weights = training.ema_state_dict()
        if training.processes.first:
            _validate_start(folder, sample_grid, weights, training.steps)
    throughput = Throughput(training)
    best = min((line.get("validation", math.inf) for line in read_metrics(folder)), default=math.inf)
    path = folder / METRICS if training.processes.first else Path(os.devnull)
    saved_at = time.monotonic()
    with path.open("a", encoding="utf-8") as file:
        while training.step < training.steps:
            metrics = throughput.advance()
            due = training.step % every == 0 or training.step == training.steps
            if due and sample_grid is not None:
                weights = training.ema_state_dict()
                if training.processes.first:
                    validation = _draw(folder, sample_grid, weights, best)
                    metrics, best = replace(metrics, validation=validation), min(best, validation.loss)
            file.write(json.dumps(metrics.to_json()) + "\n")
            file.flush()
            # Processes save together, so only a single one may decide by its clock.
            is_overdue = training.processes.count == 1 and time.monotonic() - saved_at > MAX_SECONDS
            if due or is_overdue:  # after the metrics, so that the step of every checkpoint has its line
                checkpoints.save(training, folder)
                saved_at = time.monotonic()
            if due:
                saved()
            if writer is not None:
                for name, value in metrics.to_json().items():
                    writer.add_scalar(name, value, training.step)
                if due and sample_grid is not None:
                    writer.add_image("sheet", _pixels(folder / SAMPLE_GRID), training.step)
                writer.flush()
            yield metrics


def _validate_start(folder: Path, sample_grid: SampleGrid, weights: dict[str, Tensor], steps: int) -> None:
    """Begin the metrics with those of the weights before the first step."""
    validation = _draw(folder, sample_grid, weights, math.inf)
    line = {"step": 0, "of": steps, "validation": validation.loss, **validation.further}
    _write_lines(folder, [line])


def _draw(folder: Path, sample_grid: SampleGrid, weights: dict[str, Tensor], best: float) -> Validation:
    """Write the sample grid of these weights, and the weights if they are better than `best`; returns the validation
    metrics."""
    picture, validation = sample_grid(lora.merged(weights))
    with atomic_write(folder / SAMPLE_GRID) as partial:
        picture.save(partial, format="png")
    if validation.loss < best:
        with atomic_write(folder / BEST) as partial:
            save_file({name: value.contiguous() for name, value in lora.trained(weights).items()}, partial)
    return validation


def tensorboard_writer() -> Any:
    """The class of TensorBoard's writer. Raises `ValueError` if its package is not there."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard needs its package: pip install 'kandinsky22[train]'") from error
    return SummaryWriter


def _pixels(path: Path) -> Tensor:
    """A picture file as uint8 [3, H, W]."""
    picture = read_picture(path).convert("RGB")
    values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return values.view(picture.height, picture.width, 3).movedim(-1, 0)
