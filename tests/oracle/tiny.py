"""Small networks of the published architecture with random weights: diffusers' network and ours with the same ones."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch

from kandinsky22.checkpoints.network import Stored
from kandinsky22.models.config import Config
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


def twins(network: Any, theirs: Any, config: Config) -> tuple[Any, Any]:
    """Their network with random weights, saved by them, and ours, loaded from that folder."""
    built = theirs.from_config({k: v for k, v in config.to_dict().items() if not k.startswith("_")})
    randomise(built)
    with TemporaryDirectory() as folder:
        built.save_pretrained(folder)
        ours = Stored(Path(folder), network, type(config)).load(torch.float32, torch.device("cpu"))
    assert ours.config == config
    return ours, built.eval().requires_grad_(False)


def priors(config: PriorConfig = PRIOR) -> tuple[PriorTransformer, Any]:
    """The prior, ours and diffusers'."""
    return twins(PriorTransformer, diffusers.PriorTransformer, config)


def unets(config: UNetConfig = UNET) -> tuple[UNet, Any]:
    """The decoder's U-Net, ours and diffusers'."""
    return twins(UNet, diffusers.UNet2DConditionModel, config)


def movqs(config: MoVQConfig = MOVQ) -> tuple[MoVQ, Any]:
    """MoVQ, ours and diffusers'."""
    return twins(MoVQ, diffusers.VQModel, config)
