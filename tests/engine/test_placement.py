"""Where networks are, and when: the numbers stay the same, and memory is given back.

There is no accelerator here. torch's "meta" device stands for one: it has shapes and no numbers, and what is on it computes
only with what is on it too.
"""

import weakref

import pytest
import torch

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
        made = network(config)
        randomise(made)
        save(folder / name, made, dtype=torch.float32)
    kinds = {"unet": UNetConfig, "movq": MoVQConfig, "prior": PriorConfig, "text_encoder": CLIPTextConfig}
    return {name: Stored(folder / name, NETWORKS[name][0], kind) for name, kind in kinds.items()}


@torch.inference_mode()
def run(networks: Networks, stored: dict[str, Stored]) -> list[torch.Tensor]:
    """A bit of everything that a picture needs, each network left when it is done."""
    device, draw = networks.device, torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw).to(device)

    heard = networks.get(stored["text_encoder"])(torch.arange(1, 7, device=device)[None])
    networks.release(stored["text_encoder"])
    prior = networks.get(stored["prior"])
    if device == META:  # prefill asks for the length of the longest text, which is a number
        embed = prior.denormalised(noise(1, 24))
    else:
        prefix = prior.prefill(heard.hidden, heard.embed, torch.ones(1, 6, dtype=torch.bool, device=device))
        embed = prior.denormalised(prior(noise(1, 24), torch.tensor([5], device=device), prefix))
    networks.release(stored["prior"])
    unet = networks.get(stored["unet"])
    eps = unet(noise(1, 4, 8, 8), torch.tensor([5], device=device), unet.condition(embed))
    networks.release(stored["unet"])
    movq = networks.get(stored["movq"])
    picture = movq.decode(eps[:, :4])
    tiled = movq.decode(eps[:, :4], tile=64)
    networks.release(stored["movq"])
    return [heard.embed, embed, eps, picture, tiled]


