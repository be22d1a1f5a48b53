"""AUTOMATIC1111's interface, `/sdapi/v1`, as far as programs use it: painting, progress, lists, and reading pictures.

A mask is repainted where it is white. What a call asks for and this server cannot do is left out, and `comments` in
the answer's `info` says so.
"""

import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

from kandinsky22.imaging import infotext
from kandinsky22.request import Request
from kandinsky22.request.events import Preview, Progress
from kandinsky22.server.app import Services
from kandinsky22.server.dialects import common
from kandinsky22.server.dialects.a1111_call import Img2Img, Txt2Img, request_of
from kandinsky22.server.dialects.common import Asker
from kandinsky22.server.errors import ApiError
from kandinsky22.server.live_job import LiveJob
from kandinsky22.server.store import Key, StoredPicture

PREFIX = "/sdapi/v1"
PREVIEW = Preview(every=4)
SAMPLERS: Iterable[Mapping[str, Any]] = [
    {"name": label, "aliases": [name], "options": {}}
    for label, name in {"Euler a": "ddpm", **{label: name for name, label in infotext.SAMPLER_LABELS.items()}}.items()
]
NONE = {"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 1}
AUTOMATIC = {"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1.0, "need_inner_model": False}
LISTS: Mapping[str, Any] = {
    "samplers": SAMPLERS,
    "schedulers": [AUTOMATIC],
    "upscalers": [NONE],
    "latent-upscale-modes": [],
    "sd-vae": [],
    "sd-modules": [],
    "loras": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "prompt-styles": [],
    "script-info": [],
    "scripts": {"txt2img": ["controlnet m2m"], "img2img": ["controlnet m2m"]},  # by which clients notice ControlNet
    "embeddings": {"loaded": {}, "skipped": {}},
    "cmd-flags": {},
}
"""What programs ask for when they start, and never changes here."""
CONTROLNET: Mapping[str, Any] = {
    "version": {"version": 3},
    "model_list": {"model_list": ["depth"]},
    "module_list": {"module_list": ["none"], "module_detail": {}},
}


class Painted(BaseModel):
    """The pictures in base64, and `info`, which is JSON as text."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class PngInfo(BaseModel):
    """A picture in base64."""

    image: str = Field(max_length=64 << 20)


@dataclass(eq=False)
class Call:
    """A call that is being carried out: `batches` jobs, one after the other."""

    batches: int
    batch: int = 0
    live: LiveJob | None = None
    interrupted: bool = False
    skipped: bool = False
    start: float = 0.0

    @property
    def progress(self) -> Progress | None:
        """The latest progress of the decoder in the present batch."""
        events = [event for _, event in self.live.events] if self.live else []
        return next((e for e in reversed(events) if isinstance(e, Progress) and e.stage == "decoder"), None)

    @property
    def preview(self) -> bytes | None:
        """The latest preview of the present batch."""
        events = [event for _, event in self.live.events] if self.live else []
        return next((e.preview for e in reversed(events) if isinstance(e, Progress) and e.preview), None)

    @property
    def share(self) -> float:
        """The part of the work that is done, in [0, 1]."""
        done = self.progress.i / self.progress.n if self.progress else 0.0
        return (self.batch + done) / self.batches


def router(services: Services) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["AUTOMATIC1111"])
    calls: dict[str, list[Call]] = {}  # by owner, the oldest first

    @routes.post(f"{PREFIX}/txt2img", response_model=Painted)
    async def txt2img(wish: Txt2Img, key: Asker, request: HttpRequest) -> Response:
        """Paint a prompt, or a prompt that follows a depth picture (ControlNet)."""
        return await paint(wish, request, key)

    @routes.post(f"{PREFIX}/img2img", response_model=Painted)
    async def img2img(wish: Img2Img, key: Asker, request: HttpRequest) -> Response:
        """Change a picture, or the part of it where the mask is white."""
        return await paint(wish, request, key)

    async def paint(wish: Txt2Img, request: HttpRequest, key: Key) -> Response:
        wanted, comments = await request_of(services, wish)
        seed = secrets.randbelow(2**32) if wanted.seed is None else wanted.seed
        call = Call(wish.n_iter or 1, start=time.monotonic())
        calls.setdefault(key.name, []).append(call)
        painted: list[tuple[bytes, str]] = []
        last = wanted
        try:
            for batch in range(call.batches):
                call.batch, call.skipped = batch, False
                part = replace(wanted, seed=seed + batch * wanted.num_images)
                call.live = live = await common.submit(services, key, part, "a1111", PREVIEW)
                last = live.job.request
                try:
                    painted += [await finished(picture) for picture in await common.finished(services, live, request)]
                except ApiError as problem:
                    if problem.kind == "hung up" or not (call.interrupted or call.skipped):
                        raise
                    painted += unfinished(call, last)
                if call.interrupted:
                    comments.append("interrupted")
                    break
        finally:
            calls[key.name].remove(call)
            if not calls[key.name]:
                del calls[key.name]
        images = [common.to_base64(file) for file, _ in painted] if wish.send_images is not False else []
        info = _info(last, seed, len(painted), common.model_name(services), [text for _, text in painted], comments)
        return JSONResponse({"images": images, "parameters": wish.echo(), "info": json.dumps(info)})

    async def finished(picture: StoredPicture) -> tuple[bytes, str]:
        return with_parameters(await common.encoded(services, picture))

    def with_parameters(file: bytes) -> tuple[bytes, str]:
        return file, infotext.read(file)[infotext.PARAMETERS]

    def unfinished(call: Call, request: Request) -> list[tuple[bytes, str]]:
        """The state at which a batch was interrupted, if there is a preview of it."""
        if call.preview is None:
            return []
        return [with_parameters(common.unfinished(services, call.preview, request))]

    @routes.get(f"{PREFIX}/progress")
    async def progress(key: Asker, skip_current_image: bool = False) -> dict[str, Any]:
        """How far your oldest call is."""
        call = next(iter(calls.get(key.name, [])), None)
        if call is None:
            return {
                "progress": 0.0,
                "eta_relative": 0.0,
                "state": _state(None),
                "current_image": None,
                "textinfo": None,
            }
        share, seconds = call.share, time.monotonic() - call.start
        preview = None if skip_current_image or call.preview is None else common.to_base64(call.preview)
        return {
            "progress": share,
            "eta_relative": seconds / share - seconds if share else 0.0,
            "state": _state(call),
            "current_image": preview,
            "textinfo": None,
        }

    @routes.post(f"{PREFIX}/interrupt")
    async def interrupt(key: Asker) -> dict[str, Any]:
        """End your calls; they answer with what there is."""
        for call in calls.get(key.name, []):
            call.interrupted = True
            if call.live is not None:
                common.cancel_soon(services, call.live)
        return {}

    @routes.post(f"{PREFIX}/skip")
    async def skip(key: Asker) -> dict[str, Any]:
        """End the present batch of your calls; they go on with the next."""
        for call in calls.get(key.name, []):
            call.skipped = True
            if call.live is not None:
                common.cancel_soon(services, call.live)
        return {}

    @routes.post(f"{PREFIX}/png-info")
    async def png_info(wish: PngInfo, _: Asker) -> dict[str, Any]:
        """The texts in a picture's metadata."""
        texts = await services.decoder.texts(common.from_base64(wish.image, "image"), "image")
        text = texts.get(infotext.PARAMETERS, "")
        return {"info": text, "items": texts, "parameters": infotext.parse(text)}

    @routes.get(f"{PREFIX}/options")
    async def options(_: Asker) -> dict[str, Any]:
        """The settings: the model."""
        return {"sd_model_checkpoint": common.model_name(services), "samples_format": "png"}

    @routes.post(f"{PREFIX}/options")
    async def set_options(change: dict[str, Any], _: Asker) -> None:
        """Choose a model; there is one. Other settings are ignored."""
        name = change.get("sd_model_checkpoint")
        if not isinstance(name, str | None) or not common.is_model(services, name):
            own = common.model_name(services)
            raise ApiError("not found", f"there is no model {name!r:.80}; this server has {own!r}")

    @routes.get(f"{PREFIX}/sd-models")
    async def models(_: Asker) -> list[dict[str, Any]]:
        """The models: one."""
        name = common.model_name(services)
        return [{"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}]

    @routes.post(f"{PREFIX}/refresh-checkpoints")
    async def refresh(_: Asker) -> None:
        """Nothing to do."""

    @routes.get(f"{PREFIX}/memory")
    async def memory(_: Asker) -> dict[str, Any]:
        """The main memory in bytes; graphics memory belongs to other processes."""
        page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
        total, free = (page * os.sysconf(name) if page else 0 for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
        return {"ram": {"free": free, "used": total - free, "total": total}, "cuda": {"error": "unavailable"}}

    for path, content in {
        **{f"{PREFIX}/{name}": content for name, content in LISTS.items()},
        **{f"/controlnet/{name}": content for name, content in CONTROLNET.items()},
    }.items():
        _add_constant(routes, path, content)
    return routes


def error(problem: ApiError, request_id: str) -> Any:
    """The JSON body of an error."""
    return {"error": problem.kind, "detail": problem.message, "body": "", "errors": problem.message}


def _add_constant(routes: APIRouter, path: str, content: Any) -> None:
    async def constant(_: Asker) -> Any:
        return content

    routes.get(path, summary=path.rpartition("/")[2], operation_id=path.strip("/").replace("/", "_"))(constant)


def _state(call: Call | None) -> dict[str, Any]:
    progress = call.progress if call else None
    return {
        "skipped": bool(call and call.skipped),
        "interrupted": bool(call and call.interrupted),
        "stopping_generation": False,
        "job": f"Batch {call.batch + 1} out of {call.batches}" if call else "",
        "job_count": call.batches if call else 0,
        "job_no": call.batch if call else 0,
        "job_timestamp": "0",
        "sampling_step": progress.i if progress else 0,
        "sampling_steps": progress.n if progress else 0,
    }


def _info(request: Request, seed: int, n: int, model: str, texts: list[str], comments: list[str]) -> dict[str, Any]:
    """What the answer says about the pictures. request: of the last batch, resolved. seed: of the first picture."""
    prompt, negative = (request.texts[0] if request.texts else ""), " ".join(request.texts[1:])
    variation = request.variation_seed if request.variation_seed is not None else -1
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * n,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * n,
        "seed": seed,
        "all_seeds": [seed + k for k in range(n)],
        "subseed": variation,
        "all_subseeds": [variation] * n,
        "subseed_strength": request.variation_strength,
        "width": request.width,
        "height": request.height,
        "sampler_name": infotext.SAMPLER_LABELS.get(request.decoder.sampler or "", request.decoder.sampler),
        "cfg_scale": request.decoder.guidance_scale,
        "steps": request.decoder.steps,
        "batch_size": request.num_images,
        "denoising_strength": request.start.strength if request.start else None,
        "restore_faces": False,
        "sd_model_name": model,
        "sd_model_hash": None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": request.mask is not None,
        "comments": "\n".join(comments),
    }
