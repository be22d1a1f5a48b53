"""The decoder's U-Net: predicts the noise in latents, given a CLIP image embedding (and, for some weights, a depth hint
or a masked picture). The inpainting and depth networks differ from the plain one by their configuration only.

Per run, `condition` computes what depends on neither x nor t, and `precompute_timesteps` what depends on t but not on
x. Per step, `forward` computes the rest; `forward_cached` does the same but may reuse the deeper levels' features of an
earlier step.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.models.config import Config, Network
from kandinsky22.models.layers import Conv1x1, Conv3x3, Norm, TimestepEmbedding, UpsampleConv3x3, attend, split_heads
from kandinsky22.models.lora import PLAIN, RowAdapters
from kandinsky22.models.timestep_cache import TimestepCache, cached_timesteps, repeat_guided

IMAGE_TOKENS = 32  # how many tokens the image embedding is projected to
HINT_WIDTHS = (16, 16, 32, 32, 96, 96, 256, 4)  # output channels of the hint block's convolutions
HINT_STRIDES = (1, 1, 2, 1, 2, 1, 2, 1)

KeysValues: TypeAlias = Iterator[tuple[Tensor, Tensor]]  # of the image tokens, one pair per attention, in running order


@dataclass(frozen=True, kw_only=True)
class UNetConfig(Config):
    """Key names as in the published `unet/config.json`. Attention at every level but the first."""

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    attention_head_dim: int
    cross_attention_dim: int
    encoder_hid_dim: int
    in_channels: int = 4
    out_channels: int = 8
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    addition_embed_type: str = "image"
    sample_size: int = 64

    def __post_init__(self) -> None:
        if self.addition_embed_type not in ("image", "image_hint"):
            raise ValueError(
                f"UNetConfig: addition_embed_type must be 'image' or 'image_hint', got {self.addition_embed_type!r}"
            )
        attended = self.block_out_channels[1:] or self.block_out_channels
        if any(channels % self.attention_head_dim for channels in attended):
            raise ValueError(
                f"UNetConfig: block_out_channels must be multiples of attention_head_dim from the second on, got "
                f"{self.block_out_channels} and {self.attention_head_dim}"
            )

    @property
    def hinted(self) -> bool:
        """Whether the network takes a depth hint."""
        return self.addition_embed_type == "image_hint"

    @property
    def factor(self) -> int:
        """Latent sides must be multiples of this."""
        return int(2 ** (len(self.block_out_channels) - 1))

    def architecture(self) -> Mapping[str, Any]:
        attended = len(self.block_out_channels) - 1
        return {
            "_class_name": "UNet2DConditionModel",
            "act_fn": "silu",
            "addition_embed_type_num_heads": 64,
            "center_input_sample": False,
            "class_embed_type": None,
            "class_embeddings_concat": False,
            "conv_in_kernel": 3,
            "conv_out_kernel": 3,
            "cross_attention_norm": None,
            "downsample_padding": 1,
            "dual_cross_attention": False,
            "encoder_hid_dim_type": "image_proj",
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "mid_block_only_cross_attention": None,
            "mid_block_scale_factor": 1,
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "num_class_embeds": None,
            "only_cross_attention": False,
            "projection_class_embeddings_input_dim": None,
            "resnet_out_scale_factor": 1.0,
            "resnet_skip_time_act": False,
            "resnet_time_scale_shift": "scale_shift",
            "time_cond_proj_dim": None,
            "time_embedding_act_fn": None,
            "time_embedding_dim": None,
            "time_embedding_type": "positional",
            "timestep_post_act": None,
            "upcast_attention": False,
            "use_linear_projection": False,
            "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * attended,
            "up_block_types": ["SimpleCrossAttnUpBlock2D"] * attended + ["ResnetUpsampleBlock2D"],
        }


@dataclass(frozen=True, slots=True)
class UNetCondition:
    """The condition of B rows, computed once per run; the rows of several conditions can be concatenated.

    embedding: [B, T], added to the timestep embedding. image: the image tokens' keys and values, [B, h, 32, d], one
    pair per attention in running order. extra: [B, k, h, w], channels that are concatenated to x (the hint's features,
    or masked latents and their mask). adapters: of each row. timestep_cache: scales and shifts [B, T, n] of all
    residual blocks, if precomputed.
    """

    embedding: Tensor
    image: tuple[tuple[Tensor, Tensor], ...]
    extra: Tensor | None
    adapters: RowAdapters
    timestep_cache: TimestepCache | None = None

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """All rows of `parts`, in order."""
        image = tuple(
            (torch.cat(k), torch.cat(v))
            for k, v in (zip(*kvs, strict=True) for kvs in zip(*(p.image for p in parts), strict=True))
        )
        extras = [p.extra for p in parts if p.extra is not None]
        embedding, cache = torch.cat([p.embedding for p in parts]), TimestepCache.cat([p.timestep_cache for p in parts])
        adapters = RowAdapters.cat([p.adapters for p in parts])
        return cls(embedding, image, torch.cat(extras) if extras else None, adapters, cache)

    def __getitem__(self, rows: slice | Tensor) -> Self:
        extra = None if self.extra is None else self.extra[rows]
        cache = None if self.timestep_cache is None else self.timestep_cache[rows]
        image, adapters = tuple((k[rows], v[rows]) for k, v in self.image), self.adapters[rows]
        return type(self)(self.embedding[rows], image, extra, adapters, cache)

    def __len__(self) -> int:
        return len(self.embedding)


class ResnetBlock(nn.Module):
    """Residual block with scale-shift conditioning; `resample` "down" or "up" halves or doubles the sides.

    columns: where this block's scale and shift are among those of all residual blocks; the network sets it.
    """

    columns = slice(None)

    def __init__(self, config: UNetConfig, channels: int, out_channels: int, resample: str | None = None) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = Norm(config.norm_num_groups, channels, eps=config.norm_eps)
        self.conv1 = (UpsampleConv3x3 if resample == "up" else Conv3x3)(channels, out_channels)
        self.time_emb_proj = nn.Linear(4 * config.block_out_channels[0], 2 * out_channels)
        self.norm2 = Norm(config.norm_num_groups, out_channels, eps=config.norm_eps)
        self.conv2 = Conv3x3(out_channels, out_channels)
        if channels != out_channels:
            self.conv_shortcut = Conv1x1(channels, out_channels)

    def scale_shift(self, emb: Tensor) -> Tensor:
        """The scale and the shift [B, 2 * out_channels] for embeddings [B, T] after their SiLU."""
        scale, shift = self.time_emb_proj(emb).chunk(2, dim=1)
        return torch.cat([1 + scale, shift], dim=1)

    def forward(self, x: Tensor, scale_shift: Tensor, guided_rows: Tensor | None = None) -> Tensor:
        """x: [B, C, H, W]. scale_shift: [B, n] of all residual blocks. guided_rows: if given, rows are repeated here
        for guidance (see `repeat_guided`), and scale_shift has the rows after that."""
        h = self.norm1(x)
        if self.resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        h = self.conv1(h)
        if self.resample == "up":  # conv1 upsamples by itself
            x = F.interpolate(x, scale_factor=2.0)
        h, x = repeat_guided(h, guided_rows), repeat_guided(x, guided_rows)
        scale, shift = scale_shift[:, self.columns, None, None].chunk(2, dim=1)
        h = self.conv2(self.norm2(h, scale, shift))
        return h + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Attention(nn.Module):
    """Attention of every latent cell to the image tokens and to all cells."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.heads = channels // config.attention_head_dim
        self.group_norm = Norm(config.norm_num_groups, channels, eps=config.norm_eps, silu=False)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.add_k_proj = nn.Linear(config.cross_attention_dim, channels)
        self.add_v_proj = nn.Linear(config.cross_attention_dim, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def image_kv(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, h, 32, d] of the image tokens [B, 32, cross_attention_dim]."""
        return split_heads(self.add_k_proj(tokens), self.heads), split_heads(self.add_v_proj(tokens), self.heads)

    def forward(self, x: Tensor, image_kv: tuple[Tensor, Tensor]) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)
        q, k, v = (split_heads(proj(h), self.heads) for proj in (self.to_q, self.to_k, self.to_v))
        h = attend(q, torch.cat([image_kv[0], k], dim=2), torch.cat([image_kv[1], v], dim=2))
        return x + self.to_out[0](h).transpose(1, 2).unflatten(-1, x.shape[-2:])


class Block(nn.Module):
    """One level: residual blocks, each followed by attention at levels that have it, and the resampling if any."""

    def __init__(
        self, config: UNetConfig, widths: Sequence[int], out_channels: int, *, attention: bool, resample: str | None
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(config, width, out_channels) for width in widths)
        self.attentions = nn.ModuleList(Attention(config, out_channels) for _ in widths if attention)
        if resample is not None:
            self.add_module(
                f"{resample}samplers", nn.ModuleList([ResnetBlock(config, out_channels, out_channels, resample)])
            )

    def layer(
        self, i: int, x: Tensor, scale_shift: Tensor, kvs: KeysValues, guided_rows: Tensor | None = None
    ) -> Tensor:
        """Residual block `i` and its attention."""
        x = self.resnets[i](x, scale_shift, guided_rows)
        return self.attentions[i](x, next(kvs)) if len(self.attentions) else x


class DownBlock(Block):
    """A level of the encoder half."""

    def forward(self, x: Tensor, scale_shift: Tensor, kvs: KeysValues) -> list[Tensor]:
        """The outputs of all layers and the downsampler, if any: the skip connections. The last is passed on."""
        outputs = self.layers(x, scale_shift, kvs)
        return outputs + self.downsample(outputs[-1], scale_shift)

    def layers(
        self, x: Tensor, scale_shift: Tensor, kvs: KeysValues, guided_rows: Tensor | None = None
    ) -> list[Tensor]:
        """The output of every layer. guided_rows: if given, the first layer repeats rows for guidance."""
        outputs = [self.layer(0, x, scale_shift, kvs, guided_rows)]
        for i in range(1, len(self.resnets)):
            outputs.append(self.layer(i, outputs[-1], scale_shift, kvs))
        return outputs

    def downsample(self, x: Tensor, scale_shift: Tensor) -> list[Tensor]:
        """The output of the downsampler, if there is one."""
        return [downsampler(x, scale_shift) for downsampler in getattr(self, "downsamplers", ())]


class UpBlock(Block):
    """A level of the decoder half."""

    def forward(self, x: Tensor, skips: list[Tensor], scale_shift: Tensor, kvs: KeysValues) -> Tensor:
        """Each layer takes one of `skips` from the end."""
        for i in range(len(self.resnets)):
            x = self.layer(i, torch.cat([x, skips.pop()], dim=1), scale_shift, kvs)
        for upsampler in getattr(self, "upsamplers", ()):
            x = upsampler(x, scale_shift)
        return x


class MidBlock(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(config, channels, channels) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(config, channels)])

    def forward(self, x: Tensor, scale_shift: Tensor, kvs: KeysValues) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, scale_shift), next(kvs))
        return self.resnets[1](x, scale_shift)


class ImageTokens(nn.Module):
    """Projects an image embedding [B, D] to 32 tokens [B, 32, cross_attention_dim]."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.image_embeds = nn.Linear(config.encoder_hid_dim, IMAGE_TOKENS * config.cross_attention_dim)
        self.norm = nn.LayerNorm(config.cross_attention_dim)

    def forward(self, embeds: Tensor) -> Tensor:
        return self.norm(self.image_embeds(embeds).unflatten(-1, (IMAGE_TOKENS, -1)))


class AddedEmbedding(nn.Module):
    """Projects an image embedding to what is added to the timestep embedding; has the hint block of hinted networks."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width = 4 * config.block_out_channels[0]
        self.image_proj = nn.Linear(config.encoder_hid_dim, width)
        self.image_norm = nn.LayerNorm(width)
        if config.hinted:
            layers: list[nn.Module] = []
            for before, after, stride in zip((3, *HINT_WIDTHS), HINT_WIDTHS, HINT_STRIDES, strict=False):
                layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.SiLU()]
            self.input_hint_block = nn.Sequential(*layers[:-1])

    def forward(self, embeds: Tensor) -> Tensor:
        return self.image_norm(self.image_proj(embeds))


class UNet(Network):
    """The U-Net: latents x [B, 4, h, w], sides multiples of `config.factor` -> [B, out_channels, h, w], the prediction
    in the first 4 channels and the learned variance in the rest."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        last, layers = len(widths) - 1, config.layers_per_block
        self.conv_in = Conv3x3(config.in_channels, widths[0])
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0])
        self.encoder_hid_proj = ImageTokens(config)
        self.add_embedding = AddedEmbedding(config)

        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]
        for i, width in enumerate(widths):
            entering = [widths[max(i - 1, 0)], *[width] * (layers - 1)]
            resample = "down" if i < last else None
            self.down_blocks.append(DownBlock(config, entering, width, attention=i > 0, resample=resample))
            skips += [width] * (layers + (i < last))

        self.mid_block = MidBlock(config, widths[-1])

        self.up_blocks = nn.ModuleList()
        below = widths[-1]
        for i, width in reversed(list(enumerate(widths))):
            entering = [before + skips.pop() for before in [below, *[width] * layers]]
            self.up_blocks.append(UpBlock(config, entering, width, attention=i > 0, resample="up" if i > 0 else None))
            below = width

        self.conv_norm_out = Norm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_out = Conv3x3(widths[0], config.out_channels)

        end = 0
        for block in self._residual_blocks():
            start, end = end, end + block.time_emb_proj.out_features
            block.columns = slice(start, end)

    def condition(
        self, embeds: Tensor, *, hint: Tensor | None = None, masked: Tensor | None = None, adapters: RowAdapters = PLAIN
    ) -> UNetCondition:
        """What depends on neither x nor t, for image embeddings [B, encoder_hid_dim].

        hint: [B, 3, H, W] in [0, 1] at pixel size, for networks with a hint block. masked: [B, 5, h, w], for inpainting
        networks: the known latents times their mask, then the mask (1: known). adapters: of each row; without: of none.
        """
        adapters = adapters or RowAdapters.of((), len(embeds))
        with adapters.active(self):
            tokens = self.encoder_hid_proj(embeds)
            attentions = [module for module in self.modules() if isinstance(module, Attention)]  # in running order
            extra = masked if hint is None else self.add_embedding.input_hint_block(hint)
            image = tuple(a.image_kv(tokens) for a in attentions)
            return UNetCondition(self.add_embedding(embeds), image, extra, adapters)

    def precompute_timesteps(self, conditioned: UNetCondition, timesteps: Sequence[int]) -> UNetCondition:
        """The condition with the scales and shifts of all timesteps of a run (of a long run: of its first 100)."""
        t, embedding = cached_timesteps(timesteps, len(conditioned)), conditioned.embedding
        embeddings = embedding.repeat_interleave(t.shape[1], dim=0)
        with conditioned.adapters.repeated(t.shape[1]).active(self):
            scale_shift = self._compute_scale_shift(t.flatten().to(embedding.device), embeddings)
        return replace(conditioned, timestep_cache=TimestepCache(t, scale_shift.unflatten(0, t.shape)))

    def forward(self, x: Tensor, t: Tensor, conditioned: UNetCondition, guided_rows: Tensor | None = None) -> Tensor:
        """Latents x [B, 4, h, w] at timesteps t [B] -> [B, out_channels, h, w].

        guided_rows: indices [n] of the rows of x that classifier-free guidance needs twice. Then t, the condition and
        the result have n rows for these, unconditional, followed by B rows for all; `extra` is the same for both of a
        picture.
        """
        with conditioned.adapters.active(self):
            scale_shift = self._scale_shift(x, t, conditioned)
            skips = self._first_level(x, scale_shift, conditioned, guided_rows)
            deep = self._deeper_levels(skips[-1], scale_shift, conditioned.image)
            return self._last_level(deep, skips, scale_shift)

    def forward_cached(
        self,
        x: Tensor,
        t: Tensor,
        conditioned: UNetCondition,
        deep: Tensor | None = None,
        rows: Tensor | None = None,
        guided_rows: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, with the deeper levels' features from an earlier call: returns the output and the features
        [B, C, h, w] that the deeper levels pass up to the first level.

        deep: the features of an earlier call; None computes them for all rows. rows: indices [b] of the rows whose
        features are computed again; the other rows keep those in `deep`. DeepCache: Ma et al. 2023 (arXiv:2312.00858),
        section 3.2, at the end of the first level.
        """
        with conditioned.adapters.active(self):
            scale_shift = self._scale_shift(x, t, conditioned)
            skips = self._first_level(x, scale_shift, conditioned, guided_rows)
            if deep is None:
                deep = self._deeper_levels(skips[-1], scale_shift, conditioned.image)
            elif rows is not None and len(rows):
                if conditioned.adapters.are_equal:
                    image = ((k[rows], v[rows]) for k, v in conditioned.image)
                    again = self._deeper_levels(skips[-1][rows], scale_shift[rows], image)
                else:  # which rows these are is known on the device alone
                    again = self._deeper_levels(skips[-1], scale_shift, conditioned.image)[rows]
                deep = deep.index_copy(0, rows, again)
            return self._last_level(deep, skips, scale_shift), deep

    def _residual_blocks(self) -> Iterator[ResnetBlock]:
        return (module for module in self.modules() if isinstance(module, ResnetBlock))

    def _scale_shift(self, x: Tensor, t: Tensor, conditioned: UNetCondition) -> Tensor:
        """The scales and shifts [B, n] of all residual blocks at timesteps t [B]: cached ones, or else computed."""
        cached = None if conditioned.timestep_cache is None else conditioned.timestep_cache.at(t)
        if cached is not None:
            return cached
        return self._compute_scale_shift(t.to(x.device, non_blocking=True), conditioned.embedding)

    def _compute_scale_shift(self, t: Tensor, embedding: Tensor) -> Tensor:
        emb = F.silu(self.time_embedding(t) + embedding)
        return torch.cat([block.scale_shift(emb) for block in self._residual_blocks()], dim=1)

    def _first_level(
        self, x: Tensor, scale_shift: Tensor, conditioned: UNetCondition, guided_rows: Tensor | None
    ) -> list[Tensor]:
        """The skip connections of the first level, without its downsampler."""
        if conditioned.extra is not None:
            x = torch.cat([x, conditioned.extra[-len(x) :]], dim=1)
        h = self.conv_in(x)
        first = cast(DownBlock, self.down_blocks[0])
        return [repeat_guided(h, guided_rows), *first.layers(h, scale_shift, iter(()), guided_rows)]

    def _deeper_levels(self, h: Tensor, scale_shift: Tensor, image: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """All levels below the first, from the last output of the first level on the way down."""
        kvs = iter(image)
        skips = cast(DownBlock, self.down_blocks[0]).downsample(h, scale_shift)
        for down in self.down_blocks[1:]:
            skips += down(skips[-1], scale_shift, kvs)
        h = self.mid_block(skips[-1], scale_shift, kvs)
        for up in self.up_blocks[:-1]:
            h = up(h, skips, scale_shift, kvs)
        return h

    def _last_level(self, deep: Tensor, skips: list[Tensor], scale_shift: Tensor) -> Tensor:
        """The first level on the way up, and the output convolution."""
        h = self.up_blocks[-1](deep, skips, scale_shift, iter(()))
        return self.conv_out(self.conv_norm_out(h))
