"""The configurations of the published networks, for what must be known before, or without, loading their weights."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from kandinsky22.models.clip import CLIPTextConfig, CLIPVisionConfig
from kandinsky22.models.config import Config
from kandinsky22.models.movq import MoVQConfig
from kandinsky22.models.prior import PriorConfig
from kandinsky22.models.unet import UNetConfig

C = TypeVar("C", bound=Config)

PRIOR = PriorConfig(num_layers=20, num_attention_heads=32, attention_head_dim=64, embedding_dim=1280, num_embeddings=77)
UNET = UNetConfig(
    block_out_channels=(384, 768, 1152, 1536),
    layers_per_block=3,
    attention_head_dim=64,
    cross_attention_dim=768,
    encoder_hid_dim=1280,
)
MOVQ = MoVQConfig(block_out_channels=(128, 256, 256, 512), layers_per_block=2, num_vq_embeddings=16384)
TEXT_ENCODER = CLIPTextConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    projection_dim=1280,
    layer_norm_eps=1e-5,
    hidden_act="gelu",
    vocab_size=49408,
    max_position_embeddings=77,
)
IMAGE_ENCODER = CLIPVisionConfig(
    hidden_size=1664,
    intermediate_size=8192,
    num_hidden_layers=48,
    num_attention_heads=16,
    projection_dim=1280,
    layer_norm_eps=1e-5,
    hidden_act="gelu",
    image_size=224,
    patch_size=14,
    num_channels=3,
)


def elements(network: Callable[[C], nn.Module], config: C) -> int:
    """How many numbers a network's parameters and buffers have, without allocating them."""
    with torch.device("meta"):
        return sum(value.numel() for value in network(config).state_dict().values())
