"""What more than one network is built from: the embedding of a timestep, and multi-head attention."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def sinusoids(t: Tensor, dim: int) -> Tensor:
    """The cosine and sine features of timesteps: `t` [B] -> [B, dim], cosines first, float32.

    Vaswani et al. 2017, section 3.5, with DDPM's frequencies exp(-ln(10000) i / (dim / 2)).
    """
    frequencies = torch.exp(
        torch.arange(dim // 2, device=t.device, dtype=torch.float32) * (-math.log(10_000) / (dim // 2))
    )
    angles = t.to(torch.float32)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """The two-layer perceptron over `sinusoids(t)`."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear_1 = nn.Linear(dim, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """Timesteps [B] -> [B, width]. The features are computed in float32, then cast to the weights' dtype."""
        features = sinusoids(t, self.dim).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(features)))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, heads * d] -> [B, heads, N, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention over heads: q [B, h, N, d], k and v [B, h, M, d] -> [B, N, h * d].

    `mask` is boolean, broadcast to [B, h, N, M]; True may be looked at.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
