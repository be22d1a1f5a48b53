"""The loop: it learns, it resumes to the same numbers, and it stops at what is not finite."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kandinsky22.training.loop import Objective, Recipe, Training, generator
from kandinsky22.training.run import CHECKPOINT, METRICS, resume, run, seconds_per_step

RECIPE = Recipe(batch=8, learning_rate=0.05, warmup=2, weight_decay=0.0, bfloat16=False, ema_decay=0.9)


def line_fit() -> tuple[nn.Module, Objective]:
    """A linear layer that is to become x -> 2 x0 - 3 x1 + 1, each step from its own seed."""
    torch.manual_seed(0)
    network = nn.Linear(2, 1)

    def objective(step: int) -> tuple[Tensor, dict[str, float]]:
        x = torch.randn(RECIPE.batch, 2, generator=generator(RECIPE.seed, step))
        truth = 2 * x[:, :1] - 3 * x[:, 1:] + 1
        return (network(x) - truth).square().mean(), {"seen": float(x.mean())}

    return network, objective


def test_it_finds_the_known_answer() -> None:
    training = Training(*line_fit(), RECIPE, steps=300)
    lines = list(training)
    assert [line["step"] for line in lines] == list(range(1, 301))
    weights = training.averaged()
    assert torch.allclose(weights["weight"], torch.tensor([[2.0, -3.0]]), atol=1e-2)
    assert torch.allclose(weights["bias"], torch.tensor([1.0]), atol=1e-2)


def test_the_average_is_the_recurrence_it_says() -> None:
    training = Training(*line_fit(), RECIPE, steps=4)
    expected = training.network.weight.detach().clone()
    for step in range(4):
        training.advance()
        decay = min(RECIPE.ema_decay, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * training.network.weight.detach()
    assert torch.allclose(training.averaged()["weight"], expected, atol=1e-6)


def test_a_resumed_run_sees_the_same_numbers(tmp_path: Path) -> None:
    whole = Training(*line_fit(), RECIPE, steps=10)
    uninterrupted = [{k: v for k, v in line.items() if k != "seconds"} for line in run(whole, tmp_path / "a", every=4)]

    first = Training(*line_fit(), RECIPE, steps=10)
    for line in run(first, tmp_path / "b", every=4):
        if line["step"] == 6:  # two steps past the last checkpoint
            break
    second = Training(*line_fit(), RECIPE, steps=999)
    assert resume(second, tmp_path / "b")
    assert (second.step, second.steps) == (4, 10)
    list(run(second, tmp_path / "b", every=4))

    written = [json.loads(line) for line in (tmp_path / "b" / METRICS).read_text().splitlines()]
    assert [{k: v for k, v in line.items() if k != "seconds"} for line in written] == uninterrupted
    for mine, theirs in zip(second.averaged().values(), whole.averaged().values(), strict=True):
        assert torch.equal(mine, theirs)


def test_timing_steps_takes_none(tmp_path: Path) -> None:
    network, objective = line_fit()
    before = network.weight.detach().clone()
    assert seconds_per_step(Training(network, objective, RECIPE, 10)) > 0
    assert torch.equal(network.weight, before)
    assert network.weight.grad is None


def test_what_is_not_finite_stops_with_the_last_checkpoint_whole(tmp_path: Path) -> None:
    network, objective = line_fit()

    def breaks(step: int) -> tuple[Tensor, dict[str, float]]:
        loss, measured = objective(step)
        return (loss * math.inf if step == 5 else loss), measured

    with pytest.raises(FloatingPointError, match="not finite at step 5"):
        list(run(Training(network, breaks, RECIPE, 10), tmp_path, every=4))
    again = Training(*line_fit(), RECIPE, steps=10)
    assert resume(again, tmp_path)
    assert again.step == 4
    assert (tmp_path / CHECKPOINT).exists()


def test_the_rate_warms_up_and_falls() -> None:
    rates = [RECIPE.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(RECIPE.learning_rate / 2, rel=1e-3)
    assert max(rates) <= RECIPE.learning_rate
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < 0.02 * RECIPE.learning_rate
