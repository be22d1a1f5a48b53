"""Steps that are recorded and played: the same numbers, whoever comes and whatever changes.

There is no GPU here. What stands for a CUDA graph does what one does: it reads and writes at fixed addresses.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kandinsky22 import Kandinsky, acceleration
from kandinsky22.acceleration import cuda_graphs, fused_norm, gpu
from kandinsky22.acceleration.cuda_graphs import CudaGraphCache
from kandinsky22.models.layers import Norm
from kandinsky22.models.movq import MoVQ
from kandinsky22.models.prior import PriorTransformer
from kandinsky22.models.unet import Conditioned, UNet
from kandinsky22.request.events import Notice
from kandinsky22.request.tasks import text2img
from tests.acceleration.test_exactness import UNET, apart, made, noise
from tests.models_on_disk import randomise
from tests.oracle.tiny import MOVQ, PRIOR

PLAYED: list[str] = []


def like_a_graph(call: Callable[[], Any], pool: object) -> Callable[[], Any]:
    """What a CUDA graph does: the result is always in the same place."""
    result = call()
    PLAYED.append("recorded")

    def play() -> Any:
        new = call()
        with torch.inference_mode():  # a graph writes whatever mode it was recorded in
            for (into, _), (value, _) in zip(cuda_graphs.tensors(result), cuda_graphs.tensors(new), strict=True):
                into.copy_(value)
        PLAYED.append("played")
        return result

    return play


@pytest.fixture(autouse=True)
def as_if_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What concerns a GPU concerns this CPU."""
    monkeypatch.setattr(gpu, "DEVICES", ("cpu",))
    monkeypatch.setattr(gpu, "CudaGraphCache", partial(CudaGraphCache, like_a_graph))
    monkeypatch.setattr(gpu, "total_memory", lambda _: 1 << 40)
    PLAYED.clear()
    yield


def prepared(network: nn.Module, **how: Any) -> Any:
    acceleration.prepare(network, device=torch.device("cuda"), **how)
    return network


def unet() -> tuple[UNet, UNet]:
    """A plain U-Net, and one of the same weights whose steps are played."""
    plain = made(UNet(UNET))
    randomise(plain)
    return plain, prepared(copy.deepcopy(plain))


def asked(network: UNet, rows: int, *, seed: int = 0, side: int = 8) -> tuple[Tensor, Tensor, Conditioned]:
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator)
    t = torch.randint(0, 1000, (rows,), generator=generator)
    return draw(rows, 4, side, side), t, network.condition(draw(rows, UNET.encoder_hid_dim))


@torch.no_grad()
def test_the_first_call_is_computed_the_second_recorded_and_all_are_the_networks() -> None:
    plain, fast = unet()
    for i in range(4):
        arguments = asked(plain, 2, seed=i)  # another condition each time, too
        assert apart(fast(*arguments), plain(*arguments)) < 1e-5
    assert PLAYED == ["recorded", "played", "played", "played"] and len(fast.graphs) == 1


@torch.no_grad()
def test_what_is_handed_out_stays_as_it_is() -> None:
    plain, fast = unet()
    x, t, conditioned = asked(plain, 2)
    answers = [fast(x + i, t, conditioned) for i in range(5)]
    assert all(apart(answers[i], plain(x + i, t, conditioned)) < 1e-5 for i in range(5))
    assert torch.equal(x, asked(plain, 2)[0])


@torch.no_grad()
def test_in_both_modes_without_gradients_and_plainly_with_them() -> None:
    plain, fast = unet()
    with torch.inference_mode():
        inferred = [fast(*asked(plain, 1)) for _ in range(3)]
    assert torch.equal(fast(*asked(plain, 1)), inferred[-1].clone()) and PLAYED.count("played") == 3
    fast.requires_grad_()
    with torch.enable_grad():
        y = fast(*(argument if not isinstance(argument, Tensor) else argument.clone() for argument in asked(plain, 1)))
        y.sum().backward()
    assert PLAYED.count("played") == 3 and fast.conv_in.weight.grad is not None


@torch.no_grad()
def test_shapes_have_recordings_of_their_own_and_the_last_used_are_kept() -> None:
    plain, fast = unet()
    fast.graphs.max_shapes = 2

    def ask(rows: int, side: int = 8) -> None:
        assert apart(fast(*asked(plain, rows, side=side)), plain(*asked(plain, rows, side=side))) < 1e-5

    for rows, side in ((1, 8), (1, 8), (2, 8), (2, 8), (1, 8)):
        ask(rows, side)
    assert len(fast.graphs) == 2 and PLAYED.count("recorded") == 2
    ask(1, 16)  # the two rows were used longest ago
    ask(1, 8)
    assert PLAYED.count("recorded") == 2
    ask(2, 8)
    ask(2, 8)
    assert PLAYED.count("recorded") == 3
    before = PLAYED.count("recorded")
    for rows in (3, 4, 5) * 3:  # more than are remembered, in turn: recording them would be for nothing
        ask(rows)
    assert PLAYED.count("recorded") == before


