"""Low-rank adapters (LoRA: Hu et al. 2021, arXiv:2106.09685; DoRA: Liu et al. 2024, arXiv:2402.09353) that are computed
beside a network's linear and convolution layers: `W x + s B (A x)`.

Weights are never changed. Which adapters apply is a value of each row of a call (`RowAdapters`), so rows with different
adapters share the call, and a row without one is computed as if there were none, bit for bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from itertools import chain, groupby
from typing import Any, NamedTuple, Self, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.models.layers import UpsampleConv3x3


class LowRank:
    """The adapter of one layer.

    a: [r, in] of a linear layer, [r, in, kh, kw] of a convolution. b: [out, r]. scaling: alpha / r, or alpha / sqrt(r).
    magnitude: [out], the lengths of the adapted weight's rows; None: LoRA, else DoRA. Raises `ValueError` for tensors
    that do not fit each other.
    """

    def __init__(self, a: Tensor, b: Tensor, scaling: float = 1.0, magnitude: Tensor | None = None) -> None:
        if a.ndim not in (2, 4) or b.ndim != 2 or b.shape[1] != len(a) or not len(a):
            raise ValueError(f"tensors of shapes {[*a.shape]} and {[*b.shape]} are no low-rank pair")
        if magnitude is not None and magnitude.shape != b.shape[:1]:
            raise ValueError(f"its magnitudes are {[*magnitude.shape]} for {len(b)} outputs")
        self.a, self.b, self.scaling, self.magnitude = a, b, scaling, magnitude

    @property
    def rank(self) -> int:
        """Its rank r."""
        return len(self.a)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight that it adapts."""
        return (len(self.b), *self.a.shape[1:])

    def delta(self, scale: float = 1.0) -> Tensor:
        """What is added to the weight, before DoRA's magnitudes: scale * scaling * B A, of the weight's shape."""
        return (scale * self.scaling * (self.b @ self.a.flatten(1))).view(self.weight_shape)

    def merged(self, weight: Tensor, scale: float = 1.0) -> Tensor:
        """The adapted weight, in float32 at least; at scale 0 the weight itself."""
        dtype = torch.promote_types(weight.dtype, torch.float32)
        if scale == 0:
            return weight.to(dtype)
        total = weight.to(dtype) + self.to(weight.device, dtype).delta(scale)
        return total if self.magnitude is None else total * _per_output(self.magnitude_ratio(weight, scale), total)

    def magnitude_ratio(self, weight: Tensor, scale: float) -> Tensor:
        """DoRA's magnitudes over the row lengths of the weight with its delta: float32 [out]. DoRA, section 4.3."""
        assert self.magnitude is not None
        total = weight.float() + self.to(weight.device, torch.float32).delta(scale)
        return self.magnitude.to(weight.device).float() / total.flatten(1).norm(dim=1).detach()

    def to(self, device: torch.device, dtype: torch.dtype) -> "LowRank":
        """The same on a device, in a dtype; itself if nothing changes."""
        if (self.a.device, self.a.dtype, self.b.dtype) == (device, dtype, dtype):
            return self
        magnitude = None if self.magnitude is None else self.magnitude.to(device)
        return LowRank(self.a.to(device, dtype), self.b.to(device, dtype), self.scaling, magnitude)

    def add_to(self, y: Tensor, x: Tensor, layer: "AdaptedLayer", scale: float) -> Tensor:
        """A layer's output y for its input x, adapted. Without gradients, y itself may be changed."""
        module: Any = layer
        if self.magnitude is not None:
            return self._add_with_magnitude(y, x, layer, scale)
        inner, weight = self._inner(x, module), scale * self.scaling
        if torch.is_grad_enabled():
            return y + weight * self._outer(inner)
        if inner.ndim != 4 and y.is_contiguous():
            y.view(-1, y.shape[-1]).addmm_(inner.flatten(0, -2), self.b.t(), alpha=weight)
            return y
        return y.add_(self._outer(inner), alpha=weight)

    def _add_with_magnitude(self, y: Tensor, x: Tensor, layer: "AdaptedLayer", scale: float) -> Tensor:
        module: Any = layer
        ratio = layer.magnitude_ratio(self, scale).to(y.dtype)
        plain = y if module.bias is None else y - _per_channel(module.bias.to(y.dtype), y)
        delta = scale * self.scaling * self._outer(self._inner(x, module))
        ratio = _per_channel(ratio, y)
        return y + ((ratio - 1) * plain + ratio * delta)

    def _inner(self, x: Tensor, layer: Any) -> Tensor:
        """A x: [B, ..., r], or [B, r, H, W] of a convolution."""
        if self.a.ndim == 2:
            return F.linear(x, self.a)
        if isinstance(layer, UpsampleConv3x3):
            x = F.interpolate(x, scale_factor=2.0)
        return F.conv2d(x, self.a, None, layer.stride, layer.padding, layer.dilation)

    def _outer(self, inner: Tensor) -> Tensor:
        """B h."""
        return F.linear(inner, self.b) if self.a.ndim == 2 else F.conv2d(inner, self.b[:, :, None, None])


