"""Layers that several networks share: timestep embeddings, multi-head attention, and the two layers in which the
convolutional networks spend their time, a modulated normalisation and a 3x3 convolution.

They define what is computed. `acceleration` replaces them with faster implementations for inference once weights are
loaded.
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

    `mask` is boolean, broadcast to [B, h, N, M]; True: may be attended to.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class Norm(nn.GroupNorm):
    """Group normalisation, then scale and shift if given, then SiLU unless `silu` is False.

    Scale and shift are [B, C, 1, 1], one value per channel (the U-Net's timestep embedding), or a map [B, C, h, w] that
    nearest upsampling brings to x's size (MoVQ's latents).
    """

    def __init__(self, groups: int, channels: int, *, eps: float, silu: bool = True) -> None:
        super().__init__(groups, channels, eps=eps)
        self.silu = silu

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """`x` [B, C, H, W] -> the same shape."""
        return self._modulate(super().forward(x), scale, shift)

    def group_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each group of one picture x [1, C, H, W]: [groups] each, in float32 at least."""
        cells = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(self.num_groups, -1)
        # the variance is taken about the mean: a sum of squares loses digits where it is large
        mean = cells.mean(dim=1)
        return mean, torch.linalg.vector_norm(cells - mean[:, None], dim=1).square() / cells.shape[1]

    def forward_strip(
        self, mean: Tensor, variance: Tensor, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """As `forward`, for a strip x [1, C, H, W] of a picture with known `group_moments` -> [1, C, 1 + H + 1, W].

        The first and last row are the caller's to fill. It is a batch normalisation at inference: no gradient flows
        through the moments.
        """
        mean, variance = (value.repeat_interleave(self.num_channels // self.num_groups) for value in (mean, variance))
        normal = F.batch_norm(x, mean, variance, self.weight.to(mean), self.bias.to(mean), eps=self.eps)
        return F.pad(self._modulate(normal, scale, shift), (0, 0, 1, 1))

    def _modulate(self, normal: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        if scale is not None and shift is not None:
            normal = torch.addcmul(_upsample_to(shift, normal), normal, _upsample_to(scale, normal))
        return F.silu(normal) if self.silu else normal


class Conv1x1(nn.Conv2d):
    """A linear layer applied to every cell."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution with zero padding.

    keep_exact: on a CPU in float32, `acceleration` leaves this layer's arithmetic as it is, because the layers after it
    magnify rounding errors.
    """

    def __init__(self, channels: int, out_channels: int, *, keep_exact: bool = False) -> None:
        super().__init__(channels, out_channels, 3, padding=1)
        self.keep_exact = keep_exact

    def forward_strip(self, x: Tensor) -> Tensor:
        """A strip x [B, C, 1 + H + 1, W] of a picture, with a row of each neighbour above and below -> [B, O, H, W]."""
        return F.conv2d(x, self.weight, self.bias, padding=(0, 1))


class UpsampleConv3x3(Conv3x3):
    """Nearest upsampling by two, then a 3x3 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, O, 2H, 2W]."""
        return super().forward(F.interpolate(x, scale_factor=2.0))

    def forward_strip(self, x: Tensor) -> Tensor:
        """A strip [B, C, 1 + H + 1, W] -> [B, O, 2H, 2W]."""
        return super().forward_strip(F.interpolate(x, scale_factor=2.0)[:, :, 1:-1])


def _upsample_to(coarse: Tensor, fine: Tensor) -> Tensor:
    """`coarse` at the size of `fine`; a single cell is left to broadcast."""
    return coarse if coarse.shape[-2:] == (1, 1) else F.interpolate(coarse, size=fine.shape[-2:])
