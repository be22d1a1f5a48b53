"""The linear prior's folder beside a prior's: a network's folder, and the name of the CLIP that it was fitted to."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kandinsky22.checkpoints.about import CheckpointError, write_json
from kandinsky22.checkpoints.store import WEIGHT_NAMES, Stored
from kandinsky22.files import atomic_write
from kandinsky22.models.linear_prior import LinearPrior, LinearPriorConfig

FOLDER = "linear_prior"
WEIGHTS = f"{WEIGHT_NAMES[0]}.safetensors"
MADE_FOR = "encoder"


def save(folder: Path, prior: LinearPrior, *towers: str) -> None:
    """Write it as a network's folder, float32, with the fingerprints of CLIP's towers, the text tower's first."""
    write_json(folder / "config.json", prior.config.to_dict())
    tensors = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in prior.state_dict().items()}
    with atomic_write(folder / WEIGHTS) as partial:
        save_file(tensors, partial, metadata={"format": "pt", MADE_FOR: " ".join(towers)})


def stored(folder: Path, *towers: str) -> Stored[LinearPrior, LinearPriorConfig]:
    """The linear prior in a folder, checked, not yet read; `towers` are the fingerprints of those that are at hand, as in `save`.

    Raises `CheckpointError` where it is missing or damaged, or was fitted to other towers.
    """
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(f"{folder} has no linear prior; fit one with: kandinsky22 train linear-prior")
    found = Stored(folder, LinearPrior, LinearPriorConfig)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        fitted_to = (file.metadata() or {}).get(MADE_FOR, "").split()
    if fitted_to[: len(towers)] != [*towers]:
        raise CheckpointError(
            f"{folder} was fitted to the CLIP {' '.join(fitted_to)}, and this model's is {' '.join(towers)}; "
            "fit it again with: kandinsky22 train linear-prior"
        )
    return found
