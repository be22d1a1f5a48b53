"""Values between ComfyUI's sockets and ours, and the inputs of a node from a task's parameters."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kandinsky22.request import Picture
from kandinsky22.request.parts import SAMPLERS
from kandinsky22.request.task_schema import Parameter

MODEL, EMBEDDING = "KANDINSKY22_MODEL", "KANDINSKY22_EMBEDDING"
UNSET = -1  # of a number: the model's own choice
MODELS_CHOICE = "default"  # the same of a menu
MAX_SEED = 2**53 - 1  # what a browser's numbers can hold
Inputs = dict[str, tuple[Any, dict[str, Any]]]


def inputs_of(parameters: Mapping[str, Parameter]) -> dict[str, Inputs]:
    """ComfyUI's INPUT_TYPES for parameters: those without a default are required, and an API call may omit the others.

    `model`, the seed and LoRAs are left to the node.
    """
    inputs: dict[str, Inputs] = {"required": {}, "optional": {}}
    for name, parameter in parameters.items():
        if name not in ("model", "seed"):
            inputs["required" if parameter.required else "optional"][name] = _input(parameter)
    return inputs


def arguments_of(parameters: Mapping[str, Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """A node's values as the arguments of a task; what is the model's own choice is left out."""
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        kind = parameters[name].kind
        if value is None or value == "" or (isinstance(value, str) and value == MODELS_CHOICE and kind != "text"):
            continue
        if kind == "picture":
            arguments[name] = picture(value, mask=name == "mask_image")
        elif kind == "boolean":
            arguments[name] = value == "yes" if isinstance(value, str) else value
        elif kind == "loras":
            arguments[name] = [file.strip() for file in value.split(",") if file.strip()]
        elif kind == "numbers":
            arguments[name] = tuple(float(number) for number in value.split(","))
        elif not (kind in ("integer", "number") and value == UNSET and parameters[name].default is None):
            arguments[name] = value
    return arguments


def picture(pixels: Tensor, *, mask: bool = False) -> Picture:
    """A picture of an IMAGE [1, H, W, C] or a MASK [1, H, W]. Raises `ValueError` for a batch of several."""
    if pixels.ndim > 2 and len(pixels) != 1:
        raise ValueError(f"give one picture, got a batch of {len(pixels)}; pick one with ImageFromBatch")
    return Picture.of(np.asarray(pixels.reshape(pixels.shape[-2:] if mask else pixels.shape[-3:]).cpu()), mask=mask)


def image_tensor(images: list[Image.Image]) -> Tensor:
    """An IMAGE [B, H, W, 3] in [0, 1] of pictures of one size."""
    return torch.from_numpy(np.stack([np.asarray(image.convert("RGB"), np.float32) / 255 for image in images]))


def seed_input() -> tuple[str, dict[str, Any]]:
    """The widget of a seed."""
    return "INT", {"default": 0, "min": 0, "max": MAX_SEED, "control_after_generate": True, "tooltip": "the seed"}


def _input(parameter: Parameter) -> tuple[Any, dict[str, Any]]:
    default, options = parameter.default, {"tooltip": parameter.help}
    unset = UNSET if default is None else default
    if parameter.kind == "picture":
        return ("MASK" if parameter.name == "mask_image" else "IMAGE"), options
    if parameter.kind == "integer":
        return "INT", {"default": unset, "min": UNSET, "max": MAX_SEED, **options}
    if parameter.kind == "number":
        return "FLOAT", {"default": float(unset), "min": float(UNSET), "max": 100.0, "step": 0.01, **options}
    if parameter.kind == "boolean":
        if default is None:
            return [MODELS_CHOICE, "yes", "no"], {"default": MODELS_CHOICE, **options}
        return "BOOLEAN", {"default": default, **options}
    choices = parameter.choices or (tuple(SAMPLERS) if parameter.name.endswith("sampler") else ())
    if choices:
        first = MODELS_CHOICE if default is None else default
        return list(dict.fromkeys([first, *choices])), {"default": first, **options}
    return "STRING", {"default": default or "", "multiline": parameter.name == "prompt", **options}
