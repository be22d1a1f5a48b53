"""Placement of networks: results stay the same, and memory is freed.

torch's "meta" device stands for an accelerator: its tensors have shapes but no values, and operations accept them only
together with other meta tensors.
"""

import weakref

import pytest
import torch
from torch.nn.utils import parametrize

from kandinsky22.acceleration import gpu
from kandinsky22.acceleration.cuda_graphs import CudaGraphCache
from kandinsky22.checkpoints.network import Stored, save
from kandinsky22.engine import placement
from kandinsky22.engine.placement import Networks, Placement
from kandinsky22.models.clip import CLIPText, CLIPTextConfig
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.unet import UNet, UNetConfig
from tests.models_on_disk import randomise
from tests.oracle.tiny import MOVQ, PRIOR, UNET

CPU, META = torch.device("cpu"), torch.device("meta")
TEXT = CLIPTextConfig(
    hidden_size=24,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    projection_dim=24,
    layer_norm_eps=1e-5,
    hidden_act="gelu",
    vocab_size=50,
    max_position_embeddings=9,
)
NETWORKS = {
    "unet": (UNet, UNET),
    "movq": (MoVQ, MOVQ),
    "prior": (PriorTransformer, PRIOR),
    "text_encoder": (CLIPText, TEXT),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Stored]:
    """A network of each kind, on disk."""
    folder = tmp_path_factory.mktemp("networks")
    for name, (network, config) in NETWORKS.items():
        built = network(config)
        randomise(built)
        save(folder / name, built, dtype=torch.float32)
    kinds = {"unet": UNetConfig, "movq": MoVQConfig, "prior": PriorConfig, "text_encoder": CLIPTextConfig}
    return {name: Stored(folder / name, NETWORKS[name][0], kind) for name, kind in kinds.items()}


@torch.inference_mode()
def run(networks: Networks, stored: dict[str, Stored]) -> list[torch.Tensor]:
    """One call of each network that a picture needs; each is released after its use."""
    device, draw = networks.device, torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(device)

    text = networks.get(stored["text_encoder"])(torch.arange(1, 7, device=device)[None])
    networks.release(stored["text_encoder"])
    prior = networks.get(stored["prior"])
    if device == META:  # prefill reads the length of the longest text, which a meta tensor does not have
        embed = prior.denormalised(noise(1, 24))
    else:
        prefix = prior.prefill(text.hidden, text.embed, torch.ones(1, 6, dtype=torch.bool, device=device))
        embed = prior.denormalised(prior(noise(1, 24), torch.tensor([5], device=device), prefix))
    networks.release(stored["prior"])
    unet = networks.get(stored["unet"])
    eps = unet(noise(1, 4, 8, 8), torch.tensor([5], device=device), unet.condition(embed))
    networks.release(stored["unet"])
    movq = networks.get(stored["movq"])
    picture = movq.decode(eps[:, :4])
    tiled = movq.decode(eps[:, :4], tile=64)
    networks.release(stored["movq"])
    return [text.embed, embed, eps, picture, tiled]


def device_types(network: torch.nn.Module) -> set[str]:
    return {parameter.device.type for parameter in network.parameters()}


