"""Prepared networks give the numbers of the plain ones: by our kernels and by torch, at any size and in any batch.

The measure is relative rms: in float32 from the plain network, in bfloat16 from float32, from which the plain network
also differs.
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
from kandinsky22.models.movq import MoVQ
from kandinsky22.models.unet import UNet
from tests.acceleration.comparison import EXACT, MOVQ, UNET, for_inference, noise, relative_rms
from tests.models_on_disk import randomise

SHAPES = [(1, 16, 16), (2, 10, 13), (3, 17, 9), (1, 4, 5), (2, 33, 6), (1, 1, 2)]
"""Rows, height and width: sides of every remainder by 4, and maps smaller than a tile."""


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What computes: our kernels or torch. Winograd's algorithm is used everywhere, even where it is slower."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "library", lambda: None)
    elif kernels.library() is None:
        buildable = kernels.instruction_set() is not None and any(map(shutil.which, ("cc", "gcc", "clang")))
        assert not buildable, "the install should have built kernels here, and did not: see `kandinsky22 doctor`"
        pytest.skip("no compiler on this machine, or no kernels for its processor")
    monkeypatch.setattr(convolution, "WINOGRAD_CELLS", 1)
    return str(request.param)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("kind", [Conv3x3, UpsampleConv3x3])
@pytest.mark.parametrize("strip", [False, True])
def test_convolutions_have_the_plain_numbers(kind: type[Conv3x3], strip: bool) -> None:
    torch.manual_seed(0)
    conv = for_inference(kind(64, 96))
    convolve: Callable[[Tensor], Tensor] = lambda x: conv.forward_strip(x) if strip else conv(x)  # noqa: E731
    for b, h, w in SHAPES:
        x = noise(b, 64, h + 2 * strip, w)
        plain = convolve(x)
        acceleration.prepare(conv, budget=1 << 30)
        first, second, third = (convolve(x) for _ in range(3))
        assert relative_rms(first, plain) < EXACT
        assert conv.filter_cache[1]  # from the second use on; the numbers stay the same
        assert torch.equal(first, second) and torch.equal(first, third)
        acceleration.prepare(conv, budget=0)
        assert torch.equal(convolve(x), first) and torch.equal(convolve(x), first) and conv.filter_cache is None
        acceleration.undo(conv)
        assert torch.equal(convolve(x), plain)


def test_winograd_rounds_like_direct_convolution() -> None:
    """With many channels: within twice the error of a library's direct convolutions (1.2e-6)."""
    torch.manual_seed(0)
    conv, x = for_inference(Conv3x3(512, 64)), noise(1, 512, 32, 32)
    exact = copy.deepcopy(conv).double()(x.double())
    acceleration.prepare(conv, budget=0)
    assert relative_rms(conv(x), exact) < 2e-6


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("dtype", kernels.DTYPES)
def test_filters_are_transformed_exactly(dtype: torch.dtype, upsample: bool, backend: str) -> None:
    """Of any size, at once or by lines; with the kernel, the number of threads makes no difference."""
    g, threads = winograd.Transforms.of(upsample).filter, torch.get_num_threads()
    for outputs, channels in [(1, 1), (3, 85), (1, 257), (8, 125)]:
        weight = noise(outputs, channels, 3, 3).to(dtype)
        exact = torch.einsum("pi,qj,ocij->pqco", g, g, weight.double()).flatten(0, 1)
        results = []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                lines = winograd.transform_filter(weight, upsample=upsample, at_once=count == 2)
                results.append(torch.cat(list(lines) if count == 2 else [line.clone() for line in lines]))
        finally:
            torch.set_num_threads(threads)
        assert all(relative_rms(result, exact) < 1e-6 for result in results)
        identical = torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
        assert backend == "torch" or identical


