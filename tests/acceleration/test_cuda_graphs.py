"""Steps that are recorded and replayed: the numbers are those of the plain network, whatever changes between calls.

These tests need no GPU. What stands in for a CUDA graph also reads and writes at fixed addresses.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
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
from kandinsky22.models.lora import Adapter, Applied, LowRank, RowAdapters
from kandinsky22.models.movq import MoVQ
from kandinsky22.models.prior import PriorTransformer
from kandinsky22.models.unet import UNet, UNetCondition
from kandinsky22.request.events import Notice
from kandinsky22.request.tasks import text2img
from tests.acceleration.comparison import UNET, for_inference, noise, relative_rms
from tests.models_on_disk import randomise
from tests.oracle.tiny import MOVQ, PRIOR

LOG: list[str] = []


def like_a_graph(call: Callable[[], Any], pool: object) -> Callable[[], Any]:
    """Stands in for a CUDA graph: the result is always at the same address."""
    result = call()
    LOG.append("recorded")

    def replay() -> Any:
        new = call()
        with torch.inference_mode():  # a graph writes in any mode
            for (into, _), (value, _) in zip(cuda_graphs.tensors(result), cuda_graphs.tensors(new), strict=True):
                into.copy_(value)
        LOG.append("replayed")
        return result

    return replay


@pytest.fixture(autouse=True)
def as_if_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the code for GPUs run on this CPU."""
    monkeypatch.setattr(gpu, "DEVICES", ("cpu",))
    monkeypatch.setattr(gpu, "CudaGraphCache", partial(CudaGraphCache, like_a_graph))
    monkeypatch.setattr(gpu, "total_memory", lambda _: 1 << 40)
    LOG.clear()
    yield


def prepared(network: nn.Module, **options: Any) -> Any:
    """The network, prepared as on a GPU."""
    acceleration.prepare(network, device=torch.device("cuda"), **options)
    return network


def unet() -> tuple[UNet, UNet]:
    """A plain U-Net, and one of the same weights whose steps are replayed."""
    plain = for_inference(UNet(UNET))
    randomise(plain)
    return plain, prepared(copy.deepcopy(plain))


