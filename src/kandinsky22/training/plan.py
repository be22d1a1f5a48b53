"""What a run needs, before anything starts: the memory of one process and the time, from counted bytes and operations.

One part of a step is run on tensors that have shapes and no numbers, forward and back, so a network of any size is counted
in seconds and next to no memory. What is counted is what PyTorch keeps and does; how fast a device does it is assumed.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kandinsky22.engine import cost
from kandinsky22.engine.device import computes_bfloat16
from kandinsky22.training.flops import Operations
from kandinsky22.training.loop import Batch, Recipe, refuse_uncut
from kandinsky22.training.preprocess_cost import NOTHING, Aside, Before
from kandinsky22.training.processes import Learner, blocks, checkpointed

Loss: TypeAlias = Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]
Storages: TypeAlias = dict[int, torch.UntypedStorage]
"""Distinct pieces of memory by their address in PyTorch; holding them keeps an address from being given twice."""

FLOAT32 = 4  # bytes: of weights, gradients, moments and averages
MOMENTS = 2  # AdamW's, of every number
GIB, DAY, HOUR = 2**30, 86_400, 3600
SHARE = 0.4  # of a device's peak that training reaches: what large networks report lies between 0.3 and 0.5
ROOM = 0.9  # of a device's memory that may be planned: the rest is for its context, workspaces and tensors of a moment


class Device(NamedTuple):
    """A maker's figures: memory in bytes, and multiplications and additions a second, dense (not sparse)."""

    memory: float
    bfloat16: float
    float32: float


DEVICES = {
    "H100 SXM": Device(80e9, 989e12, 67e12),
    "H200 SXM": Device(141e9, 989e12, 67e12),
    "A100 80GB": Device(80e9, 312e12, 19.5e12),
    "L40S": Device(48e9, 362e12, 91.6e12),
    "RTX 4090": Device(24e9, 165e12, 82.6e12),
}


