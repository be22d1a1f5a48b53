"""Adapters as values of rows: which rows they change, and that rows without one keep their bits."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from kandinsky22 import acceleration
from kandinsky22.models.lora import Adapter, Applied, LowRank, RowAdapters, extract, merge, uninstall
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.unet import UNet, UNetConfig
from tests.models_on_disk import randomise

UNET = UNetConfig(
    block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=16, cross_attention_dim=20, encoder_hid_dim=24
)
PRIOR = PriorConfig(num_layers=2, num_attention_heads=2, attention_head_dim=16, embedding_dim=24, num_embeddings=9)
TIMES = [7, 500, 981]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adapter_of(network: torch.nn.Module, *, rank: int = 4, seed: int = 0, dora: bool = False) -> Adapter:
    """Random numbers for every linear layer and convolution, a third as large as the weights."""
    layers = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            weight: Any = module.weight
            a = draw(rank, *weight.shape[1:], seed=seed) * weight[0].numel() ** -0.5
            b = draw(len(weight), rank, seed=seed + 1) * 0.3 * rank**-0.5
            magnitude = weight.flatten(1).norm(dim=1) * (1 + 0.1 * draw(len(weight))) if dora else None
            layers[name] = LowRank(a, b, 0.5, magnitude)
    return Adapter(layers)


def unet() -> UNet:
    network = UNet(UNET)
    randomise(network)
    return network.eval().requires_grad_(False)


def prior() -> PriorTransformer:
    network = PriorTransformer(PRIOR)
    randomise(network)
    return network.eval().requires_grad_(False)


def run(network: UNet, adapters: RowAdapters, *, guided: Tensor | None = None) -> Tensor:
    """Three rows; guided: those that are computed twice."""
    n = 3 + (0 if guided is None else len(guided))
    condition = network.condition(draw(n, 24, seed=1), adapters=adapters)
    t = torch.tensor([*([TIMES[i] for i in guided.tolist()] if guided is not None else []), *TIMES])
    with torch.inference_mode():
        condition = network.precompute_timesteps(condition, TIMES)
        return network(draw(3, 4, 8, 8), t, condition, guided)


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "accelerated"])
def test_rows_of_scale_zero_keep_the_bits_of_the_plain_network(fast: bool) -> None:
    network, same = unet(), unet()
    if fast:
        acceleration.prepare(network)
        acceleration.prepare(same)
    plain = run(network, RowAdapters.of((), 3))
    adapter = adapter_of(network)
    off, on = RowAdapters.of([Applied(adapter, 0.0)], 1), RowAdapters.of([Applied(adapter, 0.7)], 1)
    assert not off
    mixed = run(same, RowAdapters.cat([off, on, off]))
    assert torch.equal(mixed[0], plain[0]) and torch.equal(mixed[2], plain[2])
    assert (mixed[1] - plain[1]).abs().max() > 0.01
    assert torch.equal(run(same, RowAdapters.of((), 3)), plain)


def test_rows_with_different_adapters_equal_each_alone() -> None:
    network = unet()
    stacks: list[list[Applied]] = [
        [Applied(adapter_of(network), 0.7)],
        [Applied(adapter_of(network, seed=5, dora=True), 1.0)],
        [Applied(adapter_of(network), -0.5), Applied(adapter_of(network, rank=1, seed=9), 1.5)],
    ]
    mixed = run(network, RowAdapters.cat([RowAdapters.of(stack, 1) for stack in stacks]))
    for k, stack in enumerate(stacks):
        assert torch.allclose(run(network, RowAdapters.of(stack, 3))[k], mixed[k], atol=1e-4)


def test_guided_rows_have_the_adapters_of_their_condition() -> None:
    network, adapter = unet(), adapter_of(unet())
    on, off = RowAdapters.of([Applied(adapter, 0.7)], 1), RowAdapters.of((), 1)
    guided = torch.tensor([1])
    mixed = run(network, RowAdapters.cat([on, off, on, off]), guided=guided)  # the guided row, then all rows
    every = run(network, RowAdapters.of([Applied(adapter, 0.7)], 4), guided=guided)
    none = run(network, RowAdapters.of((), 4), guided=guided)
    for k, expected in enumerate((every, none, every, none)):
        assert torch.allclose(mixed[k], expected[k], atol=1e-5)


def test_cached_features_are_computed_again_with_the_rows_own_adapters() -> None:
    network, adapter = unet(), adapter_of(unet())
    on, off = RowAdapters.of([Applied(adapter, 0.7)], 1), RowAdapters.of((), 1)
    x, t = draw(3, 4, 8, 8), torch.tensor(TIMES)
    for adapters in (RowAdapters.cat([on, off, on]), RowAdapters.of([Applied(adapter, 0.7)], 3)):
        condition = network.condition(draw(3, 24, seed=1), adapters=adapters)
        output, deep = network.forward_cached(x, t, condition)
        again, _ = network.forward_cached(x, t, condition, torch.zeros_like(deep), torch.tensor([0, 1, 2]))
        assert torch.allclose(output, again, atol=1e-5)
        _, partly = network.forward_cached(x, t, condition, torch.zeros_like(deep), torch.tensor([1]))
        assert torch.allclose(partly[1], deep[1], atol=1e-5) and not partly[0].any()


def test_prior_rows_with_different_adapters_equal_each_alone() -> None:
    network = prior()
    one, other = adapter_of(network), adapter_of(network, seed=5)
    stacks = [[Applied(one, 0.7)], [], [Applied(other, 1.0)]]
    hidden, embed, x = draw(3, 9, 24), draw(3, 24, seed=1), draw(3, 24, seed=2)
    mask, t = torch.arange(9)[None] < torch.tensor([[3], [7], [5]]), torch.tensor(TIMES)

    def result(adapters: RowAdapters) -> Tensor:
        prefix = network.prefill(hidden, embed, mask, adapters)
        answer = network(x, t, network.precompute_timesteps(prefix, TIMES))
        assert torch.allclose(answer, network(x, t, prefix), atol=1e-5)
        return answer

    plain = result(RowAdapters.of((), 3))
    mixed = result(RowAdapters.cat([RowAdapters.of(stack, 1) for stack in stacks]))
    assert torch.equal(mixed[1], plain[1])
    for k, stack in enumerate(stacks):
        assert torch.allclose(result(RowAdapters.of(stack, 3))[k], mixed[k], atol=1e-5)


def test_an_adapted_network_is_accelerated_and_restored_like_any_other() -> None:
    network = unet()
    before = [type(module) for module in network.modules()]
    applied = RowAdapters.of([Applied(adapter_of(network), 0.7)], 3)
    expected = run(network, applied)
    acceleration.prepare(network)
    assert torch.allclose(run(network, applied), expected, atol=1e-4)
    acceleration.undo(network)
    assert [type(module) for module in network.modules()] == before
    assert torch.equal(run(copy.deepcopy(network), applied), expected)
    uninstall(network)
    assert [type(module) for module in network.modules()] == before


@pytest.mark.parametrize("dora", [False, True])
def test_merging_equals_applying(dora: bool) -> None:
    network, adapter = unet(), adapter_of(unet(), dora=dora)
    expected = run(network, RowAdapters.of([Applied(adapter, 0.8)], 3))
    merge(network, adapter, 0.8)
    assert torch.allclose(run(network, RowAdapters.of((), 3)), expected, atol=1e-4)


def test_extracting_the_difference_of_two_weights_restores_it() -> None:
    for shape in ((24, 16), (24, 16, 3, 3)):
        before = draw(*shape)
        added = LowRank(draw(4, *shape[1:], seed=1), draw(24, 4, seed=2), 0.5)
        found = extract(before, before + added.delta(), 4)
        assert torch.allclose(found.delta(), added.delta(), atol=1e-4)
        assert extract(before, before + added.delta(), 100).rank == min(24, added.a[0].numel())


def test_an_adapter_says_which_layer_does_not_fit() -> None:
    network = unet()
    wrong = Adapter({"mid_block.attentions.0.to_q": LowRank(draw(2, 20), draw(64, 2))})
    assert "[64, 64] there, and [64, 20]" in str(wrong.mismatch(network))
    assert "no layer nowhere" in str(Adapter({"nowhere": LowRank(draw(2, 20), draw(64, 2))}).mismatch(network))
    assert adapter_of(network).mismatch(network) is None
