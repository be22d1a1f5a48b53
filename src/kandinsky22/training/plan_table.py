"""A plan as a table for the terminal, and the figures of devices it is compared with."""

from math import ceil
from typing import NamedTuple

import torch

from kandinsky22.engine import cost
from kandinsky22.engine.device import computes_bfloat16
from kandinsky22.training.plan import Plan

GIB, DAY, HOUR = 2**30, 86_400, 3600
UTILISATION = 0.4  # share of a device's peak that training reaches: reports of large networks lie between 0.3 and 0.5
USABLE = 0.9  # share of a device's memory to plan with: the rest is for its context, workspaces and short-lived tensors


class Device(NamedTuple):
    """The manufacturer's figures: memory in bytes, and operations a second in each dtype, dense (not sparse)."""

    memory: float
    bfloat16: float
    float32: float

    def peak(self, *, bfloat16: bool) -> float:
        """Operations a second."""
        return self.bfloat16 if bfloat16 else self.float32


DEVICES = {
    "H100 SXM": Device(80e9, 989e12, 67e12),
    "H200 SXM": Device(141e9, 989e12, 67e12),
    "A100 80GB": Device(80e9, 312e12, 19.5e12),
    "L40S": Device(48e9, 362e12, 91.6e12),
    "RTX 4090": Device(24e9, 165e12, 82.6e12),
}


def expected_rate(device_name: str, *, bfloat16: bool = True) -> float:
    """Operations a second to plan with: `UTILISATION` of a device's published peak, or for "cpu" the rate of this
    one, measured in a second or two. Raises `ValueError` for an unknown name."""
    if device_name == "cpu":
        cpu = torch.device("cpu")
        return cost.rate(cpu, torch.bfloat16 if bfloat16 and computes_bfloat16(cpu) else torch.float32)
    if device_name not in DEVICES:
        raise ValueError(f"no figures for {device_name!r}; choose from {', '.join([*DEVICES, 'cpu'])}")
    return UTILISATION * DEVICES[device_name].peak(bfloat16=bfloat16)


def table(plan: Plan, rate: float, device_name: str, float32_rate: float | None = None) -> list[str]:
    """Lines for a terminal: what each process on `device_name` needs, and the time at `rate` operations a second, as
    `expected_rate` returns it. Sample grids are drawn in float32, at `float32_rate`. Each line states whether its
    value is counted or follows from an assumption."""
    device = DEVICES.get(device_name)
    return [
        *_memory_lines(plan),
        *(_fit_lines(plan, device, device_name) if device else ()),
        *_work_lines(plan),
        *_time_lines(plan, rate, device_name, float32_rate or rate),
    ]


def _memory_lines(plan: Plan) -> list[str]:
    checkpointing = plan.recipe.checkpointing
    activations = "activations with checkpointing" if checkpointing else "activations"
    memory = [
        ("weights", plan.weights, "counted"),
        ("weights gathered from all processes", plan.gathered, "counted"),
        ("gradients", plan.gradients, "counted"),
        ("AdamW's two moments", plan.moments, "counted"),
        ("average of the weights", plan.ema, "counted"),
        ("weights in bfloat16", plan.weight_copies, "counted"),
        (f"{activations}, {plan.rows} rows", plan.activations, "counted"),
        ("frozen networks", plan.frozen, "as given"),
        ("memory of each process in a step", plan.step_memory, "the sum"),
        ("while it draws a sample grid, in one process", plan.sampling_memory if plan.sample_grids else 0, "counted"),
        ("while latents and embeddings are computed", plan.preprocess.memory if plan.preprocess else 0, "counted"),
    ]
    return [f"{name:<58}{_gib(size):>12}  {source}" for name, size, source in memory if size]


def _fit_lines(plan: Plan, device: Device, name: str) -> list[str]:
    """Whether the memory of a device is enough, and if not, what would help."""
    usable = USABLE * device.memory
    figures = f"of {_gib(device.memory)}, {USABLE:.0%} are planned with (assumed; the rest is for what is not counted)"
    if plan.peak_memory <= usable:
        return [f"It fits {name}: {figures}."]
    if plan.step_memory <= usable:  # sample grids or preprocessing do not fit
        fixes = ["more processes"] if plan.preprocess is None or plan.preprocess.memory <= usable else []
    elif plan.fixed_memory > usable:
        sharded = plan.weights + plan.moments + plan.ema
        least = plan.fixed_memory - sharded + (0 if plan.gathered else plan.weights)  # with very many processes
        fixes = ["more processes"] if least <= usable else []
    else:
        rows = int(plan.rows * (usable - plan.fixed_memory) / plan.activations)
        fixes = [f"--accumulate {ceil(plan.recipe.batch / (plan.processes * rows))}"] if rows else []
        fixes += [] if plan.recipe.checkpointing else ["--checkpointing"]
        fixes += ["more processes"] if plan.rows > 1 else []
    return [f"It does NOT fit {name}: {figures}. Use {', or '.join([*fixes, 'a device with more memory'])}."]


def _work_lines(plan: Plan) -> list[str]:
    values = plan.preprocess.values if plan.preprocess else ()
    lines = [
        f"{f'{value.name} of {value.pictures:,} pictures, on disk':<58}{_gib(value.pictures * value.disk):>12}  counted"
        for value in values
    ]
    work = [("operations of a step", plan.operations), ("recomputed by checkpointing", plan.recomputed)]
    work += [("operations of a sample grid", plan.sample_grid.operations if plan.sample_grids else 0)]
    work += [
        (f"operations for {value.name} of {value.pictures:,} pictures", value.pictures * value.operations)
        for value in values
    ]
    return lines + [f"{name:<58}{value / 1e12:>8.4g} T    counted" for name, value in work if value]


def _time_lines(plan: Plan, rate: float, device_name: str, float32_rate: float) -> list[str]:
    if device_name in DEVICES:
        peak = DEVICES[device_name].peak(bfloat16=plan.recipe.bfloat16)
        source = f"assumed: {rate / peak:.0%} of the published peak, {peak / 1e12:g} T"
    else:
        source = "measured, or assumed by the caller"
    steps = f"{plan.steps} steps of {plan.recipe.batch} rows on {plan.processes} x {device_name}"
    lines = [
        f"{'operations a second of each ' + device_name:<58}{rate / 1e12:>8.4g} T    {source}",
        f"{steps:<58}{_time(plan.seconds(rate)):>12}  follows from that; reading data and exchange come on top",
    ]
    if plan.sample_grids:
        drawn = f"{plan.sample_grids} sample grids, each drawn by one process"
        seconds = plan.sample_grids * plan.sample_grid.operations / float32_rate
        lines.append(f"{drawn:<58}{_time(seconds):>12}  likewise, in float32")
    if plan.preprocess is not None:
        seconds = plan.preprocess.operations / (plan.processes * rate)
        lines.append(f"{'latents and embeddings, before the first step':<58}{_time(seconds):>12}  likewise")
    return lines


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"


def _time(seconds: float) -> str:
    if seconds >= DAY:
        return f"{seconds / DAY:.1f} days"
    return f"{seconds / HOUR:.1f} hours" if seconds >= HOUR else f"{seconds:.0f} seconds"