class Adapter:
    """The low-rank layers of one network, by the names of its modules. Compared by identity."""

    def __init__(self, layers: Mapping[str, LowRank]) -> None:
        self.layers = dict(layers)

    def to(self, device: torch.device, dtype: torch.dtype) -> "Adapter":
        """The same on a device, in a dtype."""
        return Adapter({name: layer.to(device, dtype) for name, layer in self.layers.items()})

    def mismatch(self, network: nn.Module) -> str | None:
        """Why it is not for a network, in words; None where every layer fits. The network may be on the meta device."""
        modules = dict(network.named_modules())
        for name, layer in self.layers.items():
            module: Any = modules.get(name)
            if not isinstance(module, nn.Linear | nn.Conv2d):
                return f"there is no layer {name:.200}"
            if tuple(module.weight.shape) != layer.weight_shape:
                return f"{name:.200} is {[*module.weight.shape]} there, and {[*layer.weight_shape]} in the file"
        return None

    def install(self, network: nn.Module) -> None:
        """Have a network's layers look for adapters; without active ones they compute as before."""
        installed: WeakSet[Adapter] = vars(network).setdefault("_adapters", WeakSet())
        if self in installed:
            return
        for name in self.layers:
            module: Any = network.get_submodule(name)
            if not isinstance(module, AdaptedLayer):
                plain: Any = type(module)
                module.__class__ = _adapted_class(plain)
                module.adapted_name = name
        installed.add(self)


class Applied(NamedTuple):
    """An adapter and its scale, not 0."""

    adapter: Adapter
    scale: float


Stack: TypeAlias = tuple[Applied, ...]  # the adapters of a row; they add up
NONE: Stack = ()


@dataclass(frozen=True, slots=True)
class RowAdapters:
    """The adapters of each row of a network's calls; rows can be selected and concatenated like those of tensors."""

    rows: tuple[Stack, ...]

    @classmethod
    def of(cls, adapters: Sequence[Applied], rows: int) -> Self:
        """The same adapters for a number of rows; those with scale 0 are left out."""
        return cls((tuple(one for one in adapters if one.scale != 0),) * rows)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """All rows of `parts`, in order."""
        return cls(tuple(chain.from_iterable(part.rows for part in parts)))

    def __getitem__(self, rows: slice | Tensor) -> Self:
        if isinstance(rows, slice):
            return type(self)(self.rows[rows])
        if self.are_equal:  # without reading the indices, for which a device would have to be waited for
            return type(self)(self.rows[:1] * len(rows))
        return type(self)(tuple(self.rows[i] for i in rows.tolist()))

    def __len__(self) -> int:
        return len(self.rows)

    def __bool__(self) -> bool:
        return any(self.rows)

    @property
    def are_equal(self) -> bool:
        """Whether all rows have the same adapters."""
        return len(set(self.rows)) <= 1

    def repeated(self, times: int) -> Self:
        """Each row so many times in a row."""
        return type(self)(tuple(stack for stack in self.rows for _ in range(times)))

    def active(self, network: nn.Module) -> AbstractContextManager[None]:
        """While it is entered, the network's layers apply these adapters.

        A layer may have fewer rows than there are here: the last ones, before guidance has repeated them.
        """
        return self._activate(network) if self else nullcontext()

    @contextmanager
    def _activate(self, network: nn.Module) -> Iterator[None]:
        for adapter in {applied.adapter for stack in self.rows for applied in stack}:
            adapter.install(network)
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)

    def adapt(self, layer: "AdaptedLayer", x: Tensor, y: Tensor) -> Tensor:
        """The output y [B, ...] of a layer for its input x [B, ...], with each row's adapters."""
        if len(x) > len(self):
            raise ValueError(f"there are adapters for {len(self)} rows, and the layer has {len(x)}")
        start, parts = 0, []
        for stack, rows in groupby(self.rows[len(self) - len(x) :]):
            stop = start + len(list(rows))
            before = part = y[start:stop]
            for adapter, scale in stack:
                low_rank = adapter.layers.get(layer.adapted_name)
                if low_rank is not None:
                    part = low_rank.add_to(part, x[start:stop], layer, scale)
            if part is not before and not torch.is_grad_enabled():
                before.copy_(part)
            parts.append(part)
            start = stop
        return torch.cat(parts) if torch.is_grad_enabled() else y