def unet_inputs(network: UNet, rows: int, *, seed: int = 0, side: int = 8) -> tuple[Tensor, Tensor, UNetCondition]:
    """Random states, timesteps and conditions."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=generator)
    t = torch.randint(0, 1000, (rows,), generator=generator)
    return draw(rows, 4, side, side), t, network.condition(draw(rows, UNET.encoder_hid_dim))


@torch.no_grad()
def test_the_second_call_is_recorded_and_all_have_the_plain_networks_numbers() -> None:
    plain, fast = unet()
    for i in range(4):
        arguments = unet_inputs(plain, 2, seed=i)  # another condition each time, too
        assert relative_rms(fast(*arguments), plain(*arguments)) < 1e-5
    assert LOG == ["recorded", "replayed", "replayed", "replayed"] and len(fast.graphs) == 1


@torch.no_grad()
def test_a_call_is_recorded_for_each_choice_of_adapters() -> None:
    plain, fast = unet()
    weight = plain.mid_block.attentions[0].to_q.weight
    low_rank = LowRank(torch.ones(1, weight.shape[1]), torch.ones(len(weight), 1), 0.05)
    adapters = [Adapter({"mid_block.attentions.0.to_q": low_rank}) for _ in range(2)]
    choices = [RowAdapters.of([Applied(one, scale)], 2) for one in adapters for scale in (0.5, 1.0)]
    choices += [
        RowAdapters.of((), 2),
        RowAdapters.cat([RowAdapters.of((), 1), RowAdapters.of([Applied(adapters[0], 1.0)], 1)]),
    ]
    for _ in range(3):
        for chosen in choices:
            x, t, conditioned = unet_inputs(plain, 2)
            conditioned = replace(conditioned, adapters=chosen)
            assert relative_rms(fast(x, t, conditioned), plain(x, t, conditioned)) < 1e-5
    assert len(fast.graphs) == len(choices) and LOG.count("recorded") == len(choices)


@torch.no_grad()
def test_results_are_not_overwritten_by_later_calls() -> None:
    plain, fast = unet()
    x, t, conditioned = unet_inputs(plain, 2)
    results = [fast(x + i, t, conditioned) for i in range(5)]
    assert all(relative_rms(results[i], plain(x + i, t, conditioned)) < 1e-5 for i in range(5))
    assert torch.equal(x, unet_inputs(plain, 2)[0])


@torch.no_grad()
def test_steps_are_replayed_without_gradients_and_computed_plainly_with_them() -> None:
    plain, fast = unet()
    with torch.inference_mode():
        inferred = [fast(*unet_inputs(plain, 1)) for _ in range(3)]
    assert torch.equal(fast(*unet_inputs(plain, 1)), inferred[-1].clone()) and LOG.count("replayed") == 3
    fast.requires_grad_()
    with torch.enable_grad():
        y = fast(
            *(argument if not isinstance(argument, Tensor) else argument.clone() for argument in unet_inputs(plain, 1))
        )
        y.sum().backward()
    assert LOG.count("replayed") == 3 and fast.conv_in.weight.grad is not None


@torch.no_grad()
def test_each_shape_is_recorded_and_the_last_used_shapes_are_remembered() -> None:
    plain, fast = unet()
    fast.graphs.max_shapes = 2

    def compare(rows: int, side: int = 8) -> None:
        assert (
            relative_rms(fast(*unet_inputs(plain, rows, side=side)), plain(*unet_inputs(plain, rows, side=side))) < 1e-5
        )

    for rows, side in ((1, 8), (1, 8), (2, 8), (2, 8), (1, 8)):
        compare(rows, side)
    assert len(fast.graphs) == 2 and LOG.count("recorded") == 2
    compare(1, 16)  # the two rows were used longest ago
    compare(1, 8)
    assert LOG.count("recorded") == 2
    compare(2, 8)
    compare(2, 8)
    assert LOG.count("recorded") == 3
    before = LOG.count("recorded")
    for rows in (3, 4, 5) * 3:  # more than are remembered, in turn: a recording would never be used
        compare(rows)
    assert LOG.count("recorded") == before


@torch.no_grad()
def test_weights_that_change_are_used_and_weights_that_move_are_recorded_again() -> None:
    plain, fast = unet()
    other = for_inference(UNet(UNET))
    randomise(other, seed=1)

    def agree(same: UNet) -> None:
        for i in range(3):
            assert relative_rms(fast(*unet_inputs(plain, 1, seed=i)), same(*unet_inputs(plain, 1, seed=i))) < 1e-5

    agree(plain)
    fast.load_state_dict(other.state_dict())  # in place: the recording reads them where they were
    agree(other)
    assert LOG.count("recorded") == 1
    fast.load_state_dict({name: value.clone() for name, value in plain.state_dict().items()}, assign=True)
    agree(plain)
    assert LOG.count("recorded") == 2 and len(fast.graphs) == 1
    acceleration.release_graphs(fast)
    assert len(fast.graphs) == 0
    agree(plain)


@torch.no_grad()
def test_hooks_other_packages_layers_and_computed_weights_prevent_recording() -> None:
    plain, fast = unet()
    calls: list[int] = []
    handle = fast.mid_block.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        fast(*unet_inputs(plain, 1))
    assert len(calls) == 3 and LOG == []
    handle.remove()
    for _ in range(3):
        fast(*unet_inputs(plain, 1))
    assert LOG.count("replayed") == 2

    class Adapter(nn.Linear):
        """A layer of another package, which may decide something at each call."""

    fast.time_embedding.linear_1.__class__ = Adapter
    assert cuda_graphs.recordable_state(fast) is None
    fast.time_embedding.linear_1.__class__ = nn.Linear
    nn.utils.parametrize.register_parametrization(fast.conv_in, "weight", nn.Identity())
    assert cuda_graphs.recordable_state(fast) is None


@torch.no_grad()
def test_a_failed_recording_warns_once_and_steps_are_computed() -> None:
    def fails(call: Callable[[], Any], pool: object) -> Callable[[], Any]:
        raise RuntimeError("operation not permitted when stream is capturing\nand where")

    plain, fast = unet()
    fast.graphs = CudaGraphCache(fails)
    with pytest.warns(match="could not be recorded.*: operation not permitted when stream is capturing$") as warned:
        results = [fast(*unet_inputs(plain, 1)) for _ in range(5)]
    assert len(warned) == 1 and all(relative_rms(y, plain(*unet_inputs(plain, 1))) < 1e-5 for y in results)


@torch.no_grad()
def test_a_copy_records_for_itself_and_undo_restores_the_plain_network() -> None:
    plain, fast = unet()
    for _ in range(3):
        fast(*unet_inputs(plain, 1))
    twin = copy.deepcopy(fast)
    assert twin.graphs is not fast.graphs and len(twin.graphs) == 0 and len(fast.graphs) == 1
    acceleration.undo(fast)
    assert type(fast) is UNet and all(type(module) is not gpu.GPUNorm for module in fast.modules())
    assert "graphs" not in vars(fast) and fast.state_dict().keys() == plain.state_dict().keys()


@torch.no_grad()
def test_weights_are_channels_last() -> None:
    _, fast = unet()
    assert fast.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert (
        any(type(module) is gpu.GPUNorm for module in fast.modules())
        and type(for_inference(Norm(4, 8, eps=1e-5))) is Norm
    )


@torch.no_grad()
def test_the_prior_pads_texts_to_one_shape() -> None:
    plain = for_inference(PriorTransformer(PRIOR))
    randomise(plain)
    fast = prepared(copy.deepcopy(plain))
    for length in (3, 6):
        generator = torch.Generator().manual_seed(length)
        draw = partial(torch.randn, generator=generator)
        mask = torch.arange(length) < torch.tensor([[length], [2]])
        prefix = plain.prefill(draw(2, length, PRIOR.embedding_dim), draw(2, PRIOR.embedding_dim), mask)
        for _ in range(2):
            x, t = draw(2, PRIOR.embedding_dim), torch.tensor([9, 3])
            assert relative_rms(fast(x, t, prefix), plain(x, t, prefix)) < 1e-5
    assert LOG.count("recorded") == 1 and LOG.count("replayed") == 3


def pictures(kandinsky: Kandinsky) -> list[np.ndarray]:
    """Those of a batch of requests that differ in rows, in when they are guided, and in which steps reuse features."""
    requests = {
        "two": text2img("a red star", seed=1, num_images=2, num_inference_steps=6),
        "unguided": text2img("a blue circle", seed=2, guidance_scale=1.0, num_inference_steps=5),
        "part": text2img("a red star", seed=3, num_inference_steps=8, guidance_interval=(0.2, 0.8), reuse=3),
    }
    images = {}
    for key, event in kandinsky.stream_many(requests):
        if hasattr(event, "pictures"):
            images[key] = [np.asarray(painting.image, dtype=int) for painting in event.pictures]
    assert images.keys() == requests.keys()
    return [picture for key in requests for picture in images[key]]


def test_a_batch_gets_the_pictures_that_plain_networks_paint(tiny_model: Path) -> None:
    plain = pictures(Kandinsky.load(tiny_model, accelerated=False))
    kandinsky = Kandinsky.load(tiny_model, accelerated=False)
    networks = kandinsky.prior.network, kandinsky.decoder("decoder").unet, kandinsky.decoder("decoder").movq
    for network in networks:
        prepared(network)
    replayed = [pictures(kandinsky) for _ in range(2)]
    assert all(len(network.graphs) > 0 for network in networks[:2]) and LOG.count("replayed") > 10
    for batch in replayed:
        assert all(np.abs(a - b).max() <= 1 for a, b in zip(batch, plain, strict=True))


@torch.no_grad()
def test_pictures_are_decoded_untiled_where_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    movq = for_inference(MoVQ(MOVQ))
    randomise(movq)
    prepared(movq)
    z, tiles = noise(1, 4, 8, 8), []
    monkeypatch.setattr(MoVQ, "decode", lambda self, z, *, tile=None: tiles.append(tile) or z)
    movq.decode(z)
    movq.decode(z, tile=100)
    monkeypatch.setattr(gpu, "total_memory", lambda _: 1000)
    movq.decode(z)
    assert tiles == [64 * MOVQ.factor**2, 100, None]


@torch.no_grad()
def test_a_step_that_cannot_be_compiled_warns_once_and_runs_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fast = unet()
    prepared(fast, compiled=True)  # it was prepared before; only this changes
    compiled = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    traced = torch.compile(UNet.forward, backend=backend, fullgraph=True, dynamic=False)
    monkeypatch.setattr(gpu, "compile_step", lambda _: traced)
    for i in range(3):
        assert relative_rms(fast(*unet_inputs(plain, 2, seed=i)), plain(*unet_inputs(plain, 2, seed=i))) < 1e-5
    assert fast.compiled and LOG.count("replayed") == 2 and len(compiled) == 1

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler found\nand where")

    monkeypatch.setattr(gpu, "compile_step", lambda _: broken)
    acceleration.release_graphs(fast)
    with pytest.warns(match="could not be compiled, and runs uncompiled: no compiler found$") as warned:
        for i in range(3):
            assert relative_rms(fast(*unet_inputs(plain, 2, seed=i)), plain(*unet_inputs(plain, 2, seed=i))) < 1e-5
    assert len(warned) == 1 and not fast.compiled


def test_compiling_is_announced_once_for_each_shape(tiny_model: Path) -> None:
    kandinsky = Kandinsky.load(tiny_model)

    def notices(**options: Any) -> list[str]:
        events = kandinsky.stream(text2img("a red star", seed=1, **options))
        return [event.text for event in events if isinstance(event, Notice)]

    assert notices() == []
    kandinsky.networks.compiled = True
    assert notices() == ["compiling for 1 of 64x64, once; it may take minutes"] and notices() == []
    assert notices(num_images=2, height=128) == ["compiling for 2 of 64x128, once; it may take minutes"]


def test_devices_have_the_acceleration_that_applies_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    cpu, cuda, mps = map(torch.device, ("cpu", "cuda", "mps"))
    assert [acceleration.is_wanted(device) for device in (cpu, cuda, mps)] == [True, True, False]
    # bytes for transformed filters
    assert acceleration.filter_budget(cpu) > 0 and acceleration.filter_budget(cuda) == 0
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


def test_compiling_without_a_gpu_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="compiled networks must be accelerated"):
        Kandinsky.load(tiny_model, device="cpu", compiled=True)
