"""What a run leaves to look at."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from kandinsky22.training.loop import Objective, Training
from kandinsky22.training.plan import planned
from kandinsky22.training.run import EVENTS, Pace, grid, run
from tests.training.known import RECIPE, line_fit


def sheet(weights: dict[str, Tensor]) -> tuple[Image.Image, dict[str, float]]:
    return Image.new("RGB", (8, 6), "red"), {"validation": float(weights["bias"])}


def test_tensorboard_is_told_what_the_metrics_are(tmp_path: Path) -> None:
    lines = list(run(Training(*line_fit(), RECIPE, steps=4), tmp_path, sheet=sheet, every=2, tensorboard=True))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tmp_path / EVENTS))
    read.Reload()
    losses = [(event.step, event.value) for event in read.Scalars("loss")]
    assert losses == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    assert [event.step for event in read.Scalars("validation")] == [2, 4]
    shown = read.Images("sheet")[-1]
    assert (shown.step, shown.width, shown.height) == (4, 8, 6)


def test_without_tensorboard_the_sentence_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'kandinsky22\[train\]'"):
        next(run(Training(*line_fit(), RECIPE, steps=4), tmp_path, tensorboard=True))
    assert not list(tmp_path.glob("*.jsonl"))


def test_operations_are_counted_and_the_counting_teaches_nothing(tmp_path: Path) -> None:
    """Of a linear layer n x 2 -> n x 1: 2 * 2n forward, as much again for the weight's gradient; nothing needs that of x."""
    training, other = (Training(*line_fit(), RECIPE, steps=4) for _ in range(2))
    pace = Pace(training)
    line = {**pace.advance(), **pace.measured()}
    other.advance()
    assert torch.equal(training.network.weight, other.network.weight) and training.network.weight.grad is None
    assert pace.operations == 2 * (2 * 2 * RECIPE.batch)
    assert line["rows_per_second"] > 0 and 0 <= line["mfu"] < 1 and line["memory_gib"] > 0.05


def test_operations_are_those_of_the_plan_whatever_is_computed_again_and_for_every_shape() -> None:
    """With attention, which is the CPU's; a step of other shapes counts what it takes."""
    from tests.training.test_plan import NETWORKS

    network, loss, rows = NETWORKS["unet"]
    found = {}
    for checkpointing in (False, True):
        recipe = replace(RECIPE, batch=4, checkpointing=checkpointing)
        real = network()
        objective = Objective(lambda step: rows(4 if step < 2 else 2), loss(real))
        pace = Pace(Training(real, objective, recipe, steps=4))
        measured = []
        for _ in range(3):
            pace.advance()
            measured.append(pace.operations)
        plan = planned(network, loss, rows, recipe, 1, processes=1)
        assert measured == [plan.operations, plan.operations, plan.operations // 2]
        found[checkpointing] = plan.recomputed
    assert found[True] > found[False] == 0


def test_a_grid_may_end_short() -> None:
    red, blue = torch.ones(3, 2, 2), -torch.ones(3, 2, 2)
    page = grid([red, blue, blue], 2)
    assert page.size == (4, 4)
    assert page.getpixel((3, 0)) == (0, 0, 0) and page.getpixel((3, 3)) == (255, 255, 255)
    assert grid([red], 8).size == (2, 2)