PLAIN = RowAdapters(())  # no adapters, for any number of rows


class AdaptedLayer(nn.Module):
    """Mixin of the class that a layer gets when an adapter is installed. adapted_name: its name in the network."""

    adapted_name = ""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x)
        rows = None if torch.compiler.is_compiling() else _active.get()  # calls with adapters are not compiled
        return y if rows is None else rows.adapt(self, x, y)

    def magnitude_ratio(self, low_rank: LowRank, scale: float) -> Tensor:
        """DoRA's ratio for this layer's weight, computed once for a scale unless there are gradients."""
        weight: Any = self.weight
        if torch.is_grad_enabled():
            return low_rank.magnitude_ratio(weight, scale)
        ratios: WeakKeyDictionary[LowRank, tuple[Any, Tensor]] = vars(self).setdefault("_ratios", WeakKeyDictionary())
        key = (scale, weight.device, weight.data_ptr())
        if low_rank not in ratios or ratios[low_rank][0] != key:
            ratios[low_rank] = key, low_rank.magnitude_ratio(weight, scale)
        return ratios[low_rank][1]


_active: ContextVar[RowAdapters | None] = ContextVar("active adapters", default=None)


def uninstall(network: nn.Module) -> None:
    """Give a network's layers the classes back that they had before adapters were installed."""
    for module in network.modules():
        if isinstance(module, AdaptedLayer):
            module.__class__ = type(module).__bases__[1]
            for name in ("adapted_name", "_ratios"):
                vars(module).pop(name, None)
        vars(module).pop("_adapters", None)


def merge(network: nn.Module, adapter: Adapter, scale: float = 1.0) -> None:
    """Add an adapter to a network's weights."""
    with torch.no_grad():
        for name, low_rank in adapter.layers.items():
            weight: Any = network.get_submodule(name).weight
            weight.copy_(low_rank.merged(weight, scale))


def extract(before: Tensor, after: Tensor, rank: int) -> LowRank:
    """The best approximation of rank r of the difference of two weights, by its singular values (Eckart and Young).

    The rank is at most that of the matrix; the singular values are shared equally between A and B.
    """
    difference = (after.float() - before.float()).flatten(1)
    u, s, v = torch.linalg.svd(difference, full_matrices=False)
    root = s[:rank].sqrt()
    a = (root[:, None] * v[:rank]).view(len(root), *before.shape[1:])
    return LowRank(a.contiguous(), (u[:, :rank] * root).contiguous())


@cache
def _adapted_class(plain: Any) -> Any:
    """A layer's class that applies active adapters."""
    return type(plain.__name__, (AdaptedLayer, plain), {"__module__": plain.__module__})


def _per_output(values: Tensor, weight: Tensor) -> Tensor:
    """Values [out] that multiply the rows of a weight [out, ...]."""
    return values.to(weight.dtype).view(-1, *(1,) * (weight.ndim - 1))


def _per_channel(values: Tensor, y: Tensor) -> Tensor:
    """Values [C] for the channels of y [B, ..., C], or [B, C, H, W]."""
    return values[:, None, None] if y.ndim == 4 else values
