"""`interpret` and `guide`: from the network's output to x0 and eps, and classifier-free guidance."""

from dataclasses import replace

import pytest
import torch

from kandinsky22.diffusion import Prediction, guide, interpret, split_variance
from kandinsky22.diffusion.schedule import PredictionType
from tests.diffusion.toy import DECODER, randn, unclipped

TYPES: tuple[PredictionType, ...] = ("epsilon", "sample", "v_prediction")


@pytest.mark.parametrize("kind", TYPES)
def test_interpret_recovers_x0_and_eps_from_every_prediction_type(kind: PredictionType) -> None:
    schedule = unclipped(DECODER, prediction_type=kind)
    x0, eps, t = randn(2, 4, 3, 5), randn(2, 4, 3, 5, seed=1), 300
    outputs = {"epsilon": eps, "sample": x0, "v_prediction": schedule.velocity(x0, eps, t)}
    p = interpret(outputs[kind], schedule.add_noise(x0, eps, t), t, schedule)
    torch.testing.assert_close(p.x0, x0, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(p.eps, eps, atol=1e-5, rtol=1e-5)
    assert p.variance is None


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_interpret_treats_rows_with_their_own_timesteps_as_alone(kind: PredictionType, dtype: torch.dtype) -> None:
    schedule, ts = replace(DECODER, prediction_type=kind), (3, 500, 981)
    x, output = randn(3, 4, 3, 5, dtype=dtype), randn(3, 4, 3, 5, seed=1, dtype=dtype)
    together = interpret(output, x, torch.tensor(ts), schedule)
    assert together.x0.dtype == together.eps.dtype == dtype
    for k, t in enumerate(ts):
        alone = interpret(output[k : k + 1], x[k : k + 1], t, schedule)
        for ours, theirs in zip(together[:2], alone[:2], strict=True):
            if dtype in (torch.float32, torch.float64):
                assert torch.equal(ours[k : k + 1], theirs)
            torch.testing.assert_close(ours[k : k + 1], theirs, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("kind", TYPES)
def test_interpret_clips_x0_and_leaves_eps(kind: PredictionType) -> None:
    x, output = 9 * randn(2, 8), 9 * randn(2, 8, seed=1)
    clipped = interpret(output, x, 700, replace(DECODER, prediction_type=kind))
    free = interpret(output, x, 700, unclipped(DECODER, prediction_type=kind))
    assert free.x0.abs().max() > 1 and torch.equal(clipped.x0, free.x0.clamp(-1, 1))
    assert torch.equal(clipped.eps, free.eps)


def test_split_variance_separates_doubled_channels() -> None:
    x, output = randn(2, 4, 3, 5), randn(2, 8, 3, 5, seed=1)
    eps, variance = split_variance(output, x)
    assert variance is not None and torch.equal(torch.cat([eps, variance], 1), output)
    p = interpret(eps, x, 5, DECODER, variance)
    assert p.variance is variance and p.eps is eps
    assert split_variance(eps, x) == (eps, None)
    with pytest.raises(ValueError, match=r"the network answered \(2, 8, 3, 5\) to x of shape \(2, 4, 3, 5\)"):
        interpret(output, x, 5, DECODER)


def test_predictions_split_by_rows() -> None:
    x0, eps, variance = randn(6, 2), randn(6, 2, seed=1), randn(6, 2, seed=2)
    parts = Prediction(x0, eps, variance).split([1, 3, 2])
    assert [len(part.x0) for part in parts] == [1, 3, 2]
    assert torch.equal(torch.cat([part.eps for part in parts]), eps)
    assert parts[1].variance is not None and torch.equal(parts[1].variance, variance[1:4])
    assert all(part.variance is None for part in Prediction(x0, eps).split([3, 3]))


def test_guide_extrapolates_from_uncond_through_cond() -> None:
    u, c = randn(3, 4, 2, 5), randn(3, 4, 2, 5, seed=1)
    assert torch.equal(guide(u, c, 0.0), u)
    torch.testing.assert_close(guide(u, c, 1.0), c)
    torch.testing.assert_close(guide(u, c, 4.0) - u, 4 * (c - u))
    assert torch.equal(guide(c, c, 7.0), c)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_guide_with_a_weight_per_row_equals_each_weight_alone(dtype: torch.dtype) -> None:
    u, c, weights = randn(3, 4, 2, 5, dtype=dtype), randn(3, 4, 2, 5, seed=1, dtype=dtype), (0.0, 1.0, 4.5)
    together = guide(u, c, torch.tensor(weights))
    assert together.dtype == dtype
    alone = [guide(u[k : k + 1], c[k : k + 1], weight) for k, weight in enumerate(weights)]
    assert torch.equal(together, torch.cat(alone))
