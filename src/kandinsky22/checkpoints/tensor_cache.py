"""Files of one tensor each in the user's cache, with a checksum: a changed file is computed again and never used."""

import hashlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kandinsky22.checkpoints.safetensors_file import open_tensors, tensor_bytes
from kandinsky22.files import atomic_write

VALUE, CHECKSUM = "value", "sha256"


def read(path: Path) -> Tensor | None:
    """The tensor in a file; None where there is no file, or not the one that `write` wrote under this name."""
    try:
        with open_tensors(path) as file:
            value: Tensor = file.get_tensor(VALUE)
            is_intact = (file.metadata() or {}).get(CHECKSUM) == _checksum(path, value)
    except (OSError, SafetensorError, ValueError):
        return None
    return value if is_intact else None


def write(path: Path, value: Tensor) -> None:
    """Write a tensor. Raises `OSError`."""
    value = value.detach().cpu().contiguous()
    with atomic_write(path) as partial:
        save_file({VALUE: value}, partial, metadata={CHECKSUM: _checksum(path, value)})


def _checksum(path: Path, value: Tensor) -> str:
    """The SHA-256 of a tensor and of the file's name, which says what was computed."""
    facts = f"{path.name} {value.dtype} {tuple(value.shape)} "
    return hashlib.sha256(facts.encode() + tensor_bytes(value)).hexdigest()
