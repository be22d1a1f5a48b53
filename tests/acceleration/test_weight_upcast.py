"""Without instructions for half precision only weights are rounded, and everything is computed in float32.

Two measures, both relative rms: a network must have the numbers of the plain float32 network with weights rounded to
half precision, and must not exceed the error that diffusers' and transformers' own networks have in bfloat16.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kandinsky22 import Kandinsky, acceleration
from kandinsky22.acceleration import convolution, kernels, weight_upcast
from kandinsky22.acceleration.weight_upcast import UPCAST_LAYERS, upcast_linear
from kandinsky22.engine.placement import Networks
from kandinsky22.models.layers import Conv3x3, UpsampleConv3x3
from tests.acceleration.comparison import EXACT, MOVQ, UNET, for_inference, noise, relative_rms
from tests.models.test_clip import SMALL_TEXT, padded_prompts, text_towers
from tests.models_on_disk import randomise
from tests.oracle.tiny import movqs, priors, unets

CPU = torch.device("cpu")


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What computes: our kernels or torch. Weights are upcast in chunks, as large ones, and Winograd always used."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "library", lambda: None)
    elif kernels.library() is None:
        pytest.skip("no kernels on this machine")
    monkeypatch.setattr(convolution, "WINOGRAD_CELLS", 1)
    monkeypatch.setattr(weight_upcast, "CHUNK_ELEMENTS", (1000, 3000))
    with torch.no_grad():
        yield


def unet() -> tuple[Any, Any, Callable[[Any], Tensor], Callable[[Any], Tensor]]:
    """Our network, diffusers' with the same weights, and calls of them: in float32, and in its weights' dtype."""
    x, embeds, t = noise(2, 4, 8, 12), noise(2, 24, seed=1), torch.tensor([981, 7])

    def theirs(network: Any) -> Tensor:
        result: Tensor = network(
            x.to(network.dtype), t, None, added_cond_kwargs={"image_embeds": embeds.to(network.dtype)}
        ).sample
        return result

    return *unets(UNET), lambda network: network(x, t, network.condition(embeds)), theirs


def movq() -> tuple[Any, Any, Callable[[Any], Tensor], Callable[[Any], Tensor]]:
    z = noise(1, 4, 8, 12)

    def theirs(network: Any) -> Tensor:
        result: Tensor = network.decode(z.to(network.dtype), force_not_quantize=True).sample
        return result

    return *movqs(MOVQ), lambda network: network.decode(z), theirs


def prior() -> tuple[Any, Any, Callable[[Any], Tensor], Callable[[Any], Tensor]]:
    hidden, embed, x, t = noise(2, 9, 24), noise(2, 24, seed=1), noise(2, 24, seed=2), torch.tensor([981, 7])
    mask = torch.arange(9)[None] < torch.tensor([[9], [4]])

    def theirs(network: Any) -> Tensor:
        given = (value.to(network.dtype) for value in (embed, hidden))
        result: Tensor = network(x.to(network.dtype), t, *given, mask).predicted_image_embedding
        return result

    return *priors(), lambda network: network(x, t, network.prefill(hidden, embed, mask)), theirs


def text() -> tuple[Any, Any, Callable[[Any], Tensor], Callable[[Any], Tensor]]:
    ours, theirs = text_towers(SMALL_TEXT)
    return (
        for_inference(ours),
        for_inference(theirs),
        lambda network: network(padded_prompts()).hidden,
        lambda network: network(padded_prompts()).last_hidden_state,
    )


KINDS = {"unet": unet, "movq": movq, "prior": prior, "text": text}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("budget", [0, 1 << 30])
def test_numbers_are_float32s_with_rounded_weights(name: str, budget: int) -> None:
    network, _, run, _ = KINDS[name]()
    randomise(network)
    for dtype in (torch.bfloat16, torch.float16):
        weights = {key: value.clone() for key, value in network.to(dtype).state_dict().items()}
        exact = run(network.float())  # rounded, and computed in float32
        network.to(dtype)
        acceleration.prepare(network, budget=budget, dtype=torch.float32)
        for _ in range(2):
            assert (y := run(network)).dtype == torch.float32
            assert relative_rms(y, exact) < EXACT
        assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
        assert list(network.state_dict()) == list(weights)
        acceleration.undo(network)
        assert not {type(module) for module in network.modules()} & {
            *acceleration.layer_classes().values(),
            *UPCAST_LAYERS.values(),
        }
        randomise(network.float())


@pytest.mark.parametrize("name", KINDS)
def test_errors_are_smaller_than_other_libraries_in_bfloat16(name: str) -> None:
    ours, theirs, run, run_theirs = KINDS[name]()
    exact = run(ours)
    assert relative_rms(run_theirs(theirs), exact) < EXACT
    acceleration.prepare(ours.bfloat16(), budget=1 << 30, dtype=torch.float32)
    assert 1e-4 < relative_rms(run(ours), exact) < relative_rms(run_theirs(theirs.bfloat16()), exact)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_upcast_linear_has_the_plain_numbers(bias: bool, rows: int) -> None:
    """With a weight whose rows are no multiple of the chunks, and with one of x's own dtype."""
    x, weight, added = (
        noise(rows, 2, 70),
        noise(101, 70, seed=1).bfloat16(),
        noise(101, seed=2).bfloat16() if bias else None,
    )
    exact = nn.functional.linear(x.double(), weight.double(), None if added is None else added.double())
    assert relative_rms(upcast_linear(x, weight, added), exact) < 1e-6
    assert relative_rms(upcast_linear(x[0, 0], weight, added), exact[0, 0]) < 1e-6
    assert upcast_linear(x[:0], weight, added).shape == (0, 2, 101)
    assert upcast_linear(x.bfloat16(), weight, added).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [Conv3x3, UpsampleConv3x3])
