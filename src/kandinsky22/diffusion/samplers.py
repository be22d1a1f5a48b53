"""Samplers: coroutines that walk x from noise to a picture and ask for predictions on the way.

A sampler is `name(schedule, x, timesteps, noise)`: x [B, ...] is the state at `timesteps[0]`, the timesteps fall, and
`noise(x)` is fresh standard normal noise like x. It yields `Ask(x, t)` and is sent a `Prediction`; it yields
`Now(x, t)` and is sent the x to go on from; its last word is a `Now` at t = -1. It knows no network, guidance, mask or
progress bar: those belong to whoever answers (drive.py). A new sampler is one function under `@sampler`.

Letters: the step goes from timestep t to timestep s, the next of the run, -1 after the last.
"""

import math
from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from kandinsky22.diffusion.prediction import Prediction
from kandinsky22.diffusion.schedule import NoiseSchedule


class Ask(NamedTuple):
    """What do you predict for x at t? Answered with a Prediction."""

    x: Tensor
    t: int


class Now(NamedTuple):
    """x is the state at t now. Answered with the x to go on from, usually this one; t = -1 says finished."""

    x: Tensor
    t: int


Draw: TypeAlias = Callable[[Tensor], Tensor]  # standard normal noise like its argument
Sampler: TypeAlias = Generator[Ask | Now, Any, None]  # is sent a Prediction for an Ask, a Tensor for a Now
SamplerFunction: TypeAlias = Callable[[NoiseSchedule, Tensor, Sequence[int], Draw], Sampler]

SAMPLERS: dict[str, SamplerFunction] = {}
DESCRIPTIONS: dict[str, str] = {}  # for menus and help: the first line of each sampler's docstring


def sampler(function: SamplerFunction) -> SamplerFunction:
    """Registers a sampler under its own name."""
    SAMPLERS[function.__name__] = function
    DESCRIPTIONS[function.__name__] = (function.__doc__ or "").partition("\n")[0]
    return function


@sampler
def ddpm(schedule: NoiseSchedule, x: Tensor, timesteps: Sequence[int], noise: Draw) -> Sampler:
    """Ancestral sampling: fresh noise on every step; the published decoder's own.

    Ho et al. 2020, algorithm 2, stepping to the next timestep of the run. Draws once a step, also on a last step from
    t > 0, where the noise is scaled by 1e-10 and only the order of draws matters; from t = 0 it draws nothing.
    """
    for t, s in pairwise((*timesteps, -1)):
        p: Prediction = yield Ask(x, t)
        alpha = schedule.alpha_bar(t) / schedule.alpha_bar(s)
        mean, deviation = _posterior(schedule, p, x, (t, s), (alpha, 1 - alpha))
        x = yield Now(mean + deviation * noise(x) if t > 0 else mean, s)


@sampler
def unclip(schedule: NoiseSchedule, x: Tensor, timesteps: Sequence[int], noise: Draw) -> Sampler:
    """Ancestral sampling: fresh noise on every step but the last; the published prior's own.

    Ho et al. 2020, algorithm 2, as Ramesh et al. 2022 run it: `ddpm`, except that beta comes from the table where a
    step is one timestep, and alpha is 1 - beta, which rounds differently. Runs end at t = 0, which draws nothing.
    """
    for t, s in pairwise((*timesteps, -1)):
        p: Prediction = yield Ask(x, t)
        beta = schedule.betas[t] if s == t - 1 else 1 - schedule.alpha_bar(t) / schedule.alpha_bar(s)
        mean, deviation = _posterior(schedule, p, x, (t, s), (1 - beta, beta))
        x = yield Now(mean + deviation * noise(x) if t > 0 else mean, s)


@sampler
def ddim(schedule: NoiseSchedule, x: Tensor, timesteps: Sequence[int], noise: Draw) -> Sampler:
    """Deterministic, first order, one network call a step.

    Song, Meng and Ermon 2021, equation 12 with sigma = 0. Steps to the next timestep of the run, where the published
    class takes t - T // steps (the same in a leading run), and lands on `schedule.final_alpha_bar`.
    """
    for t, s in pairwise((*timesteps, -1)):
        p: Prediction = yield Ask(x, t)
        a = schedule.alpha_bar(s) if s >= 0 else schedule.final_alpha_bar
        x = yield Now(a**0.5 * p.x0 + (1 - a) ** 0.5 * p.eps, s)


