"""`sample`: no computation before iteration, and closing."""

import pytest
from torch import Tensor

from kandinsky22.diffusion import SAMPLERS, Prediction, Sampler, sample
from tests.diffusion.toy import DECODER, drawing, gaussian, randn


def record_closing(closed: list[str], name: str, sampler: Sampler) -> Sampler:
    try:
        yield from sampler
    finally:
        closed.append(name)


def test_closing_the_iterator_closes_the_sampler() -> None:
    closed: list[str] = []
    sampler = SAMPLERS["ddim"](DECODER, randn(1, 4), DECODER.timesteps(5), drawing())
    recorded = record_closing(closed, "it", sampler)  # a reference, so that the garbage collector does not close it
    run = sample(recorded, gaussian(DECODER, 0, 1))
    next(run)
    assert closed == []
    run.close()
    assert closed == ["it"]


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
