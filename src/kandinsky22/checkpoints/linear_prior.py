"""The linear prior's folder beside a prior's: a network's folder, and the CLIP that the network was fitted to."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from kandinsky22.checkpoints.json_files import CheckpointError, write_json
from kandinsky22.checkpoints.network import Stored
from kandinsky22.checkpoints.safetensors_file import open_tensors
from kandinsky22.checkpoints.weight_files import WEIGHT_NAMES
from kandinsky22.files import atomic_write
from kandinsky22.models.linear_prior import LinearPrior, LinearPriorConfig

FOLDER = "linear_prior"
WEIGHTS = f"{WEIGHT_NAMES[0]}.safetensors"
CLIP_KEY = "encoder"  # in the file's metadata: the fingerprints of CLIP's towers


def save(folder: Path, prior: LinearPrior, *towers: str) -> None:
    """Write it as a network's folder, float32, with the fingerprints of CLIP's towers, the text tower's first."""
    write_json(folder / "config.json", prior.config.to_dict())
    tensors = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in prior.state_dict().items()}
    with atomic_write(folder / WEIGHTS) as partial:
        save_file(tensors, partial, metadata={"format": "pt", CLIP_KEY: " ".join(towers)})


def stored_linear_prior(folder: Path, *towers: str) -> Stored[LinearPrior, LinearPriorConfig]:
    """The linear prior in a folder: checked, not yet read.

    towers: the fingerprints of the towers of CLIP that are there, as in `save`. Raises `CheckpointError` where the
    linear prior is missing or damaged, or was fitted to other towers.
    """
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(f"{folder} has no linear prior; fit one with: kandinsky22 train linear-prior")
    stored = Stored(folder, LinearPrior, LinearPriorConfig)
    with open_tensors(folder / WEIGHTS) as file:
        fitted_to = (file.metadata() or {}).get(CLIP_KEY, "").split()
    if fitted_to[: len(towers)] != [*towers]:
        raise CheckpointError(
            f"{folder} was fitted to the CLIP {' '.join(fitted_to)}, and this model's is {' '.join(towers)}; "
            "fit it again with: kandinsky22 train linear-prior"
        )
    return stored
