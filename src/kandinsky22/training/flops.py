"""Counting operations, two for each multiplication with addition: those that are needed, and those that are done again."""

from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


class Operations(FlopCounterMode):
    """Counts what is computed within it. `again` is how much of `total` checkpointed blocks computed a second time."""

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=_ATTENTION)
        self.again = 0

    @property
    def total(self) -> int:
        """All of them."""
        return int(self.get_total_flops())

    def __enter__(self) -> "Operations":
        super().__enter__()
        AGAIN.counting.append(self)
        return self

    def __exit__(self, *raised: Any) -> None:
        AGAIN.counting.remove(self)
        super().__exit__(*raised)


class _Again:
    """The context of a checkpointed block's second forward pass: tells whoever counts. These may lie in one another."""

    def __init__(self) -> None:
        self.counting: list[Operations] = []
        self._before: list[list[int]] = []

    def __enter__(self) -> None:
        self._before.append([counter.total for counter in self.counting])

    def __exit__(self, *raised: object) -> None:
        before = self._before.pop()
        if not self._before:
            for counter, was in zip(self.counting, before, strict=True):
                counter.again += counter.total - was


AGAIN = _Again()


def contexts() -> tuple[Any, Any]:
    """For `torch.utils.checkpoint.checkpoint`: around the first pass, and around the second."""
    return nullcontext(), AGAIN


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    """PyTorch counts every attention but the CPU's, which does the same; these are shapes."""
    return sdpa_flop_count(q, k, v)


def _attention_backward(gradient: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, q, k, v)


_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
