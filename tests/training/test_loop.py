"""The training loop: it fits a known function, resumes exactly, splits batches without effect, and stops at
non-finite losses."""

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
from kandinsky22.training.copy_base import copy_missing
from kandinsky22.training.loop import Batch, Objective, Recipe, Training
from kandinsky22.training.metrics import Validation
from kandinsky22.training.run import BEST, METRICS, read_metrics, resume, run
from kandinsky22.training.throughput import seconds_per_step
from tests.training.known import RECIPE, line_fit

MEASURED = ("step", "of", "loss", "seen", "grad_norm", "loss_t0", "loss_t3")


def test_training_fits_a_known_linear_function() -> None:
    training = Training(*line_fit(), RECIPE, steps=300)
    measured = list(training)
    assert [metrics.step for metrics in measured] == list(range(1, 301))
    weights = training.ema_state_dict()
    assert torch.allclose(weights["weight"], torch.tensor([[2.0, -3.0]]), atol=1e-2)
    assert torch.allclose(weights["bias"], torch.tensor([1.0]), atol=1e-2)
    averaged = training.ema_network()
    assert torch.equal(averaged.weight, weights["weight"]) and not averaged.weight.requires_grad


def test_the_weight_average_follows_its_recurrence() -> None:
    training = Training(*line_fit(), RECIPE, steps=4)
    expected = training.network.weight.detach().clone()
    for step in range(4):
        training.advance()
        decay = min(RECIPE.ema_decay, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * training.network.weight.detach()
    assert torch.allclose(training.ema_state_dict()["weight"], expected, atol=1e-6)


def test_the_loss_is_also_reported_for_each_quarter_of_the_timesteps() -> None:
    training = Training(*line_fit(), RECIPE, steps=1)
    batch = training.objective.draw(0)
    losses = training.objective.loss(batch)[0].detach()
    measured = training.advance().measured
    assert measured.loss == pytest.approx(float(losses.mean()), rel=1e-6)
    for number in range(4):
        within = (batch["t"] // 25) == number
        if within.any():
            assert measured.quarters[number] == pytest.approx(float(losses[within].mean()), rel=1e-6)
        else:
            assert number not in measured.quarters


def test_a_metric_whose_name_looks_like_a_timestep_loss_is_a_mean_over_all_rows() -> None:
    network, objective = line_fit()

    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        losses, _ = objective.loss(rows)
        return losses, {"loss_t": torch.full_like(losses, 3.0), "x_text": torch.full_like(losses, 4.0)}

    line = Training(network, replace(objective, loss=loss), RECIPE, steps=1).advance()
    assert line.measured.means == {"loss_t": 3.0, "x_text": 4.0} and line.values["loss_t"] == 3.0


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_accumulated_parts_train_like_one_batch(parts: int) -> None:
    """Three parts of eight rows have different sizes."""
    one_part, accumulated = (
        Training(*line_fit(), RECIPE, 20),
        Training(*line_fit(), replace(RECIPE, accumulate=parts), 20),
    )
    for left, right in zip(one_part, accumulated, strict=True):
        one, other = left.to_json(), right.to_json()
        assert all(one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6) for name in MEASURED if name in one)
    assert torch.allclose(one_part.ema_state_dict()["weight"], accumulated.ema_state_dict()["weight"], atol=1e-5)


def test_a_batch_that_cannot_be_split_is_refused() -> None:
    network, objective = line_fit()
    with pytest.raises(ValueError, match="compares every row of a batch"):
        Training(network, replace(objective, coupled=True), replace(RECIPE, accumulate=2), steps=1)
    with pytest.raises(ValueError, match="a batch of 8 cannot be cut into 9 parts; use a larger --batch"):
        Training(network, objective, replace(RECIPE, accumulate=9), steps=1)


def test_checkpointing_changes_neither_loss_nor_gradients() -> None:
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
        losses.append(training.compute_gradients(0).loss)
        gradients.append({name: p.grad for name, p in unet.named_parameters() if p.grad is not None})
    assert losses[0] == losses[1] and len(gradients[0]) > 50
    assert all(torch.equal(value, gradients[1][name]) for name, value in gradients[0].items())


def test_matrix_products_are_bfloat16_while_weights_and_averages_stay_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU computes in bfloat16, if slowly, whether or not it has instructions for it."""
    monkeypatch.setattr("kandinsky22.training.loop.computes_bfloat16", lambda device: True)
    dtypes: list[torch.dtype] = []
    losses = {}
    for bfloat16 in (True, False):
        network, objective = line_fit()
        network.register_forward_hook(lambda module, inputs, result: dtypes.append(result.dtype))
        training = Training(network, objective, replace(RECIPE, bfloat16=bfloat16), steps=20)
        losses[bfloat16] = [metrics.loss for metrics in training]
        state = [
            *network.parameters(),
            *training.ema.values(),
            *training.optimizer.state[training.parameters[0]].values(),
        ]
        assert {value.dtype for value in state} == {torch.float32}
    assert dtypes == [torch.bfloat16] * 20 + [torch.float32] * 20
    assert losses[True] == pytest.approx(losses[False], rel=0.05) and losses[True] != losses[False]
    assert losses[True][-1] < losses[True][0]


def assert_same_metrics(left: list[dict[str, float]], right: list[dict[str, float]]) -> None:
    for one, other in zip(left, right, strict=True):
        assert {k: v for k, v in one.items() if k in MEASURED} == {k: v for k, v in other.items() if k in MEASURED}


def test_a_resumed_run_reaches_the_same_metrics_and_weights(tmp_path: Path) -> None:
    training = Training(*line_fit(), RECIPE, steps=10)
    uninterrupted = [metrics.to_json() for metrics in run(training, tmp_path / "a", every=4)]

    first = Training(*line_fit(), RECIPE, steps=10)
    for metrics in run(first, tmp_path / "b", every=4):
        if metrics.step == 6:  # two steps past the last checkpoint
            break
    second = Training(*line_fit(), RECIPE, steps=999)
    assert resume(second, tmp_path / "b")
    assert (second.step, second.steps) == (4, 10)
    list(run(second, tmp_path / "b", every=4))
    assert_same_metrics(uninterrupted, read_metrics(tmp_path / "b"))
    assert all(torch.equal(value, training.ema_state_dict()[name]) for name, value in second.ema_state_dict().items())
    assert {"seconds", "rows_per_second", "mfu", "memory_gib"} <= set(uninterrupted[0])


def test_resume_drops_a_metrics_line_that_a_crash_left_incomplete(tmp_path: Path) -> None:
    list(run(Training(*line_fit(), RECIPE, steps=4), tmp_path, every=4))
    with (tmp_path / METRICS).open("a") as file:
        file.write('{"step": 5, "los')
    assert resume(Training(*line_fit(), RECIPE, steps=4), tmp_path)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_only_the_last_three_checkpoints_remain(tmp_path: Path) -> None:
    list(run(Training(*line_fit(), RECIPE, steps=10), tmp_path, every=2))
    assert checkpoints.steps(tmp_path) == [6, 8, 10]


def test_the_weights_with_the_lowest_validation_are_saved(tmp_path: Path) -> None:
    from PIL import Image
    from safetensors.torch import load_file

    validation, averages = iter([4.0, 3.0, 1.0, 2.0]), []

    def sample_grid(weights: dict[str, Tensor]) -> tuple[Image.Image, Validation]:
        averages.append({name: value.clone() for name, value in weights.items()})
        return Image.new("RGB", (2, 2)), Validation(next(validation))

    list(run(Training(*line_fit(), RECIPE, steps=6), tmp_path, sample_grid=sample_grid, every=2))
    assert torch.equal(load_file(tmp_path / BEST)["weight"], averages[2]["weight"])


def test_the_weights_before_the_first_step_are_validated_once(tmp_path: Path) -> None:
    from PIL import Image

    def sample_grid(weights: dict[str, Tensor]) -> tuple[Image.Image, Validation]:
        return Image.new("RGB", (2, 2)), Validation(float(weights["bias"].detach().abs()))

    training = Training(*line_fit(), RECIPE, steps=2)
    bias = float(training.network.bias.detach().abs())
    for _ in range(2):  # the second as after a crash before the first checkpoint
        next(run(Training(*line_fit(), RECIPE, steps=2), tmp_path, sample_grid=sample_grid))
        lines = read_metrics(tmp_path)
        assert [line["step"] for line in lines] == [0, 1] and lines[0] == {"step": 0, "of": 2, "validation": bias}


def test_resume_refuses_other_data_and_another_network(tmp_path: Path) -> None:
    list(run(Training(*line_fit(), RECIPE, 2, {"pictures": "a"}), tmp_path))
    with pytest.raises(
        ValueError, match="the checkpoint was trained with a different pictures; resume with what it was"
    ):
        resume(Training(*line_fit(), RECIPE, 2, {"pictures": "b"}), tmp_path)
    with pytest.raises(ValueError, match="is not of this network"):
        resume(Training(*line_fit(width=5), RECIPE, 2, {"pictures": "a"}), tmp_path)


def test_a_non_finite_loss_stops_the_run_and_names_the_checkpoint_to_resume_from(tmp_path: Path) -> None:
    network, objective = line_fit()

    def diverging(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        losses, measured = objective.loss(rows)
        return losses * (math.nan if training.step == 5 else 1.0), measured

    training = Training(network, replace(objective, loss=diverging), RECIPE, steps=10)
    message = (
        "not finite at step 5; the checkpoint of step 4 is sound: resume from it with a lower --learning-rate than 0.05"
    )
    with pytest.raises(FloatingPointError, match=message):
        list(run(training, tmp_path, every=2))
    assert bool(torch.isfinite(network.weight).all()), "the step was not taken"
    after = Training(*line_fit(), replace(RECIPE, learning_rate=0.01), steps=10)
    assert resume(after, tmp_path) and after.step == 4


def test_a_non_finite_loss_before_the_first_checkpoint_asks_to_start_again(tmp_path: Path) -> None:
    training = Training(*line_fit(), replace(RECIPE, learning_rate=1e30, warmup=0), steps=10)
    message = r"not finite at step \d; there is no checkpoint yet: start again with a lower --learning-rate than 1e\+30"
    with pytest.raises(FloatingPointError, match=message):
        list(run(training, tmp_path, every=50))


@contextmanager
def limit_file_size(size: int) -> Iterator[None]:
    """The system refuses to write more than `size` bytes to a file, with an error like that of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_stops_the_run_with_its_reason_and_leaves_the_previous_checkpoint(tmp_path: Path) -> None:
    """Torch's own error does not give the reason."""
    training = Training(*line_fit(), RECIPE, steps=10)
    running = run(training, tmp_path, every=2)
    for _ in range(5):
        next(running)
    message = (
        f"the checkpoint of step 6 cannot be written to {tmp_path} (File too large); the checkpoint of step 4 is sound"
    )
    with limit_file_size((tmp_path / METRICS).stat().st_size + 1000), pytest.raises(OSError) as stopped:
        list(running)
    assert str(stopped.value) == message
    assert checkpoints.steps(tmp_path) == [2, 4]
    assert not list((tmp_path / checkpoints.FOLDER).glob("*.part"))
    after = Training(*line_fit(), RECIPE, steps=10)
    assert resume(after, tmp_path) and after.step == 4


def test_metrics_that_cannot_be_written_stop_the_run_with_the_reason(tmp_path: Path) -> None:
    running = run(Training(*line_fit(), RECIPE, steps=10), tmp_path, every=2)
    for _ in range(3):
        next(running)
    with limit_file_size((tmp_path / METRICS).stat().st_size + 10), pytest.raises(OSError) as stopped:
        list(running)
    assert str(stopped.value) == f"{tmp_path}: File too large; the checkpoint of step 2 is sound"
    assert resume(Training(*line_fit(), RECIPE, steps=10), tmp_path)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]