@pytest.fixture
def everything_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limits so that the small test networks and their weights count as large."""
    monkeypatch.setattr(placement, "SMALL_NETWORK", 1000)
    monkeypatch.setattr(placement, "SMALL_WEIGHT", 1000)


@pytest.mark.parametrize("placement_name", ["offload", "sequential"])
def test_every_placement_gives_the_same_results(stored: dict[str, Stored], placement_name: placement.Placement) -> None:
    reference = run(Networks(CPU, torch.float32), stored)
    networks = Networks(CPU, torch.float32, placement_name)
    for _ in range(2):  # the second run loads what the first released
        assert all(torch.equal(a, b) for a, b in zip(run(networks, stored), reference, strict=True))


def test_releasing_on_a_cpu_frees_the_network_only_under_offload(stored: dict[str, Stored]) -> None:
    networks = Networks(CPU, torch.float32, "offload")
    unet = weakref.ref(networks.get(stored["unet"]))
    assert networks.is_on_device(stored["unet"]) and unet() is networks.get(stored["unet"])
    networks.release(stored["unet"])
    assert unet() is None and not networks.is_on_device(stored["unet"])
    networks.release(stored["unet"])  # releasing twice is allowed
    keeping = Networks(CPU, torch.float32)
    network = keeping.get(stored["unet"])
    keeping.release(stored["unet"])
    assert keeping.get(stored["unet"]) is network and keeping.is_on_device(stored["unet"])


def test_releasing_on_a_device_moves_the_network_back_to_the_cpu(stored: dict[str, Stored]) -> None:
    networks = Networks(META, torch.float32, "offload")
    assert all(result.is_meta for result in run(networks, stored))
    for name, each in stored.items():
        assert not networks.is_on_device(each)
        network = networks.get(each)
        assert networks.is_on_device(each) and device_types(network) == {"meta"}, name
        networks.release(each)
        assert device_types(network) == {"cpu"}
        fresh = each.load(torch.float32, CPU).state_dict()
        assert all(torch.equal(value, fresh[key]) for key, value in network.state_dict().items())
        assert not any(p.requires_grad or p.is_inference() for p in network.parameters())


@pytest.mark.usefixtures("everything_large")
def test_sequential_keeps_large_weights_on_the_cpu_and_computes_on_the_device(stored: dict[str, Stored]) -> None:
    """A run on the meta device succeeds only if every weight is copied there."""
    networks = Networks(META, torch.float32, "sequential")
    assert all(result.is_meta for result in run(networks, stored))
    for each in stored.values():
        for parameter in networks.get(each).parameters():
            assert parameter.device.type == ("cpu" if parameter.nbytes > placement.SMALL_WEIGHT else "meta")


def test_sequential_moves_small_networks_completely(stored: dict[str, Stored], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "SMALL_NETWORK", 4 * stored["movq"].elements)
    monkeypatch.setattr(placement, "SMALL_WEIGHT", 1000)
    networks = Networks(META, torch.float32, "sequential")
    assert device_types(networks.get(stored["movq"])) == {"meta"}
    assert device_types(networks.get(stored["unet"])) == {"meta", "cpu"}


@pytest.mark.usefixtures("everything_large")
@torch.inference_mode()
def test_streamed_weights_are_copied_at_every_use_and_change_no_result(
    stored: dict[str, Stored],
) -> None:
    copied: set[int] = set()
    x, t, embed = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.randn(2, 24)
    plain, streamed = (stored["unet"].load(torch.float32, CPU) for _ in range(2))
    placement.stream_weights(streamed, CPU)
    for module in filter(parametrize.is_parametrized, streamed.modules()):
        for parametrization in module.parametrizations.values():
            parametrization[0].register_forward_pre_hook(lambda _, arguments: copied.add(id(arguments[0])))
    expected = plain(x, t, plain.condition(embed))
    for _ in range(2):
        copied.clear()
        assert torch.equal(streamed(x, t, streamed.condition(embed)), expected)
        assert len(copied) == sum(parameter.nbytes > placement.SMALL_WEIGHT for parameter in plain.parameters())


def test_bytes_to_load_is_the_sum_or_the_largest_network(stored: dict[str, Stored]) -> None:
    sizes = {name: 4 * each.elements for name, each in stored.items()}
    remaining = sum(sizes.values()) - sizes["prior"]
    for placement_name, expected in (("keep", remaining), ("offload", sizes["unet"])):
        networks = Networks(CPU, torch.float32, placement_name, accelerated=False)
        networks.get(stored["prior"])
        assert networks.bytes_to_load(stored.values()) == expected
    assert networks.bytes_to_load([stored["prior"]]) == 0


def test_an_unknown_placement_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="placement must be one of keep, offload, sequential, got 'disk'"):
        Networks(CPU, torch.float32, "disk")


@pytest.mark.parametrize("placement_name", ["keep", "offload", "sequential"])
def test_networks_are_prepared_for_a_gpu_under_every_placement(
    stored: dict[str, Stored], everything_large: None, monkeypatch: pytest.MonkeyPatch, placement_name: Placement
) -> None:
    """Except "sequential", whose weights are copied one by one: its steps cannot be captured in a graph."""
    monkeypatch.setattr(gpu, "DEVICES", ("meta",))
    monkeypatch.setattr(gpu, "CudaGraphCache", lambda: CudaGraphCache(lambda call, pool: call))
    monkeypatch.setattr(gpu, "total_memory", lambda _: 0)
    networks = Networks(META, torch.float32, placement_name)
    for _ in range(2):
        run(networks, stored)
    unet = networks.get(stored["unet"])
    assert isinstance(unet, gpu.GraphedUNet) == (placement_name != "sequential")
    if placement_name != "sequential":
        assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        condition = unet.condition(torch.empty(1, UNET.encoder_hid_dim, device=META))
        with torch.no_grad():
            for _ in range(2):
                unet(torch.empty(1, 4, 8, 8, device=META), torch.empty(1, dtype=torch.long, device=META), condition)
        assert len(unet.graphs) == 1
        networks.release(stored["unet"])
        assert len(unet.graphs) == (placement_name == "keep")  # a released network loses its graphs
