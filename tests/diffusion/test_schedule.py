"""`NoiseSchedule`: its tables and timesteps, and which published configs it reads and refuses."""

import pickle
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from kandinsky22.diffusion import NoiseSchedule, start_at
from tests.diffusion.toy import DECODER, DECODER_CONFIG, PRIOR, PRIOR_CONFIG, randn


def test_from_config_reads_the_published_values() -> None:
    assert (DECODER.prediction_type, DECODER.clip_sample_range) == ("epsilon", 1.0)
    assert (DECODER.timestep_spacing, DECODER.steps_offset) == ("leading", 1)
    assert DECODER.variance_type == "fixed_small"  # absent from the file: the class's own default
    assert (PRIOR.prediction_type, PRIOR.variance_type, PRIOR.clip_sample_range) == ("sample", "fixed_small_log", 10.0)
    assert NoiseSchedule.from_config({**DECODER_CONFIG, "clip_sample": False}).clip_sample_range is None


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({}, "_class_name must be 'DDPMScheduler' or 'DDIMScheduler' or 'UnCLIPScheduler', got None"),
        ({"_class_name": "EulerDiscreteScheduler"}, "_class_name must be .*, got 'EulerDiscreteScheduler'"),
        ({**DECODER_CONFIG, "prediction_type": "flow"}, "prediction_type must be 'epsilon' or .*, got 'flow'"),
        ({**DECODER_CONFIG, "variance_type": None}, "variance_type must be 'fixed_small' or .*, got None"),
        ({**DECODER_CONFIG, "beta_schedule": "sigmoid"}, "beta_schedule must be 'linear' or .*, got 'sigmoid'"),
        ({**DECODER_CONFIG, "timestep_spacing": "karras"}, "timestep_spacing must be 'leading' or .*, got 'karras'"),
        ({**DECODER_CONFIG, "thresholding": True}, "thresholding must be False, got True"),
        ({**DECODER_CONFIG, "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr must be False, got True"),
        ({**DECODER_CONFIG, "trained_betas": [0.1]}, "trained_betas must be None"),
        ({**DECODER_CONFIG, "clip_sample": "yes"}, "clip_sample must be True or False, got 'yes'"),
        ({**DECODER_CONFIG, "clip_sample_range": -1}, "clip_sample_range must be a positive number, got -1"),
        (
            {**DECODER_CONFIG, "clip_sample_range": None},
            "clip_sample_range must be a positive number where clip_sample",
        ),
        (
            {**DECODER_CONFIG, "num_train_timesteps": 0},
            "num_train_timesteps must be a whole number from 1 to 100000, got 0",
        ),
        ({**DECODER_CONFIG, "steps_offset": 1.5}, "steps_offset must be a whole number in .0, 1000., got 1.5"),
        ({**DECODER_CONFIG, "beta_end": "0.012"}, "beta_end must be a number in .0, 1., got '0.012'"),
        ({**PRIOR_CONFIG, "beta_schedule": "linear"}, "beta_start must be a number in .0, 1., got None"),
    ],
)
def test_from_config_refuses_unsupported_values_in_one_line(config: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}") as raised:
        NoiseSchedule.from_config(config)
    assert "\n" not in str(raised.value)


def test_a_schedule_can_be_compared_hashed_pickled_and_replaced() -> None:
    equal = NoiseSchedule.from_config(DECODER_CONFIG)
    assert equal == DECODER and hash(equal) == hash(DECODER) and equal != PRIOR
    assert torch.equal(pickle.loads(pickle.dumps(DECODER)).alphas_cumprod, DECODER.alphas_cumprod)
    assert replace(DECODER, clip_sample_range=2.0).clip_sample_range == 2.0


def test_alpha_bar_falls_from_almost_one_to_almost_zero() -> None:
    for schedule in (DECODER, PRIOR):
        table = schedule.alphas_cumprod
        assert table.dtype == torch.float32 and table.shape == (1000,)
        assert bool((table.diff() < 0).all()) and table[0] > 0.999 and 0 < table[-1] < 0.002
        assert schedule.alpha_bar(-1) == 1
        rows = schedule.alpha_bar(torch.tensor([-1, 0, 999]))
        assert torch.equal(rows, torch.stack([schedule.alpha_bar(t) for t in (-1, 0, 999)]))
    for t in (-2, 1000):
        with pytest.raises(ValueError, match=r"t must be in \[-1, 1000\), got"):
            DECODER.alpha_bar(t)