def test_small_maps_are_convolved_by_one_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "FEW_CELLS", 1)
    monkeypatch.setattr(convolution, "WINOGRAD_CELLS", 1000)
    monkeypatch.setattr(convolution, "CACHED_FILTER", 0)
    conv = for_inference(Conv3x3(32, 96))
    for b, h, w in [(1, 3, 5), (2, 5, 4), (3, 2, 2)]:
        x = noise(b, 32, h, w)
        plain = conv(x)
        acceleration.prepare(conv, budget=0)
        assert relative_rms(conv(x), plain) < EXACT
        acceleration.undo(conv)


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("modulation", ["none", "per row", "map"])
def test_normalisations_have_the_plain_numbers(silu: bool, modulation: str) -> None:
    """Without scale and shift, with one of each per row, or with maps of them at half the size."""
    norm = for_inference(Norm(8, 48, eps=1e-6, silu=silu))
    randomise(norm)
    for b, h, w in SHAPES[:3]:
        h, w = 2 * h, 2 * w
        x = noise(b, 48, h, w) * torch.linspace(0.1, 3, 48)[:, None, None] + 50
        size = (1, 1) if modulation == "per row" else (h // 2, w // 2)
        scale_shift = [] if modulation == "none" else [noise(b, 48, *size, seed=1) + 1, noise(b, 48, *size, seed=2)]
        exact = norm.double()(x.double(), *(value.double() for value in scale_shift))
        norm.float()
        acceleration.prepare(norm, budget=0)
        assert relative_rms(norm(x, *scale_shift), exact) < EXACT
        row = x[:1], *(value[:1] for value in scale_shift)
        assert relative_rms(norm.forward_strip(*norm.group_moments(row[0]), *row)[:, :, 1:-1], exact[:1]) < EXACT
        acceleration.undo(norm)


def test_silu_is_exact_over_its_whole_range_and_keeps_nan() -> None:
    """From where e^-x overflows to where it underflows."""
    norm = for_inference(Norm(1, 16, eps=1e-5))
    x = torch.linspace(-200, 200, 16 * 80 * 5).view(1, 16, 80, 5)
    moments = torch.zeros(1), torch.ones(1) - 1e-5
    exact = nn.functional.silu(x.double())
    acceleration.prepare(norm, budget=0)
    y = norm.forward_strip(*moments, x)[:, :, 1:-1]
    assert float((y - exact).abs().max() / 200) < 1e-6
    assert bool((((y - exact) / exact).abs() < 2e-6)[exact.abs() > 1e-30].all())
    for nan in (x * torch.nan, (x * torch.nan).bfloat16()):
        assert norm.forward_strip(*moments, nan)[:, :, 1:-1].isnan().all()


@pytest.mark.parametrize("layer", [Conv3x3, UpsampleConv3x3, Conv1x1])
@pytest.mark.parametrize("channels", [(4, 64), (32, 64), (64, 1536)])
def test_half_precision_convolutions_are_as_exact_as_the_plain_ones(
    layer: type[nn.Conv2d], channels: tuple[int, int]
) -> None:
    """On large and on small maps, whole and in strips; sums of an upsampling's taps are rounded once more."""
    bound = 1.5 if layer is UpsampleConv3x3 else 1.1
    conv = for_inference(layer(*channels))
    randomise(conv)
    conv.bfloat16()
    for b, h, w in [(1, 20, 16), (2, 4, 6)]:
        x = noise(b, channels[0], h, w).bfloat16()
        for name in ("forward", "forward_strip") if isinstance(conv, Conv3x3) else ("forward",):
            acceleration.undo(conv)
            exact, plain = getattr(conv.double(), name)(x.double()), getattr(conv.bfloat16(), name)(x)
            acceleration.prepare(conv, budget=1 << 30)
            assert relative_rms(getattr(conv, name)(x), exact) < bound * relative_rms(plain, exact)


def unet_step() -> Callable[[UNet], Tensor]:
    """A call of a U-Net."""
    x, embeds, t = noise(3, 4, 12, 20), noise(3, 24, seed=1), torch.tensor([999, 500, 3])

    def run(unet: UNet) -> Tensor:
        dtype = unet.conv_in.weight.dtype
        return unet(x.to(dtype), t, unet.condition(embeds.to(dtype)))

    return run


def movq_decoding(tile: int | None) -> Callable[[MoVQ], Tensor]:
    """A call of MoVQ's decoder."""
    z = noise(2, 4, 7, 5)
    return lambda movq: movq.decode(z.to(movq.post_quant_conv.weight.dtype), tile=tile)


CALLS = {
    "unet": (UNet, UNET, unet_step()),
    "movq": (MoVQ, MOVQ, movq_decoding(None)),
    "movq in tiles": (MoVQ, MOVQ, movq_decoding(40)),
    "movq encoding": (MoVQ, MOVQ, lambda movq: movq.encode(noise(2, 3, 20, 12).to(movq.quant_conv.weight.dtype))),
}


@pytest.mark.parametrize("name", CALLS)
def test_networks_have_the_plain_numbers(name: str) -> None:
    kind, config, call = CALLS[name]
    network = for_inference(kind(config))
    randomise(network)
    plain = call(network)
    names = list(network.state_dict())
    acceleration.prepare(network, budget=1 << 30)
    for part in network.modules():
        assert type(part) not in acceleration.layer_classes()
    assert relative_rms(call(network), plain) < EXACT
    assert list(network.state_dict()) == names
    acceleration.prepare(network, budget=0)  # again, without memory: filters are transformed at every call
    assert relative_rms(call(network), plain) < EXACT
    acceleration.undo(network)
    assert torch.equal(call(network), plain)


def test_the_input_of_movqs_first_attention_is_computed_exactly() -> None:
    """Attention can make errors there ten times as large, which shows in wide networks only (docs/log.md)."""
    keep_exact = [name for name, part in MoVQ(MOVQ).named_modules() if isinstance(part, Conv3x3) and part.keep_exact]
    assert keep_exact == [f"decoder.mid_block.resnets.0.conv{i}" for i in (1, 2)]


@pytest.mark.parametrize("name", CALLS)
def test_bfloat16_errors_are_no_larger_than_the_plain_networks(name: str) -> None:
    """Summed over several networks, since the error of one varies at random by a fifth."""
    kind, config, call = CALLS[name]
    plain, fast = 0.0, 0.0
    for seed in range(4):
        network = for_inference(kind(config))
        randomise(network, seed)
        exact = call(network)
        plain += relative_rms(call(network.bfloat16()), exact) ** 2
        acceleration.prepare(network, budget=1 << 30)
        fast += relative_rms(call(network), exact) ** 2
    assert fast < 1.1**2 * plain


@pytest.mark.parametrize("name", ["unet", "movq"])
def test_rows_of_a_batch_are_computed_as_if_alone(name: str) -> None:
    """Up to rounding: sums may be in another order."""
    kind, config, _ = CALLS[name]
    network = for_inference(kind(config))
    randomise(network)
    acceleration.prepare(network, budget=1 << 30)
    x = noise(3, 4, 12, 8) * torch.tensor([1.0, 5, 0.2]).view(3, 1, 1, 1)
    if isinstance(network, UNet):
        condition, t = network.condition(noise(3, 24)), torch.tensor([3, 500, 999])
        batched = network(x, t, condition)
        alone = [network(x[k : k + 1], t[k : k + 1], condition[k : k + 1]) for k in range(3)]
    else:
        assert isinstance(network, MoVQ)
        batched, alone = network.decode(x), [network.decode(row) for row in x.split(1)]
    for row, single in zip(batched.split(1), alone, strict=True):
        assert relative_rms(row, single) < 2 * EXACT  # both have an error


def test_the_number_of_threads_makes_no_difference(backend: str) -> None:
    """The kernels sum in one order, however many threads there are."""
    if backend == "torch":
        return
    norm, x = for_inference(Norm(8, 64, eps=1e-6)), noise(2, 64, 70, 33).contiguous(memory_format=torch.channels_last)
    acceleration.prepare(norm, budget=0)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(norm(x))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_1x1_convolutions_have_the_plain_numbers() -> None:
    conv = for_inference(Conv1x1(64, 32))
    for x, channels_last in product([noise(2, 64, 5, 7)], [False, True]):
        x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
        plain = conv(x)
        acceleration.prepare(conv, budget=0)
        assert relative_rms(conv(x), plain) < EXACT
        acceleration.undo(conv)
