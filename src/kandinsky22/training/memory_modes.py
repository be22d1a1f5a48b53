"""Torch modes that measure the memory of tensors: what a forward pass saves for its backward pass, and the peak of live
tensors.

They count storages, so views count once, and work on fake tensors as on real ones.
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kandinsky22.training.processes import blocks

Storages: TypeAlias = dict[int, torch.UntypedStorage]
"""Distinct storages by their address. A storage that is referenced here is not freed, so its address is not reused."""


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of tensors created within it that are alive: `current` ones, and the `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.current, self.peak = 0, 0
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {_address(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and (key := _address(value)) not in inputs and key not in self._alive:
                self._add(key, value.untyped_storage())
        return result

    def _add(self, key: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()

        def remove(_: object) -> None:
            self.current -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, remove)
        self.current += size
        self.peak = max(self.peak, self.current)


class SavedTensors(TorchDispatchMode):
    """Counts the bytes that a forward pass saves for its backward pass, and those of weights it copies to another
    dtype.

    A checkpointed block saves its inputs. Everything else within it is saved only while its gradients are computed, so
    of those the largest block counts.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._weights = _storages(network.parameters())
        self._copies: Storages = {}
        self._saved: Storages = {}
        self._within: list[
            Storages
        ] = []  # what each call of a checkpointed block saves while its gradients are computed
        self._current = self._saved

    @property
    def activations(self) -> int:
        """Bytes saved by the forward pass, and by the largest checkpointed block in addition."""
        added = ({key: value for key, value in storages.items() if key not in self._saved} for storages in self._within)
        return _size(self._saved) + max(map(_size, added), default=0)

    @property
    def weight_copies(self) -> int:
        """Bytes of weights that were converted to another dtype."""
        return _size(self._copies)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and _address(args[0]) in self._weights:
            self._copies |= _storages([result])
        return result

    def save(self, tensor: Tensor) -> Tensor:
        """The `pack_hook` of `saved_tensors_hooks`."""
        if (address := _address(tensor)) not in self._weights and address not in self._copies:
            self._current[address] = tensor.untyped_storage()
        return tensor

    def enter_block(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        """The pre-forward hook of a checkpointed block."""
        self._saved |= _storages(value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        self._current = {}
        self._within.append(self._current)

    def exit_block(self, block: nn.Module, args: Any, result: Any) -> None:
        """The forward hook of a checkpointed block."""
        self._current = self._saved


@contextmanager
def saved_tensors(network: nn.Module, *, checkpointing: bool) -> Iterator[SavedTensors]:
    """Count what a forward pass within this context saves; `checkpointing`: as if the network's blocks were
    checkpointed."""
    saved, hooks = SavedTensors(network), []
    for block in blocks(network) if checkpointing else ():
        hooks += [
            block.register_forward_pre_hook(saved.enter_block, with_kwargs=True),
            block.register_forward_hook(saved.exit_block),
        ]
    with saved, saved_tensors_hooks(saved.save, lambda tensor: tensor):
        yield saved
    for hook in hooks:
        hook.remove()


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _storages(tensors: Iterable[Tensor]) -> Storages:
    return {_address(tensor): tensor.untyped_storage() for tensor in tensors}


def _size(storages: Storages) -> int:
    return sum(storage.nbytes() for storage in storages.values())
