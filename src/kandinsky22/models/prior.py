"""The diffusion prior: from what CLIP says of a text to the CLIP embedding of a picture it could describe
(Ramesh et al. 2022, section 2.2; Kandinsky, section 4.1).

A causal transformer over [text states, text embedding, time, noisy image embedding, query], read at the query. Nothing
of the text looks at x or t, so `prefill` computes its keys and values once and `forward` runs three tokens a step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.models.config import Config
from kandinsky22.models.layers import TimestepEmbedding, attend, split_heads

STEP_TOKENS = 3  # time, noisy image embedding, query


@dataclass(frozen=True, kw_only=True)
class PriorConfig(Config):
    """Key names as in the published `prior/config.json`."""

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    embedding_dim: int
    num_embeddings: int = 77

    @property
    def width(self) -> int:
        """Channels of the transformer."""
        return self.num_attention_heads * self.attention_head_dim

    def architecture(self) -> Mapping[str, Any]:
        return {"_class_name": "PriorTransformer", "additional_embeddings": STEP_TOKENS + 1, "dropout": 0.0}


@dataclass(frozen=True, slots=True)
class Prefix:
    """The text's keys and values, [B, h, S, d] for each layer, and which of the S tokens are real, bool [B, S]."""

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask: Tensor

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """All rows of `parts`, in order; shorter texts are padded, and the padding masked."""
        longest = max(p.mask.shape[1] for p in parts)

        def padded(x: Tensor) -> Tensor:
            return F.pad(x, (0, 0, 0, longest - x.shape[2]))

        layers = tuple(
            (torch.cat([padded(k) for k, _ in kvs]), torch.cat([padded(v) for _, v in kvs]))
            for kvs in zip(*(p.layers for p in parts), strict=True)
        )
        return cls(layers, torch.cat([F.pad(p.mask, (0, longest - p.mask.shape[1])) for p in parts]))

    def __getitem__(self, rows: slice | Tensor) -> Self:
        return type(self)(tuple((k[rows], v[rows]) for k, v in self.layers), self.mask[rows])

    def __len__(self) -> int:
        return len(self.mask)


class Attention(nn.Module):
    """Multi-head attention with biases."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.to_q = nn.Linear(config.width, config.width)
        self.to_k = nn.Linear(config.width, config.width)
        self.to_v = nn.Linear(config.width, config.width)
        self.to_out = nn.ModuleList([nn.Linear(config.width, config.width)])

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None, mask: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        q, k, v = (split_heads(proj(x), self.heads) for proj in (self.to_q, self.to_k, self.to_v))
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        return self.to_out[0](attend(q, k, v, mask)), (k, v)


class GELU(nn.Module):
    """A linear layer, then the exact GELU."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class FeedForward(nn.Module):
    """Four times wider, and back. (`net.1` was dropout.)"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GELU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(nn.Module):
    """A pre-norm transformer block. The published names skip norm2: there is no cross-attention."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attn1 = Attention(config)
        self.norm3 = nn.LayerNorm(config.width)
        self.ff = FeedForward(config.width)

    def forward(
        self, x: Tensor, past: tuple[Tensor, Tensor] | None, mask: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attended, kv = self.attn1(self.norm1(x), past, mask)
        x = x + attended
        return x + self.ff(self.norm3(x)), kv


class PriorTransformer(nn.Module):
    """The prior network. It works on normalised embeddings: (embedding - clip_mean) / clip_std."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.time_embedding = TimestepEmbedding(width, width)
        self.proj_in = nn.Linear(config.embedding_dim, width)
        self.embedding_proj = nn.Linear(config.embedding_dim, width)
        self.encoder_hidden_states_proj = nn.Linear(config.embedding_dim, width)
        positions = torch.empty(1, config.num_embeddings + 1 + STEP_TOKENS, width)
        self.positional_embedding = nn.Parameter(nn.init.normal_(positions, std=0.01))
        self.prd_embedding = nn.Parameter(nn.init.normal_(torch.empty(1, 1, width), std=0.01))
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm_out = nn.LayerNorm(width)
        self.proj_to_clip_embeddings = nn.Linear(width, config.embedding_dim)
        self.clip_mean = nn.Parameter(torch.zeros(1, config.embedding_dim))
        self.clip_std = nn.Parameter(torch.ones(1, config.embedding_dim))

    def normalised(self, embeds: Tensor) -> Tensor:
        """CLIP image embeddings [B, D] as the prior sees them."""
        return (embeds - self.clip_mean) / self.clip_std

    def denormalised(self, x: Tensor) -> Tensor:
        """The CLIP image embeddings [B, D] of what the prior sees."""
        return x * self.clip_std + self.clip_mean

    def prefill(self, hidden: Tensor, embed: Tensor, mask: Tensor) -> Prefix:
        """The text's part, once a run: CLIP's text states `hidden` [B, L, D], text embedding `embed` [B, D], and `mask`
        bool [B, L], True up to and including the end token. L need only be as long as the longest text: `Tokens.trimmed`."""
        length = mask.shape[1]
        text = self.encoder_hidden_states_proj(hidden)
        x = torch.cat([text, self.embedding_proj(embed)[:, None]], dim=1)
        positions = self.positional_embedding[:, : self.config.num_embeddings + 1]
        x = x + torch.cat([positions[:, :length], positions[:, -1:]], dim=1)

        real = F.pad(mask, (0, 1), value=True)
        causal = torch.ones(length + 1, length + 1, dtype=torch.bool, device=mask.device).tril()
        visible = causal & real[:, None, None, :]
        layers = []
        for block in self.transformer_blocks:
            x, kv = block(x, None, visible)
            layers.append(kv)
        return Prefix(tuple(layers), real)

    def forward(self, x: Tensor, t: Tensor, prefix: Prefix) -> Tensor:
        """Noisy normalised embeddings x [B, D] at timesteps t [B] -> the prediction of the clean ones, [B, D]."""
        query = self.prd_embedding.expand(len(x), -1, -1)
        h = torch.cat([self.time_embedding(t)[:, None], self.proj_in(x)[:, None], query], dim=1)
        h = h + self.positional_embedding[:, -STEP_TOKENS:]

        causal = torch.ones(STEP_TOKENS, STEP_TOKENS, dtype=torch.bool, device=x.device).tril()
        rows = len(x), 1, STEP_TOKENS, -1
        visible = torch.cat([prefix.mask[:, None, None, :].expand(rows), causal.expand(rows)], dim=-1)
        for block, past in zip(self.transformer_blocks, prefix.layers, strict=True):
            h, _ = block(h, past, visible)
        return self.proj_to_clip_embeddings(self.norm_out(h[:, -1]))
