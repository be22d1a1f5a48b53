"""The machine and the model, as part of `/api/v1`; depth of pictures; and what a picture's metadata says."""

import asyncio
import json
import os
import re
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing import active_children
from pathlib import Path
from typing import Any

from fastapi import APIRouter, UploadFile
from pydantic import BaseModel

import kandinsky22
from kandinsky22.imaging.file_texts import PARAMETERS, RECIPE
from kandinsky22.imaging.infotext import parse
from kandinsky22.request import Picture, Request
from kandinsky22.request.parts import SAMPLERS
from kandinsky22.request.presets import SPEEDS
from kandinsky22.server.app import Services
from kandinsky22.server.dialects.common import Asker, sampler_of, store_picture
from kandinsky22.server.errors import ApiError
from kandinsky22.server.store import Key

COMMAND_SECONDS = 300.0  # that a command may take


class SamplingView(BaseModel):
    """The model's own choice for one stage."""

    sampler: str | None
    steps: int | None
    guidance_scale: float | None


class DefaultsView(BaseModel):
    """The model's own choices."""

    height: int
    width: int
    prior: SamplingView
    decoder: SamplingView


class ProcessView(BaseModel):
    """A process of the server. memory: bytes, None where this system does not say."""

    id: int
    memory: int | None


class KeyView(BaseModel):
    """A key, without its secret."""

    name: str
    scopes: list[str]
    max_jobs: int


class SystemView(BaseModel):
    """The server. Sizes are in bytes, times in seconds."""

    version: str
    model: str
    ready: bool
    problem: str | None
    defaults: DefaultsView | None
    samplers: list[str]
    speeds: list[str]
    max_pixels: int
    max_pictures: int
    waiting: int
    running: int
    max_waiting: int
    uptime: float
    processes: list[ProcessView]
    memory_total: int | None
    memory_free: int | None
    stored: int
    disk_free: int
    folder: str
    you: str
    may_administer: bool
    keys: list[KeyView]
    can_switch_model: bool
    ffmpeg: bool


class Report(BaseModel):
    """What a command printed."""

    text: str


class ModelChoice(BaseModel):
    """box, the name of a published model, or a folder on the server."""

    model: str


class DepthWish(BaseModel):
    """An uploaded picture, by its id."""

    picture: str


class UploadView(BaseModel):
    """An uploaded picture. `id` is the hash of its pixels."""

    id: str
    name: str
    width: int
    height: int


class Metadata(BaseModel):
    """What a picture's metadata says: a request of kandinsky22, or the options of text2img from AUTOMATIC1111's text.

    text: that text, as it is. ignored: its settings that have no meaning here.
    """

    request: dict[str, Any] | None
    options: dict[str, Any] | None
    text: str | None
    ignored: list[str]


