"""A run on disk: TensorBoard events, throughput and image grids."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from kandinsky22.training import checkpoints
from kandinsky22.training.loop import Objective, Training
from kandinsky22.training.metrics import Validation
from kandinsky22.training.plan import plan_run
from kandinsky22.training.run import EVENTS, run
from kandinsky22.training.sample_grid import caption_cells, captioned_column, image_grid
from kandinsky22.training.throughput import Throughput
from tests.training.known import RECIPE, line_fit


def sample_grid(weights: dict[str, Tensor]) -> tuple[Image.Image, Validation]:
    return Image.new("RGB", (8, 6), "red"), Validation(float(weights["bias"]))


def test_tensorboard_events_equal_the_metrics(tmp_path: Path) -> None:
    lines = list(
        run(Training(*line_fit(), RECIPE, steps=4), tmp_path, sample_grid=sample_grid, every=2, tensorboard=True)
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / EVENTS))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(line.step, pytest.approx(line.loss)) for line in lines]
    assert [event.step for event in events.Scalars("validation")] == [2, 4]
    image = events.Images("sheet")[-1]
    assert (image.step, image.width, image.height) == (4, 8, 6)


def test_a_missing_tensorboard_is_an_error_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'kandinsky22\[train\]'"):
        next(run(Training(*line_fit(), RECIPE, steps=4), tmp_path, tensorboard=True))
    assert not list(tmp_path.glob("*.jsonl"))


def test_counting_operations_does_not_change_the_weights(tmp_path: Path) -> None:
    """A linear layer n x 2 -> n x 1 has 2 * 2n operations forward and for the weight's gradient; x needs no
    gradient."""
    training, other = (Training(*line_fit(), RECIPE, steps=4) for _ in range(2))
    throughput = Throughput(training)
    speed = throughput.advance().speed
    other.advance()
    assert torch.equal(training.network.weight, other.network.weight) and training.network.weight.grad is None
    assert throughput.operations == 2 * (2 * 2 * RECIPE.batch)
    assert speed is not None and speed.rows_per_second > 0 and 0 <= speed.mfu < 1 and speed.memory_gib > 0.05


def test_counted_operations_equal_the_plans_with_and_without_checkpointing() -> None:
    """The CPU's attention included; rows of other shapes are counted separately."""
    from tests.training.test_plan import NETWORKS

    network, loss, rows = NETWORKS["unet"]
    recomputed = {}
    for checkpointing in (False, True):
        recipe = replace(RECIPE, batch=4, checkpointing=checkpointing)
        real = network()
        objective = Objective(lambda step: rows(4 if step < 2 else 2), loss(real))
        throughput = Throughput(Training(real, objective, recipe, steps=4))
        measured = []
        for _ in range(3):
            throughput.advance()
            measured.append(throughput.operations)
        plan = plan_run(network, loss, rows, recipe, 1, processes=1)
        assert measured == [plan.operations, plan.operations, plan.operations // 2]
        recomputed[checkpointing] = plan.recomputed
    assert recomputed[True] > recomputed[False] == 0


def test_an_image_grid_fills_a_short_last_row_with_white() -> None:
    red, blue = torch.ones(3, 2, 2), -torch.ones(3, 2, 2)
    page = image_grid([red, blue, blue], 2)
    assert page.size == (4, 4)
    assert page.getpixel((3, 0)) == (0, 0, 0) and page.getpixel((3, 3)) == (255, 255, 255)
    assert image_grid([red], 8).size == (2, 2)


def test_a_slow_run_is_saved_between_sample_grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = run(Training(*line_fit(), RECIPE, steps=5), tmp_path, every=100)
    next(steps)
    next(steps)
    assert checkpoints.steps(tmp_path) == []
    monkeypatch.setattr("kandinsky22.training.run.MAX_SECONDS", 0.0)
    next(steps)
    assert checkpoints.steps(tmp_path) == [3]


def test_a_caption_is_written_in_a_cell_of_the_size_of_a_picture() -> None:
    (short, empty) = caption_cells(["a red star on a blue ground", ""], (48, 64))
    assert short.shape == (3, 48, 64) and short.min() < -0.5 and (short == 1).float().mean() > 0.5
    assert empty.min() == 1


def test_captions_stand_beside_their_pictures() -> None:
    page = captioned_column(["one", "two"], -torch.ones(2, 3, 16, 32))
    assert page.size == (64, 32) and page.getpixel((63, 31)) == (0, 0, 0) and page.getpixel((30, 14)) == (255, 255, 255)
