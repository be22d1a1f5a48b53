"""A network with its schedule as the denoiser that samplers ask, for any number of requests at once.

Guidance needs a second row for a picture whose weight is not 1; all rows of all requests go through the network in one
call. Knows the two ways a network is told what to paint (rows of a prefix, rows of a condition) only as rows.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from kandinsky22.diffusion import NoiseSchedule, Prediction, guide, interpret, split_variance


class Rows(Protocol):
    """What a network is conditioned on: rows that concatenate."""

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self: ...

    def __getitem__(self, rows: Tensor) -> Self: ...

    def __len__(self) -> int: ...


R = TypeVar("R", bound=Rows)


def led_rows(weight: Tensor) -> Tensor:
    """The rows [B] that guidance moves: those whose weight is not 1."""
    return (weight != 1).nonzero()[:, 0]


@dataclass(frozen=True, slots=True)
class Guided(Generic[R]):
    """What a request's pictures are guided by: a condition for each row, and for the rows whose weight is not 1, in
    order, one to lead away from. `weight` is float32 [rows], on the network's device."""

    cond: R
    uncond: R | None
    weight: Tensor

    @classmethod
    def by(cls, cond: R, uncond: R, weight: Tensor) -> "Guided[R]":
        """Rows to lead to and, for each, one to lead away from; those whose weight is 1 are led by nothing."""
        led = led_rows(weight)
        return cls(cond, uncond[led] if len(led) else None, weight)

    @classmethod
    def join(cls, parts: Sequence["Guided[R]"]) -> "Guided[R]":
        """All rows of `parts`, in order."""
        kind = type(parts[0].cond)
        unconds = [p.uncond for p in parts if p.uncond is not None]
        return Guided(
            kind.cat([p.cond for p in parts]),
            kind.cat(unconds) if unconds else None,
            torch.cat([p.weight for p in parts]),
        )


class Denoiser(Generic[R]):
    """Answers for a whole group of requests: `denoiser(keys, x, t)` with x [rows, ...] and t [rows], row after row of the
    requests named by `keys`. The state x stays float32; the network works in its own dtype."""

    def __init__(
        self, network: Callable[[Tensor, Tensor, R], Tensor], schedule: NoiseSchedule, guided: Mapping[Any, Guided[R]],
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        self.network, self.schedule, self.guided, self.dtype = network, schedule, guided, dtype
        self._keys: tuple[Hashable, ...] = ()

    def __call__(self, keys: Sequence[Hashable], x: Tensor, t: Tensor) -> Prediction:
        if tuple(keys) != self._keys:  # the company changed: lay the rows out anew
            self._keys = tuple(keys)
            group = Guided.join([self.guided[key] for key in keys])
            self._weight, self._led = group.weight, led_rows(group.weight)
            self._rows = group.cond if group.uncond is None else type(group.cond).cat([group.uncond, group.cond])
        led = self._led
        output = self.network(torch.cat([x[led], x]).to(self.dtype), torch.cat([t[led], t]), self._rows).to(x.dtype)
        prediction, variance = split_variance(output, x)
        uncond, cond = prediction[: len(led)], prediction[len(led) :]
        if len(led):
            cond = cond.index_copy(0, led, guide(uncond, cond[led], self._weight[led]))
        return interpret(cond, x, t, self.schedule, None if variance is None else variance[len(led) :])