@torch.no_grad()
def test_weights_that_change_or_move_are_seen() -> None:
    plain, fast = unet()
    other = made(UNet(UNET))
    randomise(other, seed=1)

    def agree(same: UNet) -> None:
        for i in range(3):
            assert apart(fast(*asked(plain, 1, seed=i)), same(*asked(plain, 1, seed=i))) < 1e-5

    agree(plain)
    fast.load_state_dict(other.state_dict())  # in place: the recording reads them where they were
    agree(other)
    assert PLAYED.count("recorded") == 1
    fast.load_state_dict({name: value.clone() for name, value in plain.state_dict().items()}, assign=True)
    agree(plain)
    assert PLAYED.count("recorded") == 2 and len(fast.graphs) == 1
    acceleration.release_graphs(fast)
    assert len(fast.graphs) == 0
    agree(plain)


@torch.no_grad()
def test_who_listens_in_is_heard_at_every_step() -> None:
    plain, fast = unet()
    heard: list[int] = []
    handle = fast.mid_block.register_forward_hook(lambda *_: heard.append(1))
    for _ in range(3):
        fast(*asked(plain, 1))
    assert len(heard) == 3 and PLAYED == []
    handle.remove()
    for _ in range(3):
        fast(*asked(plain, 1))
    assert PLAYED.count("played") == 2

    class Adapter(nn.Linear):
        """Somebody's own layer, which may decide something at each call."""

    fast.time_embedding.linear_1.__class__ = Adapter
    assert cuda_graphs.recordable_state(fast) is None
    fast.time_embedding.linear_1.__class__ = nn.Linear
    nn.utils.parametrize.register_parametrization(fast.conv_in, "weight", nn.Identity())
    assert cuda_graphs.recordable_state(fast) is None


@torch.no_grad()
def test_where_recording_fails_it_is_said_once_and_computed() -> None:
    def fails(call: Callable[[], Any], pool: object) -> Callable[[], Any]:
        raise RuntimeError("operation not permitted when stream is capturing\nand where")

    plain, fast = unet()
    fast.graphs = CudaGraphCache(fails)
    with pytest.warns(match="could not be recorded.*: operation not permitted when stream is capturing$") as said:
        answers = [fast(*asked(plain, 1)) for _ in range(5)]
    assert len(said) == 1 and all(apart(y, plain(*asked(plain, 1))) < 1e-5 for y in answers)


@torch.no_grad()
def test_a_copy_records_for_itself_and_what_is_undone_is_plain() -> None:
    plain, fast = unet()
    for _ in range(3):
        fast(*asked(plain, 1))
    twin = copy.deepcopy(fast)
    assert twin.graphs is not fast.graphs and len(twin.graphs) == 0 and len(fast.graphs) == 1
    acceleration.undo(fast)
    assert type(fast) is UNet and all(type(module) is not gpu.GPUNorm for module in fast.modules())
    assert "graphs" not in vars(fast) and fast.state_dict().keys() == plain.state_dict().keys()


@torch.no_grad()
def test_weights_lie_channels_last() -> None:
    _, fast = unet()
    assert fast.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert any(type(module) is gpu.GPUNorm for module in fast.modules()) and type(made(Norm(4, 8, eps=1e-5))) is Norm


@torch.no_grad()
def test_the_prior_pads_texts_to_one_shape() -> None:
    plain = made(PriorTransformer(PRIOR))
    randomise(plain)
    fast = prepared(copy.deepcopy(plain))
    for length in (3, 6):
        generator = torch.Generator().manual_seed(length)
        draw = partial(torch.randn, generator=generator)
        mask = torch.arange(length) < torch.tensor([[length], [2]])
        prefix = plain.prefill(draw(2, length, PRIOR.embedding_dim), draw(2, PRIOR.embedding_dim), mask)
        for _ in range(2):
            x, t = draw(2, PRIOR.embedding_dim), torch.tensor([9, 3])
            assert apart(fast(x, t, prefix), plain(x, t, prefix)) < 1e-5
    assert PLAYED.count("recorded") == 1 and PLAYED.count("played") == 3


