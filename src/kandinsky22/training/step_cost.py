"""Memory and operations of a training step, counted by running one part of it forward and backward.

On fake tensors, which have shapes and no numbers, a network of any size is counted in seconds with almost no memory.
"""

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from kandinsky22.training.flops import FlopCounter
from kandinsky22.training.loop import Batch, Loss, Recipe
from kandinsky22.training.memory_modes import saved_tensors
from kandinsky22.training.processes import LossModule, checkpoint_blocks


class StepCost(NamedTuple):
    """One part of a step: bytes saved for its backward pass, bytes of weights in bfloat16, and operations."""

    activations: int
    weight_copies: int
    operations: int  # forward and backward
    recomputed: int  # by checkpointing, in addition


def step_cost(network: nn.Module, loss: Loss, rows: Batch, recipe: Recipe, *, device: str) -> StepCost:
    """Compute the loss of rows and its gradients as the training loop does, and count. `device` is "cuda" or "cpu":
    whose rules of mixed precision apply.

    With a recipe that has checkpointing, the network's blocks remain checkpointed; its gradients are dropped.
    """
    module = LossModule(network, loss)
    activations, weight_copies, operations = _measure(module, rows, recipe, device)
    total = operations
    if recipe.checkpointing:
        checkpoint_blocks(network)
        # CUDA's rules do not change the operations, and their mode would end before the backward pass recomputes
        # blocks.
        _, _, total = _measure(module, rows, recipe, "cpu")
    return StepCost(activations, weight_copies, operations, recomputed=total - operations)


def _measure(module: LossModule, rows: Batch, recipe: Recipe, device: str) -> tuple[int, int, int]:
    """Bytes saved by the forward pass, bytes of weights in bfloat16, and operations of forward and backward pass."""
    rules = _CudaAutocast() if device == "cuda" else nullcontext()
    with FlopCounter() as counter:
        saving = saved_tensors(module.network, checkpointing=recipe.checkpointing)
        with saving as saved, rules, torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            losses, _ = module(rows)
        losses.sum().backward()
    module.zero_grad(set_to_none=True)
    return saved.activations, saved.weight_copies, counter.total


class _CudaAutocast(TorchFunctionMode):
    """On the CPU, the rules of CUDA's autocast: it computes normalisation in float32, the CPU's does not."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.group_norm, F.layer_norm) and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))