def test_a_base_model_that_does_not_fit_the_disk_is_one_error_message(tmp_path: Path) -> None:
    source = tmp_path / "start" / "decoder"
    (source / "unet").mkdir(parents=True)
    (source / "unet" / "weights").write_bytes(bytes(5000))
    with limit_file_size(1000), pytest.raises(OSError) as stopped:
        copy_missing(tmp_path / "model", {"decoder": source})
    place = tmp_path / "model" / "decoder" / "unet"
    message = f"{source / 'unet'} cannot be copied to {place} (File too large); make room, and give the command again"
    assert str(stopped.value) == message
    assert not [*place.parent.iterdir()]
    copy_missing(tmp_path / "model", {"decoder": source})
    assert (place / "weights").stat().st_size == 5000


def test_writing_into_a_model_never_changes_the_base_model(tmp_path: Path) -> None:
    source, place = tmp_path / "start" / "decoder", tmp_path / "model" / "decoder"
    (source / "unet").mkdir(parents=True)
    for path in (source / "unet" / "weights", source / "model_index.json"):
        path.write_bytes(b"0" * 3_000_000)
    copy_missing(tmp_path / "model", {"decoder": source})
    for path in (place / "unet" / "weights", place / "model_index.json"):
        assert path.read_bytes() == b"0" * 3_000_000
        with path.open("r+b") as file:
            file.write(b"1")
    assert (source / "unet" / "weights").read_bytes() == (source / "model_index.json").read_bytes() == b"0" * 3_000_000


