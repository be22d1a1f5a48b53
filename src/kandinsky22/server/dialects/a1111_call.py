"""Reading a call of AUTOMATIC1111's interface: its fields, and the request that they ask for."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from kandinsky22.request import Picture, Request
from kandinsky22.request.parts import Start
from kandinsky22.server.app import Services
from kandinsky22.server.dialects import common
from kandinsky22.server.errors import ApiError
from kandinsky22.server.requests import build

OWN_SCHEDULES = ("", "automatic", "normal", "ddim")  # names for the model's own noise schedule
NOT_OFFERED = ("enable_hr", "restore_faces", "tiling", "refiner_checkpoint")
EXTRA_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>", re.IGNORECASE)
FILL_ORIGINAL = 1  # inpainting_fill: start from the picture itself
MIN_STRENGTH = 0.01  # below is no change, which no step could make


class Txt2Img(BaseModel):
    """A picture to paint from a prompt. Other fields are ignored."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    prompt: str | None = ""
    negative_prompt: str | None = ""
    seed: int | None = -1
    subseed: int | None = -1
    subseed_strength: float | None = 0.0
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    batch_size: int | None = Field(1, ge=1)
    n_iter: int | None = Field(1, ge=1, le=100)
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    denoising_strength: float | None = None
    override_settings: dict[str, Any] | None = None
    send_images: bool | None = True
    alwayson_scripts: dict[str, Any] | None = None

    def echo(self) -> dict[str, Any]:
        """The fields for the answer, without pictures."""
        return self.model_dump(exclude={"init_images", "mask", "alwayson_scripts"})


class Img2Img(Txt2Img):
    """A picture to change. The mask is repainted where it is white."""

    init_images: list[str] | None = None
    mask: str | None = None
    mask_blur: float | None = None
    inpainting_mask_invert: int | None = 0
    inpainting_fill: int | None = 0
    inpaint_full_res: bool | None = True


async def request_of(services: Services, wish: Txt2Img) -> tuple[Request, list[str]]:
    """The request of one batch, and what of the call is left out, in sentences. Raises `ApiError`."""
    comments = [f"{name} is not offered" for name in NOT_OFFERED if (wish.model_extra or {}).get(name)]
    values = _options(wish, comments)
    _check_model(services, wish, comments)
    hint = await _depth(services, wish, comments)
    if not isinstance(wish, Img2Img):
        task = "text2img" if hint is None else "controlnet"
        return build(task, values | ({} if hint is None else {"hint": hint}), common.as_is), comments
    if not wish.init_images:
        raise ApiError("not found", "Init image not found", "init_images")
    if len(wish.init_images) > 1:
        comments.append("only the first of init_images is used")
    picture = await common.read_picture(services, wish.init_images[0], "init_images")
    strength = max(MIN_STRENGTH, 0.75 if wish.denoising_strength is None else wish.denoising_strength)
    if wish.mask:
        if hint is not None:
            raise ApiError("invalid", "no weights take both a depth picture and a mask; leave one out", "mask")
        values |= {"image": picture, "mask_image": _area(await common.read_picture(services, wish.mask, "mask"))}
        values |= {
            "mask_mode": "black" if wish.inpainting_mask_invert else "white",
            "feather": round(wish.mask_blur or 0),
            "crop": None if wish.inpaint_full_res else False,
        }
        request = build("inpaint", values, common.as_is)
        if wish.inpainting_fill == FILL_ORIGINAL and strength < 1:
            request = replace(request, start=Start(picture, strength))
        return request, comments
    values |= {"image": picture, "strength": strength}
    if hint is not None:
        return build("controlnet", values | {"hint": hint}, common.as_is), comments
    return build("img2img", values, common.as_is), comments


def _options(wish: Txt2Img, comments: list[str]) -> dict[str, Any]:
    """The options that all tasks have."""
    prompt = wish.prompt or ""
    if EXTRA_NETWORK.search(prompt):
        prompt = EXTRA_NETWORK.sub("", prompt).strip()
        comments.append("extra networks in the prompt are not offered")
    values: dict[str, Any] = {
        "prompt": prompt,
        "negative_prompt": wish.negative_prompt or None,
        "seed": None if wish.seed is None or wish.seed < 0 else wish.seed,
        "num_inference_steps": wish.steps,
        "guidance_scale": wish.cfg_scale,
        "width": wish.width,
        "height": wish.height,
        "num_images": wish.batch_size,
    }
    name = wish.sampler_name or wish.sampler_index or ""
    try:
        values["sampler"] = common.sampler_of(name)
    except ValueError as problem:
        comments.append(f"{problem}; the model's own sampler is used")
    if (wish.scheduler or "").strip().lower() not in OWN_SCHEDULES:
        comments.append(f"the scheduler {wish.scheduler!r:.60} is not offered; the model's own noise schedule is used")
    if wish.subseed_strength:
        values["variation_seed"] = max(0, -1 if wish.subseed is None else wish.subseed)
        values["variation_strength"] = wish.subseed_strength
    return values


def _check_model(services: Services, wish: Txt2Img, comments: list[str]) -> None:
    name = (wish.override_settings or {}).get("sd_model_checkpoint")
    if isinstance(name, str) and not common.is_model(services, name):
        comments.append(f"there is no model {name!r:.60}; {common.model_name(services)} is used")


async def _depth(services: Services, wish: Txt2Img, comments: list[str]) -> Picture | None:
    """The depth picture of the ControlNet extension's first unit that is switched on."""
    scripts = {name.lower(): value for name, value in (wish.alwayson_scripts or {}).items()}
    script = scripts.pop("controlnet", None)
    comments += [f"the script {name!r:.60} is not offered" for name in scripts]
    units = script.get("args") if isinstance(script, Mapping) else None
    units = [unit for unit in units or [] if isinstance(unit, Mapping) and unit.get("enabled", True)]
    units = [unit for unit in units if unit.get("weight") != 0]
    if not units:
        return None
    if len(units) > 1:
        comments.append("only the first ControlNet unit is used")
    unit = units[0]
    module, weight = str(unit.get("module") or "none").lower(), unit.get("weight")
    if not module.startswith(("none", "depth")):
        raise ApiError("invalid", f"there is no ControlNet module {module!r:.60}; depth is the only one", "module")
    if weight not in (None, 1):
        comments.append("the weight of ControlNet is not offered; the depth picture is followed fully")
    if module != "none":
        comments.append("depth is not estimated here; the picture is used as a depth picture, in which near is bright")
    image = unit.get("image") or unit.get("input_image")
    image = image.get("image") if isinstance(image, Mapping) else image
    if not isinstance(image, str):
        raise ApiError("invalid", "ControlNet needs a depth picture; send it as image, in base64", "image")
    return await common.read_picture(services, image, "image")


def _area(mask: Picture) -> Picture:
    """A mask as its opacity if it is transparent anywhere, as AUTOMATIC1111 reads it."""
    image: Image.Image = mask.image
    if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
        return Picture.of(image.getchannel("A"), mask=True)
    return mask
