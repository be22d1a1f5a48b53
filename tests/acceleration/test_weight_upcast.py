"""Where a processor has no instructions for half precision only weights are rounded, and everything is computed in float32.

Two yardsticks, both relative rms: the plain float32 network with weights rounded to half precision, whose numbers it must have;
and the error that diffusers' and transformers' own networks have in bfloat16, which it must not exceed.
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
from kandinsky22.acceleration.weight_upcast import HALF, linear
from kandinsky22.engine.placement import Networks
from kandinsky22.models.layers import Conv3x3, UpsampleConv3x3
from kandinsky22.models.movq import MoVQConfig
from kandinsky22.models.unet import UNetConfig
from tests.acceleration.test_exactness import EXACT, apart, made, noise
from tests.models.test_clip import SMALL_TEXT, prompts, text_and_theirs
from tests.models_on_disk import randomise
from tests.oracle.tiny import movqs, priors, unets

CPU = torch.device("cpu")
WIDE_UNET = UNetConfig(
    block_out_channels=(32, 64, 96),
    layers_per_block=1,
    attention_head_dim=16,
    cross_attention_dim=20,
    encoder_hid_dim=24,
)
WIDE_MOVQ = MoVQConfig(block_out_channels=(32, 64, 64), layers_per_block=1, num_vq_embeddings=48)


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What computes. Weights are taken apart as large ones are, and every convolution goes by Winograd's algorithm."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "library", lambda: None)
    elif kernels.library() is None:
        pytest.skip("no kernels here")
    monkeypatch.setattr(convolution, "CELLS", 1)
    monkeypatch.setattr(weight_upcast, "NUMBERS", (1000, 3000))
    with torch.no_grad():
        yield


def unet() -> tuple[Any, Any, Callable[[Any], Tensor], Callable[[Any], Tensor]]:
    """A network, diffusers' with the same weights, and what runs each: ours on float32, theirs on the dtype of its weights."""
    x, embeds, t = noise(2, 4, 8, 12), noise(2, 24, seed=1), torch.tensor([981, 7])

    def theirs(network: Any) -> Tensor:
        result: Tensor = network(
            x.to(network.dtype), t, None, added_cond_kwargs={"image_embeds": embeds.to(network.dtype)}
        ).sample
        return result

    return *unets(WIDE_UNET), lambda network: network(x, t, network.condition(embeds)), theirs


def movq() -> tuple[Any, Any, Callable[[Any], Tensor], Callable[[Any], Tensor]]:
    z = noise(1, 4, 8, 12)

    def theirs(network: Any) -> Tensor:
        result: Tensor = network.decode(z.to(network.dtype), force_not_quantize=True).sample
        return result

    return *movqs(WIDE_MOVQ), lambda network: network.decode(z), theirs


def prior() -> tuple[Any, Any, Callable[[Any], Tensor], Callable[[Any], Tensor]]:
    hidden, embed, x, t = noise(2, 9, 24), noise(2, 24, seed=1), noise(2, 24, seed=2), torch.tensor([981, 7])
    mask = torch.arange(9)[None] < torch.tensor([[9], [4]])

    def theirs(network: Any) -> Tensor:
        given = (value.to(network.dtype) for value in (embed, hidden))
        result: Tensor = network(x.to(network.dtype), t, *given, mask).predicted_image_embedding
        return result

    return *priors(), lambda network: network(x, t, network.prefill(hidden, embed, mask)), theirs


def text() -> tuple[Any, Any, Callable[[Any], Tensor], Callable[[Any], Tensor]]:
    ours, theirs = text_and_theirs(SMALL_TEXT)
    return (
        made(ours),
        made(theirs),
        lambda network: network(prompts()).hidden,
        lambda network: network(prompts()).last_hidden_state,
    )


KINDS = {"unet": unet, "movq": movq, "prior": prior, "text": text}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("room", [0, 1 << 30])
def test_only_weights_are_rounded(name: str, room: int) -> None:
    network, _, run, _ = KINDS[name]()
    randomise(network)
    for dtype in (torch.bfloat16, torch.float16):
        held = network.to(dtype)
        kept = {key: value.clone() for key, value in held.state_dict().items()}
        exact = run(network.float())  # rounded, and computed in float32
        held = network.to(dtype)
        acceleration.prepare(held, room=room, dtype=torch.float32)
        for _ in range(2):
            assert (y := run(held)).dtype == torch.float32
            assert apart(y, exact) < EXACT
        assert all(torch.equal(value, kept[key]) for key, value in held.state_dict().items())  # and of the dtype
        assert list(held.state_dict()) == list(kept)
        acceleration.undo(held)
        assert not {type(module) for module in held.modules()} & {*acceleration.kinds().values(), *HALF.values()}
        randomise(network.float())


