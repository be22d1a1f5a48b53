"""Reading a call of OpenAI's interface: its fields, its pictures, and the request that they ask for."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fastapi import Request as HttpRequest
from PIL import Image, ImageChops
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile

from kandinsky22.imaging.file_texts import Format
from kandinsky22.request import Defaults, Picture, Request, Text
from kandinsky22.request.sizes import MIN_SIDE
from kandinsky22.request.task_schema import Parameter, all_tasks, parameters
from kandinsky22.server.app import Services
from kandinsky22.server.dialects import common
from kandinsky22.server.errors import ApiError
from kandinsky22.server.requests import LOCAL, build
from kandinsky22.server.store import Key

MAX_PICTURES = 16  # of an edit
QUALITIES: Mapping[str, float] = {"low": 0.5, "medium": 1.0, "high": 1.5, "xhigh": 2.0, "max": 3.0}
"""The number of steps of each quality, as a multiple of the model's own."""
OLD_QUALITIES = {"auto": "medium", "standard": "medium", "hd": "high"}
ALIASES = {
    "prior_steps": "prior_num_inference_steps",
    "negative_prior_prompt": "negative_prompt",
    "scheduler": "sampler",
    "true_cfg_scale": "guidance_scale",
}
"""Other names of our options: vLLM-Omni's and those of the diffusers classes."""
IGNORED = (
    *("moderation", "style", "user", "safety_identifier", "complexity", "input_fidelity"),
    *("generator_device", "vae_use_slicing", "vae_use_tiling"),
)
PICTURES = {"image": "image", "images": "image", "mask": "mask", "mask_image": "mask", "hint": "hint"}
"""The fields with pictures, and what each is."""


class ImageOptions(BaseModel):
    """What all calls have in common. Further fields are our own options, such as `seed` or `guidance_scale`."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    prompt: str | None = Field(None, max_length=32_000)
    model: str | None = None
    n: int | None = Field(None, ge=1, le=10)
    size: str | None = None
    quality: Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"] | None = None
    background: Literal["auto", "opaque"] | None = None
    output_format: Format | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    response_format: Literal["b64_json", "url"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)

    @property
    def format(self) -> Format:
        """The format of the picture files."""
        return self.output_format or "png"

    @property
    def compression(self) -> int:
        """Pillow's quality of the picture files."""
        return 95 if self.output_compression is None else self.output_compression

    @property
    def effort(self) -> str:
        """The quality under its present name."""
        return OLD_QUALITIES.get(self.quality or "auto", self.quality or "")


class Generation(ImageOptions):
    """A picture to paint from a prompt."""

    prompt: str = Field(max_length=32_000)


@dataclass
class Inputs:
    """The pictures of a call."""

    images: list[Picture] = field(default_factory=list)
    mask: Picture | None = None
    hint: Picture | None = None


async def read_fields(request: HttpRequest) -> dict[str, Any]:
    """The fields of a form or of a JSON body; `name[]` and repeated names are lists, files are their bytes."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
        try:
            values = json.loads(await request.body())
        except ValueError:
            values = None
        if not isinstance(values, dict):
            raise ApiError("invalid", "the body must be a JSON object")
        return values
    fields: dict[str, Any] = {}
    async with request.form(max_files=MAX_PICTURES + 2, max_fields=200, max_part_size=64 << 20) as form:
        for name, item in form.multi_items():
            value = await item.read() if isinstance(item, UploadFile) else item
            plain = re.sub(r"\[\d*\]$", "", name)
            if plain in fields or plain != name:
                before = fields.get(plain, [])
                fields[plain] = [*(before if isinstance(before, list) else [before]), value]
            else:
                fields[plain] = value
    return fields


async def read_inputs(services: Services, fields: dict[str, Any], key: Key) -> tuple[Inputs, dict[str, Any]]:
    """The pictures among the fields, and the other fields."""
    found: dict[str, list[Picture]] = {"image": [], "mask": [], "hint": []}
    for name, kind in PICTURES.items():
        values = fields.get(name)
        values = values if isinstance(values, list) else [] if values in (None, "", b"") else [values]
        if len(values) > (MAX_PICTURES if kind == "image" else 1):
            raise ApiError("invalid", f"{name} has too many pictures", name)
        found[kind] += [await _picture(services, value, name, key) for value in values]
    inputs = Inputs(found["image"], *(found[kind][0] if found[kind] else None for kind in ("mask", "hint")))
    return inputs, {name: value for name, value in fields.items() if name not in PICTURES}


async def _picture(services: Services, value: Any, name: str, key: Key) -> Picture:
    """A picture from a file, base64, a data URL, or JSON: `{image_url}`, `{b64_json}`, `{file_id}` of one made here."""
    if isinstance(value, Mapping):
        if isinstance(file_id := value.get("file_id"), str):
            stored = await asyncio.to_thread(services.store.picture, file_id.partition(".")[0], key.name)
            if stored is None:
                raise ApiError("invalid", f"there is no file {file_id!r:.80}; send the picture itself", name)
            value = stored.path.read_bytes()
        else:
            value = value.get("image_url") or value.get("b64_json")
            value = value.get("url") if isinstance(value, Mapping) else value
    if not isinstance(value, str | bytes):
        raise ApiError("invalid", f"{name} must be a picture: a file, base64, or a data: URL", name)
    return await common.read_picture(services, value, name)


def task_options(wish: ImageOptions, values: dict[str, Any], defaults: Defaults, max_pixels: int) -> dict[str, Any]:
    """The options of a task's function, but its prompt and pictures."""
    values = {name: value for name, value in values.items() if name not in IGNORED and value is not None}
    for alias, name in ALIASES.items():
        if alias in values:
            values.setdefault(name, values.pop(alias))
    if isinstance(values.get("sampler"), str):
        try:
            values["sampler"] = common.sampler_of(values["sampler"])
        except ValueError as problem:
            raise ApiError("invalid", str(problem), "sampler") from None
    known = {name: p for task in all_tasks().values() for name, p in parameters(task).items()}
    for name in values:
        if name not in known or known[name].kind in ("picture", "parts") or name in LOCAL:
            raise ApiError("invalid", f"there is no option {name!r:.60}; see /api/v1/tasks", name)
        values[name] = _from_text(known[name], values[name])
    if wish.n is not None:
        values["num_images"] = wish.n
    if wish.size not in (None, "", "auto"):
        values |= _size(str(wish.size), max_pixels)
    factor = QUALITIES[wish.effort]
    if factor != 1 and not values.keys() & {"num_inference_steps", "speed"}:
        values["num_inference_steps"] = max(1, round(factor * (defaults.decoder.steps or 1)))
    return values


