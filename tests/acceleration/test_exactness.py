"""Whatever computes, the numbers are those of the plain networks: by our kernels and by torch, at any size and in any company.

The yardstick is relative rms: in float32 against the plain network, in bfloat16 against float32, where the plain network has an
error too.
"""

import copy
import shutil
from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from kandinsky22 import acceleration
from kandinsky22.acceleration import convolution, kernels, winograd
from kandinsky22.models.layers import Conv1x1, Conv3x3, Norm, UpsampleConv3x3
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.unet import UNet, UNetConfig
from tests.models_on_disk import randomise

EXACT = 1e-5
UNET = UNetConfig(
    block_out_channels=(32, 64, 96),
    layers_per_block=1,
    attention_head_dim=16,
    cross_attention_dim=20,
    encoder_hid_dim=24,
)
MOVQ = MoVQConfig(block_out_channels=(32, 64, 64), layers_per_block=1, num_vq_embeddings=48)
SHAPES = [(1, 16, 16), (2, 10, 13), (3, 17, 9), (1, 4, 5), (2, 33, 6), (1, 1, 2)]
"""Rows, height and width: sides of all rests by 4, and maps too small for a tile."""


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What computes. Every convolution goes the way that is tested, however little it would pay."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "library", lambda: None)
    elif kernels.library() is None:
        fitting = kernels.instructions() is not None and any(map(shutil.which, ("cc", "gcc", "clang")))
        assert not fitting, "the install should have built kernels here, and did not: see `kandinsky22 doctor`"
        pytest.skip("no compiler here, or a processor that kernels are not for")
    monkeypatch.setattr(convolution, "CELLS", 1)
    return str(request.param)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def apart(a: Tensor, b: Tensor) -> float:
    """Relative rms."""
    assert a.shape == b.shape
    return float((a.double() - b.double()).square().mean().sqrt() / b.double().square().mean().sqrt())


def made(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [Conv3x3, UpsampleConv3x3])
@pytest.mark.parametrize("inner", [False, True])
def test_convolutions(kind: type[Conv3x3], inner: bool) -> None:
    torch.manual_seed(0)
    conv = made(kind(64, 96))
    convolve: Callable[[Tensor], Tensor] = lambda x: conv.forward_strip(x) if inner else conv(x)  # noqa: E731
    for b, h, w in SHAPES:
        x = noise(b, 64, h + 2 * inner, w)
        plain = convolve(x)
        acceleration.prepare(conv, room=1 << 30)
        first, second, third = (convolve(x) for _ in range(3))
        assert apart(first, plain) < EXACT
        assert conv._kept[1]  # from the second use on, which shows in nothing
        assert torch.equal(first, second) and torch.equal(first, third)
        acceleration.prepare(conv, room=0)
        assert torch.equal(convolve(x), first) and torch.equal(convolve(x), first) and conv._kept is None
        acceleration.undo(conv)
        assert torch.equal(convolve(x), plain)


def test_rounding_is_that_of_direct_convolution() -> None:
    """Where many channels are summed: within twice what the largest direct ones of a library have (1.2e-6)."""
    torch.manual_seed(0)
    conv, x = made(Conv3x3(512, 64)), noise(1, 512, 32, 32)
    exact = copy.deepcopy(conv).double()(x.double())
    acceleration.prepare(conv, room=0)
    assert apart(conv(x), exact) < 2e-6


@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_transformed_filters(dtype: torch.dtype, doubled: bool, by: str) -> None:
    """Any number of them, kept or made anew; by the kernel, threads make no difference either."""
    g, threads = winograd.Transforms.of(doubled).filter, torch.get_num_threads()
    for outputs, channels in [(1, 1), (3, 85), (1, 257), (8, 125)]:
        weight = noise(outputs, channels, 3, 3).to(dtype)
        exact = torch.einsum("pi,qj,ocij->pqco", g, g, weight.double()).flatten(0, 1)
        found = []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                lines = winograd.transformed(weight, doubled=doubled, lasting=count == 2)
                found.append(torch.cat(list(lines) if count == 2 else [line.clone() for line in lines]))
        finally:
            torch.set_num_threads(threads)
        assert all(apart(one, exact) < 1e-6 for one in found)
        assert by == "torch" or (torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]))


def test_few_cells_of_many_channels_are_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "FEW", 1)
    monkeypatch.setattr(convolution, "CELLS", 1000)
    monkeypatch.setattr(convolution, "CACHED", 0)
    conv = made(Conv3x3(32, 96))
    for b, h, w in [(1, 3, 5), (2, 5, 4), (3, 2, 2)]:
        x = noise(b, 32, h, w)
        plain = conv(x)
        acceleration.prepare(conv, room=0)
        assert apart(conv(x), plain) < EXACT
        acceleration.undo(conv)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("told", [None, 1, 2])
