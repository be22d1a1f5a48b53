"""What the dialects share: pictures in and out, waiting for a job, and the names of samplers and models."""

import asyncio
import base64
import binascii
import io
import re
from collections.abc import AsyncIterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import Depends
from fastapi import Request as HttpRequest
from PIL import Image

from kandinsky22.imaging import infotext
from kandinsky22.imaging.file_texts import Format
from kandinsky22.request import Picture, Request
from kandinsky22.request.events import Preview
from kandinsky22.request.picture_file import open_picture
from kandinsky22.request.task_schema import Parameter
from kandinsky22.server.app import Services, who
from kandinsky22.server.errors import ApiError
from kandinsky22.server.live_job import LiveJob
from kandinsky22.server.store import Key, StoredPicture

T = TypeVar("T")
Asker = Annotated[Key, Depends(who)]
HEARTBEAT = 15.0  # seconds between comments on a silent stream of events, so that proxies keep it open
KEEP = "x-keep-job"  # a header, "true": the job goes on when the client hangs up, and its pictures are in the gallery
NO_CACHE = {"cache-control": "no-store", "x-accel-buffering": "no"}
ALIASES = ("gpt-image-*", "chatgpt-image-*", "dall-e-*", "kandinsky*", "stable-diffusion*", "sd*")
"""The model names, as patterns, that clients send without a choice; they mean the model that this server has."""
SAMPLER_NAMES: Mapping[str, str | None] = {
    "": None,
    "automatic": None,
    "default": None,
    "ddpm": "ddpm",
    "eulera": "ddpm",  # the ancestral Euler method is DDPM's step with another parametrisation
    "eulerancestral": "ddpm",
    "unclip": "unclip",
    "ddim": "ddim",
    "euler": "euler",
    "dpm++2m": "dpmpp_2m",
    "dpmpp2m": "dpmpp_2m",
    "dpmsolvermultistep": "dpmpp_2m",
    "unipc": "unipc",
    "unipcmultistep": "unipc",
    "heun": "heun",
    "dpm2": "heun",  # also of second order, with two calls per step
}
"""Other programs' names of samplers, in lower case without separators, and ours; None: the model's own."""
SCHEDULES = r"karras|exponential|polyexponential|sgm ?uniform|simple|trailing"
_cancelling: set[asyncio.Task[None]] = set()


def sampler_of(name: str) -> str | None:
    """Our sampler for another program's name; None: the model's own. Raises `ValueError` for an unknown name."""
    plain = re.sub(rf"[\s_-]+({SCHEDULES})$", "", name.strip().lower())
    plain = re.sub(r"^k_|[\s_-]|(discrete)?scheduler$", "", plain)
    if plain not in SAMPLER_NAMES:
        raise ValueError(f"there is no sampler {name!r:.60}; there are {', '.join(infotext.SAMPLER_LABELS)}")
    return SAMPLER_NAMES[plain]


def model_name(services: Services) -> str:
    """The name of the model that paints; of one in a folder, the folder's own name."""
    return Path(services.model).name


def is_model(services: Services, name: str | None) -> bool:
    """Whether a model's name means the one that this server has."""
    if not name or name == model_name(services):
        return True
    return services.aliases and any(fnmatch(name.lower(), pattern) for pattern in ALIASES)


async def read_picture(services: Services, value: bytes | str, name: str) -> Picture:
    """A picture from a file's bytes, base64, or a `data:` URL. name: of its parameter. Raises `ApiError`."""
    return await services.decoder.picture(from_base64(value, name), name)


def from_base64(value: bytes | str, name: str) -> bytes:
    """A file's bytes, from themselves, base64 or a `data:` URL. Raises `ApiError`."""
    if isinstance(value, bytes):
        return value
    if re.match(r"\s*(https?|ftp|file):", value, re.IGNORECASE):
        raise ApiError("invalid", f"{name} is a URL, and this server fetches none; send the picture itself", name)
    try:
        return base64.b64decode(value.partition(",")[2] if value.startswith("data:") else value, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError("invalid", f"{name} must be a picture in base64", name) from None


async def store_picture(services: Services, picture: Picture, name: str, key: Key) -> None:
    """Store a picture that a request refers to, under the hash of its pixels."""

    def write() -> None:
        file = io.BytesIO()
        picture.image.save(file, "PNG", compress_level=1)
        services.store.add_file(picture.sha256, "picture", name, key.name, file.getvalue())

    await asyncio.to_thread(write)


async def submit(
    services: Services, key: Key, request: Request, source: str, preview: Preview | None = None
) -> LiveJob:
    """Accept a request whose pictures have their pixels; raises as `JobQueue.submit` does."""
    for path, picture in request.pictures.items():
        await store_picture(services, picture, path, key)
    return await services.queue.submit(key, request, source=source, preview=preview)


async def finished(services: Services, live: LiveJob, request: HttpRequest) -> list[StoredPicture]:
    """A job's pictures when it is done. A client that hangs up cancels it, unless it asked to `KEEP` it.

    Raises `ApiError` if the job was cancelled, and as `JobQueue.wait` does.
    """
    painting = asyncio.ensure_future(services.queue.wait(live))
    gone = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({painting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not painting.done():
            raise ApiError("hung up", "the client hung up")
        if painting.cancelled():
            raise ApiError("conflict", "the job was cancelled")
        return painting.result()
    finally:
        painting.cancel()
        gone.cancel()
        cancel_on_hang_up(services, live, request)


async def _hang_up(request: HttpRequest) -> None:
    """Return when the client has hung up; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def cancel_on_hang_up(services: Services, live: LiveJob, request: HttpRequest) -> None:
    """When a call has ended, cancel its job if that has not, unless the client asked to `KEEP` it."""
    if request.headers.get(KEEP, "").lower() != "true":
        cancel_soon(services, live)


def cancel_soon(services: Services, live: LiveJob) -> None:
    """Cancel a job, if it has not ended, also from a task that is itself cancelled."""
    if not live.has_ended:
        task = asyncio.ensure_future(services.queue.cancel(live))
        _cancelling.add(task)
        task.add_done_callback(_cancelling.discard)


async def with_pauses(items: AsyncIterator[T]) -> AsyncIterator[T | None]:
    """The items, and None whenever there is none for `HEARTBEAT` seconds."""
    pending: asyncio.Future[T] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(items))
            done, _ = await asyncio.wait({pending}, timeout=HEARTBEAT)
            if not done:
                yield None
                continue
            try:
                item = pending.result()
            except StopAsyncIteration:
                return
            pending = None
            yield item
    finally:
        if pending is not None:
            pending.cancel()


async def encoded(services: Services, picture: StoredPicture, format: Format = "png", quality: int = 95) -> bytes:
    """A stored picture as a file."""

    def convert() -> bytes:
        return services.queue.files.convert(picture.path.read_bytes(), format, quality)

    return await asyncio.to_thread(convert)


def unfinished(
    services: Services, preview: bytes, request: Request, format: Format = "png", quality: int = 80
) -> bytes:
    """A preview as a file of the size of the resolved request's pictures."""
    with open_picture(preview, formats=("PNG",)) as image:
        size = request.width or image.width, request.height or image.height
        large = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return services.queue.files.unfinished(large, request.for_image(0), format, quality)


def as_is(_: Parameter, value: Any) -> Any:
    """For `requests.build`: the pictures are there already."""
    return value


def to_base64(file: bytes) -> str:
    """A file in base64."""
    return base64.b64encode(file).decode()
