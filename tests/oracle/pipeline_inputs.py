"""Inputs and tolerances of the comparisons with diffusers, and the registry of their cases."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kandinsky22.checkpoints.catalog import DEPTH, INPAINT
from tests.pipelines.inputs import embeds, photo

# Tolerances, of the largest value if that is above 1. Inpainting's schedule does not clip: its latents grow, and
# decoding such latents by random weights amplifies rounding (a change of the last bit in diffusers' own arguments moves
# its pixels as far).
EMBEDS, PICTURES, INPAINTED, LATENTS = 2e-5, 1e-4, 2e-2, 2e-5
PROMPT, NEGATIVE = "two red circles, and a square", "a blue triangle"
SIZE = {"height": 64, "width": 64}
FEW = {"num_inference_steps": 4}
COMBINED = {**FEW, **SIZE, "prior_num_inference_steps": 3}
FOLDER_OF = {"KandinskyV22Prior": "prior", "Inpaint": INPAINT, "Controlnet": DEPTH, "": "decoder"}
CLASSES = [
    f"KandinskyV22{name}Pipeline"
    for name in (
        "Prior",
        "PriorEmb2Emb",
        "",
        "Img2Img",
        "Inpaint",
        "Controlnet",
        "ControlnetImg2Img",
        "Combined",
        "Img2ImgCombined",
        "InpaintCombined",
    )
]

Case = Callable[[Any, Path, Any], Mapping[str, Any]]
CASES: dict[str, tuple[Case, float]] = {}


def case(tolerance: float) -> Callable[[Case], Case]:
    """Decorator that adds a function to `CASES` with the tolerance of its comparison."""

    def register(function: Case) -> Case:
        CASES[function.__name__] = (function, tolerance)
        return function

    return register


def folder_of(name: str) -> str:
    """The model's folder for the pipeline class `name`."""
    return next(folder for part, folder in FOLDER_OF.items() if part in name)


def arguments_of(name: str) -> dict[str, Any]:
    """A small call of the pipeline class `name`, but for its generator."""
    if "KandinskyV22Prior" in name:
        emb2emb = {"image": photo(), "strength": 0.7} if "Emb2Emb" in name else {}
        return {"prompt": PROMPT, "num_inference_steps": 4, **emb2emb}
    combined = {"prompt": PROMPT, "prior_num_inference_steps": 3} if "Combined" in name else embeds()
    arguments: dict[str, Any] = {**combined, **FEW, **SIZE, "output_type": "np"}
    arguments |= {"image": photo(), "strength": 0.6} if "Img2Img" in name else {}
    arguments |= {"image": photo(64, 64), "mask_image": mask_array()} if "Inpaint" in name else {}
    return arguments | ({"hint": depth()} if "Controlnet" in name else {})


def result(output: Any) -> np.ndarray:
    """The first value of a pipeline's output."""
    return np.asarray(output[0])


@cache
def load(library: Any, name: str, model: Path) -> Any:
    """The pipeline class `name` of a library, loaded from the model."""
    pipeline = getattr(library, name).from_pretrained(model / folder_of(name))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def prior(library: Any, model: Path) -> Any:
    return load(library, "KandinskyV22PriorPipeline", model)


def decoder(library: Any, model: Path) -> Any:
    return load(library, "KandinskyV22Pipeline", model)


def tensor(image: Image.Image) -> Tensor:
    """A picture as [1, 3, H, W] in [0, 1], contiguous: another memory layout rounds differently."""
    return torch.from_numpy(np.array(image)).movedim(-1, 0)[None].contiguous() / 255


def mask_array(size: int = 64) -> np.ndarray:
    """The model card's mask: an area at the top is white, which is repainted."""
    mask = np.zeros((size, size), dtype=np.float32)
    mask[: size // 3, size // 4 : -size // 4] = 1
    return mask


def depth(rows: int = 1) -> Tensor:
    return torch.cat([tensor(photo(64, 64, seed=k)).mean(1, keepdim=True) for k in range(rows)]).repeat(1, 3, 1, 1)
