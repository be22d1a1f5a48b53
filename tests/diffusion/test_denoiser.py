"""`Denoiser`: which rows a call computes, how guidance combines them, and which features are reused."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import pytest
import torch
from torch import Tensor

from kandinsky22.diffusion.denoiser import Denoiser, Guidance
from kandinsky22.models.unet import UNet, UNetCondition, UNetConfig
from tests.diffusion.toy import DECODER, randn
from tests.models_on_disk import randomise


@dataclasses.dataclass(frozen=True)
class ScalarCondition:
    """A condition of one number per row."""

    value: Tensor

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        return cls(torch.cat([part.value for part in parts]))

    def __getitem__(self, rows: Tensor) -> Self:
        return type(self)(self.value[rows])

    def __len__(self) -> int:
        return len(self.value)


class RecordingNetwork:
    """A network whose eps is x times the row's condition; it records how many rows each call has.

    `forward_cached` takes x itself for the deep features, so the output shows when they were computed.
    """

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.deep: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, condition: ScalarCondition, guided_rows: Tensor) -> Tensor:
        return self.forward_cached(x, t, condition, None, None, guided_rows)[0]

    def forward_cached(
        self,
        x: Tensor,
        t: Tensor,
        condition: ScalarCondition,
        deep: Tensor | None,
        rows: Tensor | None,
        guided_rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        x = torch.cat([x[guided_rows], x])
        assert len(x) == len(t) == len(condition)
        self.rows.append(len(x))
        self.deep.append(len(x) if deep is None else 0 if rows is None else len(rows))
        if deep is None:
            deep = x
        elif rows is not None:
            deep = deep.index_copy(0, rows, x[rows])
        return deep * condition.value[:, None], deep


def guided(
    n: int, weight: float, *interval: float, positive: float = 2.0, negative: float = 0.5
) -> Guidance[ScalarCondition]:
    cond, uncond = ScalarCondition(torch.full((n,), positive)), ScalarCondition(torch.full((n,), negative))
    return Guidance.of(cond, uncond, torch.full((n,), weight), *[(interval[0], interval[1])] if interval else [])


def predict_eps(denoiser: Denoiser[Any], *calls: tuple[str, Tensor, int]) -> list[Tensor]:
    """The eps of each request's rows."""
    rows = [len(x) for _, x, _ in calls]
    t = torch.tensor([t for (_, _, t), n in zip(calls, rows, strict=True) for _ in range(n)])
    prediction = denoiser([key for key, _, _ in calls], torch.cat([x for _, x, _ in calls]), t)
    return [p.eps for p in prediction.split(rows)]


def test_guidance_applies_within_its_interval_and_computes_no_rows_elsewhere() -> None:
    network = RecordingNetwork()
    denoiser = Denoiser(network, DECODER, {"a": guided(3, 4.0, 200, 800)}, torch.float32)
    for t, factor, rows in ((801, 2.0, 3), (800, 0.5 + 4 * 1.5, 6), (200, 0.5 + 4 * 1.5, 6), (199, 2.0, 3)):
        x = randn(3, 4, seed=t)
        (eps,) = predict_eps(denoiser, ("a", x, t))
        assert torch.allclose(eps, factor * x) and network.rows[-1] == rows


def test_requests_in_a_batch_have_their_own_guidance_intervals() -> None:
    network = RecordingNetwork()
    guidance = {
        "in": guided(2, 3.0, 0, 500),
        "out": guided(1, 5.0, 600, 999),
        "always": guided(1, 2.0),
        "off": guided(1, 1.0),
    }
    denoiser, x = (
        Denoiser(network, DECODER, guidance, torch.float32),
        {key: randn(len(g.cond), 4) for key, g in guidance.items()},
    )
    for _ in range(2):
        answers = predict_eps(denoiser, *((key, x[key], 400) for key in guidance))
        factors = (0.5 + 3 * 1.5, 2.0, 0.5 + 2 * 1.5, 2.0)
        assert all(torch.allclose(a, f * x[key]) for a, f, key in zip(answers, factors, guidance, strict=True))
        assert network.rows[-1] == 5 + 3
    (alone,) = predict_eps(denoiser, ("out", x["out"], 700))  # another batch, at a timestep within the interval
    assert torch.allclose(alone, (0.5 + 5 * 1.5) * x["out"]) and network.rows[-1] == 2


