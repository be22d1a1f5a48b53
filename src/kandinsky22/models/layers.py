"""What more than one network is built from: the embedding of a timestep, multi-head attention, and the two layers that the
convolutional networks spend their time in, a modulated normalisation and a 3x3 convolution.

These say what is computed. `acceleration` computes the same by other means, once weights are loaded and without gradients.
"""

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
        """Timesteps [B] -> [B, width]."""
        return self.linear_2(F.silu(self.linear_1(self.features(t))))

    def features(self, t: Tensor) -> Tensor:
        """Timesteps [B] -> [B, dim], computed in float32, then cast to the weights' dtype."""
        return sinusoids(t, self.dim).to(self.linear_1.weight.dtype)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, heads * d] -> [B, heads, N, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention over heads: q [B, h, N, d], k and v [B, h, M, d] -> [B, N, h * d].

    `mask` is boolean, broadcast to [B, h, N, M]; True may be looked at.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Norm(nn.GroupNorm):
    """Group normalisation, times a scale and plus a shift from outside where they are given, then SiLU where `silu` says so.

    Scale and shift are [B, C, h, w] at any smaller size: [B, C, 1, 1] for one of a whole row (the U-Net's timesteps), or a map
    that nearest enlarging brings to x's size (MoVQ's latents).
    """

    def __init__(self, groups: int, channels: int, *, eps: float, silu: bool = True) -> None:
        super().__init__(groups, channels, eps=eps)
        self.silu = silu

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """`x` [B, C, H, W] -> the same shape."""
        return self._finished(super().forward(x), scale, shift)

    def group_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each group of one picture x [1, C, H, W]: [groups] each, in float32 at least."""
        cells = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(self.num_groups, -1)
        mean = cells.mean(dim=1)  # about it, since a sum of squares would lose what a large mean drowns
        return mean, torch.linalg.vector_norm(cells - mean[:, None], dim=1).square() / cells.shape[1]

    def forward_with_moments(
        self, mean: Tensor, variance: Tensor, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """As `forward`, for a part x [1, C, H, W] of a picture whose `group_moments` are known. No gradient flows through
        them: it is a batch normalisation at inference."""
        mean, variance = (value.repeat_interleave(self.num_channels // self.num_groups) for value in (mean, variance))
        normal = F.batch_norm(x, mean, variance, self.weight.to(mean), self.bias.to(mean), eps=self.eps)
        return self._finished(normal, scale, shift)

    def _finished(self, normal: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        if scale is not None and shift is not None:
            normal = torch.addcmul(_enlarged(shift, normal), normal, _enlarged(scale, normal))
        return F.silu(normal) if self.silu else normal


class Conv1x1(nn.Conv2d):
    """The same linear map of every cell."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of the whole picture, with zeros around it.

    keep_exact: what comes after makes its rounding errors many times as large, so on a CPU `acceleration` leaves its arithmetic
    in float32 alone.
    """

    def __init__(self, channels: int, out_channels: int, *, keep_exact: bool = False) -> None:
        super().__init__(channels, out_channels, 3, padding=1)
        self.keep_exact = keep_exact

    def forward_strip(self, x: Tensor) -> Tensor:
        """Of a strip x [B, C, 1 + H + 1, W] of a picture, whose first and last row are only looked at -> [B, O, H, W]."""
        return F.conv2d(x, self.weight, self.bias, padding=(0, 1))


class UpsampleConv3x3(Conv3x3):
    """A picture of twice the sides, each cell four times, then a 3x3 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, O, 2H, 2W]."""
        return super().forward(F.interpolate(x, scale_factor=2.0))

    def forward_strip(self, x: Tensor) -> Tensor:
        """Of a strip [B, C, 1 + H + 1, W] -> [B, O, 2H, 2W]."""
        return super().forward_strip(F.interpolate(x, scale_factor=2.0)[:, :, 1:-1])


def _enlarged(coarse: Tensor, fine: Tensor) -> Tensor:
    """Brought to the size of `fine`; a single cell broadcasts by itself."""
    return coarse if coarse.shape[-2:] == (1, 1) else F.interpolate(coarse, size=fine.shape[-2:])
