"""The diffusion prior: from CLIP's features of a text to the CLIP embedding of a picture that the text could describe
(Ramesh et al. 2022, section 2.2; Kandinsky, section 4.1).

A causal transformer over [text states, text embedding, time, noisy image embedding, query], read at the query. The text
tokens do not attend to x or t, so `prefill` computes their keys and values once per run. The time token attends to the
text but not to x, so `precompute_timesteps` computes its keys and values for all timesteps of a run. `forward` then
runs two tokens a step.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.models.config import Config, Network
from kandinsky22.models.layers import TimestepEmbedding, attend, split_heads
from kandinsky22.models.lora import PLAIN, RowAdapters
from kandinsky22.models.timestep_cache import TimestepCache, cached_timesteps, repeat_guided

STEP_TOKENS = 3  # time, noisy image embedding, query
KeysValues: TypeAlias = tuple[Tensor, Tensor]  # [B, h, S, d] each
ALL, LAST, NONE = slice(None), slice(-1, None), slice(0)  # for which of a block's tokens the output is needed


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
    """The keys and values of B texts, [B, h, S, d] for each layer, and which of the S tokens are real, bool [B, S].

    adapters: of each row. timestep_cache: the keys and values of time tokens, [B, T, layers, 2, h, d], if precomputed.
    """

    layers: tuple[KeysValues, ...]
    mask: Tensor
    adapters: RowAdapters
    timestep_cache: TimestepCache | None = None

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
        mask = torch.cat([F.pad(p.mask, (0, longest - p.mask.shape[1])) for p in parts])
        cache = TimestepCache.cat([p.timestep_cache for p in parts])
        return cls(layers, mask, RowAdapters.cat([p.adapters for p in parts]), cache)

    def __getitem__(self, rows: slice | Tensor) -> Self:
        cache = None if self.timestep_cache is None else self.timestep_cache[rows]
        layers = tuple((k[rows], v[rows]) for k, v in self.layers)
        return type(self)(layers, self.mask[rows], self.adapters[rows], cache)

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
        self, x: Tensor, past: Sequence[KeysValues], mask: Tensor, outputs: slice = ALL
    ) -> tuple[Tensor, KeysValues]:
        """Attention of tokens x [B, N, C] to the tokens of `past` and to each other.

        Returns the output at the tokens `outputs`, and the keys and values of all N. mask: bool, broadcast to
        [B, 1, N, past + N]; True: may be attended to.
        """
        q = split_heads(self.to_q(x[:, outputs]), self.heads)
        k, v = (split_heads(proj(x), self.heads) for proj in (self.to_k, self.to_v))
        keys, values = (torch.cat(parts, dim=2) for parts in zip(*past, (k, v), strict=True))
        return self.to_out[0](attend(q, keys, values, mask[..., outputs, :])), (k, v)


class GELU(nn.Module):
    """A linear layer, then the exact GELU."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class FeedForward(nn.Module):
    """Two-layer perceptron, four times as wide inside. (`net.1` is dropout in the published code.)"""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GELU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(nn.Module):
    """A pre-norm transformer block. The published names have no norm2, as there is no cross-attention."""

    def __init__(self, config: PriorConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width)
        self.attn1 = Attention(config)
        self.norm3 = nn.LayerNorm(config.width)
        self.ff = FeedForward(config.width)

    def forward(
        self, x: Tensor, past: Sequence[KeysValues], mask: Tensor, outputs: slice = ALL
    ) -> tuple[Tensor, KeysValues]:
        attended, kv = self.attn1(self.norm1(x), past, mask, outputs)
        x = x[:, outputs] + attended
        return x + self.ff(self.norm3(x)), kv


