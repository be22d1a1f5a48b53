"""The published schedules, and optimal denoisers for data of known distribution, for the tests of the samplers."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kandinsky22.diffusion import NoiseSchedule, Prediction, interpret

DECODER_CONFIG: Mapping[str, object] = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": True,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
    "thresholding": False,
}
PRIOR_CONFIG: Mapping[str, object] = {
    "_class_name": "UnCLIPScheduler",
    "clip_sample": True,
    "clip_sample_range": 10.0,
    "num_train_timesteps": 1000,
    "prediction_type": "sample",
    "variance_type": "fixed_small_log",
}
DECODER = NoiseSchedule.from_config(DECODER_CONFIG)
PRIOR = NoiseSchedule.from_config(PRIOR_CONFIG)

Denoise = Callable[[Tensor, int], Prediction]


def unclipped(schedule: NoiseSchedule, **changes: Any) -> NoiseSchedule:
    return replace(schedule, clip_sample_range=None, set_alpha_to_one=True, **changes)


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def drawing(seed: int = 0) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda x: torch.randn(x.shape, generator=generator).to(x.dtype)


def answer(schedule: NoiseSchedule, x0: Tensor, x: Tensor, t: int) -> Prediction:
    """The prediction of a network of the schedule's prediction type whose estimate is x0."""
    a = schedule.alpha_bar(t)
    eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
    outputs = {"epsilon": eps, "sample": x0, "v_prediction": a**0.5 * eps - (1 - a) ** 0.5 * x0}
    return interpret(outputs[schedule.prediction_type], x, t, schedule)


def gaussian(schedule: NoiseSchedule, mean: float, std: float) -> Denoise:
    """The optimal denoiser for normal data of this mean and standard deviation (std 0: a single point)."""

    def denoise(x: Tensor, t: int) -> Prediction:
        a = float(schedule.alpha_bar(t))
        gain = a**0.5 * std**2 / (a * std**2 + 1 - a)
        return answer(schedule, mean + gain * (x - a**0.5 * mean), x, t)

    return denoise


def flow(schedule: NoiseSchedule, mean: float, std: float, x: Tensor, t: int, s: int) -> Tensor:
    """The exact solution at s of the probability-flow ODE that starts at x at t, for normal data."""
    a_t, a_s = float(schedule.alpha_bar(t)), float(schedule.alpha_bar(s))
    spread = ((a_s * std**2 + 1 - a_s) / (a_t * std**2 + 1 - a_t)) ** 0.5
    return a_s**0.5 * mean + spread * (x - a_t**0.5 * mean)
