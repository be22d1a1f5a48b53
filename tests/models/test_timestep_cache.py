"""Precomputed timestep layers and shared guided rows: the same results as without them, with less computation."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kandinsky22.diffusion import SAMPLERS, Noise, sample
from kandinsky22.diffusion.denoiser import Denoiser, Guidance
from kandinsky22.models.prior import Prefix, PriorTransformer
from kandinsky22.models.timestep_cache import MAX_TIMESTEPS, TimestepCache
from kandinsky22.models.unet import UNet, UNetCondition
from tests.diffusion.toy import DECODER, randn
from tests.models_on_disk import randomise
from tests.oracle.tiny import PRIOR, UNET

TIMES = (981, 500, 20, 1)
LENGTHS = (3, 7, 5)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, seed=seed).double()


def prior_and_prefix() -> tuple[PriorTransformer, Prefix]:
    network = PriorTransformer(PRIOR).double().eval().requires_grad_(False)
    randomise(network)
    mask = torch.arange(7)[None] < torch.tensor(LENGTHS)[:, None]
    return network, network.prefill(noise(3, 7, 24), noise(3, 24, seed=1), mask)


def unet_and_condition(**extra_config: int) -> tuple[UNet, UNetCondition]:
    network = UNet(replace(UNET, **extra_config)).double().eval().requires_grad_(False)
    randomise(network)
    masked = noise(3, 5, 8, 8, seed=3) if extra_config else None
    return network, network.condition(noise(3, 24, seed=1), masked=masked)


CASES: dict[str, tuple[Callable[[], tuple], Tensor]] = {
    "prior": (prior_and_prefix, noise(3, 24, seed=2)),
    "unet": (unet_and_condition, noise(3, 4, 8, 8, seed=2)),
    "inpaint": (lambda: unet_and_condition(in_channels=9), noise(3, 4, 8, 8, seed=2)),
}


def relative_error(ours: Tensor, expected: Tensor) -> float:
    """The relative root mean square of the difference."""
    assert ours.shape == expected.shape
    return float((ours - expected).norm() / expected.norm())


def record_timestep_layers(network: torch.nn.Module) -> list[str]:
    """A list that collects the names of the timestep layers that run from now on."""
    entered: list[str] = []
    for name, module in network.named_modules():
        if name == "time_embedding" or name.endswith("time_emb_proj"):
            module.register_forward_hook(lambda *_, name=name: entered.append(name))
    return entered


@pytest.mark.parametrize("name", CASES)
def test_precomputed_timesteps_give_the_plain_result(name: str) -> None:
    build, x = CASES[name]
    network, rows = build()
    precomputed, entered = network.precompute_timesteps(rows, TIMES), record_timestep_layers(network)
    for t in (torch.tensor([981, 981, 981]), torch.tensor([20, 1, 500])):
        ours = network(x, t, precomputed)
        assert not entered
        assert relative_error(ours, network(x, t, rows)) < 1e-12 and entered
        entered.clear()
    other = torch.tensor([20, 333, 500])  # not precomputed for one row: computed for all
    assert relative_error(network(x, other, precomputed), network(x, other, rows)) < 1e-12 and entered
    assert relative_error(network(x, other, rows), network(x, torch.tensor([20, 500, 500]), rows)) > 1e-4  # the control


@pytest.mark.parametrize("name", CASES)
def test_rows_with_different_precomputed_timesteps_concatenate(name: str) -> None:
    """The rows' runs differ in length and timesteps; if one row has nothing precomputed, the step computes all."""
    build, x = CASES[name]
    network, rows = build()
    runs = ((981, 20), TIMES, (7,))
    parts = [network.precompute_timesteps(rows[k : k + 1], run) for k, run in enumerate(runs)]
    joined, t = type(rows).cat(parts), torch.tensor([20, 500, 7])
    expected, entered = network(x, t, rows), record_timestep_layers(network)
    assert relative_error(network(x, t, joined), expected) < 1e-12
    permuted = torch.tensor([2, 0, 1])
    assert relative_error(network(x[permuted], t[permuted], joined[permuted]), expected[permuted]) < 1e-12
    assert relative_error(network(x[1:], t[1:], joined[1:]), expected[1:]) < 1e-12 and not entered
    mixed = type(rows).cat([*parts[:2], rows[2:]])
    assert mixed.timestep_cache is None and relative_error(network(x, t, mixed), expected) < 1e-12 and entered


@pytest.mark.parametrize("name", CASES)
def test_precomputed_timesteps_are_exact_to_rounding_in_float32(name: str) -> None:
    build, x = CASES[name]
    network, rows = build()
    t = torch.tensor([1, 981, 500])
    exact = network(x, t, rows)
    network = network.float()
    if name == "prior":
        mask = torch.arange(7)[None] < torch.tensor(LENGTHS)[:, None]
        rows = network.prefill(noise(3, 7, 24).float(), noise(3, 24, seed=1).float(), mask)
    else:
        masked = None if rows.extra is None else rows.extra.float()
        rows = network.condition(noise(3, 24, seed=1).float(), masked=masked)
    for condition in (rows, network.precompute_timesteps(rows, TIMES)):
        assert relative_error(network(x.float(), t, condition).double(), exact) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_guided_rows_are_computed_with_both_conditions(name: str) -> None:
    build, x = CASES[name]
    network, rows = build()
    t, guided_rows = torch.tensor([981, 500, 20]), torch.tensor([2, 0])
    repeated = torch.cat([guided_rows, torch.arange(3)])
    unconditional = rows[guided_rows.flip(0)]  # other conditions than those of the rows
    if isinstance(unconditional, UNetCondition) and unconditional.extra is not None:
        unconditional = replace(unconditional, extra=rows[guided_rows].extra)  # with the same masked picture
    all_rows = network.precompute_timesteps(type(rows).cat([unconditional, rows]), TIMES)
    expected = network(x[repeated], t[repeated], all_rows)
    assert relative_error(network(x, t[repeated], all_rows, guided_rows), expected) < 1e-12
    assert relative_error(expected[:2], expected[[4, 2]]) > 1e-3  # the control: the conditions matter
    no_rows = torch.empty(0, dtype=torch.long)
    assert torch.equal(network(x, t, rows, no_rows), network(x, t, rows))


