"""Faster kernels and memory layouts for loaded networks. They change how a network is computed, never what.

The networks' own files say what they compute, in terms of a few layers (`models/layers.py`), and training uses them as
they are. `prepare` changes the class of those layers in a loaded network to one that computes the same in another way
wherever it can: without gradients, on a CPU in float32 or bfloat16, on a GPU (`gpu.py`). Parameters, their names and
hooks stay, so a prepared network is saved, trained and moved like any other; with gradients it computes as if it had
not been prepared.

Where a processor has no instructions for half precision, half-precision weights are upcast to float32 while they are
used, and everything is computed in float32.
"""

import os

import torch
from torch import nn

from kandinsky22.acceleration import fused_norm, gpu, kernels
from kandinsky22.acceleration.convolution import (
    FastConv1x1,
    FastConv3x3,
    FastUpsampleConv3x3,
    allocate_filter_caches,
    filter_bytes,
    use_channels_last,
)
from kandinsky22.acceleration.flags import ENV_VARIABLE as ENV_VARIABLE
from kandinsky22.acceleration.flags import is_off, uses
from kandinsky22.acceleration.flags import request_huge_pages as request_huge_pages
from kandinsky22.acceleration.gpu import release_graphs as release_graphs
from kandinsky22.acceleration.linear import FastLinear
from kandinsky22.acceleration.normalisation import FastNorm
from kandinsky22.acceleration.weight_upcast import UPCAST_LAYERS
from kandinsky22.models import lora
from kandinsky22.models.layers import Conv1x1, Conv3x3, Norm, UpsampleConv3x3

CPU_LAYERS: dict[str, dict[type[nn.Module], type[nn.Module]]] = {
    "convolutions": {Conv1x1: FastConv1x1, Conv3x3: FastConv3x3, UpsampleConv3x3: FastUpsampleConv3x3},
    "normalisations": {Norm: FastNorm},
    "linear": {nn.Linear: FastLinear},
}
"""The fast class of each layer on a CPU, by the part of `flags.PARTS` that switches it off."""
CPU = torch.device("cpu")
MEMORY_SHARE = 4  # one part in so many of this machine's memory may hold transformed filters


def is_wanted(device: torch.device, requested: bool | None = None) -> bool:
    """Whether networks on a device are to be prepared: on a CPU or a GPU, unless `requested` is False.

    `requested` None follows the environment variable.
    """
    return device.type in ("cpu", *gpu.DEVICES) and (not is_off() if requested is None else requested)


def filter_budget(device: torch.device = CPU) -> int:
    """Bytes for the transformed filters of one network: a share of this machine's memory; 0 on a GPU."""
    used = device.type == "cpu" and uses("filters")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MEMORY_SHARE if used else 0


def compute_dtype(weight_dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What a prepared network computes in: the dtype of its weights, or float32 where that is faster and exacter."""
    return weight_dtype if device.type != "cpu" or supports_dtype(weight_dtype) else torch.float32


def supports_dtype(dtype: torch.dtype) -> bool:
    """Whether this processor has instructions for a dtype; without them it is 5 to 60 times slower than float32."""
    if dtype == torch.bfloat16:
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return dtype != torch.float16


def describe(weight_dtype: torch.dtype = torch.float32, device: torch.device = CPU, *, compiled: bool = False) -> str:
    """What computes ("kernels", "torch" or "compiled"), and the dtype if it is not that of the weights.

    Pictures store it, since it shows in their last bits.
    """
    if device.type != "cpu":
        return "compiled" if compiled else "torch" if fused_norm.kernels() is None else "kernels"
    dtype = compute_dtype(weight_dtype, device)
    suffix = [] if dtype == weight_dtype else [f"in {str(dtype).removeprefix('torch.')}"]
    return ", ".join(["torch" if kernels.library() is None else "kernels", *suffix])


def why_no_kernels(device: torch.device = CPU) -> str | None:
    """Why the package's own kernels are not used, and what to do; None where they are."""
    if not uses("kernels"):
        return f"{ENV_VARIABLE} leaves them out"
    if device.type != "cpu":
        return None if fused_norm.kernels() is not None else "Triton is missing; install it: pip install triton"
    if kernels.library() is not None:
        return None
    if kernels.instruction_set() is None:
        return "there are none for this processor"
    return "they were not built; install a C compiler (Debian, Ubuntu: sudo apt install gcc), then this package again"


def extra_bytes(network: nn.Module, weight_dtype: torch.dtype, budget: int) -> int:
    """How many bytes, up to `budget`, a prepared network holds on a CPU beside weights of a dtype."""
    dtype = compute_dtype(weight_dtype, torch.device("cpu"))
    filters = sum(filter_bytes(module, dtype) for module in network.modules() if isinstance(module, Conv3x3))
    return min(filters, _limit_budget(network, weight_dtype, dtype, budget))


def prepare(
    network: nn.Module,
    *,
    budget: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device = CPU,
    compiled: bool = False,
) -> None:
    """Have a network computed by what is fastest on a device.

    In float32 the numbers are the plain network's to a relative rms of 1e-5; in half precision they are no further from
    float32's than the plain network's. In float32 with weights in half precision, they are those of the plain network
    with the same weights in float32.

    budget: bytes for transformed filters, on a CPU. dtype: of its inputs and of what it computes in (None: that of its
    weights). compiled: by torch's compiler, on a GPU; the first step of each shape then takes minutes.
    """
    undo(network)  # it may have been prepared for another dtype or device
    if device.type != "cpu":
        gpu.prepare(network, compiled=compiled)
        return
    weight_dtype = next(network.parameters()).dtype
    dtype = dtype or weight_dtype
    # Where weights are narrower than the computation, every layer that upcasts them is needed.
    fast_classes = layer_classes(enabled_only=True) if dtype == weight_dtype else layer_classes() | UPCAST_LAYERS
    for module in network.modules():
        if (fast := fast_classes.get(type(module))) is not None:
            module.__class__ = fast
    convolutions = [module for module in network.modules() if isinstance(module, FastConv3x3)]
    allocate_filter_caches(convolutions, dtype, _limit_budget(network, weight_dtype, dtype, budget))
    if dtype == weight_dtype != torch.float32:
        use_channels_last(module for module in network.modules() if isinstance(module, nn.Conv2d))


def undo(network: nn.Module) -> None:
    """Have a prepared network computed by its own file's code again, and free what was cached."""
    lora.uninstall(network)
    plain_classes = {
        fast: plain for plain, fast in (*layer_classes().items(), *UPCAST_LAYERS.items(), *gpu.GPU_LAYERS.items())
    }
    for module in network.modules():
        if (plain := plain_classes.get(type(module))) is not None:
            module.__class__ = plain
            for name in ("filter_cache", "caches_filter", "graphs", "compiled", "_padded"):
                vars(module).pop(name, None)


def layer_classes(enabled_only: bool = False) -> dict[type[nn.Module], type[nn.Module]]:
    """The fast class of each layer class on a CPU; enabled_only: without the parts that are switched off."""
    return {
        plain: fast
        for part, classes in CPU_LAYERS.items()
        if not enabled_only or uses(part)
        for plain, fast in classes.items()
    }


def _limit_budget(network: nn.Module, weight_dtype: torch.dtype, dtype: torch.dtype, budget: int) -> int:
    """The budget, limited to what half precision saves: weights and filters take no more than float32 weights."""
    if weight_dtype == dtype:
        return budget
    elements = sum(weight.numel() for weight in network.parameters())
    return min(budget, elements * (dtype.itemsize - weight_dtype.itemsize))
