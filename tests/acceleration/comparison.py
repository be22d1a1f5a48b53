"""Small networks, random inputs, and how far a result is from the right one."""

import torch
from torch import Tensor, nn

from kandinsky22.models.movq import MoVQConfig
from kandinsky22.models.unet import UNetConfig

EXACT = 1e-5  # the largest relative rms in float32
UNET = UNetConfig(
    block_out_channels=(32, 64, 96),
    layers_per_block=1,
    attention_head_dim=16,
    cross_attention_dim=20,
    encoder_hid_dim=24,
)
MOVQ = MoVQConfig(block_out_channels=(32, 64, 64), layers_per_block=1, num_vq_embeddings=48)


def relative_rms(a: Tensor, b: Tensor) -> float:
    """The rms of a - b over that of b."""
    assert a.shape == b.shape
    return float((a.double() - b.double()).square().mean().sqrt() / b.double().square().mean().sqrt())


def for_inference(network: nn.Module) -> nn.Module:
    """The network, in evaluation mode and without gradients."""
    return network.eval().requires_grad_(False)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
