"""A run on disk: metrics, checkpoints and sample sheets in one folder, and going on from there."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.files import whole
from kandinsky22.training.loop import Training

METRICS, CHECKPOINT = "metrics.jsonl", "checkpoint.pt"
EVERY = 250  # steps between checkpoints, sheets and looks at a held-out set
Sheet = Callable[[dict[str, Tensor]], tuple[Image.Image, dict[str, float]]]
"""Averaged weights -> a picture to look at, and what a held-out set says."""


def grid(pictures: Sequence[Tensor], columns: int) -> Image.Image:
    """Pictures [3, H, W] in [-1, 1] side by side, row after row."""
    rows = [torch.cat([*pictures[i : i + columns]], dim=2) for i in range(0, len(pictures), columns)]
    whole = (torch.cat(rows, dim=1).clamp(-1, 1) + 1) * 127.5
    return Image.fromarray(whole.round().byte().movedim(0, -1).numpy())


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


def seconds_per_step(training: Training, rounds: int = 4) -> float:
    """Time a few steps without taking them: the weights do not move. The first, which may compile, does not count."""
    times = []
    for step in range(rounds):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=training.recipe.bfloat16):
            loss, _ = training.objective(step)
        loss.backward()
        training.optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[len(times) // 2 - 1]


def save(training: Training, folder: Path) -> None:
    """Write the checkpoint whole, or not at all."""
    with whole(folder / CHECKPOINT) as partial:
        torch.save(training.state_dict(), partial)


def resume(training: Training, folder: Path) -> bool:
    """Go on from the folder's checkpoint, if it has one; metrics written after it are dropped."""
    if not (folder / CHECKPOINT).exists():
        return False
    training.load_state_dict(torch.load(folder / CHECKPOINT, weights_only=True))
    lines = (folder / METRICS).read_text().splitlines() if (folder / METRICS).exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= training.step]
    with whole(folder / METRICS) as partial:
        partial.write_text("".join(line + "\n" for line in kept))
    return True


def run(
    training: Training, folder: Path, *, sheet: Sheet | None = None, every: int = EVERY
) -> Iterator[dict[str, float]]:
    """Train to the end, writing a metrics line a step, and a checkpoint and a sheet every `every` steps and at the end.

    Yields each line as it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / METRICS).open("a") as lines:
        began = time.perf_counter()
        for line in training:
            line["seconds"] = round(time.perf_counter() - began, 3)
            due = training.step % every == 0 or training.step == training.steps
            if due and sheet is not None:
                picture, validation = sheet(training.averaged())
                line.update(validation)
                picture.save(folder / "sheet.png")
            lines.write(json.dumps(line) + "\n")
            lines.flush()
            if due:
                save(training, folder)
            yield line
