"""The loop: it learns, it resumes to the same numbers however it is cut up, and it stops at what is not finite."""

import math
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kandinsky22.training import checkpoints
from kandinsky22.training.link_base import link_missing
from kandinsky22.training.loop import Batch, Objective, Recipe, Training
from kandinsky22.training.run import BEST, METRICS, lines, resume, run, seconds_per_step
from tests.training.known import RECIPE, line_fit

MEASURED = ("step", "of", "loss", "seen", "grad_norm", "loss_t0", "loss_t3")


def test_it_finds_the_known_answer() -> None:
    training = Training(*line_fit(), RECIPE, steps=300)
    measured = list(training)
    assert [line["step"] for line in measured] == list(range(1, 301))
    weights = training.averaged()
    assert torch.allclose(weights["weight"], torch.tensor([[2.0, -3.0]]), atol=1e-2)
    assert torch.allclose(weights["bias"], torch.tensor([1.0]), atol=1e-2)
    finished = training.finished()
    assert torch.equal(finished.weight, weights["weight"]) and not finished.weight.requires_grad


def test_the_average_is_the_recurrence_it_says() -> None:
    training = Training(*line_fit(), RECIPE, steps=4)
    expected = training.network.weight.detach().clone()
    for step in range(4):
        training.advance()
        decay = min(RECIPE.ema_decay, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * training.network.weight.detach()
    assert torch.allclose(training.averaged()["weight"], expected, atol=1e-6)


def test_the_loss_is_told_by_timestep() -> None:
    training = Training(*line_fit(), RECIPE, steps=1)
    batch = training.objective.draw(0)
    losses = training.objective.loss(batch)[0].detach()
    line = training.advance()
    assert line["loss"] == pytest.approx(float(losses.mean()), rel=1e-6)
    for number in range(4):
        here = (batch["t"] // 25) == number
        if here.any():
            assert line[f"loss_t{number}"] == pytest.approx(float(losses[here].mean()), rel=1e-6)
        else:
            assert f"loss_t{number}" not in line


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_batch_in_parts_learns_the_same(parts: int) -> None:
    """Three parts of eight rows are not of one size."""
    at_once, cut = Training(*line_fit(), RECIPE, 20), Training(*line_fit(), replace(RECIPE, accumulate=parts), 20)
    for one, other in zip(at_once, cut, strict=True):
        assert all(one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6) for name in MEASURED if name in one)
    assert torch.allclose(at_once.averaged()["weight"], cut.averaged()["weight"], atol=1e-5)


def test_what_cannot_be_cut_is_refused() -> None:
    network, objective = line_fit()
    with pytest.raises(ValueError, match="compares every row of a batch"):
        Training(network, replace(objective, coupled=True), replace(RECIPE, accumulate=2), steps=1)
    with pytest.raises(ValueError, match="a batch of 8 cannot be cut into 9 parts; use a larger --batch"):
        Training(network, objective, replace(RECIPE, accumulate=9), steps=1)


def test_computing_activations_again_changes_nothing() -> None:
    from kandinsky22.models.unet import UNet
    from kandinsky22.training.recipes import BOX

    config = replace(BOX.unet, block_out_channels=(32, 32), cross_attention_dim=16, encoder_hid_dim=8, sample_size=4)
    losses, gradients = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        unet = UNet(config)
        rows = {"x": torch.randn(2, 4, 4, 4), "embeds": torch.randn(2, 8)}

        def loss(rows: Batch, unet: UNet = unet) -> tuple[Tensor, dict[str, Tensor]]:
            out = unet(rows["x"], torch.tensor([3, 7]), unet.condition(rows["embeds"]))
            return out.square().mean(dim=(1, 2, 3)), {}

        recipe = replace(RECIPE, batch=2, checkpointing=checkpointing)
        training = Training(unet, Objective(lambda step, rows=rows: rows, loss), recipe, steps=1)
        losses.append(training.gradients(0)["loss"])
        gradients.append({name: p.grad for name, p in unet.named_parameters() if p.grad is not None})
    assert losses[0] == losses[1] and len(gradients[0]) > 50
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


def test_products_are_of_bfloat16_and_what_is_kept_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real steps: a CPU can do it, if slowly, whether or not it has instructions for it."""
    monkeypatch.setattr("kandinsky22.training.loop.computes_bfloat16", lambda device: True)
    seen: list[torch.dtype] = []
    losses = {}
    for bfloat16 in (True, False):
        network, objective = line_fit()
        network.register_forward_hook(lambda module, given, result: seen.append(result.dtype))
        training = Training(network, objective, replace(RECIPE, bfloat16=bfloat16), steps=20)
        losses[bfloat16] = [line["loss"] for line in training]
        kept = [
            *network.parameters(),
            *training.ema.values(),
            *training.optimizer.state[training.parameters[0]].values(),
        ]
        assert {value.dtype for value in kept} == {torch.float32}
    assert seen == [torch.bfloat16] * 20 + [torch.float32] * 20
    assert losses[True] == pytest.approx(losses[False], rel=0.05) and losses[True] != losses[False]
    assert losses[True][-1] < losses[True][0]


def _same(left: list[dict[str, float]], right: list[dict[str, float]]) -> None:
    for one, other in zip(left, right, strict=True):
        assert {k: v for k, v in one.items() if k in MEASURED} == {k: v for k, v in other.items() if k in MEASURED}


def test_a_resumed_run_sees_the_same_numbers(tmp_path: Path) -> None:
    whole = Training(*line_fit(), RECIPE, steps=10)
    uninterrupted = list(run(whole, tmp_path / "a", every=4))

    first = Training(*line_fit(), RECIPE, steps=10)
    for line in run(first, tmp_path / "b", every=4):
        if line["step"] == 6:  # two steps past the last checkpoint
            break
    second = Training(*line_fit(), RECIPE, steps=999)
    assert resume(second, tmp_path / "b")
    assert (second.step, second.steps) == (4, 10)
    list(run(second, tmp_path / "b", every=4))
    _same(uninterrupted, lines(tmp_path / "b"))
    assert all(torch.equal(value, whole.averaged()[name]) for name, value in second.averaged().items())
    assert {"seconds", "rows_per_second", "mfu", "memory_gib"} <= set(uninterrupted[0])


def test_a_line_that_a_crash_tore_is_dropped(tmp_path: Path) -> None:
    list(run(Training(*line_fit(), RECIPE, steps=4), tmp_path, every=4))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 5, "los')
    assert resume(Training(*line_fit(), RECIPE, steps=4), tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]


def test_the_last_three_checkpoints_are_kept(tmp_path: Path) -> None:
    list(run(Training(*line_fit(), RECIPE, steps=10), tmp_path, every=2))
    assert checkpoints.steps(tmp_path) == [6, 8, 10]


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    from PIL import Image
    from safetensors.torch import load_file

    said, seen = iter([3.0, 1.0, 2.0]), []

    def sheet(weights: dict[str, Tensor]) -> tuple[Image.Image, dict[str, float]]:
        seen.append({name: value.clone() for name, value in weights.items()})
        return Image.new("RGB", (2, 2)), {"validation": next(said)}

    list(run(Training(*line_fit(), RECIPE, steps=6), tmp_path, sheet=sheet, every=2))
    assert torch.equal(load_file(tmp_path / BEST)["weight"], seen[1]["weight"])


def test_another_objective_or_network_is_not_gone_on_with(tmp_path: Path) -> None:
    list(run(Training(*line_fit(), RECIPE, 2, {"pictures": "a"}), tmp_path))
    with pytest.raises(ValueError, match="the checkpoint learnt from another pictures than"):
        resume(Training(*line_fit(), RECIPE, 2, {"pictures": "b"}), tmp_path)
    with pytest.raises(ValueError, match="is not of this network"):
        resume(Training(*line_fit(width=5), RECIPE, 2, {"pictures": "a"}), tmp_path)


def test_what_is_not_finite_stops_with_a_sentence_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    network, objective = line_fit()

    def spoilt(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        losses, measured = objective.loss(rows)
        return losses * (math.nan if training.step == 5 else 1.0), measured

    training = Training(network, replace(objective, loss=spoilt), RECIPE, steps=10)
    wanted = (
        "not finite at step 5; the checkpoint of step 4 is sound: go on from it with a lower --learning-rate than 0.05"
    )
    with pytest.raises(FloatingPointError, match=wanted):
        list(run(training, tmp_path, every=2))
    assert bool(torch.isfinite(network.weight).all()), "the step was not taken"
    after = Training(*line_fit(), replace(RECIPE, learning_rate=0.01), steps=10)
    assert resume(after, tmp_path) and after.step == 4


def test_what_is_not_finite_before_the_first_checkpoint_says_that_there_is_none(tmp_path: Path) -> None:
    training = Training(*line_fit(), replace(RECIPE, learning_rate=1e30, warmup=0), steps=10)
    wanted = r"not finite at step \d; there is no checkpoint yet: begin again with a lower --learning-rate than 1e\+30"
    with pytest.raises(FloatingPointError, match=wanted):
        list(run(training, tmp_path, every=50))


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """The system itself refuses to write more, as it does on a full disk; this needs no disk of one's own."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_takes_no_more_stops_with_its_reason_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    """What torch raises then says nothing of the reason."""
    training = Training(*line_fit(), RECIPE, steps=10)
    running = run(training, tmp_path, every=2)
    for _ in range(5):
        next(running)
    said = (
        f"the checkpoint of step 6 cannot be written to {tmp_path} (File too large); the checkpoint of step 4 is sound"
    )
    with no_file_longer_than((tmp_path / METRICS).stat().st_size + 1000), pytest.raises(OSError) as stopped:
        list(running)
    assert str(stopped.value) == said
    assert checkpoints.steps(tmp_path) == [2, 4]
    assert not list((tmp_path / checkpoints.FOLDER).glob("*.part"))
    after = Training(*line_fit(), RECIPE, steps=10)
    assert resume(after, tmp_path) and after.step == 4


def test_metrics_that_cannot_be_written_stop_with_a_sentence(tmp_path: Path) -> None:
    running = run(Training(*line_fit(), RECIPE, steps=10), tmp_path, every=2)
    for _ in range(3):
        next(running)
    with no_file_longer_than((tmp_path / METRICS).stat().st_size + 10), pytest.raises(OSError) as stopped:
        list(running)
    assert str(stopped.value) == f"{tmp_path}: File too large; the checkpoint of step 2 is sound"
    assert resume(Training(*line_fit(), RECIPE, steps=10), tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_model_to_begin_with_that_has_no_room_is_one_sentence(tmp_path: Path) -> None:
    source = tmp_path / "start" / "decoder"
    (source / "unet").mkdir(parents=True)
    (source / "unet" / "weights").write_bytes(bytes(5000))
    with no_file_longer_than(1000), pytest.raises(OSError) as stopped:
        link_missing(tmp_path / "model", {"decoder": source})
    place = tmp_path / "model" / "decoder" / "unet"
    said = f"{source / 'unet'} cannot be copied to {place} (File too large); make room, and give the command again"
    assert str(stopped.value) == said
    assert not [*place.parent.iterdir()]
    link_missing(tmp_path / "model", {"decoder": source})
    assert (place / "weights").stat().st_size == 5000


def test_timing_does_not_train() -> None:
    training = Training(*line_fit(), RECIPE, steps=1)
    before = training.network.weight.detach().clone()
    assert seconds_per_step(training) > 0
    assert torch.equal(training.network.weight, before) and training.step == 0


def test_the_rate_warms_up_and_falls_or_stays() -> None:
    recipe = Recipe(batch=1, learning_rate=1.0, warmup=10)
    assert recipe.rate(0, 100) == pytest.approx(0.1, rel=1e-3)
    assert recipe.rate(99, 100) == pytest.approx(0.01, abs=1e-3)
    assert replace(recipe, decay=False).rate(99, 100) == 1.0
    assert replace(recipe, warmup=0, decay=False).rate(0, 100) == 1.0
