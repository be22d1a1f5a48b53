"""Every registered sampler, on data whose optimal denoiser is known in closed form, against the exact results.

The tests take the samplers from the registry, so that they include a new one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kandinsky22.diffusion import DESCRIPTIONS, SAMPLERS, Ask, NoiseSchedule, Now, Prediction, sample
from kandinsky22.request import Sampling
from tests.diffusion.toy import DECODER, PRIOR, Denoise, answer, drawing, flow, gaussian, randn, unclipped

every_sampler = pytest.mark.parametrize("name", SAMPLERS)
every_kind = pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
every_schedule = pytest.mark.parametrize("schedule", [unclipped(DECODER), unclipped(PRIOR)], ids=["linear", "cosine"])


def states(
    name: str, schedule: NoiseSchedule, x: Tensor, timesteps: Sequence[int], denoise: Denoise, **options: Any
) -> list[Now]:
    noise = options.pop("noise", drawing(99))
    return list(sample(SAMPLERS[name](schedule, x, timesteps, noise), denoise, **options))


def test_the_published_samplers_are_registered() -> None:
    assert {"ddpm", "unclip", "ddim", "euler", "dpmpp_2m", "unipc", "heun"} <= SAMPLERS.keys() == DESCRIPTIONS.keys()


@every_sampler
def test_every_sampler_has_a_one_line_description(name: str) -> None:
    assert 20 < len(DESCRIPTIONS[name]) < 100 and DESCRIPTIONS[name].endswith(".")


@every_sampler
@every_schedule
def test_samplers_visit_every_timestep_and_then_the_end(name: str, schedule: NoiseSchedule) -> None:
    visited: list[int] = []

    def denoise(x: Tensor, t: int) -> Prediction:
        visited.append(t)
        return gaussian(schedule, 0.3, 0.5)(x, t)

    timesteps = schedule.timesteps(7)
    assert [now.t for now in states(name, schedule, randn(2, 8), timesteps, denoise)] == [*timesteps[1:], -1]
    assert list(dict.fromkeys(visited)) == list(timesteps)
    assert len(visited) == Sampling(sampler=name, steps=7).network_calls


@every_sampler
@every_kind
@every_schedule
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_samplers_reach_a_single_data_point_exactly(name: str, kind: Any, schedule: NoiseSchedule, steps: int) -> None:
    schedule = replace(schedule, prediction_type=kind)
    timesteps = schedule.timesteps(steps)
    target = randn(2, 4, 3, 5, seed=7, dtype=torch.float64)
    x = schedule.add_noise(target, randn(2, 4, 3, 5, dtype=torch.float64), timesteps[0])
    last = states(name, schedule, x, timesteps, lambda x, t: answer(schedule, target, x, t))[-1]
    # The published prior's last step, from t = 0, rounds: beta / (1 - alpha_bar) is 0.9995 there in float32.
    tolerance = 4e-3 if name == "unclip" and timesteps[-1] == 0 else 1e-6
    torch.testing.assert_close(last.x, target, atol=tolerance, rtol=0)


@every_sampler
@every_kind
@every_schedule
@pytest.mark.parametrize("timesteps", [(0,), (999,), (999, 0), (999, 998, 500, 1, 0)], ids=str)
def test_every_state_is_finite_at_extreme_timesteps(
    name: str, kind: Any, schedule: NoiseSchedule, timesteps: Sequence[int]
) -> None:
    """At the timesteps where sigma / alpha is 20,000 on the cosine schedule, and where it is 0."""
    schedule = replace(schedule, prediction_type=kind)
    for now in states(name, schedule, randn(1, 8), timesteps, gaussian(schedule, 0.3, 0.5)):
        assert bool(now.x.isfinite().all())


@every_sampler
def test_the_last_state_is_the_clipped_x0(name: str) -> None:
    schedule = replace(DECODER, set_alpha_to_one=True)
    x = schedule.add_noise(torch.full((1, 8), 3.0), randn(1, 8), 991)
    last = states(name, schedule, x, schedule.timesteps(10), lambda x, t: answer(schedule, torch.full_like(x, 3), x, t))
    final = last[-1].x if name != "ddim" else last[-1].x.round()  # DDIM continues with the unclipped eps
    assert torch.equal(final, torch.ones(1, 8))


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "unipc", "heun"])
def test_ode_samplers_use_the_clipped_x0(name: str) -> None:
    """A prediction of x0 = 3 is clipped to 1: every state must be as if the data were one point at 1."""
    x, timesteps = randn(1, 64, dtype=torch.float64), DECODER.timesteps(10)
    for now in states(name, DECODER, x, timesteps, lambda x, t: answer(DECODER, torch.full_like(x, 3), x, t)):
        torch.testing.assert_close(now.x, flow(DECODER, 1.0, 0.0, x, timesteps[0], now.t), atol=1e-5, rtol=0)


@every_sampler
@every_kind
@every_schedule
def test_samples_of_normal_data_have_their_mean_and_deviation(name: str, kind: Any, schedule: NoiseSchedule) -> None:
    schedule, mean, std = replace(schedule, prediction_type=kind), 0.5, 0.6

    def error(steps: int) -> float:
        timesteps = schedule.timesteps(steps)
        x = schedule.add_noise(mean + std * randn(1, 8192), randn(1, 8192, seed=1), timesteps[0])
        x = states(name, schedule, x, timesteps, gaussian(schedule, mean, std))[-1].x
        return max(abs(float(x.mean()) - mean), abs(float(x.std()) - std))

    assert error(300) < 0.02


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("dpmpp_2m", 2), ("unipc", 3), ("heun", 2)])
@every_schedule
def test_ode_samplers_converge_with_their_order(name: str, order: int, schedule: NoiseSchedule) -> None:
    """Halving the steps' length divides the error against the exact ODE solution by about 2 to the order."""
    mean, std, x = 0.5, 0.3, randn(1, 512, dtype=torch.float64)

    def error(steps: int) -> float:
        timesteps = [100 + 720 * k // steps for k in reversed(range(steps + 1))]
        before_last = states(name, schedule, x, timesteps, gaussian(schedule, mean, std))[-2]
        return float((before_last.x - flow(schedule, mean, std, x, timesteps[0], timesteps[-1])).abs().mean())

    coarse, fine = error(120), error(240)
    assert coarse / fine == pytest.approx(2**order, rel=0.15) and fine < 10 ** -(order + 2)


@every_sampler
def test_samplers_treat_height_and_width_alike(name: str) -> None:
    x, timesteps = randn(2, 4, 3, 5), DECODER.timesteps(6)

    def transposed(noise: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda x: noise(x.mT).mT

    denoise = gaussian(DECODER, 0.2, 0.5)
    expected = states(name, DECODER, x, timesteps, denoise)[-1].x
    transposed_states = states(name, DECODER, x.mT, timesteps, denoise, noise=transposed(drawing(99)))[-1].x
    assert expected.shape == (2, 4, 3, 5) and transposed_states.shape == (2, 4, 5, 3)
    torch.testing.assert_close(transposed_states.mT, expected)


@every_sampler
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_samplers_keep_the_dtype(name: str, dtype: torch.dtype) -> None:
    x = randn(1, 4, 3, 5, dtype=dtype)
    for now in states(name, DECODER, x, DECODER.timesteps(5), gaussian(DECODER, 0.2, 0.5)):
        assert now.x.dtype == dtype and bool(now.x.isfinite().all())


@every_sampler
def test_samplers_continue_from_the_constrained_state(name: str) -> None:
    pinned_cells = torch.arange(8) < 4

    def constrain(x: Tensor, t: int) -> Tensor:
        return torch.where(pinned_cells, torch.tensor(0.25), x)

    seen: list[Tensor] = []

    def denoise(x: Tensor, t: int) -> Prediction:
        seen.append(x)
        return gaussian(DECODER, 0.0, 0.5)(x, t)

    nows = states(name, DECODER, randn(2, 8), DECODER.timesteps(5), denoise, constrain=constrain)
    assert all(bool((now.x[:, pinned_cells] == 0.25).all()) for now in nows)
    assert all(any(now.x is x for x in seen) for now in nows[:-1])


@pytest.mark.parametrize("schedule", [DECODER, PRIOR], ids=["linear", "cosine"])
def test_unipc_skips_its_corrector_where_a_constraint_changed_the_state(schedule: NoiseSchedule) -> None:
    """There it equals dpmpp_2m bit for bit; elsewhere a constraint has no effect; pinned cells stay pinned."""
    x, timesteps, pinned_cells = randn(2, 8), schedule.timesteps(7), torch.arange(8) < 4
    known = randn(2, 8, seed=3)

    def states_with(name: str, constrain: Callable[[Tensor, int], Tensor]) -> Tensor:
        return torch.stack(
            [now.x for now in states(name, schedule, x, timesteps, gaussian(schedule, 0.2, 0.5), constrain=constrain)]
        )

    def pin(x: Tensor, t: int) -> Tensor:
        return torch.where(pinned_cells, schedule.add_noise(known, torch.ones_like(x), t), x)

    pinned, free = states_with("unipc", pin), states_with("unipc", lambda x, t: x)
    assert torch.equal(pinned[-1][:, pinned_cells], known[:, pinned_cells])
    assert torch.equal(pinned[..., ~pinned_cells], free[..., ~pinned_cells])
    assert not torch.equal(free, states_with("dpmpp_2m", lambda x, t: x))
    for changing in (lambda x, t: 0.99 * x + 0.01, lambda x, t: x.mul_(0.99).add_(0.01)):
        assert torch.equal(states_with("unipc", changing), states_with("dpmpp_2m", changing))


@every_sampler
def test_the_same_noise_gives_the_same_samples(name: str) -> None:
    twice = [states(name, DECODER, randn(1, 8), DECODER.timesteps(9), gaussian(DECODER, 0, 0.5))[-1] for _ in range(2)]
    assert torch.equal(twice[0].x, twice[1].x)


@pytest.mark.parametrize(
    ("name", "schedule", "draws"),
    [("ddpm", DECODER, 6), ("unclip", PRIOR, 5)]
    + [(name, DECODER, 0) for name in ("ddim", "euler", "dpmpp_2m", "unipc", "heun")],
)
def test_samplers_draw_noise_once_per_stochastic_step(name: str, schedule: NoiseSchedule, draws: int) -> None:
    drawn: list[torch.Size] = []

    def noise(x: Tensor) -> Tensor:
        drawn.append(x.shape)
        return torch.zeros_like(x)

    states(name, schedule, randn(2, 4), schedule.timesteps(6), gaussian(schedule, 0, 1), noise=noise)
    assert drawn == [(2, 4)] * draws


def test_noise_is_drawn_after_the_network_call() -> None:
    events: list[str] = []

    def noise(x: Tensor) -> Tensor:
        events.append("draw")
        return torch.zeros_like(x)

    def denoise(x: Tensor, t: int) -> Prediction:
        events.append("network")
        return gaussian(DECODER, 0, 1)(x, t)

    states("ddpm", DECODER, randn(1, 4), DECODER.timesteps(3), denoise, noise=noise)
    assert events == ["network", "draw"] * 3


def noise_deviations(name: str, schedule: NoiseSchedule, variance: Tensor | None = None) -> Iterator[float]:
    """The standard deviation of the noise that each step adds."""
    x, timesteps = torch.zeros(1, 4096), schedule.timesteps(5)
    run = SAMPLERS[name](schedule, x, timesteps, drawing())
    event: Ask | Now | None = next(run)
    while event is not None:
        if isinstance(event, Ask):
            event = run.send(Prediction(torch.zeros_like(x), torch.zeros_like(x), variance))
        else:
            yield float(event.x.std())
            event = run.send(x) if event.t >= 0 else None


@pytest.mark.parametrize("name", ["ddpm", "unclip"])
def test_learned_variance_lies_between_the_fixed_ones(name: str) -> None:
    small, log, large = (
        list(noise_deviations(name, replace(DECODER, variance_type=kind)))
        for kind in ("fixed_small", "fixed_small_log", "fixed_large")
    )
    learned = replace(DECODER, variance_type="learned_range")
    low, half, high = (list(noise_deviations(name, learned, torch.full((1, 4096), v))) for v in (-1.0, 0.0, 1.0))
    assert log == pytest.approx(small, rel=1e-4, abs=1e-9)
    assert low == pytest.approx(small, rel=1e-4, abs=1e-9)
    assert large == pytest.approx(high, rel=1e-4)
    assert all(a < b < c for a, b, c in zip(low, half, high, strict=True))
    with pytest.raises(ValueError, match="variance_type is 'learned_range', but the network predicts no variance"):
        list(noise_deviations(name, learned))


def test_the_last_step_of_ddim_follows_set_alpha_to_one() -> None:
    x0, eps, ends = torch.full((1, 4), 0.5), torch.ones(1, 4), {}
    for to_one in (True, False):
        schedule = replace(DECODER, set_alpha_to_one=to_one)
        ends[to_one] = states("ddim", schedule, x0, (1,), lambda x, t: Prediction(x0, eps))[-1].x
    assert torch.equal(ends[True], x0)
    assert torch.equal(ends[False], DECODER.add_noise(x0, eps, 0))


@every_schedule
def test_euler_equals_ddim_without_clipping(schedule: NoiseSchedule) -> None:
    x, timesteps, denoise = randn(2, 8, dtype=torch.float64), schedule.timesteps(9), gaussian(schedule, 0.3, 0.5)
    ddim, euler = (states(name, schedule, x, timesteps, denoise) for name in ("ddim", "euler"))
    for theirs, ours in zip(ddim, euler, strict=True):
        torch.testing.assert_close(ours.x, theirs.x, atol=1e-6, rtol=0)


def test_the_last_step_of_euler_ends_at_x0() -> None:
    x0, eps = torch.full((1, 4), 0.5), torch.ones(1, 4)
    schedule = replace(DECODER, set_alpha_to_one=False)
    assert torch.equal(states("euler", schedule, x0, (1,), lambda x, t: Prediction(x0, eps))[-1].x, x0)