def _size(size: str, max_pixels: int) -> dict[str, int]:
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if not match:
        raise ApiError("invalid", f"size must be auto or WIDTHxHEIGHT, such as 512x512, got {size!r:.40}", "size")
    width, height = int(match[1]), int(match[2])
    if min(width, height) < MIN_SIDE or width * height > max_pixels:
        limits = f"sides from {MIN_SIDE} pixels up, and at most {max_pixels} pixels in all"
        raise ApiError("invalid", f"size must have {limits}, got {size}", "size")
    return {"width": width, "height": height}


def _from_text(parameter: Parameter, value: Any) -> Any:
    """The value of an option that came as text in a form; others, and what is no such value, unchanged."""
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        return value
    try:
        match parameter.kind:
            case "integer":
                return int(value)
            case "number":
                return float(value)
            case "numbers":
                return [float(number) for text in texts for number in text.strip("[] ").split(",")]
            case "boolean":
                return {"true": True, "1": True, "false": False, "0": False}[value.lower()]
    except (TypeError, ValueError, KeyError, AttributeError):
        pass  # `build` says what it must be
    return value


def request_of(wish: ImageOptions, inputs: Inputs, values: dict[str, Any]) -> Request:
    """The request of a generation or an edit: its task follows from the pictures. Raises `ApiError`."""
    prompt, images = wish.prompt or "", inputs.images
    if inputs.hint is not None:
        if len(images) > 1 or inputs.mask is not None:
            raise ApiError("invalid", "a hint goes with at most one image and no mask; leave the others out", "hint")
        start = {"image": images[0]} if images else {}
        return build("controlnet", {"prompt": prompt, "hint": inputs.hint, **start, **values}, common.as_is)
    if images and (area := _area(inputs)) is not None:
        weights = values.pop("weights", None)
        request = build("inpaint", {"prompt": prompt, "image": images[0], "mask_image": area, **values}, common.as_is)
        if len(images) == 1:
            return request
        return replace(request, condition=_blend(images[1:], prompt, {"weights": weights}).condition)
    if len(images) > 1 or (images and "weights" in values):
        return _blend(images, prompt, values)
    if images:
        return build("img2img", {"prompt": prompt, "image": images[0], **values}, common.as_is)
    return build("text2img", {"prompt": prompt, **values}, common.as_is)


def variations_of(_: ImageOptions, inputs: Inputs, values: dict[str, Any]) -> Request:
    """The request for pictures similar to a picture. Raises `ApiError`."""
    return build("variations", {"image": inputs.images[0], **values}, common.as_is)


def _blend(images: Sequence[Picture], prompt: str, values: dict[str, Any]) -> Request:
    """A blend of the pictures, and of the prompt if there is one; `weights` are in this order."""
    parts = [*images, *([Text(prompt)] if prompt.strip() else [])]
    weights = values.get("weights")
    if isinstance(weights, list) and len(weights) != len(parts):
        named = f"{len(images)} pictures" + (" and the prompt" if len(parts) > len(images) else "")
        raise ApiError("invalid", f"weights must have a number for each of {named}, got {len(weights)}", "weights")
    return build("interpolate", {"images_and_prompts": parts, **values}, common.as_is)


def _area(inputs: Inputs) -> Picture | None:
    """What is repainted, in white: where the mask, or else the only picture, is transparent; a mask without alpha is
    white there already."""
    image = inputs.images[0]
    if inputs.mask is not None:
        if (inputs.mask.height, inputs.mask.width) != (image.height, image.width):
            sizes = f"{image.width}x{image.height}, got {inputs.mask.width}x{inputs.mask.height}"
            raise ApiError("invalid", f"mask must be as large as the picture, {sizes}", "mask")
        return inputs.mask if inputs.mask.image.mode != "RGBA" else _transparent(inputs.mask.image)
    if len(inputs.images) == 1 and image.image.mode == "RGBA" and image.image.getchannel("A").getextrema()[0] == 0:
        return _transparent(image.image)
    return None


def _transparent(image: Image.Image) -> Picture:
    return Picture.of(ImageChops.invert(image.getchannel("A")), mask=True)
