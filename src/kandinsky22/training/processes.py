"""The processes of a run: one, or several that the supervisor or `torchrun` started.

FSDP2 shards gradients, averaged weights and the optimiser's state over them; the network's weights are gathered for the
forward and backward pass (ZeRO-2). One device can hold the weights, 1.25 billion for the largest network of Kandinsky
2.2; the four further values per weight that training adds are what needs sharding.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from kandinsky22.training.flops import checkpoint_contexts

T = TypeVar("T")

CPU = torch.device("cpu")
DEVICES = ("cpu", "cuda")
TIMEOUT = timedelta(hours=6)  # for a process that encodes images or samples a grid; one that died is noticed at once
SUPERVISOR = "KANDINSKY22_SUPERVISOR"  # environment variable: the id of the process that supervises this one
POLL = 0.2  # seconds between checks that the parent and the supervisor are alive


class LossModule(nn.Module):
    """A network and its loss as one module: FSDP gathers the weights before this module's forward pass, whichever of
    the network's methods the loss calls."""

    def __init__(self, network: nn.Module, loss: Callable[[Any], Any]) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, rows: Any) -> Any:
        """The loss of rows."""
        return self.loss(rows)


@dataclass(frozen=True)
class Processes:
    """This process, number `rank` of `count`, and the device it computes on."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and reports progress."""
        return self.rank == 0

    def shard(self, network: nn.Module, loss: Callable[[Any], Any], *, checkpointing: bool) -> LossModule:
        """Move the network to the device and shard its weights over the processes, starting from those of rank 0."""
        network.to(self.device)
        if checkpointing:
            checkpoint_blocks(network)
        module = LossModule(network, loss)
        if self.count > 1:
            for value in network.state_dict().values():
                dist.broadcast(value, 0)
            fully_shard(module, mesh=init_device_mesh(self.device.type, (self.count,)), reshard_after_forward=False)
        return module

    @staticmethod
    def set_gradient_sync(module: LossModule, sync: bool) -> None:
        """Whether gradients are summed over the processes after the next backward pass."""
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(sync)

    def all_reduce(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, computed in place."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The rows [n, ...] of all processes, which have the same number each, in the batch's order: row r of
        process p of P becomes row rP + p. Gradients flow back to the process that a row came from."""
        return rows if self.count == 1 else _GatherRows.apply(rows, self.rank, self.count)

    def broadcast_from_rank0(self, work: Callable[[], T]) -> T:
        """Run `work` in the first process and return its result in all. An `OSError` or `ValueError` is raised in
        all."""
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome = [work(), None]
            except (OSError, ValueError) as error:
                outcome = [None, error]
        if self.count > 1:
            dist.broadcast_object_list(outcome)
        result, raised = outcome
        if raised is not None:
            raise raised
        value: T = result
        return value

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.count > 1:
            dist.barrier()


class _GatherRows(torch.autograd.Function):
    """The rows of all processes, interleaved; a row's gradient is the sum of its gradients in all of them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, count: int) -> Tensor:
        ctx.rank, ctx.count = rank, count
        gathered = [torch.empty_like(rows) for _ in range(count)]
        dist.all_gather(gathered, rows.contiguous())
        return torch.stack(gathered, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.rank :: ctx.count], None, None


ALONE = Processes()


def join(device: str | None = None) -> Processes:
    """Join the processes that were started together, or return this process alone. `device` is a torch device type; by
    default CUDA where there is a device.

    Raises `ValueError` for a device that this machine does not have.
    """
    has_cuda = torch.cuda.is_available()
    if device is not None and (device not in DEVICES or (device == "cuda" and not has_cuda)):
        available = " or ".join(DEVICES) if has_cuda else "cpu, as there is no CUDA device here"
        raise ValueError(f"networks cannot be trained on {device!r}; use {available}")
    kind = device or ("cuda" if has_cuda else "cpu")
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 or SUPERVISOR in os.environ:
        threading.Thread(target=_exit_with_parents, args=(os.getppid(),), daemon=True).start()
    if count == 1:
        return Processes(device=torch.device(kind))
    local = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(local)
    if not dist.is_initialized():  # Ray Train has done so
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT)
    return Processes(dist.get_rank(), count, local)


def _exit_with_parents(parent: int) -> None:
    """End this process when its parent or the supervisor was killed: a run that is started again must not find this one
    still writing to the same folder."""
    supervisor = int(os.environ.get(SUPERVISOR, parent))
    while os.getppid() == parent and _is_alive(supervisor):
        time.sleep(POLL)
    os._exit(1)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def local_shards(values: Iterable[Tensor]) -> list[Tensor]:
    """The part of each tensor that lies in this process."""
    return [value.to_local() if isinstance(value, DTensor) else value for value in values]


def full_tensor(value: Tensor) -> Tensor:
    """The complete tensor of one that may be sharded; all processes must call this together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def blocks(network: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network: the elements of its innermost module lists. Attention's `to_out`, which is a
    list only to match the parameter names of published files, does not count."""

    def lists(within: nn.Module) -> list[nn.ModuleList]:
        named = within.named_modules()
        return [m for name, m in named if isinstance(m, nn.ModuleList) and not name.endswith("to_out")]

    return [block for modules in lists(network) for block in modules if not lists(block)]


def checkpoint_blocks(network: nn.Module) -> nn.Module:
    """The same network, whose blocks are now checkpointed: their activations are recomputed in the backward pass."""
    for block in blocks(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=checkpoint_contexts)
    return network
