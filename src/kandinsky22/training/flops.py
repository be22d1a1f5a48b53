"""Floating-point operations, two for each multiply-add, and how many of them checkpointing computed a second time."""

from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


class FlopCounter(FlopCounterMode):
    """Counts the operations computed within it; `recomputed` are those of `total` that checkpointed blocks computed
    again."""

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=_ATTENTION)
        self.recomputed = 0

    @property
    def total(self) -> int:
        """All operations, recomputed ones included."""
        return int(self.get_total_flops())

    def __enter__(self) -> "FlopCounter":
        super().__enter__()
        _RECOMPUTATION.counters.append(self)
        return self

    def __exit__(self, *raised: Any) -> None:
        _RECOMPUTATION.counters.remove(self)
        super().__exit__(*raised)


class _Recomputation:
    """The context of a checkpointed block's second forward pass, which adds to `FlopCounter.recomputed`. Contexts
    may be nested: the outermost counts."""

    def __init__(self) -> None:
        self.counters: list[FlopCounter] = []
        self._totals: list[list[int]] = []

    def __enter__(self) -> None:
        self._totals.append([counter.total for counter in self.counters])

    def __exit__(self, *raised: object) -> None:
        before = self._totals.pop()
        if not self._totals:
            for counter, total in zip(self.counters, before, strict=True):
                counter.recomputed += counter.total - total


_RECOMPUTATION = _Recomputation()


def checkpoint_contexts() -> tuple[Any, Any]:
    """`context_fn` of `torch.utils.checkpoint.checkpoint`: the contexts of the first forward pass and of the second."""
    return nullcontext(), _RECOMPUTATION


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """For the CPU's attention kernel, which PyTorch does not count. Arguments are shapes."""
    return sdpa_flop_count(q, k, v)


def _attention_backward(gradient: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, q, k, v)


_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
