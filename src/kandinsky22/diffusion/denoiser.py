"""The denoiser that samplers call: a network, its noise schedule and classifier-free guidance, for any number of
requests.

One call answers all rows of all requests. A guided picture (weight other than 1) needs two rows: its unconditional and
its conditional one. The network is called as `network(x, t, condition, guided_rows)` with each state once; it repeats
the rows `guided_rows` of x, so that t, the condition and the output have the unconditional rows first and then all
conditional ones. The condition is a prior's prefix or a U-Net's condition; here it is only rows.

Two approximations can be chosen per request: guidance only within an interval of timesteps, and reuse of the network's
deeper levels in all but every n-th call. A request that chooses neither is computed exactly.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from kandinsky22.diffusion import NoiseSchedule, Prediction, guide, interpret, split_variance, to_device


class Rows(Protocol):
    """What a network is conditioned on: rows that can be selected and concatenated."""

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self: ...

    def __getitem__(self, rows: slice | Tensor) -> Self: ...

    def __len__(self) -> int: ...


R = TypeVar("R", bound=Rows)
ALL_TIMESTEPS = (0.0, math.inf)


def guided_indices(weight: Tensor) -> Tensor:
    """The rows [B] that guidance changes: those whose weight is not 1."""
    return (weight != 1).nonzero()[:, 0]


@dataclass(frozen=True, slots=True)
class Guidance(Generic[R]):
    """The conditions of one request's pictures.

    cond: one row per picture. uncond: one row per picture whose weight is not 1, in order; None if there is none.
    weight: float32 [rows] on the network's device. interval: the first and the last timestep with guidance; outside,
    every weight counts as 1 (Kynkaanniemi et al. 2024, arXiv:2404.07724).
    """

    cond: R
    uncond: R | None
    weight: Tensor
    interval: tuple[float, float] = ALL_TIMESTEPS

    @classmethod
    def of(cls, cond: R, uncond: R, weight: Tensor, interval: tuple[float, float] = ALL_TIMESTEPS) -> "Guidance[R]":
        """From a conditional and an unconditional row per picture; the latter is dropped where the weight is 1."""
        guided_rows = guided_indices(weight)
        return cls(cond, uncond[guided_rows] if len(guided_rows) else None, weight, interval)

    def rows(self) -> "list[Guidance[R]]":
        """The same for each picture by itself. It waits for the device, because it reads which weights are not 1."""
        guided = guided_indices(self.weight).tolist() if self.uncond is not None else []
        each = [slice(i, i + 1) for i in range(len(self.cond))]
        uncond = dict(zip(guided, range(len(guided)), strict=True))
        return [
            replace(
                self,
                cond=self.cond[rows],
                uncond=self.uncond[each[uncond[i]]] if self.uncond is not None and i in uncond else None,
                weight=self.weight[rows],
            )
            for i, rows in enumerate(each)
        ]

    def applies(self, t: int) -> bool:
        """Whether any row is guided at a timestep."""
        return self.uncond is not None and self.interval[0] <= t <= self.interval[1]

    def without(self) -> "Guidance[R]":
        """The same conditions without guidance."""
        return replace(self, uncond=None, weight=torch.ones_like(self.weight))


class BatchLayout(NamedTuple, Generic[R]):
    """The rows of one call of the network: the unconditional rows first, then a conditional row for every picture.

    condition: of all rows. weight: float32 [pictures]. guided_rows: the pictures that guidance changes. x_rows: for
    each row of the call its row of x, on the CPU. rows_of: each request's rows of the call.
    """

    condition: R
    weight: Tensor
    guided_rows: Tensor
    x_rows: Tensor
    rows_of: dict[Hashable, Tensor]


def lay_out(guidance: Mapping[Hashable, Guidance[R]]) -> BatchLayout[R]:
    """The layout of a batch of requests. It waits for the device, because it reads which weights are not 1."""
    conds, unconds = [part.cond for part in guidance.values()], [part.uncond for part in guidance.values()]
    negative = [rows for rows in unconds if rows is not None]
    condition = type(conds[0]).cat([*negative, *conds])
    weight = torch.cat([part.weight for part in guidance.values()])
    guided_rows = guided_indices(weight)
    x_rows = torch.cat([guided_rows.cpu(), torch.arange(len(weight))])
    indices = torch.arange(len(condition), device=guided_rows.device).split(
        [*(0 if rows is None else len(rows) for rows in unconds), *map(len, conds)]
    )
    pairs = zip(guidance, indices, indices[len(guidance) :], strict=False)
    return BatchLayout(condition, weight, guided_rows, x_rows, {key: torch.cat(pair) for key, *pair in pairs})


class CachedFeatures(NamedTuple):
    """The deeper levels' features [rows, C, h, w] of a request's last computed call, and how many calls used them."""

    deep: Tensor
    calls: int


class Denoiser(Generic[R]):
    """Predicts for a group of requests: `denoiser(keys, x, t)` with x [rows, ...] and t [rows], the rows of the
    requests named by `keys` one after the other. x stays float32; the network is given `dtype`.

    guidance: of each request; one that is added joins, and `forget` removes one. reuse: per request, in every how many
    calls the network's deeper levels are computed; 1 for requests that are not named. For values above 1 the network
    needs `forward_cached`, as `UNet` has it.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor, R, Tensor], Tensor],
        schedule: NoiseSchedule,
        guidance: Mapping[Any, Guidance[R]],
        dtype: torch.dtype,
        reuse: Mapping[Any, int] | None = None,
    ) -> None:
        self.network, self.schedule, self.dtype = network, schedule, dtype
        self.guidance, self.reuse = dict(guidance), dict(reuse or {})
        self._guided: dict[Hashable, bool] = {}
        self._layout: BatchLayout[R] | None = None
        self._cached: dict[Hashable, CachedFeatures] = {}

    def __call__(self, keys: Sequence[Hashable], x: Tensor, t: Tensor) -> Prediction:
        guided, row = {}, 0
        for key in keys:  # all rows of a request are at one timestep
            guided[key] = self.guidance[key].applies(int(t[row]))
            row += len(self.guidance[key].cond)
        if self._layout is None or list(guided.items()) != list(self._guided.items()):
            parts = {key: self.guidance[key] if on else self.guidance[key].without() for key, on in guided.items()}
            self._guided, self._layout = guided, lay_out(parts)
        layout = self._layout
        guided_rows = layout.guided_rows
        output = self._output(layout, x.to(self.dtype), t[layout.x_rows]).to(x.dtype)
        prediction, variance = split_variance(output, x)
        uncond, cond = prediction[: len(guided_rows)], prediction[len(guided_rows) :]
        if len(guided_rows):
            cond = cond.index_copy(0, guided_rows, guide(uncond, cond[guided_rows], layout.weight[guided_rows]))
        t = to_device(t, x.device)
        return interpret(cond, x, t, self.schedule, None if variance is None else variance[len(guided_rows) :])

    def alone(self, key: Hashable) -> Callable[[Tensor, int], Prediction]:
        """The predictions for one request, as `diffusion.sample` takes them."""
        return lambda x, t: self([key], x, torch.full((len(x),), t))

    def change(self, key: Hashable, guidance: Guidance[R]) -> None:
        """Continue a request with another guidance of as many pictures."""
        if guidance is not self.guidance[key]:
            self.guidance[key], self._layout = guidance, None

    def forget(self, key: Hashable) -> None:
        """Remove a request, and free what was computed for it."""
        self.guidance.pop(key, None)
        self.reuse.pop(key, None)
        self._cached.pop(key, None)
        if key in self._guided:
            self._guided, self._layout = {}, None

    def _output(self, layout: BatchLayout[R], x: Tensor, t: Tensor) -> Tensor:
        """The network's output, with the deeper levels computed for the requests that are due."""
        rows_of = layout.rows_of
        if all(self.reuse.get(key, 1) == 1 for key in rows_of):
            return self.network(x, t, layout.condition, layout.guided_rows)
        reused = {key: self._cached[key] for key, rows in rows_of.items() if not self._is_due(key, len(rows))}
        due, deep = [rows for key, rows in rows_of.items() if key not in reused], None
        for key, cached in reused.items():  # after guidance has ended, only the conditional rows are still needed
            rows = rows_of[key]
            deep = cached.deep.new_empty(len(t), *cached.deep.shape[1:]) if deep is None else deep
            deep[rows] = cached.deep[-len(rows) :]
        forward_cached: Any = self.network.forward_cached  # type: ignore[attr-defined]
        output, deep = forward_cached(x, t, layout.condition, deep, torch.cat(due) if due else None, layout.guided_rows)
        for key, rows in rows_of.items():
            self._cached[key] = CachedFeatures(deep[rows], reused[key].calls + 1 if key in reused else 1)
        return output

    def _is_due(self, key: Hashable, rows: int) -> bool:
        """Whether a request's deep features must be computed: none yet, used often enough, or too few rows."""
        cached = self._cached.get(key)
        return cached is None or cached.calls >= self.reuse.get(key, 1) or len(cached.deep) < rows
