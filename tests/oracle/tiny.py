"""Small networks of the published architecture, built by diffusers with every parameter random, and their twins of ours."""

from typing import Any

import diffusers
import torch

from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.unet import UNet, UNetConfig
from tests.models_on_disk import randomise

PRIOR = PriorConfig(num_layers=3, num_attention_heads=2, attention_head_dim=16, embedding_dim=24, num_embeddings=9)
UNET = UNetConfig(
    block_out_channels=(32, 64, 96),
    layers_per_block=2,
    attention_head_dim=16,
    cross_attention_dim=20,
    encoder_hid_dim=24,
)
MOVQ = MoVQConfig(block_out_channels=(32, 32, 64, 64), layers_per_block=1, num_vq_embeddings=48)


def twins(ours: torch.nn.Module, theirs: torch.nn.Module, seed: int = 0) -> tuple[Any, Any]:
    """Both networks with the same random weights; the names must agree exactly."""
    randomise(theirs, seed)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.eval().requires_grad_(False), theirs.eval().requires_grad_(False)


def _theirs(cls: Any, config: dict[str, Any]) -> Any:
    return cls.from_config({k: v for k, v in config.items() if not k.startswith("_")})


def priors(config: PriorConfig = PRIOR) -> tuple[PriorTransformer, Any]:
    """The prior, ours and diffusers'."""
    return twins(PriorTransformer(config), _theirs(diffusers.PriorTransformer, config.to_dict()))


def unets(config: UNetConfig = UNET) -> tuple[UNet, Any]:
    """The decoder's U-Net, ours and diffusers'."""
    return twins(UNet(config), _theirs(diffusers.UNet2DConditionModel, config.to_dict()))


def movqs(config: MoVQConfig = MOVQ) -> tuple[MoVQ, Any]:
    """MoVQ, ours and diffusers'."""
    return twins(MoVQ(config), _theirs(diffusers.VQModel, config.to_dict()))
