"""What depends on a run's timesteps and its condition alone is computed once, and what guided rows share once for both: the
numbers are those of the plain way, and the work is less."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from kandinsky22.diffusion import SAMPLERS, Job, Noise, sample_many
from kandinsky22.diffusion.denoiser import Denoiser, Guidance
from kandinsky22.models.prior import Prefix, PriorTransformer
from kandinsky22.models.timestep_cache import MAX_TIMESTEPS, TimestepCache
from kandinsky22.models.unet import Conditioned, UNet
from tests.diffusion.toy import DECODER, randn
from tests.models_on_disk import randomise
from tests.oracle.tiny import PRIOR, UNET

TIMES = (981, 500, 20, 1)
LENGTHS = (3, 7, 5)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return randn(*shape, seed=seed).double()


def prior_and_prefix() -> tuple[PriorTransformer, Prefix]:
    network = PriorTransformer(PRIOR).double().eval().requires_grad_(False)
    randomise(network)
    mask = torch.arange(7)[None] < torch.tensor(LENGTHS)[:, None]
    return network, network.prefill(drawn(3, 7, 24), drawn(3, 24, seed=1), mask)


def unet_and_condition(**beside: int) -> tuple[UNet, Conditioned]:
    network = UNet(replace(UNET, **beside)).double().eval().requires_grad_(False)
    randomise(network)
    masked = drawn(3, 5, 8, 8, seed=3) if beside else None
    return network, network.condition(drawn(3, 24, seed=1), masked=masked)


CASES: dict[str, tuple[Callable[[], tuple], Tensor]] = {
    "prior": (prior_and_prefix, drawn(3, 24, seed=2)),
    "unet": (unet_and_condition, drawn(3, 4, 8, 8, seed=2)),
    "inpaint": (lambda: unet_and_condition(in_channels=9), drawn(3, 4, 8, 8, seed=2)),
}


def apart(ours: Tensor, expected: Tensor) -> float:
    """Relative rms."""
    assert ours.shape == expected.shape
    return float((ours - expected).norm() / expected.norm())


def looked(network: torch.nn.Module) -> list[str]:
    """The names of the parts that are entered from now on and look at the timestep."""
    seen: list[str] = []
    for name, module in network.named_modules():
        if name == "time_embedding" or name.endswith("time_emb_proj"):
            module.register_forward_hook(lambda *_, name=name: seen.append(name))
    return seen


@pytest.mark.parametrize("name", CASES)
def test_what_was_computed_ahead_is_what_a_step_computes(name: str) -> None:
    make, x = CASES[name]
    network, rows = make()
    ahead, seen = network.precompute_timesteps(rows, TIMES), looked(network)
    for t in (torch.tensor([981, 981, 981]), torch.tensor([20, 1, 500])):
        ours = network(x, t, ahead)
        assert not seen
        assert apart(ours, network(x, t, rows)) < 1e-12 and seen
        seen.clear()
    other = torch.tensor([20, 333, 500])  # not foreseen for a row: computed for all
    assert apart(network(x, other, ahead), network(x, other, rows)) < 1e-12 and seen
    assert apart(network(x, other, rows), network(x, torch.tensor([20, 500, 500]), rows)) > 1e-4  # the control


@pytest.mark.parametrize("name", CASES)
def test_rows_with_runs_of_their_own_concatenate(name: str) -> None:
    """Of other lengths and at other timesteps; and one that has nothing ahead leaves it to the step."""
    make, x = CASES[name]
    network, rows = make()
    runs = ((981, 20), TIMES, (7,))
    parts = [network.precompute_timesteps(rows[k : k + 1], run) for k, run in enumerate(runs)]
    whole, t = type(rows).cat(parts), torch.tensor([20, 500, 7])
    expected, seen = network(x, t, rows), looked(network)
    assert apart(network(x, t, whole), expected) < 1e-12
    turned = torch.tensor([2, 0, 1])
    assert apart(network(x[turned], t[turned], whole[turned]), expected[turned]) < 1e-12
    assert apart(network(x[1:], t[1:], whole[1:]), expected[1:]) < 1e-12 and not seen
    mixed = type(rows).cat([*parts[:2], rows[2:]])
    assert mixed.timestep_cache is None and apart(network(x, t, mixed), expected) < 1e-12 and seen


@pytest.mark.parametrize("name", CASES)
def test_in_float32_it_is_exact_to_rounding(name: str) -> None:
    make, x = CASES[name]
    network, rows = make()
    t = torch.tensor([1, 981, 500])
    exact = network(x, t, rows)
    network = network.float()
    if name == "prior":
        mask = torch.arange(7)[None] < torch.tensor(LENGTHS)[:, None]
        rows = network.prefill(drawn(3, 7, 24).float(), drawn(3, 24, seed=1).float(), mask)
    else:
        masked = None if rows.extra is None else rows.extra.float()
        rows = network.condition(drawn(3, 24, seed=1).float(), masked=masked)
    for given in (rows, network.precompute_timesteps(rows, TIMES)):
        assert apart(network(x.float(), t, given).double(), exact) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_rows_that_are_led_are_answered_twice(name: str) -> None:
    make, x = CASES[name]
    network, rows = make()
    t, guided_rows = torch.tensor([981, 500, 20]), torch.tensor([2, 0])
    asked = torch.cat([guided_rows, torch.arange(3)])
    again = rows[guided_rows.flip(0)]  # other conditions than the rows' own
    if isinstance(again, Conditioned) and again.extra is not None:
        again = replace(again, extra=rows[guided_rows].extra)  # but the same picture
    both = network.precompute_timesteps(type(rows).cat([again, rows]), TIMES)
    expected = network(x[asked], t[asked], both)
    assert apart(network(x, t[asked], both, guided_rows), expected) < 1e-12
    assert apart(expected[:2], expected[[4, 2]]) > 1e-3  # the control: the conditions matter
    none = torch.empty(0, dtype=torch.long)
    assert torch.equal(network(x, t, rows, none), network(x, t, rows))


def test_guided_rows_share_what_comes_before_the_embedding() -> None:
    network, rows = unet_and_condition()
    counted: dict[str, list[int]] = {"conv_in": [], "conv1": [], "conv2": []}
    first = network.down_blocks[0].resnets[0]
    for name, part in (("conv_in", network.conv_in), ("conv1", first.conv1), ("conv2", first.conv2)):
        part.register_forward_hook(lambda _, given, __, name=name: counted[name].append(len(given[0])))
    network(drawn(3, 4, 8, 8), torch.full((6,), 20), type(rows).cat([rows, rows]), torch.arange(3))
    assert counted == {"conv_in": [3], "conv1": [3], "conv2": [6]}


def test_deep_features_and_led_rows_go_together() -> None:
    network, rows = unet_and_condition()
    both, guided_rows, t = type(rows).cat([rows[1:2], rows[:2]]), torch.tensor([0]), torch.tensor([500] * 3)
    both = network.precompute_timesteps(both, TIMES)
    before, now = drawn(2, 4, 8, 8, seed=4), drawn(2, 4, 8, 8, seed=5)
    apiece = torch.tensor([0, 0, 1])
    _, old = network.forward_cached(before[apiece], t, both)
    expected, new = network.forward_cached(now[apiece], t, both, old, torch.tensor([0, 1]))
    output, deep = network.forward_cached(now, t, both, old, torch.tensor([0, 1]), guided_rows)
    assert apart(output, expected) < 1e-12 and apart(deep, new) < 1e-12
    assert torch.equal(deep[2], old[2])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_sampler_asks_for_what_was_not_foreseen(sampler: str) -> None:
    """A whole run, guided, looks at the timestep before its first step alone, and ends where the plain one does."""
    network, rows = unet_and_condition()
    timesteps = DECODER.timesteps(4)
    seen = looked(network)

    def end(ahead: bool) -> Tensor:
        given = network.precompute_timesteps(rows, timesteps) if ahead else rows
        seen.clear()
        noise = Noise([1, 2], "decoder")
        x = randn(2, 4, 8, 8)
        guided = {0: Guidance.of(given[:2], given[1:], torch.tensor([3.0, 1.0]))}
        job = Job(SAMPLERS[sampler](DECODER, x, timesteps, noise))
        *_, (_, last) = sample_many({0: job}, Denoiser(network, DECODER, guided, torch.float64))
        return last.x

    ours = end(True)
    assert not seen
    assert apart(ours, end(False)) < 1e-5 and seen


def test_a_long_run_keeps_no_more_than_its_first_timesteps() -> None:
    network, rows = unet_and_condition()
    ahead = network.precompute_timesteps(rows, range(999, -1, -1)).timestep_cache
    assert ahead is not None and ahead.t.shape == (3, MAX_TIMESTEPS) and len(ahead.values[0]) == MAX_TIMESTEPS
    assert ahead.at(torch.tensor([999, 950, 1000 - MAX_TIMESTEPS])) is not None
    assert ahead.at(torch.tensor([999, 950, 999 - MAX_TIMESTEPS])) is None


def test_padding_is_no_timestep() -> None:
    one, two = (
        TimestepCache(torch.tensor([[5]]), torch.ones(1, 1, 2)),
        TimestepCache(torch.tensor([[7, 8]]), torch.ones(1, 2, 2) * 2),
    )
    both = TimestepCache.cat([one, two])
    assert both is not None and both.at(torch.tensor([0, 7])) is None
    values = both.at(torch.tensor([5, 8]))
    assert values is not None and values.tolist() == [[1, 1], [2, 2]]


def test_in_the_last_block_the_query_alone_is_answered() -> None:
    network, prefix = prior_and_prefix()
    tokens: list[tuple[int, int]] = []
    last = network.transformer_blocks[-1]
    for part in (last.ff, network.transformer_blocks[0].ff):
        part.register_forward_hook(lambda _, given, __: tokens.append(tuple(given[0].shape[:2])))
    ahead = network.precompute_timesteps(prefix, TIMES)
    assert tokens == [(3, len(TIMES)), (3, 0)]
    tokens.clear()
    network(drawn(3, 24), torch.tensor([1, 20, 981]), ahead)
    assert tokens == [(3, 2), (3, 1)]
