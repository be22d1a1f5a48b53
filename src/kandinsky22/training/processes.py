"""One process, or several that `torchrun` started: who shares what. Gradients, averages and the optimiser's state are
sharded over them by FSDP2; a network is gathered whole for its forward and backward pass (ZeRO-2: the largest of
Kandinsky 2.2 has 1.25 billion numbers, which one device can hold; the four more of each that training adds are what is heavy).
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
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

from kandinsky22.training.flops import contexts

T = TypeVar("T")

CPU = torch.device("cpu")
DEVICES = ("cpu", "cuda")
PATIENCE = timedelta(hours=6)  # for one that computes latents or draws a sheet; one that died is told of at once
SUPERVISOR = "KANDINSKY22_SUPERVISOR"  # the id of the process that watches over this one, in its environment
GLANCE = 0.2  # seconds between looks at whether that is still there


class Learner(nn.Module):
    """A network and how wrong it is, as one module: what FSDP gathers before its forward pass, whichever of the network's
    methods the loss calls."""

    def __init__(self, network: nn.Module, loss: Callable[[Any], Any]) -> None:
        super().__init__()
        self.network, self.loss = network, loss

    def forward(self, rows: Any) -> Any:
        """The loss of rows."""
        return self.loss(rows)


@dataclass(frozen=True)
class Processes:
    """This process among `count`, and the device it computes on."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and reports."""
        return self.rank == 0

    def shared_out(self, network: nn.Module, loss: Callable[[Any], Any], *, checkpointing: bool) -> Learner:
        """The network on the device, its numbers sharded over the processes; they all have the first one's."""
        network.to(self.device)
        if checkpointing:
            checkpointed(network)
        learner = Learner(network, loss)
        if self.count > 1:
            for value in network.state_dict().values():
                dist.broadcast(value, 0)
            fully_shard(learner, mesh=init_device_mesh(self.device.type, (self.count,)), reshard_after_forward=False)
        return learner

    @staticmethod
    def gather_gradients_after(learner: nn.Module, this: bool) -> None:
        """Whether the next backward pass is the one after which gradients are summed over the processes."""
        if isinstance(learner, FSDPModule):
            learner.set_requires_gradient_sync(this)

    def summed(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Sums over all processes of float64 scalars."""
        together = torch.stack(list(values.values()))
        if self.count > 1:
            dist.all_reduce(together)
        return dict(zip(values, together.tolist(), strict=True))

    @staticmethod
    def own(values: Iterable[Tensor]) -> list[Tensor]:
        """The part of each tensor that lies in this process."""
        return [value.to_local() if isinstance(value, DTensor) else value for value in values]

    def gathered(self, rows: Tensor) -> Tensor:
        """The rows [n, ...] of all processes, each having as many, in the batch's order: row r of process p of P is row
        rP + p of it. Gradients flow back to the process that a row came from."""
        return rows if self.count == 1 else _Gathered.apply(rows, self.rank, self.count)

    def told_by_first(self, work: Callable[[], T]) -> T:
        """What the first process finds, which all wait for and are told. Where it raises `OSError` or `ValueError`, all do."""
        told: list[Any] = [None, None]
        if self.first:
            try:
                told = [work(), None]
            except (OSError, ValueError) as error:
                told = [None, error]
        if self.count > 1:
            dist.broadcast_object_list(told)
        found, raised = told
        if raised is not None:
            raise raised
        result: T = found
        return result

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()


class _Gathered(torch.autograd.Function):
    """The rows of all processes, interleaved; a row's gradient is the sum of what they all found for it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, count: int) -> Tensor:
        ctx.rank, ctx.count = rank, count
        every = [torch.empty_like(rows) for _ in range(count)]
        dist.all_gather(every, rows.contiguous())
        return torch.stack(every, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        summed = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed[ctx.rank :: ctx.count], None, None


ALONE = Processes()


def join(device: str | None = None) -> Processes:
    """What `torchrun` started, or this process alone. `device` is a torch device type; without it, CUDA where there is one.

    Raises `ValueError` for a device that is not here.
    """
    there = torch.cuda.is_available()
    if device is not None and (device not in DEVICES or (device == "cuda" and not there)):
        here = " or ".join(DEVICES) if there else "cpu, as there is no CUDA device here"
        raise ValueError(f"networks cannot be trained on {device!r}; use {here}")
    kind = device or ("cuda" if there else "cpu")
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1 or SUPERVISOR in os.environ:
        threading.Thread(target=_end_with_parents, args=(os.getppid(),), daemon=True).start()
    if count == 1:
        return Processes(device=torch.device(kind))
    local = torch.device(kind, int(os.environ["LOCAL_RANK"])) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=PATIENCE)
    return Processes(dist.get_rank(), count, local)


def _end_with_parents(parent: int) -> None:
    """End this process when the one that started it, or the supervisor, was killed: whoever starts the run again must not
    find it still going on, and writing to the same folder."""
    supervisor = int(os.environ.get(SUPERVISOR, parent))
    while os.getppid() == parent and _lives(supervisor):
        time.sleep(GLANCE)
    os._exit(1)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def unsharded(value: Tensor) -> Tensor:
    """A tensor that may be sharded, whole; all processes must ask together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def blocks(network: nn.Module) -> list[nn.Module]:
    """A network's repeated parts: what its innermost lists of modules hold. Attention's `to_out`, a list for its name in the
    published files, is none."""

    def lists(within: nn.Module) -> list[nn.ModuleList]:
        named = within.named_modules()
        return [m for name, m in named if isinstance(m, nn.ModuleList) and not name.endswith("to_out")]

    return [block for held in lists(network) for block in held if not lists(block)]


def checkpointed(network: nn.Module) -> nn.Module:
    """The same network, which keeps no activations of its blocks and computes them again for their gradients."""
    for block in blocks(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
    return network
