"""The dtypes of weights: the table of torch's and safetensors' names. Imports torch only within functions."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SAFETENSORS_NAMES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16", "int64": "I64"}
"""torch's name of each dtype that a network's file may contain, and safetensors' name of it."""
NETWORK_DTYPES = ("float32", "bfloat16", "float16")
"""What networks are computed in, and can be converted to."""
BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
"""Bytes of a number, by safetensors' name; it has others, of one byte."""


def torch_dtype(name: str) -> "torch.dtype":
    """torch's dtype of a name of `SAFETENSORS_NAMES`, either torch's or safetensors'."""
    import torch

    by_safetensors = {other: ours for ours, other in SAFETENSORS_NAMES.items()}
    dtype: torch.dtype = getattr(torch, by_safetensors.get(name, name))
    return dtype


def network_dtype(dtype: Any) -> "torch.dtype | None":
    """A dtype that networks are computed in, by itself or by its name; None for anything else."""
    import torch

    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    return torch_dtype(name) if name in NETWORK_DTYPES else None
