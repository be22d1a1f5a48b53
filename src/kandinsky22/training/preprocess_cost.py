"""Memory and operations of what a run computes without gradients: latents and embeddings before the first step, sample
grids between steps.

Like a training step, the work can be counted on fake tensors, which have shapes and no numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from kandinsky22.training.flops import FlopCounter
from kandinsky22.training.memory_modes import PeakMemory


class InferenceCost(NamedTuple):
    """Peak memory in bytes, above the memory in use before, and operations, of work without gradients."""

    memory: int = 0
    operations: int = 0

    def times(self, count: float) -> "InferenceCost":
        """The cost of the same work `count` times in a row."""
        return InferenceCost(self.memory, round(self.operations * count))

    def then(self, *others: "InferenceCost") -> "InferenceCost":
        """The cost of this work followed by others."""
        costs = (self, *others)
        return InferenceCost(max(cost.memory for cost in costs), sum(cost.operations for cost in costs))

    def with_weights(self, *networks: nn.Module) -> "InferenceCost":
        """The cost with the memory of these networks' weights."""
        return InferenceCost(self.memory + sum(map(network_bytes, networks)), self.operations)


NO_COST = InferenceCost()


class PrecomputedCost(NamedTuple):
    """A value that is computed once for every picture and then read from disk."""

    name: str  # "latents", for example
    pictures: int
    operations: int  # for one picture
    disk: int  # bytes for one picture


class PreprocessCost(NamedTuple):
    """Everything computed before the first step: the peak memory in bytes, and each precomputed value."""

    memory: int
    values: tuple[PrecomputedCost, ...]

    @property
    def operations(self) -> int:
        """For all pictures."""
        return sum(value.pictures * value.operations for value in self.values)

    @property
    def disk(self) -> int:
        """Bytes for all pictures."""
        return sum(value.pictures * value.disk for value in self.values)


def inference_cost(work: Callable[[], object], *, bfloat16: bool = False) -> InferenceCost:
    """The cost of some work without gradients; `bfloat16`: under autocast."""
    with (
        torch.no_grad(),
        FlopCounter() as counter,
        PeakMemory() as memory,
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
    ):
        result = work()
    del result
    return InferenceCost(memory.peak, counter.total)


def network_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers; shared ones count once."""
    return sum(value.nbytes for value in {*network.parameters(), *network.buffers()})