def places(network: torch.nn.Module) -> set[str]:
    return {parameter.device.type for parameter in network.parameters()}


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks and weights count as large ones."""
    monkeypatch.setattr(placement, "SMALL_NETWORK", 1000)
    monkeypatch.setattr(placement, "SMALL_WEIGHT", 1000)


@pytest.mark.parametrize("how", ["offload", "sequential"])
def test_every_placement_gives_the_same_numbers(stored: dict[str, Stored], how: placement.Placement) -> None:
    kept = run(Networks(CPU, torch.float32), stored)
    networks = Networks(CPU, torch.float32, how)
    for _ in range(2):  # what left comes back
        assert all(torch.equal(a, b) for a, b in zip(run(networks, stored), kept, strict=True))


def test_on_a_cpu_what_leaves_is_let_go(stored: dict[str, Stored]) -> None:
    networks = Networks(CPU, torch.float32, "offload")
    gone = weakref.ref(networks.get(stored["unet"]))
    assert networks.is_on_device(stored["unet"]) and gone() is networks.get(stored["unet"])
    networks.release(stored["unet"])
    assert gone() is None and not networks.is_on_device(stored["unet"])
    networks.release(stored["unet"])  # leaving twice is leaving
    kept = Networks(CPU, torch.float32)
    network = kept.get(stored["unet"])
    kept.release(stored["unet"])
    assert kept.get(stored["unet"]) is network and kept.is_on_device(stored["unet"])


def test_on_a_device_what_leaves_goes_home(stored: dict[str, Stored]) -> None:
    networks = Networks(META, torch.float32, "offload")
    assert all(result.is_meta for result in run(networks, stored))
    for name, one in stored.items():
        assert not networks.is_on_device(one)
        network = networks.get(one)
        assert networks.is_on_device(one) and places(network) == {"meta"}, name
        networks.release(one)
        assert places(network) == {"cpu"}
        fresh = one.load(torch.float32, CPU).state_dict()
        assert all(torch.equal(value, fresh[key]) for key, value in network.state_dict().items())
        assert not any(p.requires_grad or p.is_inference() for p in network.parameters())


@pytest.mark.usefixtures("large")
def test_in_sequence_large_weights_stay_and_all_computes_on_the_device(stored: dict[str, Stored]) -> None:
    """That it runs shows that every weight is brought over: meta tensors compute with no others."""
    networks = Networks(META, torch.float32, "sequential")
    assert all(result.is_meta for result in run(networks, stored))
    for one in stored.values():
        for parameter in networks.get(one).parameters():
            assert parameter.device.type == ("cpu" if parameter.nbytes > placement.SMALL_WEIGHT else "meta")


def test_in_sequence_small_networks_move_whole(stored: dict[str, Stored], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "SMALL_NETWORK", 4 * stored["movq"].elements)
    monkeypatch.setattr(placement, "SMALL_WEIGHT", 1000)
    networks = Networks(META, torch.float32, "sequential")
    assert places(networks.get(stored["movq"])) == {"meta"}
    assert places(networks.get(stored["unet"])) == {"meta", "cpu"}


@pytest.mark.usefixtures("large")
@torch.inference_mode()
def test_a_visit_changes_no_number_and_is_made_at_every_use(
    stored: dict[str, Stored], monkeypatch: pytest.MonkeyPatch
) -> None:
    visitors = set()
    monkeypatch.setattr(
        placement._Visit, "forward", lambda self, weight: visitors.add(id(weight)) or weight.to(self.device)
    )
    x, t, embed = torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.randn(2, 24)
    plain, visited = (stored["unet"].load(torch.float32, CPU) for _ in range(2))
    placement.stream_weights(visited, CPU)
    expected = plain(x, t, plain.condition(embed))
    for _ in range(2):
        visitors.clear()
        assert torch.equal(visited(x, t, visited.condition(embed)), expected)
        assert len(visitors) == sum(parameter.nbytes > placement.SMALL_WEIGHT for parameter in plain.parameters())


def test_what_is_still_to_come_is_the_sum_or_the_largest(stored: dict[str, Stored]) -> None:
    sizes = {name: 4 * one.elements for name, one in stored.items()}
    rest = sum(sizes.values()) - sizes["prior"]
    for how, expected in (("keep", rest), ("offload", sizes["unet"])):
        networks = Networks(CPU, torch.float32, how, accelerated=False)
        networks.get(stored["prior"])
        assert networks.bytes_to_load(stored.values()) == expected
    assert networks.bytes_to_load([stored["prior"]]) == 0


def test_an_unknown_placement_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="placement must be one of keep, offload, sequential, got 'disk'"):
        Networks(CPU, torch.float32, "disk")


@pytest.mark.parametrize("how", ["keep", "offload", "sequential"])
def test_on_a_gpu_they_are_prepared_wherever_they_wait(
    stored: dict[str, Stored], large: None, monkeypatch: pytest.MonkeyPatch, how: Placement
) -> None:
    """All but those whose weights come one by one: nothing of them could be recorded."""
    monkeypatch.setattr(gpu, "DEVICES", ("meta",))
    monkeypatch.setattr(gpu, "CudaGraphCache", lambda: CudaGraphCache(lambda call, pool: call))
    monkeypatch.setattr(gpu, "total_memory", lambda _: 0)
    networks = Networks(META, torch.float32, how)
    for _ in range(2):
        run(networks, stored)
    unet = networks.get(stored["unet"])
    assert isinstance(unet, gpu.GraphedUNet) == (how != "sequential")
    if how != "sequential":
        assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        condition = unet.condition(torch.empty(1, UNET.encoder_hid_dim, device=META))
        with torch.no_grad():
            for _ in range(2):
                unet(torch.empty(1, 4, 8, 8, device=META), torch.empty(1, dtype=torch.long, device=META), condition)
        assert len(unet.graphs) == 1
        networks.release(stored["unet"])
        assert len(unet.graphs) == (how == "keep")  # what leaves takes its recordings with it