@pytest.mark.parametrize("name", KINDS)
def test_it_is_nearer_to_float32_than_bfloat16_there(name: str) -> None:
    ours, theirs, run, run_theirs = KINDS[name]()
    exact = run(ours)
    assert apart(run_theirs(theirs), exact) < EXACT
    acceleration.prepare(ours.bfloat16(), room=1 << 30, dtype=torch.float32)
    assert 1e-4 < apart(run(ours), exact) < apart(run_theirs(theirs.bfloat16()), exact)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_linear(bias: bool, rows: int) -> None:
    """Of a weight that is taken apart in pieces that do not go into it evenly; and of one that is as wide as x."""
    x, weight, added = (
        noise(rows, 2, 70),
        noise(101, 70, seed=1).bfloat16(),
        noise(101, seed=2).bfloat16() if bias else None,
    )
    exact = nn.functional.linear(x.double(), weight.double(), None if added is None else added.double())
    assert apart(linear(x, weight, added), exact) < 1e-6
    assert apart(linear(x[0, 0], weight, added), exact[0, 0]) < 1e-6
    assert linear(x[:0], weight, added).shape == (0, 2, 101)
    assert linear(x.bfloat16(), weight, added).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [Conv3x3, UpsampleConv3x3])
def test_what_is_made_at_every_call_is_what_is_kept(kind: type[Conv3x3]) -> None:
    """Of a filter that lies as it is read, and channels last."""
    conv, x = made(kind(32, 96)).bfloat16(), noise(2, 32, 9, 14)
    exact = copy.deepcopy(conv).double()(x.double())
    for order in (torch.contiguous_format, torch.channels_last):
        conv.weight.data = conv.weight.data.contiguous(memory_format=order)
        results = []
        for roomy in (False, True):
            acceleration.prepare(conv, dtype=torch.float32)
            conv.roomy = roomy  # as in a larger network
            results += [conv(x), conv(x)]
            assert bool(conv._kept and conv._kept[1]) == roomy
        assert all(apart(y, exact) < EXACT and torch.equal(y, results[0]) for y in results)


def test_it_learns_as_if_it_had_not_been_prepared() -> None:
    network = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 4)).bfloat16()
    x = noise(3, 16).bfloat16()

    def learnt() -> list[Tensor]:
        network.zero_grad()
        with torch.enable_grad():
            network(x).square().sum().backward()
        return [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]

    before = learnt()
    acceleration.prepare(network, room=0, dtype=torch.float32)
    after = learnt()
    assert len(before) == len(after) == 6
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    with torch.enable_grad():
        network(x.float()).sum().backward()  # in float32 too


def test_weights_and_forms_take_no_more_than_in_float32() -> None:
    network, *_ = unet()
    count = sum(weight.numel() for weight in network.parameters())
    forms = acceleration.more(network, torch.float32, 1 << 40)
    assert forms > 4 * count
    if acceleration.instructions_for(torch.bfloat16):
        return
    assert acceleration.more(network, torch.bfloat16, 1 << 40) == 2 * count
    assert acceleration.more(network, torch.bfloat16, 100) == 100


def test_a_model_asked_for_in_half_precision(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held in that, computed in float32 where there are no instructions for it, and said so in the picture."""
    for there, dtype, computed in (
        (False, "bfloat16", torch.float32),
        (True, "bfloat16", torch.bfloat16),
        (False, "float16", torch.float32),
    ):
        monkeypatch.setattr(
            acceleration, "instructions_for", lambda dtype, there=there: there or dtype == torch.float32
        )
        model = Kandinsky.load(tiny_model, dtype=dtype)
        network = model.decoder("decoder").unet
        assert model.dtype == network.conv_in.weight.dtype == getattr(torch, dtype)
        assert model.networks.dtype == computed
        (picture,) = model("a red star", seed=1)
        assert picture.made_by["dtype"] == dtype
        assert picture.made_by["acceleration"].endswith("in float32") == (not there)
        assert Networks(CPU, model.dtype, accelerated=False).dtype == model.dtype
    (exact,) = Kandinsky.load(tiny_model)("a red star", seed=1)
    assert "float32" not in exact.made_by["acceleration"]
