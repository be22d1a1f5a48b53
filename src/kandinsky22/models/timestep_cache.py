"""Values that a network computes once per run for all its timesteps: they depend on t and the condition, not on x."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_TIMESTEPS = 100  # how many timesteps of a run are cached; the values stay in memory for the whole run


@dataclass(frozen=True, slots=True)
class TimestepCache:
    """Values [B, T, ...] of B rows at T timesteps each.

    t: int64 [B, T], -1 where a row has fewer than T timesteps. It stays on the CPU, so that looking a timestep up does
    not wait for the device.
    """

    t: Tensor
    values: Tensor

    @classmethod
    def cat(cls, parts: Sequence[Self | None]) -> Self | None:
        """All rows of `parts` in order, or None if any part has no cache."""
        caches = [part for part in parts if part is not None]
        if len(caches) < len(parts):
            return None
        longest = max(cache.t.shape[1] for cache in caches)
        values = [F.pad(c.values, (*(0, 0) * (c.values.ndim - 2), 0, longest - c.t.shape[1])) for c in caches]
        return cls(torch.cat([F.pad(c.t, (0, longest - c.t.shape[1]), value=-1) for c in caches]), torch.cat(values))

    def __getitem__(self, rows: slice | Tensor) -> Self:
        return type(self)(self.t[rows if isinstance(rows, slice) else rows.cpu()], self.values[rows])

    def at(self, t: Tensor) -> Tensor | None:
        """The values [B, ...] at timesteps t [B], or None if some row has no value for its timestep."""
        matches = self.t == t.cpu()[:, None]
        if not bool(matches.any(dim=1).all()):
            return None
        index = torch.arange(len(matches), device="cpu") * matches.shape[1] + matches.byte().argmax(dim=1)
        return self.values.flatten(0, 1)[index.to(self.values.device, non_blocking=True)]


def cached_timesteps(timesteps: Sequence[int], rows: int) -> Tensor:
    """The timesteps of a run that are cached (the first `MAX_TIMESTEPS`), for each row: int64 [rows, T] on the CPU."""
    return torch.tensor(timesteps[:MAX_TIMESTEPS], device="cpu").expand(rows, -1)


def repeat_guided(x: Tensor, guided_rows: Tensor | None) -> Tensor:
    """Rows [B, ...] as classifier-free guidance needs them: the guided rows first, once more, then all rows.

    guided_rows: indices [n] into x, or None. Returns [n + B, ...].
    """
    return x if guided_rows is None or not len(guided_rows) else torch.cat([x[guided_rows], x])
