"""A run on disk: metrics, checkpoints and sample sheets in one folder, and going on from there."""

import functools
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.engine import cost
from kandinsky22.files import atomic_write
from kandinsky22.training import checkpoints
from kandinsky22.training.flops import Operations
from kandinsky22.training.loop import Training

N = TypeVar("N", bound=nn.Module)
METRICS, SHEET, BEST, EVENTS = "metrics.jsonl", "sheet.png", "best.safetensors", "tensorboard"
EVERY = 250  # steps between checkpoints, sheets and looks at a held-out set
Sheet = Callable[[dict[str, Tensor]], tuple[Image.Image, dict[str, float]]]
"""Averaged weights -> a picture to look at, and what a held-out set says; the lowest "validation" is the best."""


def grid(pictures: Sequence[Tensor], columns: int) -> Image.Image:
    """Pictures [3, H, W] in [-1, 1] side by side, row after row; the last row may be short."""
    columns = min(columns, len(pictures))
    missing = [torch.ones_like(pictures[0])] * (-len(pictures) % columns)
    shown = [*pictures, *missing]
    rows = [torch.cat([*shown[i : i + columns]], dim=2) for i in range(0, len(shown), columns)]
    whole = (torch.cat(rows, dim=1).clamp(-1, 1) + 1) * 127.5
    return Image.fromarray(whole.round().byte().movedim(0, -1).cpu().numpy())


def beside(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures of one height, side by side."""
    page = Image.new("RGB", (left.width + right.width, left.height))
    page.paste(left, (0, 0))
    page.paste(right, (left.width, 0))
    return page


def nearest(wanted: Tensor, known: Tensor, pictures: Tensor, columns: int = 8) -> Image.Image:
    """For each wanted embedding [N, D] a row: the pictures [M, 3, H, W] whose embeddings `known` [M, D] are most like it."""
    similar = F.normalize(wanted, dim=-1) @ F.normalize(known, dim=-1).T
    return grid([*pictures[similar.topk(columns).indices.flatten()]], columns)


def stand_in(make: Callable[[], N], weights: Mapping[str, Tensor], device: torch.device) -> N:
    """A network of its own with these weights, for a look: nothing of it takes memory before, and nothing once it is dropped."""
    with torch.device("meta"):
        network = make()
    network.load_state_dict(weights, assign=True)
    return network.to(device).eval().requires_grad_(False)


@contextmanager
def visiting(network: nn.Module, device: torch.device) -> Iterator[None]:
    """A network on a device, and back on the CPU afterwards."""
    network.to(device)
    try:
        yield
    finally:
        network.to("cpu")


def seconds_per_step(training: Training, rounds: int = 4) -> float:
    """Time a few steps without taking them: the weights do not move. The first, which warms up, does not count. All
    processes get the same number, and must ask together."""
    times = []
    for step in range(rounds):
        began = time.perf_counter()
        training.gradients(step)
        training.optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - began)
    typical = torch.tensor(
        sorted(times[1:])[len(times) // 2 - 1], dtype=torch.float64, device=training.processes.device
    )
    return training.processes.summed({"seconds": typical})["seconds"] / training.processes.count


def resume(training: Training, folder: Path) -> bool:
    """Go on from the folder's last checkpoint, if it has one, else from the start; metrics written after it are dropped."""
    found = checkpoints.load(training, folder)
    if training.processes.first and (folder / METRICS).exists():
        kept = [line for line in lines(folder) if line["step"] <= training.step]
        with atomic_write(folder / METRICS) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    return found


def lines(folder: Path) -> list[dict[str, float]]:
    """What a run measured, a line a step; one that a crash tore is left out."""
    path = folder / METRICS
    written = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in written if line.endswith("}")]


def tell(folder: Path, line: Mapping[str, float]) -> None:
    """The metrics of what takes a single step."""
    with atomic_write(folder / METRICS) as partial:
        partial.write_text(json.dumps(line) + "\n", encoding="utf-8")


