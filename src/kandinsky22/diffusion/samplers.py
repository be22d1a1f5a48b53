"""Samplers: coroutines that take x from noise to a picture and ask for predictions on the way.

A sampler is `name(schedule, x, timesteps, noise)`: x [B, ...] is the state at `timesteps[0]`, the timesteps fall, and
`noise(x)` is fresh standard normal noise like x. It yields `Ask(x, t)` and is sent a `Prediction`; it yields
`Now(x, t)` and is sent the x to go on from; the last `Now` is at t = -1. It knows no network, guidance, mask or
progress bar: the driver that answers does (drive.py). A new sampler is one function under `@sampler`.

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
    """Asks for the prediction for x at t. Answered with a Prediction."""

    x: Tensor
    t: int


class Now(NamedTuple):
    """Reports that x is the state at t. Answered with the x to continue from, usually this one; t = -1: finished."""

    x: Tensor
    t: int


Draw: TypeAlias = Callable[[Tensor], Tensor]  # standard normal noise like its argument
Sampler: TypeAlias = Generator[Ask | Now, Any, None]  # is sent a Prediction for an Ask, a Tensor for a Now
SamplerFunction: TypeAlias = Callable[[NoiseSchedule, Tensor, Sequence[int], Draw], Sampler]
_Answer: TypeAlias = tuple[float, Tensor]  # lambda, and the x0 that was predicted there

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
def euler(schedule: NoiseSchedule, x: Tensor, timesteps: Sequence[int], noise: Draw) -> Sampler:
    """Deterministic, first order, one network call a step: a straight step towards x0.

    Euler's method in Karras et al. 2022, algorithm 1 without churn and correction, for x / alpha over sigma / alpha; x
    itself stays as the schedule scales it, at the first step too. The step is that of `ddim`, equation 12 of Song, Meng
    and Ermon 2021, and differs in two things only: eps follows from the clipped x0, and the last step lands on x0.
    """
    for t, s in pairwise((*timesteps, -1)):
        p: Prediction = yield Ask(x, t)
        x = yield Now(_towards(schedule, x, p.x0, (t, s)), s)


@sampler
def dpmpp_2m(schedule: NoiseSchedule, x: Tensor, timesteps: Sequence[int], noise: Draw) -> Sampler:
    """Deterministic, second order, one network call a step: it uses the previous prediction too.

    DPM-Solver++(2M): Lu et al. 2022, algorithm 2. First order on the first step, and on the last, which lands on x0.
    """
    answers: list[_Answer] = []
    for t, s in pairwise((*timesteps, -1)):
        p: Prediction = yield Ask(x, t)
        answers = [*answers[-1:], (_half_log_snr(schedule, t), p.x0)]
        x = yield Now(_towards(schedule, x, _extrapolated(answers, _half_log_snr(schedule, s)), (t, s)), s)


@sampler
def unipc(schedule: NoiseSchedule, x: Tensor, timesteps: Sequence[int], noise: Draw) -> Sampler:
    """Deterministic, third order, one network call a step: each prediction corrects the step before it.

    UniPC-2 with B2(h) on x0: Zhao et al. 2023, section 3. The predictor is `dpmpp_2m`, its first and last step
    included; the corrector recomputes the last step with the prediction at its end, without a second network call.
    Where x was changed after that step, as by a constraint, it is not corrected: there this is `dpmpp_2m`.
    """
    answers: list[_Answer] = []
    before, predicted, step = x, x, (-1, -1)
    for t, s in pairwise((*timesteps, -1)):
        p: Prediction = yield Ask(x, t)
        answers = [*answers[-2:], (_half_log_snr(schedule, t), p.x0)]
        if len(answers) > 1:
            x = torch.where(x == predicted, _towards(schedule, before, _interpolated(answers), step), x)
        before, step = x, (t, s)
        predicted = _towards(schedule, x, _extrapolated(answers[-2:], _half_log_snr(schedule, s)), step)
        x = yield Now(predicted.clone(), s)  # a copy, as the caller may change it in place


@sampler
def heun(schedule: NoiseSchedule, x: Tensor, timesteps: Sequence[int], noise: Draw) -> Sampler:
    """Deterministic, second order, two network calls a step: a prediction and its correction.

    Heun's method, as in Karras et al. 2022, algorithm 1 without churn, but in the angle of Salimans and Ho 2022,
    appendix D: x = cos(phi) x0 + sin(phi) eps turns with velocity v = cos(phi) eps - sin(phi) x0. Steps stay finite
    where sigma / alpha does not, so it also walks the cosine schedule. The last step lands on x0.
    """
    for t, s in pairwise((*timesteps, -1)):
        p: Prediction = yield Ask(x, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = _levels(schedule, t), _levels(schedule, s)
        eps = (x - alpha_t * p.x0) / sigma_t  # not p.eps: x0 may have been clipped
        predicted = alpha_s * p.x0 + sigma_s * eps
        if s >= 0:
            q: Prediction = yield Ask(predicted, s)
            x0, eps = (p.x0 + q.x0) / 2, (eps + (predicted - alpha_s * q.x0) / sigma_s) / 2
            cos, sin = alpha_t * alpha_s + sigma_t * sigma_s, sigma_t * alpha_s - alpha_t * sigma_s
            predicted = cos * x - sin * (alpha_t * eps - sigma_t * x0)
        x = yield Now(predicted, s)


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


def _half_log_snr(schedule: NoiseSchedule, t: int) -> float:
    """lambda = log(alpha / sigma), the time in which the flow is solved; infinite at t = -1."""
    alpha, sigma = _levels(schedule, t)
    return math.log(alpha / sigma) if t >= 0 else math.inf


def _towards(schedule: NoiseSchedule, x: Tensor, x0: Tensor, step: tuple[int, int]) -> Tensor:
    """x carried from t to s as if the network answered x0 all the way; x0 itself at s = -1.

    Where its answer changes, this is exact for the answer's mean over the step, weighted by e^lambda (Lu et al. 2022,
    proposition 4.1). So a method of higher order is a better guess of that mean.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (_levels(schedule, t) for t in step)
    return sigma_s / sigma_t * x + (alpha_s - sigma_s / sigma_t * alpha_t) * x0


def _extrapolated(answers: Sequence[_Answer], end: float) -> Tensor:
    """The mean x0 from the last answer to lambda = end: D of Lu et al. 2022, whose r is (start - before) / h."""
    (start, x0), h = answers[-1], end - answers[-1][0]
    if len(answers) == 1 or math.isinf(h):
        return x0
    before, last = answers[-2]
    return x0 + h / (2 * (start - before)) * (x0 - last)


def _interpolated(answers: Sequence[_Answer]) -> Tensor:
    """The mean x0 between the last two answers: UniC-2, which is the mean of the parabola through the last three.

    Where there are only two it is their middle, as UniC-1 is published.
    """
    *earlier, (start, x0), (end, new) = answers
    if not earlier:
        return x0 + 0.5 * (new - x0)
    (before, last), h = earlier[0], end - start
    mean = -1 / math.expm1(-h) - 1 / h  # of u = (lambda - start) / h, which goes from 0 to 1
    square = -1 / math.expm1(-h) - 2 * mean / h  # the mean of u^2
    onward, behind = new - x0, h / (start - before) * (x0 - last)  # how x0 rises with u, on either side of the start
    return x0 + mean * onward + (square - mean) / (1 + (start - before) / h) * (onward - behind)