def test_guided_rows_share_the_layers_before_the_embedding() -> None:
    network, rows = unet_and_condition()
    counted: dict[str, list[int]] = {"conv_in": [], "conv1": [], "conv2": []}
    first = network.down_blocks[0].resnets[0]
    for name, part in (("conv_in", network.conv_in), ("conv1", first.conv1), ("conv2", first.conv2)):
        part.register_forward_hook(lambda _, inputs, __, name=name: counted[name].append(len(inputs[0])))
    network(noise(3, 4, 8, 8), torch.full((6,), 20), type(rows).cat([rows, rows]), torch.arange(3))
    assert counted == {"conv_in": [3], "conv1": [3], "conv2": [6]}


def test_cached_features_combine_with_guided_rows() -> None:
    network, rows = unet_and_condition()
    all_rows, guided_rows, t = type(rows).cat([rows[1:2], rows[:2]]), torch.tensor([0]), torch.tensor([500] * 3)
    all_rows = network.precompute_timesteps(all_rows, TIMES)
    previous, current = noise(2, 4, 8, 8, seed=4), noise(2, 4, 8, 8, seed=5)
    state_of_row = torch.tensor([0, 0, 1])
    _, cached = network.forward_cached(previous[state_of_row], t, all_rows)
    expected, recomputed = network.forward_cached(current[state_of_row], t, all_rows, cached, torch.tensor([0, 1]))
    output, deep = network.forward_cached(current, t, all_rows, cached, torch.tensor([0, 1]), guided_rows)
    assert relative_error(output, expected) < 1e-12 and relative_error(deep, recomputed) < 1e-12
    assert torch.equal(deep[2], cached[2])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_visits_only_precomputed_timesteps(sampler: str) -> None:
    """A guided run computes its timestep layers only before the first step and ends where the plain run ends."""
    network, rows = unet_and_condition()
    timesteps = DECODER.timesteps(4)
    entered = record_timestep_layers(network)

    def last_state(precomputed: bool) -> Tensor:
        condition = network.precompute_timesteps(rows, timesteps) if precomputed else rows
        entered.clear()
        draw = Noise([1, 2], "decoder")
        x = randn(2, 4, 8, 8)
        guided = {0: Guidance.of(condition[:2], condition[1:], torch.tensor([3.0, 1.0]))}
        denoiser = Denoiser(network, DECODER, guided, torch.float64)
        *_, last = sample(SAMPLERS[sampler](DECODER, x, timesteps, draw), denoiser.alone(0))
        return last.x

    ours = last_state(True)
    assert not entered
    assert relative_error(ours, last_state(False)) < 1e-5 and entered


def test_timestep_cache_holds_at_most_the_first_timesteps_of_a_run() -> None:
    network, rows = unet_and_condition()
    precomputed = network.precompute_timesteps(rows, range(999, -1, -1)).timestep_cache
    assert (
        precomputed is not None
        and precomputed.t.shape == (3, MAX_TIMESTEPS)
        and len(precomputed.values[0]) == MAX_TIMESTEPS
    )
    assert precomputed.at(torch.tensor([999, 950, 1000 - MAX_TIMESTEPS])) is not None
    assert precomputed.at(torch.tensor([999, 950, 999 - MAX_TIMESTEPS])) is None


def test_padding_of_the_timestep_cache_matches_no_timestep() -> None:
    one, two = (
        TimestepCache(torch.tensor([[5]]), torch.ones(1, 1, 2)),
        TimestepCache(torch.tensor([[7, 8]]), torch.ones(1, 2, 2) * 2),
    )
    all_rows = TimestepCache.cat([one, two])
    assert all_rows is not None and all_rows.at(torch.tensor([0, 7])) is None
    values = all_rows.at(torch.tensor([5, 8]))
    assert values is not None and values.tolist() == [[1, 1], [2, 2]]


def test_the_last_block_of_the_prior_computes_only_the_query() -> None:
    network, prefix = prior_and_prefix()
    tokens: list[tuple[int, int]] = []
    last = network.transformer_blocks[-1]
    for part in (last.ff, network.transformer_blocks[0].ff):
        part.register_forward_hook(lambda _, inputs, __: tokens.append(tuple(inputs[0].shape[:2])))
    precomputed = network.precompute_timesteps(prefix, TIMES)
    assert tokens == [(3, len(TIMES)), (3, 0)]
    tokens.clear()
    network(noise(3, 24), torch.tensor([1, 20, 981]), precomputed)
    assert tokens == [(3, 2), (3, 1)]
