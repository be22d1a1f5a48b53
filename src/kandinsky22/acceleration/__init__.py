"""Kernels and layouts, after the weights are there: never what is computed.

The networks' own files say what they compute, in terms of a few layers (`models/layers.py`), and training uses them as they
are. `prepare` gives those layers of a loaded network another class, which computes the same by other means wherever it can:
without gradients, on a CPU in float32 or bfloat16, on a GPU (`gpu.py`). Parameters, their names, hooks and everything
else stay, so a prepared network saves, trains and moves like any other; with gradients it computes as if it had not been
prepared.

Where a processor has no instructions for half precision, weights held in it are widened to float32 while they are used, and
everything is computed in that.
"""

import os

import torch
from torch import nn

from kandinsky22.acceleration import fused_norm, gpu, kernels
from kandinsky22.acceleration.convolution import FastConv1x1, FastConv3x3, FastUpsampleConv3x3, form, share_out
from kandinsky22.acceleration.flags import SWITCH as SWITCH
from kandinsky22.acceleration.flags import ask_for_huge_pages, off, uses
from kandinsky22.acceleration.gpu import forget as forget
from kandinsky22.acceleration.linear import FastLinear
from kandinsky22.acceleration.normalisation import FastNorm
from kandinsky22.acceleration.weight_upcast import HALF
from kandinsky22.models.layers import Conv1x1, Conv3x3, Norm, UpsampleConv3x3

FAST: dict[str, dict[type[nn.Module], type[nn.Module]]] = {
    "convolutions": {Conv1x1: FastConv1x1, Conv3x3: FastConv3x3, UpsampleConv3x3: FastUpsampleConv3x3},
    "normalisations": {Norm: FastNorm},
    "linear": {nn.Linear: FastLinear},
}
"""What a layer becomes on a CPU, by the part that can be left out."""
CPU = torch.device("cpu")
SHARE = 4  # one part in so many of this machine's memory may hold weights in other forms

ask_for_huge_pages()


def wanted(device: torch.device, asked: bool | None = None) -> bool:
    """Whether networks on a device are to be prepared: on a CPU or a GPU, unless it is asked otherwise or switched off."""
    return device.type in ("cpu", *gpu.DEVICES) and (not off() if asked is None else asked)


def room(device: torch.device = CPU) -> int:
    """Bytes for the weights of one network in other forms: a share of this machine's memory. A GPU needs none."""
    needed = device.type == "cpu" and uses("filters")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // SHARE if needed else 0


def computed(held: torch.dtype, device: torch.device) -> torch.dtype:
    """What a prepared network computes in whose weights are held in a dtype: that, or float32 where it is quicker and exacter."""
    return held if device.type != "cpu" or instructions_for(held) else torch.float32


def instructions_for(dtype: torch.dtype) -> bool:
    """Whether this processor has instructions for a dtype; else it takes 5 to 60 times as long as in float32."""
    if dtype == torch.bfloat16:
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return dtype != torch.float16


def described(held: torch.dtype = torch.float32, device: torch.device = CPU, *, compiled: bool = False) -> str:
    """What computes, kernels of our own or torch, and the dtype, if it is not that of the weights; it shows in last bits."""
    if device.type != "cpu":
        return "compiled" if compiled else "torch" if fused_norm.kernels() is None else "kernels"
    dtype = computed(held, device)
    named = [] if dtype == held else [f"in {str(dtype).removeprefix('torch.')}"]
    return ", ".join(["torch" if kernels.library() is None else "kernels", *named])


def missing(device: torch.device = CPU) -> str | None:
    """Why there are no kernels of our own, and what to do; None where there are."""
    if not uses("kernels"):
        return f"{SWITCH} leaves them out"
    if device.type != "cpu":
        return None if fused_norm.kernels() is not None else "Triton is missing; install it: pip install triton"
    if kernels.library() is not None:
        return None
    if kernels.instructions() is None:
        return "there are none for this processor"
    return "they were not built; install a C compiler (Debian, Ubuntu: sudo apt install gcc), then this package again"


def more(network: nn.Module, held: torch.dtype, room: int) -> int:
    """How many bytes more a network may hold that is prepared for this processor, its weights held in a dtype."""
    dtype = computed(held, torch.device("cpu"))
    if dtype != torch.float32:
        return 0
    forms = [form(module) for module in network.modules() if isinstance(module, Conv3x3)]
    return min(sum(forms), _spared(network, held, dtype, room))


def prepare(
    network: nn.Module,
    *,
    room: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device = CPU,
    compiled: bool = False,
) -> None:
    """Have a network compute by what is fastest on a device; on a CPU with up to `room` bytes more of memory for its weights in
    other forms.

    In float32 the numbers are the plain network's to a relative rms of 1e-5, in half precision no further from float32's than the
    plain network's. compiled: by torch's compiler on a GPU; the first step of each shape then takes minutes.

    dtype: what it computes in, and is given (None: that of its weights). In float32 with weights in half precision, the numbers
    are those of the plain network with the same weights in float32.
    """
    undo(network)  # what was prepared before may have had another dtype, or another device
    if device.type != "cpu":
        gpu.prepare(network, compiled=compiled)
        return
    held = next(network.parameters()).dtype
    dtype = dtype or held
    # Nothing can be left out that widens what is held narrower than it is computed in.
    becomes = kinds(used=True) if dtype == held else kinds() | HALF
    for module in network.modules():
        if (fast := becomes.get(type(module))) is not None:
            module.__class__ = fast
    convolutions = [module for module in network.modules() if isinstance(module, FastConv3x3)]
    share_out(convolutions, dtype, _spared(network, held, dtype, room))


def undo(network: nn.Module) -> None:
    """Have a prepared network compute as its own file says, and give the memory back."""
    plain = {fast: slow for slow, fast in (*kinds().items(), *HALF.items(), *gpu.FAST.items())}
    for module in network.modules():
        if (slow := plain.get(type(module))) is not None:
            module.__class__ = slow
            for name in ("_kept", "roomy", "replays", "compiles", "_padded"):
                vars(module).pop(name, None)


def kinds(used: bool = False) -> dict[type[nn.Module], type[nn.Module]]:
    """What each layer becomes; used: of the parts that are not left out."""
    return {plain: fast for part, some in FAST.items() if not used or uses(part) for plain, fast in some.items()}


def _spared(network: nn.Module, held: torch.dtype, dtype: torch.dtype, room: int) -> int:
    """Of the room, no more than half precision saves: with their other forms, weights take no more than in float32 without."""
    if held == dtype:
        return room
    return min(room, sum(weight.numel() for weight in network.parameters()) * (dtype.itemsize - held.itemsize))