class PriorTransformer(Network):
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
        """CLIP image embeddings [B, D] in the prior's normalised space."""
        return (embeds - self.clip_mean) / self.clip_std

    def denormalised(self, x: Tensor) -> Tensor:
        """Normalised embeddings [B, D] in CLIP's space."""
        return x * self.clip_std + self.clip_mean

    def prefill(self, hidden: Tensor, embed: Tensor, mask: Tensor, adapters: RowAdapters = PLAIN) -> Prefix:
        """The keys and values of the text tokens, once per run.

        hidden: CLIP's text states [B, L, D]. embed: its text embeddings [B, D]. mask: bool [B, L], True up to and
        including the end token. L need only be the length of the longest text (`Tokens.trimmed`). adapters: of each
        row; without: of none.
        """
        adapters = adapters or RowAdapters.of((), len(hidden))
        with adapters.active(self):
            layers, real = self._prefill(hidden, embed, mask)
        return Prefix(layers, real, adapters)

    def _prefill(self, hidden: Tensor, embed: Tensor, mask: Tensor) -> tuple[tuple[KeysValues, ...], Tensor]:
        """The keys and values of the text tokens, and which of them are real."""
        length = mask.shape[1]
        text = self.encoder_hidden_states_proj(hidden)
        x = torch.cat([text, self.embedding_proj(embed)[:, None]], dim=1)
        positions = self.positional_embedding[:, : self.config.num_embeddings + 1]
        x = x + torch.cat([positions[:, :length], positions[:, -1:]], dim=1)

        real = F.pad(mask, (0, 1), value=True)
        causal = torch.ones(length + 1, length + 1, dtype=torch.bool, device=mask.device).tril()
        visible = causal & real[:, None, None, :]
        layers = []
        for block, outputs in self._blocks(last=NONE):
            x, kv = block(x, (), visible, outputs)
            layers.append(kv)
        return tuple(layers), real

    def precompute_timesteps(self, prefix: Prefix, timesteps: Sequence[int]) -> Prefix:
        """The prefix with the time tokens' keys and values for all timesteps of a run (at most its first 100)."""
        t = cached_timesteps(timesteps, len(prefix))
        with prefix.adapters.active(self):
            return replace(prefix, timestep_cache=TimestepCache(t, self._times(t.to(prefix.mask.device), prefix)))

    def forward(self, x: Tensor, t: Tensor, prefix: Prefix, guided_rows: Tensor | None = None) -> Tensor:
        """Noisy normalised embeddings x [B, D] at timesteps t [B] -> the predicted clean ones, [B, D].

        guided_rows: indices [n] of the rows of x that classifier-free guidance needs twice. Then prefix, t and the
        result have n rows for these, unconditional, followed by B rows for all.
        """
        with prefix.adapters.active(self):
            return self._forward(x, t, prefix, guided_rows)

    def _forward(self, x: Tensor, t: Tensor, prefix: Prefix, guided_rows: Tensor | None) -> Tensor:
        times = None if prefix.timestep_cache is None else prefix.timestep_cache.at(t)
        if times is None:
            times = self._times(t.to(x.device, non_blocking=True)[:, None], prefix)[:, 0]
        rows = len(prefix)
        noisy = repeat_guided(self.proj_in(x), guided_rows)
        h = (
            torch.cat([noisy[:, None], self.prd_embedding.expand(rows, -1, -1)], dim=1)
            + self.positional_embedding[:, -2:]
        )

        causal = torch.ones(2, 3, dtype=torch.bool, device=x.device).tril(1)  # the time token, and causally themselves
        visible = torch.cat([_text_mask(prefix, 2), causal.expand(rows, 1, -1, -1)], dim=-1)
        layer_times = times[:, :, :, :, None].unbind(1)
        for (block, outputs), text, time in zip(self._blocks(last=LAST), prefix.layers, layer_times, strict=True):
            h, _ = block(h, (text, time.unbind(1)), visible, outputs)
        return self.proj_to_clip_embeddings(self.norm_out(h[:, -1]))

    def _times(self, t: Tensor, prefix: Prefix) -> Tensor:
        """The keys and values [B, T, layers, 2, h, d] of a time token, which attends to the text, at t [B, T]."""
        rows, count = t.shape
        with prefix.adapters.repeated(count).active(self):
            embedded = self.time_embedding(t.flatten())
        h = embedded.unflatten(0, t.shape) + self.positional_embedding[:, -STEP_TOKENS]
        itself = torch.eye(count, dtype=torch.bool, device=t.device).expand(rows, 1, -1, -1)
        visible, layers = torch.cat([_text_mask(prefix, count), itself], dim=-1), []
        for (block, outputs), text in zip(self._blocks(last=NONE), prefix.layers, strict=True):
            h, kv = block(h, (text,), visible, outputs)
            layers.append(torch.stack(kv, dim=1))  # [B, 2, h, T, d]
        return torch.stack(layers, dim=1).movedim(4, 1).contiguous()

    def _blocks(self, last: slice) -> Iterator[tuple[nn.Module, slice]]:
        """Each block with the tokens whose output is needed: all, and `last` for the last block."""
        *most, end = self.transformer_blocks
        yield from ((block, ALL) for block in most)
        yield end, last


def _text_mask(prefix: Prefix, tokens: int) -> Tensor:
    """Which text tokens the later ones may attend to: bool [B, 1, tokens, S]."""
    return prefix.mask[:, None, None, :].expand(-1, -1, tokens, -1)
