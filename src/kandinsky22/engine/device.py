"""What this machine computes on: its device, the dtype and the placement of networks that suit it, and what it rounds
like."""

import platform

import torch

from kandinsky22 import acceleration
from kandinsky22.checkpoints.dtypes import NETWORK_DTYPES, network_dtype
from kandinsky22.engine import memory
from kandinsky22.engine.placement import Placement

ROOM = 1.5  # times the weights that an accelerator must have free for all of them to stay there
LARGE = 100_000_000  # numbers of a U-Net from which half precision pays on a CPU


def device_of(device: str | None) -> torch.device:
    """The device of a name; "auto" or None is the first there is of cuda, mps, cpu. Raises `ValueError`."""
    if device in (None, "auto"):
        mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"the device {device!r} cannot be used here; try cpu") from error
    return place


def dtype_of(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """The dtype of a name; None where the model is to choose. Raises `ValueError`."""
    known = network_dtype(dtype)
    if known is None and dtype not in (None, "auto"):
        raise ValueError(f"dtype must be one of auto, {', '.join(NETWORK_DTYPES)}, got {dtype!r}")
    return known


def fitting_dtype(elements: int, device: torch.device) -> torch.dtype:
    """float16 on an accelerator; on a CPU with instructions for it, bfloat16 for a U-Net that is large enough to
    gain."""
    if device.type != "cpu":
        return torch.float16
    return torch.bfloat16 if computes_bfloat16(device) and elements > LARGE else torch.float32


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16."""
    if device.type == "cpu":
        return acceleration.supports_dtype(torch.bfloat16)
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def fitting_placement(unet: int, all_of_it: int, device: torch.device, dtype: torch.dtype) -> Placement:
    """Where a model of so many numbers is best: kept if it is small or fits an accelerator with room to spare."""
    if device.type == "cpu":
        return "offload" if unet > LARGE else "keep"
    return "keep" if ROOM * all_of_it * dtype.itemsize < memory.free(device) else "offload"


def processor() -> str:
    """What this processor rounds like: its architecture, and the vector instructions torch uses on it."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
