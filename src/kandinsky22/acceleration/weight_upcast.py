"""Layers with half-precision weights that compute in float32 when their input is float32.

Half precision halves the memory of weights. A processor without instructions for it computes in it at a fifth of
float32's speed or less. So a weight is upcast while its layer is used and freed after, and nothing but weights is ever
rounded.
"""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.acceleration import kernels
from kandinsky22.models.layers import TimestepEmbedding, sinusoids

L = TypeVar("L", bound=nn.Module)
FEW_ROWS = 64  # up to so many rows take less time to multiply than a weight takes to read
CHUNK_ELEMENTS = (1 << 18, 1 << 21)
"""Elements of a weight that are upcast at a time, for few rows and for many: few stay in the nearest cache."""


def needs_upcast(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a weight is narrower than activations of a dtype."""
    return weight.dtype != dtype and torch.promote_types(weight.dtype, dtype) == dtype


def upcast_layer(layer: L, dtype: torch.dtype) -> L:
    """A copy of the layer with its own weights in a wider dtype; the layer itself if none is narrower."""
    narrow = {name: weight for name, weight in layer.named_parameters(recurse=False) if needs_upcast(weight, dtype)}
    if narrow:
        layer = copy.copy(layer)
        vars(layer)["_parameters"] = layer._parameters | {name: weight.to(dtype) for name, weight in narrow.items()}
    return layer


def upcast_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` with a weight [O, C] that may be narrower than x.

    Some rows of the weight are upcast at a time, so that they never leave the cache, and a product of few rows reads no
    more memory than the narrow weight takes.
    """
    if not needs_upcast(weight, x.dtype):
        return F.linear(x, weight, bias)
    if kernels.few_rows_apply(x, weight):
        return kernels.few_rows(x, weight, bias)
    bias = None if bias is None else bias.to(x.dtype)
    if not kernels.is_applicable(x):
        return F.linear(x, weight.to(x.dtype), bias)
    (outputs, channels), rows = weight.shape, x.reshape(-1, weight.shape[1])
    y, size = rows.new_empty(len(rows), outputs), max(1, CHUNK_ELEMENTS[len(rows) > FEW_ROWS] // channels)
    buffer = rows.new_empty(min(size, outputs), channels)
    for i in range(0, outputs, size):
        chunk, at = weight[i : i + size], slice(i, i + size)
        wide = buffer[: len(chunk)].copy_(chunk).t()
        if bias is None:
            torch.mm(rows, wide, out=y[:, at])
        else:
            torch.addmm(bias[at], rows, wide, out=y[:, at])
    return y.view(*x.shape[:-1], outputs)


class UpcastLinear(nn.Linear):
    """A linear layer that upcasts its weight a chunk at a time."""

    def forward(self, x: Tensor) -> Tensor:
        return upcast_linear(x, self.weight, self.bias)


class UpcastLayerNorm(nn.LayerNorm):
    """A layer normalisation that upcasts its weights."""

    def forward(self, x: Tensor) -> Tensor:
        return super(UpcastLayerNorm, upcast_layer(self, x.dtype)).forward(x)


class UpcastConv2d(nn.Conv2d):
    """A convolution that upcasts its filter."""

    def forward(self, x: Tensor) -> Tensor:
        return super(UpcastConv2d, upcast_layer(self, x.dtype)).forward(x)


class UpcastEmbedding(nn.Embedding):
    """A lookup whose result is float32. Its input is integers, which do not say what dtype to compute in."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).float()


class UpcastTimestepEmbedding(TimestepEmbedding):
    """A timestep embedding whose sinusoids stay float32."""

    def features(self, t: Tensor) -> Tensor:
        return sinusoids(t, self.dim)


UPCAST_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: UpcastLinear,
    nn.LayerNorm: UpcastLayerNorm,
    nn.Conv2d: UpcastConv2d,
    nn.Embedding: UpcastEmbedding,
    TimestepEmbedding: UpcastTimestepEmbedding,
}
"""The class that each layer class becomes where weights are narrower than the computation."""