class Counted(NamedTuple):
    """Of one part of a step: bytes kept for its backward pass, bytes of weights as bfloat16, and operations."""

    activations: int
    copies: int
    operations: int  # forward and backward
    recomputed: int  # by checkpointing, once more


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run needs. Memory is in bytes of one process, at the moment when a part's backward pass begins; operations are
    of one step over all processes, two for each multiplication with addition.

    Everything is added up, as if all gradients were there while all activations still are, which is so from a step's second
    part on; a step of one part needs less.
    """

    recipe: Recipe
    steps: int
    processes: int
    rows: int  # of the largest part
    parameters: int  # numbers that the network has, those that do not learn included
    weights: int  # this process's share, float32
    gathered: int  # all weights, while a step runs; 0 for a single process, whose share they are
    gradients: int  # whole: they are shared out after a step's last backward pass
    moments: int
    average: int
    copies: int  # of weights in bfloat16, for matrix products
    activations: int
    frozen: int
    operations: int
    recomputed: int
    sheet: Aside = NOTHING  # what one process draws between steps, and how often
    sheets: int = 0
    before: Before | None = None  # what is computed before the first step

    @property
    def state(self) -> int:
        """Bytes that do not depend on how many rows a part has."""
        learnt = self.weights + self.gathered + self.gradients + self.moments + self.average
        return learnt + self.copies + self.frozen

    @property
    def total(self) -> int:
        """Bytes that one process needs in a step."""
        return self.state + self.activations

    @property
    def drawing(self) -> int:
        """Bytes that the process which draws a sheet needs: gradients and activations are gone, and another copy of the
        weights, whole, is there."""
        return self.weights + self.moments + self.average + self.frozen + self.sheet.memory

    @property
    def most(self) -> int:
        """Bytes that one process needs at any time."""
        return max(self.total, self.drawing if self.sheets else 0, self.before.memory if self.before else 0)

    def seconds(self, rate: float) -> float:
        """Of all steps, where each process does `rate` operations a second. Reading data and exchanging gradients come on
        top, as does what is beside them."""
        return self.steps * (self.operations + self.recomputed) / (self.processes * rate)


def planned(
    network: Callable[[], nn.Module],
    loss: Callable[[nn.Module], Loss],
    rows: Callable[[int], Batch],
    recipe: Recipe,
    steps: int,
    *,
    processes: int,
    frozen: int = 0,
    device: str = "cuda",
    sheet: Aside = NOTHING,
    sheets: int = 0,
    before: Before | None = None,
) -> Plan:
    """Count a run of `steps`. `network` makes what learns, `loss` what it learns, `rows` that many rows of the right shapes:
    all three are called where tensors have no numbers, so none may look at one. `frozen` is the bytes of networks that the
    loss uses and that do not learn. `device` is "cuda" or "cpu": whose rules of mixed precision hold. `sheet`, of which so
    many are drawn, and `before` are counted already.

    Raises `ValueError` where the batch cannot be cut as asked.
    """
    refuse_uncut(recipe, processes, coupled=False)
    largest = ceil(recipe.batch / (processes * recipe.accumulate))
    with FakeTensorMode(allow_non_fake_inputs=True):  # constants of modules have numbers
        learning = network()
        part = counted(learning, loss(learning), rows(largest), recipe, device=device)
        parameters = list(learning.parameters())
        learnt = [p for p in parameters if p.requires_grad]
        whole = sum(p.numel() for p in parameters)
        return Plan(
            recipe=recipe,
            steps=steps,
            processes=processes,
            rows=largest,
            parameters=whole,
            weights=FLOAT32 * _share(parameters, processes) + sum(buffer.nbytes for buffer in learning.buffers()),
            gathered=FLOAT32 * whole if processes > 1 else 0,
            gradients=FLOAT32 * sum(p.numel() for p in learnt),
            moments=MOMENTS * FLOAT32 * _share(learnt, processes),
            average=FLOAT32 * _share(learnt, processes),
            copies=part.copies,
            activations=part.activations,
            frozen=frozen,
            operations=round(part.operations * recipe.batch / largest),
            recomputed=round(part.recomputed * recipe.batch / largest),
            sheet=sheet,
            sheets=sheets,
            before=before,
        )


def counted(network: nn.Module, loss: Loss, rows: Batch, recipe: Recipe, *, device: str) -> Counted:
    """Run one part as the training loop does, and count it; on tensors with numbers it does the same. The network's blocks
    stay checkpointed, and its gradients are dropped."""
    learner = Learner(network, loss)
    activations, copies, operations = _measured(learner, rows, recipe, device)
    again = operations
    if recipe.checkpointing:
        checkpointed(network)
        # CUDA's rules change no operations, and would end before the backward pass runs blocks again
        _, _, again = _measured(learner, rows, recipe, "cpu")
    return Counted(activations, copies, operations, recomputed=again - operations)


def reached(device_name: str, *, bfloat16: bool = True) -> float:
    """Operations a second to plan with: `SHARE` of a device's published peak, or, for "cpu", measured here in a second or
    two. Raises `ValueError` for an unknown name."""
    if device_name == "cpu":
        cpu = torch.device("cpu")
        return cost.rate(cpu, torch.bfloat16 if bfloat16 and computes_bfloat16(cpu) else torch.float32)
    if device_name not in DEVICES:
        raise ValueError(f"no figures for {device_name!r}; choose from {', '.join([*DEVICES, 'cpu'])}")
    return SHARE * _peak(DEVICES[device_name], bfloat16)


def table(plan: Plan, rate: float, device_name: str, single: float | None = None) -> list[str]:
    """Lines for a terminal: what each process of `device_name` needs, and the time at `rate` operations a second, as
    `reached` gives it; `single` is the rate in float32, in which sheets are drawn. Each says whether it is counted, or follows
    from an assumption."""
    recipe, device = plan.recipe, DEVICES.get(device_name)
    kept = "activations, kept within no block but the largest" if recipe.checkpointing else "activations"
    memory = [
        ("weights", plan.weights, "counted"),
        ("weights gathered from all processes", plan.gathered, "counted"),
        ("gradients", plan.gradients, "counted"),
        ("AdamW's two moments", plan.moments, "counted"),
        ("average of the weights", plan.average, "counted"),
        ("weights in bfloat16", plan.copies, "counted"),
        (f"{kept}, {plan.rows} rows", plan.activations, "counted"),
        ("networks that do not learn", plan.frozen, "as given"),
        ("memory of each process in a step", plan.total, "the sum"),
        ("while it draws a sheet, in one process", plan.drawing if plan.sheets else 0, "counted"),
        ("while latents and embeddings are computed", plan.before.memory if plan.before else 0, "counted"),
    ]
    lines = [f"{name:<58}{_gib(size):>12}  {source}" for name, size, source in memory if size]
    lines += _fit(plan, device, device_name) if device else []
    before = plan.before.each if plan.before else ()
    lines += [
        f"{f'{one.what} of {one.pictures:,} pictures, on disk':<58}{_gib(one.pictures * one.disk):>12}  counted"
        for one in before
    ]
    work = [("operations of a step", plan.operations), ("computed again by checkpointing", plan.recomputed)]
    work += [("operations of a sheet", plan.sheet.operations if plan.sheets else 0)]
    work += [
        (f"operations for {one.what} of {one.pictures:,} pictures", one.pictures * one.operations) for one in before
    ]
    lines += [f"{name:<58}{value / 1e12:>8.4g} T    counted" for name, value in work if value]
    if device:
        peak = _peak(device, recipe.bfloat16)
        source = f"assumed: {rate / peak:.0%} of the published peak, {peak / 1e12:g} T"
    else:
        source = "measured, or assumed by the caller"
    lines.append(f"{'operations a second of each ' + device_name:<58}{rate / 1e12:>8.4g} T    {source}")
    cut = f"{plan.steps} steps of {recipe.batch} rows on {plan.processes} x {device_name}"
    lines.append(f"{cut:<58}{_time(plan.seconds(rate)):>12}  follows from that; reading data and exchange come on top")
    if plan.sheets:
        drawn = f"{plan.sheets} sheets, each drawn by one process"
        lines.append(
            f"{drawn:<58}{_time(plan.sheets * plan.sheet.operations / (single or rate)):>12}  likewise, in float32"
        )
    if plan.before is not None:
        seconds = plan.before.operations / (plan.processes * rate)
        lines.append(f"{'latents and embeddings, before the first step':<58}{_time(seconds):>12}  likewise")
    return lines


def _fit(plan: Plan, device: Device, name: str) -> list[str]:
    """Whether the memory of a device is enough, and if not what would help."""
    room = ROOM * device.memory
    verdict = (
        f"of {_gib(device.memory)}, {ROOM:.0%} of which are planned with (assumed; the rest is for what is not counted)"
    )
    if plan.most <= room:
        return [f"It fits {name}: {verdict}."]
    if plan.total <= room:  # what is beside the steps does not fit
        fixes = ["more processes"] if plan.before is None or plan.before.memory <= room else []
    elif plan.state > room:
        shared = plan.weights + plan.moments + plan.average
        least = plan.state - shared + (0 if plan.gathered else plan.weights)  # with as many processes as there are
        fixes = ["more processes"] if least <= room else []
    else:
        rows = int(plan.rows * (room - plan.state) / plan.activations)
        fixes = [f"--accumulate {ceil(plan.recipe.batch / (plan.processes * rows))}"] if rows else []
        fixes += [] if plan.recipe.checkpointing else ["--checkpointing"]
        fixes += ["more processes"] if plan.rows > 1 else []
    return [f"It does NOT fit {name}: {verdict}. Use {', or '.join([*fixes, 'a device with more memory'])}."]


def _measured(learner: Learner, rows: Batch, recipe: Recipe, device: str) -> tuple[int, int, int]:
    """Bytes kept by a forward pass, bytes of weights as bfloat16, and operations of it and its backward pass."""
    rules = _CudaRules() if device == "cuda" else nullcontext()
    with Operations() as counter:
        keeping = _keeping(learner.network, checkpointing=recipe.checkpointing)
        with keeping as kept, rules, torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
            losses, _ = learner(rows)
        losses.sum().backward()
    learner.zero_grad(set_to_none=True)
    return kept.activations, _size(kept.copies), counter.total


class _Keeping(TorchDispatchMode):
    """Watches a forward pass: what is kept for the backward pass, and which weights are copied to another dtype.

    A block that is checkpointed keeps what it is given; all else it keeps is there only while its gradients are computed.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.weights = _storages(network.parameters())
        self.copies: Storages = {}
        self.kept: Storages = {}
        self.calls: list[Storages] = []  # what each call of a checkpointed block keeps while its gradients are computed
        self.into = self.kept

    @property
    def activations(self) -> int:
        """Bytes: of what stays, and of the largest call's own."""
        own = ({key: value for key, value in call.items() if key not in self.kept} for call in self.calls)
        return _size(self.kept) + max(map(_size, own), default=0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and _address(args[0]) in self.weights:
            self.copies |= _storages([result])
        return result

    def pack(self, saved: Tensor) -> Tensor:
        """Of `saved_tensors_hooks`."""
        if (address := _address(saved)) not in self.weights and address not in self.copies:
            self.into[address] = saved.untyped_storage()
        return saved

    def enter(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        """Before a checkpointed block: it keeps what it is given."""
        self.kept |= _storages(value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        self.into = {}
        self.calls.append(self.into)

    def leave(self, block: nn.Module, args: Any, result: Any) -> None:
        """After a checkpointed block."""
        self.into = self.kept


@contextmanager
def _keeping(network: nn.Module, *, checkpointing: bool) -> Iterator[_Keeping]:
    """Watch a forward pass; `checkpointing`: as if the network's blocks were checkpointed."""
    kept, hooks = _Keeping(network), []
    for block in blocks(network) if checkpointing else ():
        hooks += [
            block.register_forward_pre_hook(kept.enter, with_kwargs=True),
            block.register_forward_hook(kept.leave),
        ]
    with kept, saved_tensors_hooks(kept.pack, lambda saved: saved):
        yield kept
    for hook in hooks:
        hook.remove()


class _CudaRules(TorchFunctionMode):
    """On the CPU, mixed precision as it is on CUDA: there, and only there, normalisation is in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.group_norm, F.layer_norm) and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _share(parameters: Iterable[Tensor], processes: int) -> int:
    """How many numbers each process holds: FSDP cuts the first dimension, and the last piece is padded."""
    return sum(ceil(len(p) / processes) * (p.numel() // len(p)) if p.ndim else 1 for p in parameters)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _storages(tensors: Iterable[Tensor]) -> Storages:
    return {_address(tensor): tensor.untyped_storage() for tensor in tensors}


def _size(storages: Storages) -> int:
    return sum(storage.nbytes() for storage in storages.values())


def _peak(device: Device, bfloat16: bool) -> float:
    return device.bfloat16 if bfloat16 else device.float32


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def _time(seconds: float) -> str:
    if seconds >= DAY:
        return f"{seconds / DAY:.1f} days"
    return f"{seconds / HOUR:.1f} hours" if seconds >= HOUR else f"{seconds:.0f} seconds"
