"""What a run does beside its steps, counted: latents and embeddings before the first, sheets between them.

Nothing learns meanwhile, so what counts is the most that lives at once. Like a step, it is run on tensors without numbers.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kandinsky22.training.flops import Operations


class Aside(NamedTuple):
    """Bytes that are needed beside what a run keeps, and operations."""

    memory: int = 0
    operations: int = 0

    def times(self, count: float) -> "Aside":
        """So often, one after the other."""
        return Aside(self.memory, round(self.operations * count))

    def then(self, *others: "Aside") -> "Aside":
        """One after the other."""
        each = (self, *others)
        return Aside(max(one.memory for one in each), sum(one.operations for one in each))

    def with_weights(self, *networks: nn.Module) -> "Aside":
        """With these networks there all the while."""
        return Aside(self.memory + sum(map(weight, networks)), self.operations)


NOTHING = Aside()


class Once(NamedTuple):
    """Something that is computed of every picture, and read from disk from then on."""

    what: str
    pictures: int
    operations: int  # of one picture
    disk: int  # bytes, of one picture


class Before(NamedTuple):
    """All that is computed before the first step: bytes of memory meanwhile, and what."""

    memory: int
    each: tuple[Once, ...]

    @property
    def operations(self) -> int:
        """Of all pictures."""
        return sum(one.pictures * one.operations for one in self.each)

    @property
    def disk(self) -> int:
        """Bytes of all pictures."""
        return sum(one.pictures * one.disk for one in self.each)


def aside(work: Callable[[], object], *, bfloat16: bool = False) -> Aside:
    """What some work without gradients takes, without what was there before it."""
    with (
        torch.no_grad(),
        Operations() as counter,
        living() as alive,
        torch.autocast("cpu", torch.bfloat16, enabled=bfloat16),
    ):
        result = work()
    del result
    return Aside(alive.most, counter.total)


def weight(network: nn.Module) -> int:
    """Bytes of a network's numbers, of those that it shares once."""
    return sum(value.nbytes for value in {*network.parameters(), *network.buffers()})


class Living(TorchDispatchMode):
    """Watches tensors come and go: `now` and at `most` so many bytes of those that came since."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most = 0, 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_address(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and (key := _address(value)) not in given and key not in self._alive:
                self._came(key, value.untyped_storage())
        return result

    def _came(self, key: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()

        def gone(_: object) -> None:
            self.now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


@contextmanager
def living() -> Iterator[Living]:
    """Watch what is done within it."""
    with Living() as alive:
        yield alive


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
