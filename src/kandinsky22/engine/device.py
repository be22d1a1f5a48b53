"""The device of this machine: which device, dtype and placement suit a model, and what decides its rounding."""

import platform

import torch

from kandinsky22 import acceleration
from kandinsky22.checkpoints.dtypes import NETWORK_DTYPES, network_dtype
from kandinsky22.engine import memory
from kandinsky22.engine.placement import Placement

ROOM = 1.5  # times the size of all weights: free memory an accelerator needs for all of them to stay there
LARGE = 100_000_000  # parameters of a U-Net from which half precision pays off on a CPU


def device_of(device: str | None) -> torch.device:
    """The device of a name; "auto" or None: the first available of cuda, mps, cpu. Raises `ValueError`."""
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
    """The dtype of a name; None if the model is to choose. Raises `ValueError`."""
    known = network_dtype(dtype)
    if known is None and dtype not in (None, "auto"):
        raise ValueError(f"dtype must be one of auto, {', '.join(NETWORK_DTYPES)}, got {dtype!r}")
    return known


def fitting_dtype(elements: int, device: torch.device) -> torch.dtype:
    """float16 on an accelerator; on a CPU bfloat16 for a large U-Net if there are instructions for it, else float32."""
    if device.type != "cpu":
        return torch.float16
    return torch.bfloat16 if computes_bfloat16(device) and elements > LARGE else torch.float32


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16."""
    if device.type == "cpu":
        return acceleration.supports_dtype(torch.bfloat16)
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def fitting_placement(unet: int, model: int, device: torch.device, dtype: torch.dtype) -> Placement:
    """The placement for a model with so many parameters: "keep" if it is small, or fits the accelerator easily."""
    if device.type == "cpu":
        return "offload" if unet > LARGE else "keep"
    return "keep" if ROOM * model * dtype.itemsize < memory.free(device) else "offload"


def processor() -> str:
    """What decides how this processor rounds: its architecture and the vector instructions that torch uses."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
