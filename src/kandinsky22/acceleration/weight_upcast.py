"""Layers whose weights are held in half precision, and that compute in float32 when they are given it.

Half precision halves what weights take. A processor without instructions for it computes in it at a fifth of float32's speed or
less. So a weight is widened while its layer is used and let go after, and nothing but weights is ever rounded.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.acceleration import kernels
from kandinsky22.models.layers import TimestepEmbedding, sinusoids

L = TypeVar("L", bound=nn.Module)
FEW = 64  # rows that take less time to multiply than a weight takes to read
NUMBERS = (
    1 << 18,
    1 << 21,
)  # of a weight that are widened at a time, for few rows and for many: few stay in the nearest cache


def narrower(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a weight is to be widened for activations of a dtype."""
    return weight.dtype != dtype and torch.promote_types(weight.dtype, dtype) == dtype


def widened(layer: L, dtype: torch.dtype) -> L:
    """The layer with its own weights in a wider dtype; itself where they are in that one, or are no narrower."""
    own = {name: weight for name, weight in layer.named_parameters(recurse=False) if narrower(weight, dtype)}
    if own:
        layer = copy.copy(layer)
        vars(layer)["_parameters"] = layer._parameters | {name: weight.to(dtype) for name, weight in own.items()}
    return layer


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, of a weight [O, C] as narrow as it likes: some of its rows at a time, so that what is widened never leaves the
    cache and a product of few rows reads no more memory than the narrow weight takes."""
    if not narrower(weight, x.dtype):
        return F.linear(x, weight, bias)
    if kernels.reads(x, weight):
        return kernels.few_rows(x, weight, bias)
    bias = None if bias is None else bias.to(x.dtype)
    if not kernels.concern(x):
        return F.linear(x, weight.to(x.dtype), bias)
    (outputs, channels), rows = weight.shape, x.reshape(-1, weight.shape[1])
    y, size = rows.new_empty(len(rows), outputs), max(1, NUMBERS[len(rows) > FEW] // channels)
    space = rows.new_empty(min(size, outputs), channels)
    for i in range(0, outputs, size):
        part, at = weight[i : i + size], slice(i, i + size)
        wide = space[: len(part)].copy_(part).t()
        if bias is None:
            torch.mm(rows, wide, out=y[:, at])
        else:
            torch.addmm(bias[at], rows, wide, out=y[:, at])
    return y.view(*x.shape[:-1], outputs)


class HalfLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class HalfLayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super(HalfLayerNorm, widened(self, x.dtype)).forward(x)


class HalfConv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super(HalfConv2d, widened(self, x.dtype)).forward(x)


class HalfEmbedding(nn.Embedding):
    """What it is given are numbers of rows, so it is told nothing of a dtype."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).float()


class HalfTimestepEmbedding(TimestepEmbedding):
    def features(self, t: Tensor) -> Tensor:
        return sinusoids(t, self.dim)


HALF: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: HalfLinear,
    nn.LayerNorm: HalfLayerNorm,
    nn.Conv2d: HalfConv2d,
    nn.Embedding: HalfEmbedding,
    TimestepEmbedding: HalfTimestepEmbedding,
}