@sampler
def dpmpp_2m(schedule: NoiseSchedule, x: Tensor, timesteps: Sequence[int], noise: Draw) -> Sampler:
    """Deterministic, second order, one network call a step: it remembers the last answer.

    DPM-Solver++(2M): Lu et al. 2022, algorithm 2. First order on the first step, and on the last, which lands on x0.
    """
    last: tuple[Tensor, float] | None = None
    for t, s in pairwise((*timesteps, -1)):
        p: Prediction = yield Ask(x, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = _levels(schedule, t), _levels(schedule, s)
        x0, h = p.x0, math.inf if s < 0 else math.log(alpha_s / sigma_s) - math.log(alpha_t / sigma_t)
        if last is not None and s >= 0:
            x0 = x0 + h / (2 * last[1]) * (x0 - last[0])  # D of the paper; its r is last[1] / h
        last = p.x0, h
        x = yield Now(sigma_s / sigma_t * x + alpha_s * -math.expm1(-h) * x0, s)


@sampler
def heun(schedule: NoiseSchedule, x: Tensor, timesteps: Sequence[int], noise: Draw) -> Sampler:
    """Deterministic, second order, two network calls a step: it looks ahead and corrects.

    Heun's method, as in Karras et al. 2022, algorithm 1 without churn, but in the angle of Salimans and Ho 2022,
    appendix D: x = cos(phi) x0 + sin(phi) eps turns with velocity v = cos(phi) eps - sin(phi) x0. Steps stay finite
    where sigma / alpha does not, so it also walks the cosine schedule. The last step lands on x0.
    """
    for t, s in pairwise((*timesteps, -1)):
        p: Prediction = yield Ask(x, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = _levels(schedule, t), _levels(schedule, s)
        eps = (x - alpha_t * p.x0) / sigma_t  # not p.eps: x0 may have been clipped
        ahead = alpha_s * p.x0 + sigma_s * eps
        if s >= 0:
            q: Prediction = yield Ask(ahead, s)
            x0, eps = (p.x0 + q.x0) / 2, (eps + (ahead - alpha_s * q.x0) / sigma_s) / 2
            cos, sin = alpha_t * alpha_s + sigma_t * sigma_s, sigma_t * alpha_s - alpha_t * sigma_s
            ahead = cos * x - sin * (alpha_t * eps - sigma_t * x0)
        x = yield Now(ahead, s)


def _posterior(
    schedule: NoiseSchedule, p: Prediction, x: Tensor, step: tuple[int, int], alpha_beta: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of x at s given x at t and x0 (Ho et al. 2020, equations 6 and 7).

    alpha and beta are those of the whole step from t to s. The order of operations is that of the published classes.
    """
    (t, s), (alpha, beta) = step, alpha_beta
    a_t, a_s = schedule.alpha_bar(t), schedule.alpha_bar(s)
    mean = a_s**0.5 * beta / (1 - a_t) * p.x0 + alpha**0.5 * (1 - a_s) / (1 - a_t) * x
    smallest = ((1 - a_s) / (1 - a_t) * beta).clamp(min=1e-20)
    match schedule.variance_type:
        case "fixed_small":
            return mean, smallest**0.5
        case "fixed_small_log":
            return mean, torch.exp(0.5 * torch.log(smallest))
        case "fixed_large":
            return mean, beta**0.5
        case "learned_range":  # Nichol and Dhariwal 2021, equation 15
            if p.variance is None:
                raise ValueError("variance_type is 'learned_range', but the network predicts no variance")
            share = (p.variance + 1) / 2
            return mean, torch.exp(0.5 * (share * torch.log(beta) + (1 - share) * torch.log(smallest)))


def _levels(schedule: NoiseSchedule, t: int) -> tuple[float, float]:
    """alpha and sigma, the amounts of signal and noise at t, as plain numbers."""
    a = schedule.alpha_bar(t).item()
    return math.sqrt(a), math.sqrt(1 - a)
