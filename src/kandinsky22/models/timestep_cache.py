"""What a network computes of a run's timesteps once, before the run: all that depends on them and on the condition alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

MOST = 100  # timesteps that are computed ahead; what they come to stays in memory for the whole run


@dataclass(frozen=True, slots=True)
class TimestepCache:
    """Values [B, T, ...] of B rows at T timesteps each.

    t: whole numbers [B, T], -1 where there is none; on the CPU, where they are looked at without waiting for a device.
    """

    t: Tensor
    values: Tensor

    @classmethod
    def cat(cls, parts: Sequence[Self | None]) -> Self | None:
        """All rows of `parts`, in order, if each of them has any."""
        known = [part for part in parts if part is not None]
        if len(known) < len(parts):
            return None
        most = max(part.t.shape[1] for part in known)
        values = [F.pad(p.values, (*(0, 0) * (p.values.ndim - 2), 0, most - p.t.shape[1])) for p in known]
        return cls(torch.cat([F.pad(p.t, (0, most - p.t.shape[1]), value=-1) for p in known]), torch.cat(values))

    def __getitem__(self, rows: slice | Tensor) -> Self:
        return type(self)(self.t[rows if isinstance(rows, slice) else rows.cpu()], self.values[rows])

    def at(self, t: Tensor) -> Tensor | None:
        """The values [B, ...] at timesteps t [B], or None where that of some row was not foreseen."""
        here = self.t == t.cpu()[:, None]
        if not bool(here.any(dim=1).all()):
            return None
        where = torch.arange(len(here), device="cpu") * here.shape[1] + here.byte().argmax(dim=1)
        return self.values.flatten(0, 1)[where.to(self.values.device, non_blocking=True)]


def each(timesteps: Sequence[int], rows: int) -> Tensor:
    """The first timesteps of a run, as many as are computed ahead, for every row: [rows, T], on the CPU."""
    return torch.tensor(timesteps[:MOST], device="cpu").expand(rows, -1)


def repeat_guided(x: Tensor, guided_rows: Tensor | None) -> Tensor:
    """Rows of a state or of what is made of it, as a guided network answers them: those that are led, once more, then all."""
    return x if guided_rows is None or not len(guided_rows) else torch.cat([x[guided_rows], x])
