"""Full-size networks, built without allocating memory, have exactly the published tensors and accept all sizes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from kandinsky22.checkpoints import full_size
from kandinsky22.models.movq import MoVQ
from kandinsky22.models.prior import PriorTransformer
from kandinsky22.models.unet import UNet, UNetConfig

DATA = Path(__file__).parents[1] / "data"
NETWORKS = {
    "prior": lambda: PriorTransformer(full_size.PRIOR),
    "unet": lambda: UNet(full_size.UNET),
    "unet_inpaint": lambda: UNet(replace(full_size.UNET, in_channels=9)),
    "unet_hint": lambda: UNet(replace(full_size.UNET, in_channels=8, addition_embed_type="image_hint")),
    "movq": lambda: MoVQ(full_size.MOVQ),
}


def shapes_by_name(network: nn.Module) -> dict[str, str]:
    return {name: "x".join(map(str, value.shape)) for name, value in network.state_dict().items()}


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    """All full-size networks on the meta device."""
    with torch.device("meta"):
        return {name: build() for name, build in NETWORKS.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_full_size_networks_have_the_published_names_and_shapes(networks: dict[str, nn.Module], name: str) -> None:
    published = dict(line.split("\t") for line in (DATA / f"keys_{name}.txt").read_text().splitlines())
    assert shapes_by_name(networks[name]) == published


def test_a_config_of_another_architecture_is_refused_with_its_key() -> None:
    config = full_size.UNET.to_dict()
    with pytest.raises(ValueError, match="act_fn is 'gelu'"):
        UNetConfig.from_dict({**config, "act_fn": "gelu"})
    with pytest.raises(ValueError, match="lacks layers_per_block"):
        UNetConfig.from_dict({key: value for key, value in config.items() if key != "layers_per_block"})


@pytest.mark.parametrize(("height", "width"), [(512, 1536), (1536, 512), (1088, 1920), (1536, 1536)])
def test_full_size_networks_accept_every_size_and_ratio(
    networks: dict[str, nn.Module], height: int, width: int
) -> None:
    """Shapes only, on the meta device; a picture of 1920x1080 is computed 1088 high and cropped."""
    with torch.device("meta"):
        unet, hinted, inpaint, movq = (networks[name] for name in ("unet", "unet_hint", "unet_inpaint", "movq"))
        x = torch.empty(2, 4, height // 8, width // 8)
        t, embeds, hint = torch.empty(2), torch.empty(2, 1280), torch.empty(2, 3, height, width)
        masked = torch.empty(2, 5, height // 8, width // 8)
        for network, conditions in ((unet, {}), (hinted, {"hint": hint}), (inpaint, {"masked": masked})):
            assert network(x, t, network.condition(embeds, **conditions)).shape == (2, 8, height // 8, width // 8)
        assert movq.decode(x).shape == (2, 3, height, width)
        assert movq.encode(torch.empty(2, 3, height, width)).shape == x.shape
