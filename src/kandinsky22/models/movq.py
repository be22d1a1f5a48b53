"""MoVQ: the autoencoder between pictures and latents (Zheng et al. 2022, "Modulating Quantized Vectors").

Every normalisation of its decoder is modulated by the latent (spatial norm). Knows nothing of diffusion or of files.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.generators import drain
from kandinsky22.models import tiles
from kandinsky22.models.config import Config, Network
from kandinsky22.models.layers import Conv1x1, Conv3x3, Norm, UpsampleConv3x3, attend, split_heads

NORM_EPS = 1e-6
SPATIAL_NORM_GROUPS = 32  # the published code fixes this, whatever norm_num_groups says
MAX_UNTILED_PIXELS = 256 * 256  # larger pictures are computed in tiles
UNTILED_TENSORS = (
    8  # alive at once without tiles, of the widest level at full size; 7.1 measured with the box at 1536 x 1536
)
TILE_PIXELS = 16_384


@dataclass(frozen=True, kw_only=True)
class MoVQConfig(Config):
    """Key names as in the published `movq/config.json`. Only the lowest level has attention."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int = 4
    norm_num_groups: int = 32
    num_vq_embeddings: int
    vq_embed_dim: int = 4
    sample_size: int = 32
    scaling_factor: float = 0.18215  # published, and unused by every pipeline

    def __post_init__(self) -> None:
        if any(c % SPATIAL_NORM_GROUPS for c in self.block_out_channels):
            raise ValueError(
                f"MoVQConfig: block_out_channels must be multiples of {SPATIAL_NORM_GROUPS}, "
                f"got {self.block_out_channels}"
            )

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along each side."""
        return int(2 ** (len(self.block_out_channels) - 1))

    def architecture(self) -> Mapping[str, Any]:
        plain = len(self.block_out_channels) - 1
        return {
            "_class_name": "VQModel",
            "act_fn": "silu",
            "in_channels": 3,
            "out_channels": 3,
            "norm_type": "spatial",
            "down_block_types": ["DownEncoderBlock2D"] * plain + ["AttnDownEncoderBlock2D"],
            "up_block_types": ["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * plain,
        }


class SpatialNorm(nn.Module):
    """GroupNorm(f) * conv_y(z) + conv_b(z), z brought to f's size (MoVQ, equation 4), then SiLU unless it is for
    attention.

    Nearest upsampling commutes with a 1x1 convolution, so the convolutions run at the latent's own size.
    """

    def __init__(self, channels: int, latent_channels: int, silu: bool) -> None:
        super().__init__()
        self.norm_layer = Norm(SPATIAL_NORM_GROUPS, channels, eps=NORM_EPS, silu=silu)
        self.conv_y = Conv1x1(latent_channels, channels)
        self.conv_b = Conv1x1(latent_channels, channels)

    def forward(self, f: Tensor, z: Tensor) -> Tensor:
        return self.norm_layer(f, *self.scale_shift(z))

    def scale_shift(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The scale and the shift, [B, C, h, w] each, for a latent z [B, vq_embed_dim, h, w]."""
        return self.conv_y(z), self.conv_b(z)