def test_deep_features_are_computed_every_nth_call_and_reused_between() -> None:
    network = RecordingNetwork()
    denoiser = Denoiser(network, DECODER, {"a": guided(2, 1.0)}, torch.float32, {"a": 3})
    states = [randn(2, 4, seed=i) for i in range(7)]
    answers = [predict_eps(denoiser, ("a", x, 900 - i))[0] for i, x in enumerate(states)]
    assert network.deep == [2, 0, 0, 2, 0, 0, 2]
    assert all(torch.equal(eps, 2 * states[i // 3 * 3]) for i, eps in enumerate(answers))


def test_requests_in_a_batch_count_their_own_calls() -> None:
    """Requests join and leave, among them one without reuse, and one of another number of rows."""
    reuse, weights = {"two": 2, "three": 3}, {"two": guided(1, 2.0), "three": guided(2, 1.0), "plain": guided(1, 3.0)}
    alone = {}
    for key in weights:
        single = Denoiser(RecordingNetwork(), DECODER, weights, torch.float32, reuse)
        alone[key] = [
            predict_eps(single, (key, randn(len(weights[key].cond), 4, seed=i), 900 - i))[0] for i in range(6)
        ]
    network = RecordingNetwork()
    together = Denoiser(network, DECODER, weights, torch.float32, reuse)
    done = dict.fromkeys(weights, 0)
    for keys in ("two three", "two", "three plain two", "plain two three", "three two", "three", "plain", "two"):
        calls = [(k, randn(len(weights[k].cond), 4, seed=done[k]), 900 - done[k]) for k in keys.split()]
        for (key, *_), eps in zip(calls, predict_eps(together, *calls), strict=True):
            assert torch.equal(eps, alone[key][done[key]])
            done[key] += 1
    assert network.deep[:3] == [2 + 2, 0, 2 + 2]  # third call: "plain" and "two" are due, "three" is not


def test_deep_features_are_recomputed_when_guidance_begins_and_reused_when_it_ends() -> None:
    network = RecordingNetwork()
    denoiser = Denoiser(network, DECODER, {"a": guided(2, 3.0, 300, 700)}, torch.float32, {"a": 4})
    for i, t in enumerate((800, 750, 700, 500, 299, 200, 100)):
        predict_eps(denoiser, ("a", randn(2, 4, seed=i), t))
    assert network.rows == [2, 2, 4, 4, 2, 2, 2]
    assert network.deep == [2, 0, 4, 0, 0, 0, 2]


CONFIG = UNetConfig(
    block_out_channels=(32, 64, 64),
    layers_per_block=2,
    attention_head_dim=16,
    cross_attention_dim=16,
    encoder_hid_dim=24,
)


@pytest.fixture(scope="module")
def unet() -> UNet:
    network = UNet(CONFIG).eval().requires_grad_(False)
    randomise(network)
    return network


def conditioned(unet: UNet, n: int) -> UNetCondition:
    return unet.condition(randn(n, 24, seed=9))


def test_forward_cached_without_features_equals_forward_bit_for_bit(unet: UNet) -> None:
    x, t, condition = randn(3, 4, 16, 16), torch.tensor([900, 500, 3]), conditioned(unet, 3)
    expected = unet(x, t, condition)
    output, deep = unet.forward_cached(x, t, condition)
    assert torch.equal(output, expected)
    assert deep.shape == (3, 64, 16, 16)  # the input of the first level's up block, at its size
    reused_output, reused_features = unet.forward_cached(x, t, condition, deep)  # the features of the same state
    assert torch.equal(reused_output, expected) and torch.equal(reused_features, deep)


def test_forward_cached_recomputes_only_the_given_rows(unet: UNet) -> None:
    condition, t = conditioned(unet, 3), torch.tensor([500, 500, 500])
    previous, current = randn(3, 4, 16, 16, seed=1), randn(3, 4, 16, 16, seed=2)
    _, cached = unet.forward_cached(previous, t, condition)
    recomputed_output, recomputed = unet.forward_cached(current, t, condition)
    output, deep = unet.forward_cached(current, t, condition, cached, torch.tensor([2, 0]))
    assert torch.equal(deep[1], cached[1])
    assert torch.allclose(deep[[0, 2]], recomputed[[0, 2]], atol=1e-5)
    assert torch.allclose(output[[0, 2]], recomputed_output[[0, 2]], atol=1e-4)
    # the control: a row with old features differs
    assert not torch.allclose(output[1], recomputed_output[1], atol=1e-2)


def test_reused_features_skip_everything_below_the_first_level(unet: UNet) -> None:
    entered = []
    hooks = [
        module.register_forward_hook(lambda *_: entered.append(1)) for module in (unet.mid_block, unet.up_blocks[0])
    ]
    x, t, condition = randn(1, 4, 16, 16), torch.tensor([500]), conditioned(unet, 1)
    _, deep = unet.forward_cached(x, t, condition)
    assert len(entered) == 2
    unet.forward_cached(x + 1, t, condition, deep)
    assert len(entered) == 2
    for hook in hooks:
        hook.remove()