def router(services: Services) -> APIRouter:
    """The routes."""
    routes, started = APIRouter(), time.monotonic()
    queue, store = services.queue, services.store
    one_command = asyncio.Lock()

    @routes.get("/system")
    async def system(key: Asker) -> SystemView:
        """The model, the machine, the queue and, for keys that see the figures of all, the keys."""
        defaults, may = queue.defaults, "metrics" in key.scopes
        total, free = _memory()
        return SystemView(
            version=kandinsky22.__version__,
            model=services.model,
            ready=defaults is not None and queue.problem is None,
            problem=queue.problem,
            defaults=None if defaults is None else DefaultsView.model_validate(defaults, from_attributes=True),
            samplers=list(SAMPLERS),
            speeds=list(SPEEDS),
            max_pixels=queue.limits.max_pixels,
            max_pictures=queue.limits.max_pictures,
            waiting=queue.waiting(),
            running=len(queue.running()),
            max_waiting=queue.limits.waiting,
            uptime=time.monotonic() - started,
            processes=[
                ProcessView(id=process, memory=_resident(process))
                for process in (os.getpid(), *sorted(child.pid or 0 for child in active_children()))
            ],
            memory_total=total,
            memory_free=free,
            stored=await asyncio.to_thread(store.bytes_used),
            disk_free=shutil.disk_usage(store.folder).free,
            folder=str(store.folder) if may else "",
            you=key.name,
            may_administer=may,
            keys=[
                KeyView(name=known.name, scopes=sorted(known.scopes), max_jobs=known.max_jobs)
                for known in services.access.keys().values()
                if may
            ],
            can_switch_model=may and services.switch_model is not None,
            ffmpeg=shutil.which("ffmpeg") is not None,
        )

    def check_may_administer(key: Key) -> None:
        if "metrics" not in key.scopes:
            raise ApiError("forbidden", "this key does not allow it; ask the operator for one with the scope metrics")

    async def command(*arguments: str) -> str:
        """What a command of kandinsky22 prints, in a process of its own, one at a time."""
        pipe, none = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
        words = [sys.executable, "-m", "kandinsky22", *arguments]
        async with one_command:
            process = await asyncio.create_subprocess_exec(*words, stdin=none, stdout=pipe, stderr=pipe)
            try:
                output, errors = await asyncio.wait_for(process.communicate(), COMMAND_SECONDS)
            except TimeoutError:
                raise ApiError("unavailable", f"{arguments[0]} took too long; try again later") from None
            finally:
                with suppress(ProcessLookupError):
                    process.kill()
        if process.returncode:
            lines = errors.decode(errors="replace").strip().splitlines() or ["it failed without a word"]
            raise ApiError("invalid", re.sub(r"^(kandinsky22|error): ", "", lines[-1]))
        return output.decode(errors="replace")

    @routes.post("/system/doctor")
    async def doctor(key: Asker) -> Report:
        """What `kandinsky22 doctor` says about this machine and model; it measures for some seconds."""
        check_may_administer(key)
        return Report(text=await command("doctor", "--model", services.model))

    @routes.post("/system/model", status_code=202)
    async def switch_model(choice: ModelChoice, key: Asker) -> Report:
        """Serve another model: the server finishes what runs, and starts again with it; what waits, waits on."""
        check_may_administer(key)
        if services.switch_model is None:
            raise ApiError("forbidden", "this server has one model; start another one for another model")
        try:
            await asyncio.to_thread(services.switch_model, choice.model)
        except (ValueError, OSError) as error:
            raise ApiError("invalid", str(error), "model") from None
        return Report(text=f"the server starts again with {choice.model}")

    @routes.post("/depth")
    async def depth(wish: DepthWish, key: Asker) -> UploadView:
        """Estimate the depth of an uploaded picture, for a hint; needs the extra `depth` and its weights."""
        path = await asyncio.to_thread(store.file, wish.picture, "picture")
        if path is None or not path.is_file():
            raise ApiError("invalid", "picture must be the id of an uploaded picture; upload it first", "picture")
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "picture.png", Path(folder) / "depth.png"
            await asyncio.to_thread(shutil.copyfile, path, source)
            await command("depth", str(source), "--output", str(target))
            picture = await asyncio.to_thread(Picture.of, target)
        await store_picture(services, picture, "depth.png", key)
        return UploadView(id=picture.sha256, name="depth.png", width=picture.width, height=picture.height)

    @routes.post("/metadata")
    async def metadata(file: UploadFile, _: Asker) -> Metadata:
        """What a picture's metadata says about how it was made: ours, or AUTOMATIC1111's."""
        texts = await services.decoder.texts(await file.read(), "file")
        text, request = texts.get(PARAMETERS), None
        if RECIPE in texts:
            with suppress(ValueError, KeyError, TypeError):
                values = json.loads(texts[RECIPE])["request"]
                request = json.loads(Request.from_json(json.dumps(values)).to_json())
        options, ignored = _options(parse(text)) if text is not None else (None, [])
        return Metadata(request=request, options=options or None, text=text, ignored=ignored)

    return routes


def _options(settings: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The options of text2img for AUTOMATIC1111's settings, and the names of those that have no meaning here."""
    settings = dict(settings)
    options: dict[str, Any] = {
        name: value
        for name, label in (("prompt", "Prompt"), ("negative_prompt", "Negative prompt"))
        if (value := settings.pop(label, ""))
    }
    readers: dict[str, tuple[str, Any]] = {
        "Steps": ("num_inference_steps", int),
        "CFG scale": ("guidance_scale", float),
        "Seed": ("seed", int),
        "Sampler": ("sampler", sampler_of),
    }
    for label, (name, reader) in readers.items():
        with suppress(ValueError):
            options[name] = reader(settings[label]) if label in settings else None
            settings.pop(label, None)
    if size := re.fullmatch(r"(\d+)x(\d+)", settings.get("Size", "")):
        options["width"], options["height"] = int(size[1]), int(size[2])
        del settings["Size"]
    return {name: value for name, value in options.items() if value is not None}, sorted(settings)


def _resident(process: int) -> int | None:
    """The memory of a process in bytes; None where /proc does not say."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def _memory() -> tuple[int | None, int | None]:
    """The machine's memory and what of it is free, in bytes; None where /proc does not say."""
    with suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        values = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)}
        return values["MemTotal"], values["MemAvailable"]
    return None, None