def test_cached_filters_and_those_of_every_call_are_the_same(kind: type[Conv3x3]) -> None:
    """For a filter in the default memory format, and channels last."""
    conv, x = for_inference(kind(32, 96)).bfloat16(), noise(2, 32, 9, 14)
    exact = copy.deepcopy(conv).double()(x.double())
    for order in (torch.contiguous_format, torch.channels_last):
        conv.weight.data = conv.weight.data.contiguous(memory_format=order)
        results = []
        for cached in (False, True):
            acceleration.prepare(conv, dtype=torch.float32)
            conv.caches_filter = cached  # as the memory budget of a network decides
            results += [conv(x), conv(x)]
            assert bool(conv.filter_cache and conv.filter_cache[1]) == cached
        assert all(relative_rms(y, exact) < EXACT and torch.equal(y, results[0]) for y in results)


def test_training_computes_as_with_the_plain_network() -> None:
    network = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 4)).bfloat16()
    x = noise(3, 16).bfloat16()

    def gradients() -> list[Tensor]:
        network.zero_grad()
        with torch.enable_grad():
            network(x).square().sum().backward()
        return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]

    before = gradients()
    acceleration.prepare(network, budget=0, dtype=torch.float32)
    after = gradients()
    assert len(before) == len(after) == 6
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    with torch.enable_grad():
        network(x.float()).sum().backward()  # in float32 too


def test_weights_and_filters_take_no_more_memory_than_float32_weights() -> None:
    network, *_ = unet()
    count = sum(weight.numel() for weight in network.parameters())
    forms = acceleration.extra_bytes(network, torch.float32, 1 << 40)
    assert forms > 4 * count
    if acceleration.supports_dtype(torch.bfloat16):
        return
    assert acceleration.extra_bytes(network, torch.bfloat16, 1 << 40) == 2 * count
    assert acceleration.extra_bytes(network, torch.bfloat16, 100) == 100


def test_a_half_precision_model_computes_in_float32_without_instructions(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the picture's metadata says so."""
    for supported, dtype, computed in (
        (False, "bfloat16", torch.float32),
        (True, "bfloat16", torch.bfloat16),
        (False, "float16", torch.float32),
    ):
        monkeypatch.setattr(
            acceleration, "supports_dtype", lambda dtype, supported=supported: supported or dtype == torch.float32
        )
        model = Kandinsky.load(tiny_model, dtype=dtype)
        network = model.decoder("decoder").unet
        assert model.dtype == network.conv_in.weight.dtype == getattr(torch, dtype)
        assert model.networks.dtype == computed
        (picture,) = model("a red star", seed=1)
        assert picture.made_by["dtype"] == dtype
        assert picture.made_by["acceleration"].endswith("in float32") == (not supported)
        assert Networks(CPU, model.dtype, accelerated=False).dtype == model.dtype
    (exact,) = Kandinsky.load(tiny_model)("a red star", seed=1)
    assert "float32" not in exact.made_by["acceleration"]