def run(
    training: Training, folder: Path, *, sheet: Sheet | None = None, every: int = EVERY, tensorboard: bool = False
) -> Iterator[dict[str, float]]:
    """Train to the end, writing a metrics line a step, and a checkpoint and a sheet every `every` steps and at the end.

    Yields each line as it is written; every process of several yields its own. The averaged weights with the lowest
    "validation" of the sheets are kept beside the checkpoints. Raises `OSError`, as on a full disk, and `FloatingPointError`,
    which both say what there is to go on from.
    """
    try:
        yield from _steps(training, folder, sheet, every, tensorboard)
    except FloatingPointError as error:
        again = "go on from it" if checkpoints.steps(folder) else "begin again"
        raise FloatingPointError(
            f"{error}; {checkpoints.sound(folder)}: {again} with a lower --learning-rate than {training.recipe.learning_rate:g}"
        ) from error
    except OSError as error:
        why = f"{error.filename or folder}: {error.strerror}" if error.strerror else str(error)
        raise OSError(f"{why}; {checkpoints.sound(folder)}") from error


def _steps(
    training: Training, folder: Path, sheet: Sheet | None, every: int, tensorboard: bool
) -> Iterator[dict[str, float]]:
    folder.mkdir(parents=True, exist_ok=True)
    writer = _events(folder / EVENTS) if tensorboard and training.processes.first else None
    pace = Pace(training) if training.step < training.steps else None
    best = min((line["validation"] for line in lines(folder) if "validation" in line), default=float("inf"))
    metrics = folder / METRICS if training.processes.first else Path(os.devnull)
    with metrics.open("a", encoding="utf-8") as file:
        while training.step < training.steps:
            line = {**pace.advance(), **pace.measured()}  # type: ignore[union-attr]  # there are steps to take
            due = training.step % every == 0 or training.step == training.steps
            if due:
                weights = training.averaged() if sheet is not None else {}
                if sheet is not None and training.processes.first:
                    picture, validation = sheet(weights)
                    line.update(validation)
                    with atomic_write(folder / SHEET) as partial:
                        picture.save(partial, format="png")
                    if line.get("validation", best) < best:
                        best = line["validation"]
                        with atomic_write(folder / BEST) as partial:
                            save_file({name: value.contiguous() for name, value in weights.items()}, partial)
            file.write(json.dumps(line) + "\n")
            file.flush()
            if due:  # after its line: what is gone on from has one
                checkpoints.save(training, folder)
            if writer is not None:
                for name, value in line.items():
                    writer.add_scalar(name, value, training.step)
                if due and sheet is not None:
                    writer.add_image("sheet", _pixels(folder / SHEET), training.step)
                writer.flush()
            yield line


class Pace:
    """How fast a run goes: seconds, rows and operations of its steps, and the memory that it took.

    Operations are counted, forward and backward, once for each kind of step: of rows of the same shapes, of which the same is
    measured. That is done on a pass that is not learnt from, as under the counter torch takes other ways to the same sums. What
    checkpointing computes again does not count. `mfu` is the share of what this device does in one large convolution
    (`cost.rate`), in the dtype of the run's matrix products.
    """

    def __init__(self, training: Training) -> None:
        self._training, self._began, self._took = training, time.perf_counter(), 0.0
        self._counted: dict[object, int] = {}
        self.operations = 0  # of the last step
        self._reachable = _rate(training.processes.device, training.products)

    def advance(self) -> dict[str, float]:
        """One step of the run."""
        training, began = self._training, time.perf_counter()
        line = training.advance()
        self._took = time.perf_counter() - began
        kind = training.shapes, frozenset(name for name in line if "_t" not in name)
        if kind not in self._counted:
            with Operations() as counter:
                training.gradients(training.step - 1)
            training.optimizer.zero_grad(set_to_none=True)
            self._counted[kind] = counter.total - counter.again
        self.operations = self._counted[kind]
        return line

    def measured(self) -> dict[str, float]:
        """Of the last step: seconds since the start, rows a second, utilisation, and the memory taken so far, in GiB."""
        training = self._training
        device = training.processes.device
        if device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(device) / 2**30
        else:
            unit = 1 if sys.platform == "darwin" else 1024
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
        return {
            "seconds": round(time.perf_counter() - self._began, 3),
            "rows_per_second": round(training.rows / self._took, 3),
            "mfu": round(self.operations / self._took / self._reachable, 4),
            "memory_gib": round(memory, 3),
        }


_rate = functools.cache(cost.rate)


def _events(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard needs its package: pip install 'kandinsky22[train]'") from error
    return SummaryWriter(str(folder))


def _pixels(path: Path) -> Tensor:
    with Image.open(path) as picture:
        return (
            torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
            .view(picture.height, picture.width, 3)
            .movedim(-1, 0)
        )