def pictures(kandinsky: Kandinsky) -> list[np.ndarray]:
    """Of a company of requests that differ in rows, in when they are guided, and in what they compute anew."""
    requests = {
        "two": text2img("a red star", seed=1, num_images=2, num_inference_steps=6),
        "unled": text2img("a blue circle", seed=2, guidance_scale=1.0, num_inference_steps=5),
        "part": text2img("a red star", seed=3, num_inference_steps=8, guidance_interval=(0.2, 0.8), reuse=3),
    }
    painted = {}
    for key, event in kandinsky.stream_many(requests):
        if hasattr(event, "pictures"):
            painted[key] = [np.asarray(painting.image, dtype=int) for painting in event.pictures]
    assert painted.keys() == requests.keys()
    return [picture for key in requests for picture in painted[key]]


def test_a_company_gets_the_pictures_that_it_gets_without(tiny_model: Path) -> None:
    plain = pictures(Kandinsky.load(tiny_model, accelerated=False))
    kandinsky = Kandinsky.load(tiny_model, accelerated=False)
    networks = kandinsky.prior.network, kandinsky.decoder("decoder").unet, kandinsky.decoder("decoder").movq
    for network in networks:
        prepared(network)
    played = [pictures(kandinsky) for _ in range(2)]
    assert all(len(network.graphs) > 0 for network in networks[:2]) and PLAYED.count("played") > 10
    for company in played:
        assert all(np.abs(a - b).max() <= 1 for a, b in zip(company, plain, strict=True))


@torch.no_grad()
def test_pictures_are_decoded_whole_where_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    movq = made(MoVQ(MOVQ))
    randomise(movq)
    prepared(movq)
    z, cut = noise(1, 4, 8, 8), []
    monkeypatch.setattr(MoVQ, "decode", lambda self, z, *, tile=None: cut.append(tile) or z)
    movq.decode(z)
    movq.decode(z, tile=100)
    monkeypatch.setattr(gpu, "total_memory", lambda _: 1000)
    movq.decode(z)
    assert cut == [64 * MOVQ.factor**2, 100, None]


@torch.no_grad()
def test_a_step_can_be_compiled_and_one_that_cannot_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = unet()
    prepared(fast, compiled=True)  # as it was prepared already, only this changes
    compiled = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    traced = torch.compile(UNet.forward_cached, backend=backend, fullgraph=True, dynamic=False)
    monkeypatch.setattr(gpu, "compile_step", lambda _: traced)
    for i in range(3):
        assert apart(fast(*asked(plain, 2, seed=i)), plain(*asked(plain, 2, seed=i))) < 1e-5
    assert fast.compiled and PLAYED.count("played") == 2 and len(compiled) == 1

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler found\nand where")

    monkeypatch.setattr(gpu, "compile_step", lambda _: broken)
    acceleration.release_graphs(fast)
    with pytest.warns(match="could not be compiled, and runs uncompiled: no compiler found$") as said:
        for i in range(3):
            assert apart(fast(*asked(plain, 2, seed=i)), plain(*asked(plain, 2, seed=i))) < 1e-5
    assert len(said) == 1 and not fast.compiled


def test_compiling_is_said_once_for_each_shape(tiny_model: Path) -> None:
    kandinsky = Kandinsky.load(tiny_model)

    def said(**how: Any) -> list[str]:
        events = kandinsky.stream(text2img("a red star", seed=1, **how))
        return [event.text for event in events if isinstance(event, Notice)]

    assert said() == []
    kandinsky.networks.compiled = True
    assert said() == ["compiling for 1 of 64x64, once; it may take minutes"] and said() == []
    assert said(num_images=2, height=128) == ["compiling for 2 of 128x64, once; it may take minutes"]


def test_what_is_wanted_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    cpu, cuda, mps = map(torch.device, ("cpu", "cuda", "mps"))
    assert [acceleration.is_wanted(device) for device in (cpu, cuda, mps)] == [True, True, False]
    assert acceleration.filter_budget(cpu) > 0 and acceleration.filter_budget(cuda) == 0  # bytes for weights in other forms
    monkeypatch.setattr(fused_norm, "kernels", lambda: None)
    assert (
        "pip install triton" in str(acceleration.why_no_kernels(cuda))
        and acceleration.describe(torch.float16, cuda) == "torch"
    )
    monkeypatch.setattr(fused_norm, "kernels", lambda: object())
    assert acceleration.why_no_kernels(cuda) is None and acceleration.describe(torch.float16, cuda) == "kernels"
    assert acceleration.describe(torch.float16, cuda, compiled=True) == "compiled"
    monkeypatch.setenv(acceleration.ENV_VARIABLE, "off")
    assert not acceleration.is_wanted(cuda) and acceleration.is_wanted(cuda, True)


def test_compiling_needs_a_gpu(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="compiling is for networks that stay on cuda"):
        Kandinsky.load(tiny_model, device="cpu", compiled=True)
