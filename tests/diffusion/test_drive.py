"""`sample` and `sample_many`: the same states alone and in a batch, and no computation before iteration."""

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
    """Any function that computes each row from that row alone."""
    mixed = (WEIGHTS[:, :, None, None] * x[:, None]).sum(2)
    return torch.sin(mixed + condition[:, :, None, None]) + (t / 1000).reshape(-1, 1, 1, 1)


class Case(NamedTuple):
    """A request of these tests: sampler, steps, rows, guidance weight, seed, and whether a constraint inpaints it."""

    sampler: str
    steps: int
    rows: int
    guidance: float
    seed: int
    inpainted: bool = False
    size: tuple[int, int] = (3, 5)

    def job(self) -> Job:
        noise = drawing(self.seed)
        x = noise(torch.empty(self.rows, 4, *self.size))
        return Job(
            SAMPLERS[self.sampler](DECODER, x, DECODER.timesteps(self.steps), noise),
            self.constrain if self.inpainted else keep,
        )

    def constrain(self, x: Tensor, t: int) -> Tensor:
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


class BatchNetwork:
    """Predicts for many requests at once and records the keys of each call."""

    def __init__(self, requests: dict[str, Case]) -> None:
        self.requests, self.calls = requests, list[list[str]]()

    def __call__(self, keys: list[str], x: Tensor, t: Tensor) -> Prediction:
        self.calls.append(keys)
        cases = [self.requests[key] for key in keys]
        cond, uncond = (torch.cat(parts) for parts in zip(*(case.conditions() for case in cases), strict=True))
        weights = torch.tensor([case.guidance for case in cases for _ in range(case.rows)])
        output = guide(network(x, t, uncond), network(x, t, cond), weights)
        return interpret(output, x, t, DECODER)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_gives_the_same_states_alone_and_in_a_batch(name: str) -> None:
    requests = {other: Case(other, 4 + k, 1 + k % 2, 1.5 * k, 10 * k) for k, other in enumerate(SAMPLERS)}
    requests |= {
        "first": Case(name, 6, 2, 4.0, 100),
        "other prompt and guidance": Case(name, 6, 1, 0.5, 200),
        "other steps": Case(name, 11, 3, 4.0, 100),
        "inpainted": Case(name, 5, 1, 4.0, 300, inpainted=True),
        "other size": Case(name, 6, 1, 4.0, 400, size=(5, 3)),
    }
    together: dict[str, list[Now]] = {key: [] for key in requests}
    for key, now in sample_many({key: case.job() for key, case in requests.items()}, BatchNetwork(requests)):
        together[key].append(now)
    for key, case in requests.items():
        alone = case.alone()
        assert [now.t for now in together[key]] == [now.t for now in alone] and alone[-1].t == -1
        for ours, theirs in zip(together[key], alone, strict=True):
            assert torch.equal(ours.x, theirs.x), key


def test_one_network_call_per_round_serves_all_jobs_of_one_shape() -> None:
    requests = {
        "short": Case("ddim", 3, 1, 1.0, 0),
        "long": Case("ddpm", 7, 2, 1.0, 1),
        "twice a step": Case("heun", 3, 1, 1.0, 2),
        "other size": Case("ddim", 2, 1, 1.0, 3, size=(5, 3)),
    }
    network = BatchNetwork(requests)
    ended = [key for key, now in sample_many({k: r.job() for k, r in requests.items()}, network) if now.t == -1]
    assert ended == ["other size", "short", "twice a step", "long"]
    same_size = [call for call in network.calls if "other size" not in call]
    assert len(same_size) == 7 and len(network.calls) == 9
    assert same_size[0] == ["short", "long", "twice a step"] and same_size[-1] == ["long"]


def test_jobs_of_different_dtypes_get_separate_calls() -> None:
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


def test_jobs_can_join_and_leave_between_states() -> None:
    requests = {name: Case("ddpm", 6, 1, 2.0, k) for k, name in enumerate(("stays", "leaves", "joins", "last"))}
    jobs = {name: requests[name].job() for name in ("stays", "leaves")}
    leaving, seen = jobs["leaves"].sampler, dict[str, list[Now]]()
    for key, now in sample_many(jobs, BatchNetwork(requests)):
        seen.setdefault(key, []).append(now)
        if key == "stays" and len(seen[key]) == 3:
            del jobs["leaves"]
            jobs["joins"] = requests["joins"].job()
        if key == "joins" and now.t == -1 and "last" not in jobs:
            jobs["last"] = requests["last"].job()
    assert len(seen["leaves"]) == 2 and next(leaving, None) is None
    for name in ("stays", "joins", "last"):
        assert torch.equal(seen[name][-1].x, requests[name].alone()[-1].x)


def record_closing(closed: list[str], name: str, sampler: Sampler) -> Sampler:
    try:
        yield from sampler
    finally:
        closed.append(name)


def test_closing_the_iterator_closes_the_samplers() -> None:
    closed: list[str] = []
    samplers: list[Sampler] = []  # references, so that the garbage collector does not close them

    def new_sampler(name: str) -> Sampler:
        samplers.append(
            record_closing(closed, name, SAMPLERS["ddim"](DECODER, randn(1, 4), DECODER.timesteps(5), drawing()))
        )
        return samplers[-1]

    run = sample(new_sampler("alone"), gaussian(DECODER, 0, 1))
    next(run)
    assert closed == []
    run.close()
    assert closed == ["alone"]
    batch = sample_many(
        {name: Job(new_sampler(name)) for name in ("a", "b")}, lambda keys, x, t: Prediction(torch.zeros_like(x), x)
    )
    next(batch)
    batch.close()
    assert closed == ["alone", "a", "b"]


def fail(x: Tensor, t: int) -> Prediction:
    raise RuntimeError("out of memory")


def test_a_failing_network_closes_the_sampler() -> None:
    closed: list[str] = []
    sampler = record_closing(closed, "it", SAMPLERS["ddim"](DECODER, randn(1, 4), (5,), drawing()))
    with pytest.raises(RuntimeError, match="out of memory"):
        next(sample(sampler, fail))
    assert closed == ["it"]


def test_sample_computes_nothing_before_it_is_iterated() -> None:
    calls: list[int] = []

    def denoise(x: Tensor, t: int) -> Prediction:
        calls.append(t)
        return gaussian(DECODER, 0, 1)(x, t)

    run = sample(SAMPLERS["ddim"](DECODER, randn(1, 4), DECODER.timesteps(5), drawing()), denoise)
    assert calls == []
    next(run)
    next(run)
    assert len(calls) == 2


def test_sample_many_without_jobs_calls_nothing() -> None:
    assert list(sample_many({}, fail)) == []  # type: ignore[arg-type]