def test_models_that_were_linked_to_their_base_model_stay_as_they_are(tmp_path: Path) -> None:
    """As runs of older versions did."""
    source, place = tmp_path / "start" / "decoder", tmp_path / "model" / "decoder"
    for folder in (source, place):
        (folder / "unet").mkdir(parents=True)
    (source / "unet" / "weights").write_bytes(b"0")
    (place / "unet" / "weights").hardlink_to(source / "unet" / "weights")
    copy_missing(tmp_path / "model", {"decoder": source})
    assert (place / "unet" / "weights").samefile(source / "unet" / "weights")


def test_timing_steps_does_not_change_the_weights() -> None:
    training = Training(*line_fit(), RECIPE, steps=1)
    before = training.network.weight.detach().clone()
    assert seconds_per_step(training) > 0
    assert torch.equal(training.network.weight, before) and training.step == 0


def test_the_learning_rate_warms_up_and_then_decays_or_stays() -> None:
    recipe = Recipe(batch=1, learning_rate=1.0, warmup=10)
    assert recipe.rate(0, 100) == pytest.approx(0.1, rel=1e-3)
    assert recipe.rate(99, 100) == pytest.approx(0.01, abs=1e-3)
    assert replace(recipe, decay=False).rate(99, 100) == 1.0
    assert replace(recipe, warmup=0, decay=False).rate(0, 100) == 1.0