def test_normalisations(silu: bool, told: int | None) -> None:
    """Told nothing, a scale and a shift of a row, or maps of them at half the size."""
    norm = made(Norm(8, 48, eps=1e-6, silu=silu))
    randomise(norm)
    for b, h, w in SHAPES[:3]:
        h, w = 2 * h, 2 * w
        x = noise(b, 48, h, w) * torch.linspace(0.1, 3, 48)[:, None, None] + 50
        size = () if told is None else (1, 1) if told == 1 else (h // 2, w // 2)
        by = [] if told is None else [noise(b, 48, *size, seed=1) + 1, noise(b, 48, *size, seed=2)]
        exact = norm.double()(x.double(), *(value.double() for value in by))
        norm.float()
        acceleration.prepare(norm, room=0)
        assert apart(norm(x, *by), exact) < EXACT
        one = x[:1]
        assert (
            apart(norm.forward_with_moments(*norm.group_moments(one), one, *(value[:1] for value in by)), exact[:1])
            < EXACT
        )
        acceleration.undo(norm)


def test_silu_of_anything() -> None:
    """From where e^-x overflows to where it vanishes; what is no number stays none."""
    norm = made(Norm(1, 16, eps=1e-5))
    x = torch.linspace(-200, 200, 16 * 80 * 5).view(1, 16, 80, 5)
    moments = torch.zeros(1), torch.ones(1) - 1e-5
    exact = nn.functional.silu(x.double())
    acceleration.prepare(norm, room=0)
    y = norm.forward_with_moments(*moments, x)
    assert float((y - exact).abs().max() / 200) < 1e-6
    assert bool((((y - exact) / exact).abs() < 2e-6)[exact.abs() > 1e-30].all())
    assert norm.forward_with_moments(*moments, x * torch.nan).isnan().all()
    assert norm.forward_with_moments(*moments, (x * torch.nan).bfloat16()).isnan().all()


def unets() -> Callable[[UNet], Tensor]:
    x, embeds, t = noise(3, 4, 12, 20), noise(3, 24, seed=1), torch.tensor([999, 500, 3])

    def run(unet: UNet) -> Tensor:
        dtype = unet.conv_in.weight.dtype
        return unet(x.to(dtype), t, unet.condition(embeds.to(dtype)))

    return run


def movqs(tile: int | None) -> Callable[[MoVQ], Tensor]:
    z = noise(2, 4, 7, 5)
    return lambda movq: movq.decode(z.to(movq.post_quant_conv.weight.dtype), tile=tile)


WORK = {
    "unet": (UNet, UNET, unets()),
    "movq": (MoVQ, MOVQ, movqs(None)),
    "movq in tiles": (MoVQ, MOVQ, movqs(40)),
    "movq encoding": (MoVQ, MOVQ, lambda movq: movq.encode(noise(2, 3, 20, 12).to(movq.quant_conv.weight.dtype))),
}


@pytest.mark.parametrize("name", WORK)
def test_whole_networks(name: str) -> None:
    kind, config, work = WORK[name]
    network = made(kind(config))
    randomise(network)
    plain = work(network)
    names = list(network.state_dict())
    acceleration.prepare(network, room=1 << 30)
    for part in network.modules():
        assert type(part) not in acceleration.kinds()
    assert apart(work(network), plain) < EXACT
    assert list(network.state_dict()) == names
    acceleration.prepare(network, room=0)  # again, with no room: filters are transformed at every call
    assert apart(work(network), plain) < EXACT
    acceleration.undo(network)
    assert torch.equal(work(network), plain)


def test_what_the_decoders_first_attention_looks_at_is_left_alone() -> None:
    """It can make errors ten times as large, which shows in wide networks only (docs/log.md)."""
    keep_exact = [name for name, part in MoVQ(MOVQ).named_modules() if isinstance(part, Conv3x3) and part.keep_exact]
    assert keep_exact == [f"decoder.mid_block.resnets.0.conv{i}" for i in (1, 2)]


@pytest.mark.parametrize("name", WORK)
def test_bfloat16_is_no_coarser(name: str) -> None:
    """Over several networks: the error of one is as good as random, to a fifth."""
    kind, config, work = WORK[name]
    plain, fast = 0.0, 0.0
    for seed in range(4):
        network = made(kind(config))
        randomise(network, seed)
        exact = work(network)
        plain += apart(work(network.bfloat16()), exact) ** 2
        acceleration.prepare(network, room=1 << 30)
        fast += apart(work(network), exact) ** 2
    assert fast < 1.1**2 * plain


@pytest.mark.parametrize("name", ["unet", "movq"])
def test_nothing_depends_on_the_company(name: str) -> None:
    """Rows of a batch are those alone. (Sums may be rounded otherwise.)"""
    kind, config, _ = WORK[name]
    network = made(kind(config))
    randomise(network)
    acceleration.prepare(network, room=1 << 30)
    x = noise(3, 4, 12, 8) * torch.tensor([1.0, 5, 0.2]).view(3, 1, 1, 1)
    if isinstance(network, UNet):
        condition, t = network.condition(noise(3, 24)), torch.tensor([3, 500, 999])
        together = network(x, t, condition)
        alone = [network(x[k : k + 1], t[k : k + 1], condition[k : k + 1]) for k in range(3)]
    else:
        assert isinstance(network, MoVQ)
        together, alone = network.decode(x), [network.decode(row) for row in x.split(1)]
    for row, one in zip(together.split(1), alone, strict=True):
        assert apart(row, one) < 2 * EXACT  # either is as far from the truth


def test_ways_and_threads_make_no_difference(by: str) -> None:
    """The kernels' sums are in one order, however many threads there are."""
    if by == "torch":
        return
    norm, x = made(Norm(8, 64, eps=1e-6)), noise(2, 64, 70, 33).contiguous(memory_format=torch.channels_last)
    acceleration.prepare(norm, room=0)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(norm(x))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_1x1() -> None:
    conv = made(Conv1x1(64, 32))
    for x, channels_last in product([noise(2, 64, 5, 7)], [False, True]):
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        plain = conv(x)
        acceleration.prepare(conv, room=0)
        assert apart(conv(x), plain) < EXACT
        acceleration.undo(conv)
