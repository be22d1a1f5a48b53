"""The drivers: alone or in company a request gets the same, and nothing runs before it is asked for."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from kandinsky22.diffusion import (
    SAMPLERS,
    Job,
    Now,
    Prediction,
    Sampler,
    guide,
    interpret,
    keep,
    sample,
    sample_many,
)
from tests.diffusion.toy import DECODER, drawing, gaussian, randn

WEIGHTS = randn(4, 4, seed=5)


def network(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
    """Any function whose rows do not meet."""
    mixed = (WEIGHTS[:, :, None, None] * x[:, None]).sum(2)
    return torch.sin(mixed + condition[:, :, None, None]) + (t / 1000).reshape(-1, 1, 1, 1)


class Asked(NamedTuple):
    """A request of these tests: how to sample, what for, and how strongly guided."""

    sampler: str
    steps: int
    rows: int
    guidance: float
    seed: int
    held: bool = False
    size: tuple[int, int] = (3, 5)

    def job(self) -> Job:
        noise = drawing(self.seed)
        x = noise(torch.empty(self.rows, 4, *self.size))
        return Job(
            SAMPLERS[self.sampler](DECODER, x, DECODER.timesteps(self.steps), noise), self.hold if self.held else keep
        )

    def hold(self, x: Tensor, t: int) -> Tensor:
        return torch.where(torch.arange(self.size[1]) < 2, DECODER.add_noise(torch.zeros_like(x), x, t), x)

    def conditions(self) -> tuple[Tensor, Tensor]:
        return randn(self.rows, 4, seed=self.seed + 1), randn(self.rows, 4, seed=self.seed + 2)

    def alone(self) -> list[Now]:
        cond, uncond = self.conditions()

        def denoise(x: Tensor, t: int) -> Prediction:
            ts = torch.full((len(x),), t)
            output = guide(network(x, ts, uncond), network(x, ts, cond), self.guidance)
            return interpret(output, x, t, DECODER)

        sampler, constrain = self.job()
        return list(sample(sampler, denoise, constrain))


class Network:
    """Answers many requests at once and counts its calls."""

    def __init__(self, requests: dict[str, Asked]) -> None:
        self.requests, self.calls = requests, list[list[str]]()

    def __call__(self, keys: list[str], x: Tensor, t: Tensor) -> Prediction:
        self.calls.append(keys)
        asked = [self.requests[key] for key in keys]
        cond, uncond = (torch.cat(parts) for parts in zip(*(one.conditions() for one in asked), strict=True))
        weights = torch.tensor([one.guidance for one in asked for _ in range(one.rows)])
        output = guide(network(x, t, uncond), network(x, t, cond), weights)
        return interpret(output, x, t, DECODER)


@pytest.mark.parametrize("name", SAMPLERS)
def test_in_company_each_gets_what_it_gets_alone(name: str) -> None:
    requests = {other: Asked(other, 4 + k, 1 + k % 2, 1.5 * k, 10 * k) for k, other in enumerate(SAMPLERS)}
    requests |= {
        "first": Asked(name, 6, 2, 4.0, 100),
        "other prompt and guidance": Asked(name, 6, 1, 0.5, 200),
        "other steps": Asked(name, 11, 3, 4.0, 100),
        "inpainted": Asked(name, 5, 1, 4.0, 300, held=True),
        "other size": Asked(name, 6, 1, 4.0, 400, size=(5, 3)),
    }
    together: dict[str, list[Now]] = {key: [] for key in requests}
    for key, now in sample_many({key: one.job() for key, one in requests.items()}, Network(requests)):
        together[key].append(now)
    for key, one in requests.items():
        alone = one.alone()
        assert [now.t for now in together[key]] == [now.t for now in alone] and alone[-1].t == -1
        for ours, theirs in zip(together[key], alone, strict=True):
            assert torch.equal(ours.x, theirs.x), key


def test_one_call_a_round_answers_all_of_one_shape() -> None:
    requests = {
        "short": Asked("ddim", 3, 1, 1.0, 0),
        "long": Asked("ddpm", 7, 2, 1.0, 1),
        "twice a step": Asked("heun", 3, 1, 1.0, 2),
        "other size": Asked("ddim", 2, 1, 1.0, 3, size=(5, 3)),
    }
    network = Network(requests)
    ended = [key for key, now in sample_many({k: r.job() for k, r in requests.items()}, network) if now.t == -1]
    assert ended == ["other size", "short", "twice a step", "long"]
    same_size = [call for call in network.calls if "other size" not in call]
    assert len(same_size) == 7 and len(network.calls) == 9
    assert same_size[0] == ["short", "long", "twice a step"] and same_size[-1] == ["long"]


def test_other_dtypes_are_other_calls() -> None:
    calls = []

    def denoise_rows(keys: list[str], x: Tensor, t: Tensor) -> Prediction:
        calls.append((keys, x.dtype))
        return Prediction(torch.zeros_like(x), torch.zeros_like(x))

    jobs = {
        name: Job(SAMPLERS["ddim"](DECODER, randn(1, 4, dtype=dtype), (9,), drawing()))
        for name, dtype in (("full", torch.float32), ("half", torch.float16))
    }
    assert [key for key, _ in sample_many(jobs, denoise_rows)] == ["full", "half"]
    assert calls == [(["full"], torch.float32), (["half"], torch.float16)]


def test_a_job_may_join_and_leave_between_states() -> None:
    requests = {name: Asked("ddpm", 6, 1, 2.0, k) for k, name in enumerate(("stays", "leaves", "joins", "again"))}
    jobs = {name: requests[name].job() for name in ("stays", "leaves")}
    leaving, seen = jobs["leaves"].sampler, dict[str, list[Now]]()
    for key, now in sample_many(jobs, Network(requests)):
        seen.setdefault(key, []).append(now)
        if key == "stays" and len(seen[key]) == 3:
            del jobs["leaves"]
            jobs["joins"] = requests["joins"].job()
        if key == "joins" and now.t == -1 and "again" not in jobs:
            jobs["again"] = requests["again"].job()
    assert len(seen["leaves"]) == 2 and next(leaving, None) is None
    for name in ("stays", "joins", "again"):
        assert torch.equal(seen[name][-1].x, requests[name].alone()[-1].x)


def watched(closed: list[str], name: str, sampler: Sampler) -> Sampler:
    try:
        yield from sampler
    finally:
        closed.append(name)


def test_closing_the_iterator_closes_the_samplers() -> None:
    closed: list[str] = []
    held: list[Sampler] = []  # so that it is not the garbage collector that closes them

    def fresh(name: str) -> Sampler:
        held.append(watched(closed, name, SAMPLERS["ddim"](DECODER, randn(1, 4), DECODER.timesteps(5), drawing())))
        return held[-1]

    one = sample(fresh("alone"), gaussian(DECODER, 0, 1))
    next(one)
    assert closed == []
    one.close()
    assert closed == ["alone"]
    many = sample_many(
        {name: Job(fresh(name)) for name in ("a", "b")}, lambda keys, x, t: Prediction(torch.zeros_like(x), x)
    )
    next(many)
    many.close()
    assert closed == ["alone", "a", "b"]


def failing(x: Tensor, t: int) -> Prediction:
    raise RuntimeError("out of memory")


def test_a_failing_network_closes_the_sampler() -> None:
    closed: list[str] = []
    sampler = watched(closed, "it", SAMPLERS["ddim"](DECODER, randn(1, 4), (5,), drawing()))
    with pytest.raises(RuntimeError, match="out of memory"):
        next(sample(sampler, failing))
    assert closed == ["it"]


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    calls: list[int] = []

    def denoise(x: Tensor, t: int) -> Prediction:
        calls.append(t)
        return gaussian(DECODER, 0, 1)(x, t)

    run = sample(SAMPLERS["ddim"](DECODER, randn(1, 4), DECODER.timesteps(5), drawing()), denoise)
    assert calls == []
    next(run)
    next(run)
    assert len(calls) == 2


def test_no_jobs_are_no_calls() -> None:
    assert list(sample_many({}, failing)) == []  # type: ignore[arg-type]
