"""CLIP: the text tower, the vision tower, and the preparation of its pictures.

Two encoders of one transformer (Radford et al. 2021, arXiv:2103.00020); Kandinsky 2.2 publishes OpenCLIP's ViT-bigG-14.
Module names, `pre_layrnorm` too, are the published tensor names. Knows no tokenizer, no files and no devices.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.models.config import Config, Network
from kandinsky22.models.layers import split_heads
from kandinsky22.models.lora import PLAIN, RowAdapters

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, kw_only=True)
class _TowerConfig(Config):
    """What the towers have in common. Field names are the published keys."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    projection_dim: int
    layer_norm_eps: float
    hidden_act: str  # "gelu" (exact, by erf) or "quick_gelu" (OpenAI's own CLIPs)

    def __post_init__(self) -> None:
        name, width, heads = type(self).__name__, self.hidden_size, self.num_attention_heads
        if self.hidden_act not in ("gelu", "quick_gelu"):
            raise ValueError(f"{name}: hidden_act must be 'gelu' or 'quick_gelu', got {self.hidden_act!r}")
        if width % heads:
            raise ValueError(f"{name}: hidden_size must be a multiple of num_attention_heads, got {width} and {heads}")


@dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(_TowerConfig):
    """The published `text_encoder/config.json`.

    The network pools at the largest id of a row, the first end-of-text. `eos_token_id` 2 (published, though end-of-text
    is 49407) asks transformers for this rule, and the largest id for the same by name. No other is accepted.
    """

    vocab_size: int
    max_position_embeddings: int
    eos_token_id: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eos_token_id not in (2, self.vocab_size - 1):
            rule = f"2 or the largest id, {self.vocab_size - 1}"
            raise ValueError(f"CLIPTextConfig: eos_token_id must be {rule}, got {self.eos_token_id}")

    def architecture(self) -> Mapping[str, Any]:
        return {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model"}

    def to_dict(self) -> dict[str, Any]:
        """As published, with the two ids that concern no network."""
        return {**super().to_dict(), "bos_token_id": 0, "pad_token_id": 1}


@dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(_TowerConfig):
    """The published `image_encoder/config.json`."""

    image_size: int
    patch_size: int
    num_channels: int

    def architecture(self) -> Mapping[str, Any]:
        return {"architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model"}


class TextFeatures(NamedTuple):
    embed: Tensor  # [B, projection_dim], not L2-normalised
    hidden: Tensor  # [B, L, hidden_size], after the final layer norm


class CLIPText(Network):
    """Token ids -> one embedding, and one state per position."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = _named(
            embeddings=_TextEmbeddings(config),
            encoder=_encoder(config, causal=True),
            final_layer_norm=nn.LayerNorm(config.hidden_size, config.layer_norm_eps),
        )
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, ids: Tensor, adapters: RowAdapters = PLAIN) -> TextFeatures:
        """ids: int64 [B, L], L at most max_position_embeddings; a longer L raises ValueError. adapters: of each row.

        The mask is causal only: padding changes no state before it, so it may be left in or cut off.
        """
        with adapters.active(self):
            hidden = self.text_model(ids)
            end = ids.argmax(dim=-1)  # the first of equal maxima: the first end-of-text, whatever pads follow it
            embed = self.text_projection(hidden[torch.arange(len(ids), device=ids.device), end])
        return TextFeatures(embed, hidden)


class CLIPVision(Network):
    """Pictures -> embeddings. Pixels of zero, a mid-grey picture, give the pipelines' negative image embedding."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = _named(
            embeddings=_VisionEmbeddings(config),
            pre_layrnorm=nn.LayerNorm(config.hidden_size, config.layer_norm_eps),
            encoder=_encoder(config, causal=False),
            post_layernorm=nn.LayerNorm(config.hidden_size, config.layer_norm_eps),
        )
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: [B, num_channels, S, S] as `CLIPImageProcessor` makes them, S = image_size, in the network's dtype
        -> [B, projection_dim], not L2-normalised. Raises ValueError for another size.
        """
        class_token = self.vision_model(pixels)[:, 0]
        return self.visual_projection(class_token)


class _TextEmbeddings(nn.Module):
    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = _embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = _embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        length, longest = ids.shape[1], self.position_embedding.num_embeddings
        if length > longest:
            raise ValueError(f"a prompt may have at most {longest} tokens, got {length}; truncate it when tokenizing")
        tokens: Tensor = self.token_embedding(ids)
        return tokens + self.position_embedding.weight[:length]


class _VisionEmbeddings(nn.Module):
    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.shape = (config.num_channels, config.image_size, config.image_size)
        self.class_embedding = nn.Parameter(nn.init.normal_(torch.empty(width), std=width**-0.5))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, kernel_size=patch, stride=patch, bias=False)
        self.position_embedding = _embedding((config.image_size // patch) ** 2 + 1, width)

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.shape[1:] != self.shape:
            raise ValueError(f"pixels must be [B, {', '.join(map(str, self.shape))}], got {list(pixels.shape)}")
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], dim=1)
        return tokens + self.position_embedding.weight


class _Layer(nn.Module):
    """One pre-norm transformer layer, [B, L, hidden_size] -> the same; both towers are stacks of it."""

    def __init__(self, config: _TowerConfig, causal: bool) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        activation = nn.GELU() if config.hidden_act == "gelu" else _QuickGELU()
        self.self_attn = _Attention(config, causal)
        self.layer_norm1 = nn.LayerNorm(width, config.layer_norm_eps)
        self.mlp = _named(fc1=nn.Linear(width, inner), activation=activation, fc2=nn.Linear(inner, width))
        self.layer_norm2 = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class _Attention(nn.Module):
    def __init__(self, config: _TowerConfig, causal: bool) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.causal = config.num_attention_heads, causal
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split_heads(proj(x), self.heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class _QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _encoder(config: _TowerConfig, causal: bool) -> nn.Sequential:
    return _named(layers=nn.Sequential(*(_Layer(config, causal) for _ in range(config.num_hidden_layers))))


def _embedding(rows: int, width: int) -> nn.Embedding:
    # torch's own unit-variance rows would drown what the layers add when training starts from nothing
    embedding = nn.Embedding(rows, width)
    nn.init.normal_(embedding.weight, std=0.02)
    return embedding


MAX_ENLARGED = 4  # times the side of the square: what is cut off is resized too
WRONG_EDGES = (
    "CLIPImageProcessor: needs a shorter edge and a square within it, got size {!r:.100} and crop_size {!r:.100}"
)


@dataclass(frozen=True, kw_only=True)
class CLIPImageProcessor(Config):
    """The published `preprocessor_config.json`: pictures -> the vision tower's pixels."""

    size: int  # the shorter edge after the resize
    crop_size: int  # the side of the centre square, the network's image_size
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    resample: Literal[0, 1, 2, 3, 4, 5] = 3  # PIL's numbers; 3 is bicubic

    def __post_init__(self) -> None:
        for edge in (self.crop_size, self.size):
            if not isinstance(edge, int) or not 0 < self.crop_size <= edge:
                raise ValueError(WRONG_EDGES.format(self.size, self.crop_size))
        if self.size > MAX_ENLARGED * self.crop_size:
            raise ValueError(
                f"CLIPImageProcessor: size must be at most {MAX_ENLARGED} times crop_size, got {self.size!r:.100}"
            )
        if not all(self.image_std):
            raise ValueError("CLIPImageProcessor: image_std cannot be 0")

    def architecture(self) -> Mapping[str, Any]:
        steps = dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), True)
        return {**steps, "rescale_factor": 1 / 255}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """As in `Config`; edges are numbers (published) or {"shortest_edge": n}, {"height": n, "width": n} (newer)."""
        edges = {
            key: next(iter(edge.values()))
            for key, names in (("size", {"shortest_edge"}), ("crop_size", {"height", "width"}))
            if isinstance(edge := values.get(key), Mapping) and set(edge) == names and len(set(edge.values())) == 1
        }
        if any(isinstance({**values, **edges}.get(key), Mapping) for key in ("size", "crop_size")):
            raise ValueError(WRONG_EDGES.format(values.get("size"), values.get("crop_size")))
        return super().from_dict({**values, **edges})

    def to_dict(self) -> dict[str, Any]:
        """As published, with the class name by which transformers and diffusers find theirs."""
        return {**super().to_dict(), "feature_extractor_type": "CLIPFeatureExtractor"}

    def __call__(self, images: "Sequence[Image]") -> Tensor:
        """PIL pictures of any size and mode (transparency over white) -> float32 [B, 3, S, S], S = crop_size."""
        import numpy as np

        pixels = np.stack([np.asarray(self._square(image), dtype=np.float32) for image in images]) / 255
        pixels = (pixels - np.array(self.image_mean, np.float32)) / np.array(self.image_std, np.float32)
        # contiguous: a channels-last view would reach other convolution kernels, which round differently
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))

    def _square(self, image: "Image") -> "Image":
        from PIL import Image

        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        width, height = (int(self.size * edge / min(image.size)) for edge in image.size)
        image = image.convert("RGB").resize((width, height), self.resample)
        left, top = (width - self.crop_size) // 2, (height - self.crop_size) // 2
        return image.crop((left, top, left + self.crop_size, top + self.crop_size))