def norm(config: MoVQConfig, channels: int, spatial: bool, *, silu: bool = True) -> nn.Module:
    """The decoder's spatial norm, or the encoder's plain one, which is called with z = None."""
    if spatial:
        return SpatialNorm(channels, config.vq_embed_dim, silu)
    return Norm(config.norm_num_groups, channels, eps=NORM_EPS, silu=silu)


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions and a shortcut."""

    def __init__(
        self, config: MoVQConfig, channels: int, out_channels: int, spatial: bool, *, keep_exact: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = norm(config, channels, spatial)
        self.conv1 = Conv3x3(channels, out_channels, keep_exact=keep_exact)
        self.norm2 = norm(config, out_channels, spatial)
        self.conv2 = Conv3x3(out_channels, out_channels, keep_exact=keep_exact)
        if channels != out_channels:
            self.conv_shortcut = Conv1x1(channels, out_channels)

    def forward(self, x: Tensor, z: Tensor | None) -> Tensor:
        h = self.conv1(self.norm1(x, z))
        h = self.conv2(self.norm2(h, z))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Attention(nn.Module):
    """Self-attention over all cells, with one head."""

    def __init__(self, config: MoVQConfig, channels: int, spatial: bool) -> None:
        super().__init__()
        self.norm = "spatial_norm" if spatial else "group_norm"  # the published names
        self.add_module(self.norm, norm(config, channels, spatial, silu=False))
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, z: Tensor | None) -> Tensor:
        h = getattr(self, self.norm)(x, z)
        h = h.flatten(2).transpose(1, 2)
        h = self.to_out[0](attend(*(split_heads(proj(h), 1) for proj in (self.to_q, self.to_k, self.to_v))))
        return x + h.transpose(1, 2).unflatten(-1, x.shape[-2:])


class Downsample(nn.Module):
    """Halve the sides: pad right and bottom, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the sides: nearest, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = UpsampleConv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Block(nn.Module):
    """One level: residual blocks, each followed by attention at levels that have it, then the resampling if any."""

    def __init__(
        self,
        config: MoVQConfig,
        channels: int,
        out_channels: int,
        *,
        layers: int,
        attention: bool,
        spatial: bool,
        resample: str | None = None,
    ) -> None:
        super().__init__()
        widths = [channels, *[out_channels] * layers]
        self.resnets = nn.ModuleList(ResnetBlock(config, a, b, spatial) for a, b in pairwise(widths))
        self.attentions = nn.ModuleList(
            Attention(config, out_channels, spatial) for _ in range(layers if attention else 0)
        )
        if resample == "down":
            self.downsamplers = nn.ModuleList([Downsample(out_channels)])
        if resample == "up":
            self.upsamplers = nn.ModuleList([Upsample(out_channels)])

    def layers(self, x: Tensor, z: Tensor | None) -> Tensor:
        """Everything except the resampling."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, z)
            if len(self.attentions):
                x = self.attentions[i](x, z)
        return x

    def forward(self, x: Tensor, z: Tensor | None) -> Tensor:
        x = self.layers(x, z)
        for resampler in (*getattr(self, "downsamplers", ()), *getattr(self, "upsamplers", ())):
            x = resampler(x)
        return x


class MidBlock(nn.Module):
    """Residual block, attention, residual block.

    In the decoder the input of this attention is scaled by the latents, which can make the first block's rounding
    errors ten times as large (docs/log.md); so that block's convolutions keep their exact arithmetic.
    """

    def __init__(self, config: MoVQConfig, channels: int, spatial: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(config, channels, channels, spatial, keep_exact=spatial and first) for first in (True, False)
        )
        self.attentions = nn.ModuleList([Attention(config, channels, spatial)])

    def forward(self, x: Tensor, z: Tensor | None) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, z), z), z)


class Encoder(nn.Module):
    """Pictures [B, 3, H, W] -> [B, latent_channels, H/f, W/f]."""

    def __init__(self, config: MoVQConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        last = len(widths) - 1
        self.conv_in = Conv3x3(3, widths[0])
        self.down_blocks = nn.ModuleList(
            Block(
                config,
                widths[max(i - 1, 0)],
                width,
                layers=config.layers_per_block,
                attention=i == last,
                spatial=False,
                resample="down" if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.mid_block = MidBlock(config, widths[-1], spatial=False)
        self.conv_norm_out = norm(config, widths[-1], spatial=False)
        self.conv_out = Conv3x3(widths[-1], config.latent_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for block in self.down_blocks:
            h = block(h, None)
        h = self.mid_block(h, None)
        return self.conv_out(self.conv_norm_out(h, None))


class Decoder(nn.Module):
    """Latents [B, latent_channels, h, w] and the spatial norms' z -> pictures [B, 3, h*f, w*f]."""

    def __init__(self, config: MoVQConfig) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]
        last = len(widths) - 1
        self.conv_in = Conv3x3(config.latent_channels, widths[0])
        self.mid_block = MidBlock(config, widths[0], spatial=True)
        self.up_blocks = nn.ModuleList(
            Block(
                config,
                widths[max(i - 1, 0)],
                width,
                layers=config.layers_per_block + 1,
                attention=i == 0,
                spatial=True,
                resample="up" if i < last else None,
            )
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = norm(config, widths[-1], spatial=True)
        self.conv_out = Conv3x3(widths[-1], 3)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(h), z)
        for block in self.up_blocks:
            h = block(h, z)
        return self.conv_out(self.conv_norm_out(h, z))