def test_tables_created_in_inference_mode_allow_training() -> None:
    schedule = NoiseSchedule.from_config(DECODER_CONFIG)
    with torch.inference_mode(), torch.device("meta"):
        schedule.alpha_bar(3)
    x = torch.ones(2, 4, requires_grad=True)
    schedule.add_noise(x, torch.zeros(2, 4), torch.tensor([3, 4])).sum().backward()
    assert x.grad is not None and x.grad.device.type == "cpu"


def test_add_noise_treats_rows_independently() -> None:
    x0, noise, ts = randn(3, 4, 2, 5), randn(3, 4, 2, 5, seed=1), (0, 500, 999)
    for kind in (DECODER.add_noise, DECODER.velocity):
        together = kind(x0, noise, torch.tensor(ts))
        alone = [kind(x0[k : k + 1], noise[k : k + 1], t) for k, t in enumerate(ts)]
        assert torch.equal(together, torch.cat(alone))
    assert torch.equal(DECODER.add_noise(x0, noise, -1), x0)


def test_velocity_and_x_recover_x0_and_noise() -> None:
    x0, noise = randn(2, 8), randn(2, 8, seed=1)
    x, v, a = DECODER.add_noise(x0, noise, 400), DECODER.velocity(x0, noise, 400), DECODER.alpha_bar(400)
    torch.testing.assert_close(a**0.5 * x - (1 - a) ** 0.5 * v, x0)
    torch.testing.assert_close((1 - a) ** 0.5 * x + a**0.5 * v, noise)


def test_snr_is_the_ratio_of_signal_and_noise() -> None:
    t = torch.tensor([0, 500, 999])
    a = DECODER.alpha_bar(t).double()
    torch.testing.assert_close(DECODER.snr(t).double(), a / (1 - a), rtol=1e-6, atol=0)
    assert DECODER.snr(500).ndim == 0


def test_timesteps_are_the_published_ones() -> None:
    assert DECODER.timesteps(50) == tuple(range(981, 0, -20))
    assert DECODER.timesteps(100) == tuple(range(991, 0, -10))
    expected = "999 957 916 874 832 791 749 708 666 624 583 541 500 458 416 375 333 291 250 208 166 125 83 42 0"
    assert PRIOR.timesteps(25) == tuple(map(int, expected.split()))
    assert PRIOR.timesteps(1) == (999,)


@pytest.mark.parametrize("changes", [{}, {"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}])
def test_timesteps_fall_and_stay_in_range(changes: Any) -> None:
    schedule = replace(DECODER, **changes)
    for steps in range(1, 1000):
        ts = schedule.timesteps(steps)
        assert len(ts) == steps and ts[0] <= 999 and ts[-1] >= 0
        assert all(t > s for t, s in pairwise(ts))


def test_timesteps_refuses_impossible_numbers_of_steps() -> None:
    for steps in (0, -1, 1001, 2.5):
        with pytest.raises(ValueError, match=rf"steps must be in \[1, 1000\], got {steps}"):
            DECODER.timesteps(steps)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1000 steps with steps_offset 1 would start at t=1000, past"):
        DECODER.timesteps(1000)


def test_start_at_keeps_the_last_steps_of_a_run() -> None:
    timesteps = DECODER.timesteps(10)
    assert start_at(timesteps, 1) == timesteps
    assert start_at(timesteps, 0.3) == timesteps[-3:]
    assert start_at(timesteps, 0.39) == timesteps[-3:]
    for strength in (0, -0.1, 3, float("nan")):
        with pytest.raises(ValueError, match=rf"strength must be in \(0, 1\], got {strength}; try 0.3"):
            start_at(timesteps, strength)
    with pytest.raises(ValueError, match=r"strength 0\.05 leaves none of 10 steps"):
        start_at(timesteps, 0.05)