def test_finishing_decays_the_rate_within_a_tenth_of_the_steps_taken() -> None:
    training = Training(*line_fit(), RECIPE, steps=100)
    for _ in range(40):
        training.advance()
    before = training.rate(40)
    training.finish()
    assert training.steps == 44 and training.step == 40
    rates = [training.rate(step) for step in range(40, 44)]
    assert rates == sorted(rates, reverse=True) and before > rates[0] and rates[-1] == pytest.approx(before / 100)
    training.finish()
    assert training.steps == 44, "asking twice changes nothing"
    assert len(list(training)) == 4


def test_finishing_does_nothing_to_a_run_that_ends_sooner() -> None:
    training = Training(*line_fit(), RECIPE, steps=10)
    for _ in range(9):
        training.advance()
    rate = training.rate(9)
    training.finish()
    assert training.steps == 10 and training.rate(9) == rate


def test_a_complete_run_goes_on_with_a_schedule_of_its_own() -> None:
    training = Training(*line_fit(), RECIPE, steps=6)
    list(training)
    training.extend(6)
    assert [training.rate(6 + step) for step in range(6)] == [RECIPE.rate(step, 6) for step in range(6)]
    assert [line.step for line in training] == [7, 8, 9, 10, 11, 12]


def test_the_trained_network_is_a_copy_of_the_averages() -> None:
    """What is done to it before it is written must not change the run."""
    training = Training(*line_fit(), RECIPE, steps=2)
    training.advance()
    trained = training.ema_network()
    with torch.no_grad():
        trained.weight.zero_()
    assert training.ema["weight"].abs().sum() > 0