class Quantizer(nn.Module):
    """The codebook. Kandinsky 2.2 decodes unquantised latents; only training and analysis use the codes."""

    def __init__(self, config: MoVQConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.num_vq_embeddings, config.vq_embed_dim)
        bound = 1 / config.num_vq_embeddings
        nn.init.uniform_(self.embedding.weight, -bound, bound)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [B, C, h, w] -> nearest codes [B, C, h, w], straight-through for gradients; indices [B, h, w]."""
        indices = torch.cdist(z.movedim(1, -1).flatten(1, 2), self.embedding.weight[None].to(z)).argmin(-1)
        codes = self.embedding(indices).transpose(1, 2).unflatten(-1, z.shape[-2:])
        return z + (codes - z).detach(), indices.unflatten(-1, z.shape[-2:])


class MoVQ(Network):
    """The autoencoder. Pictures are RGB in [-1, 1], sides multiples of `config.factor`; latents are not scaled."""

    def __init__(self, config: MoVQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.vq_embed_dim, 1)
        self.quantize = Quantizer(config)
        self.post_quant_conv = nn.Conv2d(config.vq_embed_dim, config.latent_channels, 1)
        self.decoder = Decoder(config)

    def encode(self, pictures: Tensor, *, tile: int | None = None) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] -> latents [B, 4, H/f, W/f], deterministic and not quantised.

        `tile`: as for `decode`.
        """
        if rows := self._tile_rows(pictures.shape[-2], pictures.shape[-1], tile):
            return self.quant_conv(torch.cat([tiles.encode(self.encoder, x, rows) for x in pictures.split(1)]))
        return self.quant_conv(self.encoder(pictures))

    def decode(self, z: Tensor, *, tile: int | None = None) -> Tensor:
        """Latents [B, 4, h, w] -> pictures [B, 3, h*f, w*f], about [-1, 1] and not clamped; quantise z before to use
        the codes.

        Without gradients, pictures of more than `MAX_UNTILED_PIXELS` are decoded one by one in tiles of about `tile`
        pixels (None: `TILE_PIXELS`), which rounds differently and needs about a third of the memory. A given `tile`
        also applies to smaller pictures; with gradients it raises `ValueError`.
        """
        return drain(self.decode_in_tiles(z, tile=tile))

    def decode_in_tiles(self, z: Tensor, *, tile: int | None = None) -> Generator[None, None, Tensor]:
        """As `decode`, pausing after each tile of a layer, so that a long decoding can be shown, and stopped."""
        h = self.post_quant_conv(z)
        rows = self._tile_rows(z.shape[-2] * self.config.factor, z.shape[-1] * self.config.factor, tile)
        if not rows:
            return self.decoder(h, z)
        pictures = []
        for one in zip(h.split(1), z.split(1), strict=True):
            pictures.append((yield from tiles.decode(self.decoder, *one, rows)))
        return torch.cat(pictures)

    def _tile_rows(self, height: int, width: int, tile: int | None) -> int:
        """Rows of latents per tile; 0: no tiles."""
        if tile is not None and torch.is_grad_enabled():
            raise ValueError("tiles have no gradients; leave tile out, or use torch.no_grad()")
        if height * width <= (MAX_UNTILED_PIXELS if tile is None else tile) or torch.is_grad_enabled():
            return 0
        return max(1, (tile or TILE_PIXELS) // (width * self.config.factor))
