"""A network with its schedule as the denoiser that samplers ask, for any number of requests at once.

Guidance needs a second answer for a picture whose weight is not 1; all rows of all requests go through the network in
one call, `network(x, t, rows, guided_rows)`: it answers the rows `led` of x once more, before all, and t and rows are
those of its answers. Knows the two ways a network is told what to paint (rows of a prefix, rows of a condition) only as
rows.

Two things may be left out, request by request: guidance outside an interval of timesteps, and a network's deeper levels
in all but every n-th call. Both change the picture; a request that leaves out neither is answered exactly.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from kandinsky22.diffusion import NoiseSchedule, Prediction, guide, interpret, split_variance, to_device


class Rows(Protocol):
    """What a network is conditioned on: rows that concatenate."""

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self: ...

    def __getitem__(self, rows: Tensor) -> Self: ...

    def __len__(self) -> int: ...


R = TypeVar("R", bound=Rows)
ALWAYS = (0.0, math.inf)  # the interval of timesteps that is all of them


def guided_indices(weight: Tensor) -> Tensor:
    """The rows [B] that guidance moves: those whose weight is not 1."""
    return (weight != 1).nonzero()[:, 0]


@dataclass(frozen=True, slots=True)
class Guided(Generic[R]):
    """What a request's pictures are guided by: a condition for each row, and for the rows whose weight is not 1, in
    order, one to lead away from. `weight` is float32 [rows], on the network's device. `interval`: the first and last
    timestep at which guidance acts; beyond them every weight is 1 (Kynkaanniemi et al. 2024, arXiv:2404.07724)."""

    cond: R
    uncond: R | None
    weight: Tensor
    interval: tuple[float, float] = ALWAYS

    @classmethod
    def by(cls, cond: R, uncond: R, weight: Tensor, interval: tuple[float, float] = ALWAYS) -> "Guided[R]":
        """Rows to lead to and, for each, one to lead away from; those whose weight is 1 are led by nothing."""
        guided_rows = guided_indices(weight)
        return cls(cond, uncond[guided_rows] if len(guided_rows) else None, weight, interval)

    def acts(self, t: int) -> bool:
        """Whether any row is led at a timestep."""
        return self.uncond is not None and self.interval[0] <= t <= self.interval[1]

    def unled(self) -> "Guided[R]":
        """The same rows, led by nothing."""
        return replace(self, uncond=None, weight=torch.ones_like(self.weight))


class Held(NamedTuple):
    """The deep features [rows, C, h, w] that a request's rows were last answered with, and how many calls they
    served."""

    deep: Tensor
    calls: int


class Denoiser(Generic[R]):
    """Answers for a whole group of requests: `denoiser(keys, x, t)` with x [rows, ...] and t [rows], row after row of
    the requests named by `keys`. The state x stays float32; the network works in its own dtype.

    reuse: by request, at every how many calls the network's deeper levels are computed; 1 for those that are not named.
    Above 1 the network needs `forward_cached`, as `UNet` has it.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor, R, Tensor], Tensor],
        schedule: NoiseSchedule,
        guided: Mapping[Any, Guided[R]],
        dtype: torch.dtype,
        reuse: Mapping[Any, int] | None = None,
    ) -> None:
        self.network, self.schedule, self.guided, self.dtype = network, schedule, guided, dtype
        self.reuse = reuse or {}
        self._acting: dict[Hashable, bool] = {}
        self._held: dict[Hashable, Held] = {}

    def __call__(self, keys: Sequence[Hashable], x: Tensor, t: Tensor) -> Prediction:
        acting, row = {}, 0
        for key in keys:  # a request is at one timestep
            acting[key] = self.guided[key].acts(int(t[row]))
            row += len(self.guided[key].cond)
        if list(acting.items()) != list(self._acting.items()):
            self._lay_out(acting)
        guided_rows = self._guided_rows
        output = self._output(x.to(self.dtype), t[self._asked]).to(x.dtype)
        prediction, variance = split_variance(output, x)
        uncond, cond = prediction[: len(guided_rows)], prediction[len(guided_rows) :]
        if len(guided_rows):
            cond = cond.index_copy(0, guided_rows, guide(uncond, cond[guided_rows], self._weight[guided_rows]))
        t = to_device(t, x.device)
        return interpret(cond, x, t, self.schedule, None if variance is None else variance[len(guided_rows) :])

    def _lay_out(self, acting: dict[Hashable, bool]) -> None:
        """The rows of a call, anew where the company changed or guidance came or went: those to lead away from, then
        all that are asked about. `_asked` are the rows of x they are about, on the CPU; `_where` are each request's."""
        parts = {key: self.guided[key] if acts else self.guided[key].unled() for key, acts in acting.items()}
        conds, unconds = [part.cond for part in parts.values()], [part.uncond for part in parts.values()]
        away = [rows for rows in unconds if rows is not None]
        self._acting, self._rows = acting, type(conds[0]).cat([*away, *conds])
        self._weight = torch.cat([part.weight for part in parts.values()])
        self._guided_rows = guided_indices(self._weight)
        self._asked = torch.cat([self._guided_rows.cpu(), torch.arange(len(self._weight))])
        at = torch.arange(len(self._rows), device=self._guided_rows.device).split(
            [*(0 if rows is None else len(rows) for rows in unconds), *map(len, conds)]
        )
        self._where = {key: torch.cat(pair) for key, *pair in zip(parts, at, at[len(parts) :], strict=False)}

    def _output(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's, its deeper levels computed for the requests that are due."""
        if all(self.reuse.get(key, 1) == 1 for key in self._where):
            return self.network(x, t, self._rows, self._guided_rows)
        kept = {key: self._held[key] for key, where in self._where.items() if not self._due(key, len(where))}
        due, deep = [where for key, where in self._where.items() if key not in kept], None
        for key, held in kept.items():  # once guidance is gone, without the rows that were led away from
            where, deep = self._where[key], held.deep.new_empty(len(t), *held.deep.shape[1:]) if deep is None else deep
            deep[where] = held.deep[-len(where) :]
        forward_cached: Any = self.network.forward_cached  # type: ignore[attr-defined]
        output, deep = forward_cached(x, t, self._rows, deep, torch.cat(due) if due else None, self._guided_rows)
        for key, where in self._where.items():
            self._held[key] = Held(deep[where], kept[key].calls + 1 if key in kept else 1)
        return output

    def _due(self, key: Hashable, rows: int) -> bool:
        """Whether a request's deep features are to be computed: they served their calls, or guidance came and has
        none."""
        held = self._held.get(key)
        return held is None or held.calls >= self.reuse.get(key, 1) or len(held.deep) < rows
