"""Our own interface, `/api/v1`: every task as a job, its events as they come, and what was painted and uploaded."""

import asyncio
import base64
import hashlib
import json
import tempfile
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, UploadFile
from fastapi.responses import FileResponse, Response, StreamingResponse
from pydantic import BaseModel, Field

import kandinsky22
from kandinsky22.backends import event_json
from kandinsky22.request import Embedding, Picture, Text
from kandinsky22.request import Request as PaintRequest
from kandinsky22.request.events import Event, Preview, Progress, Result
from kandinsky22.request.parts import SAMPLERS
from kandinsky22.request.task_schema import Parameter, all_tasks, parameters
from kandinsky22.server.app import Services
from kandinsky22.server.dialects import backend
from kandinsky22.server.dialects.common import NO_CACHE, Asker, store_picture, with_pauses
from kandinsky22.server.errors import ApiError
from kandinsky22.server.live_job import LiveJob
from kandinsky22.server.requests import LOCAL, build
from kandinsky22.server.store import Key, StoredPicture

PREFIX = "/api/v1"
MAX_EMBEDDING = 1 << 20  # bytes of an embedding's file


Number = Annotated[int | None, Query(ge=0, lt=2**63)]


class PreviewWish(BaseModel):
    """Small pictures of the current state, with every `every`-th step, of at most `side` pixels a side."""

    every: int = Field(1, ge=1)
    side: int = Field(256, ge=1, le=1024)


class NewJob(BaseModel):
    """A job: a task with its options (see `/tasks`), or a whole request as pictures store it."""

    task: str = "text2img"
    options: dict[str, Any] = Field(default_factory=dict)
    request: dict[str, Any] | None = None
    preview: PreviewWish | None = None
    hidden: bool = False


class PictureView(BaseModel):
    """A finished picture. `url` is its PNG file."""

    id: str
    url: str
    job: str
    width: int
    height: int
    seed: int
    prompt: str
    starred: bool
    created: float
    number: int


class JobView(BaseModel):
    """A job. `position`: how many start before it; None if it does not wait. Times are seconds since 1970."""

    id: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    position: int | None
    request: dict[str, Any]
    error: str | None
    created: float
    started: float | None
    ended: float | None
    pictures: list[PictureView]


class Star(BaseModel):
    """A star keeps a picture from being deleted when space is needed."""

    starred: bool


class NewEmbedding(BaseModel):
    """An embedding to make: of one part, or a mix or a spherical interpolation of saved ones.

    parts: as for the task interpolate: `{"text": ...}`, `{"picture": id}`, `{"embedding": id}`. how: "mix" weighs the
    parts with `weights`; "slerp" turns the first towards the second by `t`.
    """

    parts: list[dict[str, str]] = Field(min_length=1, max_length=16)
    how: Literal["mix", "slerp"] = "mix"
    weights: list[float] | None = None
    t: float = Field(0.5, ge=0, le=1)
    seed: int | None = None
    name: str = ""


def router(services: Services) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix=PREFIX, tags=["kandinsky22"])
    queue, store = services.queue, services.store

    @routes.get("/capabilities")
    async def capabilities(_: Asker) -> dict[str, Any]:
        """What this server can do: its model, the size it paints by default, samplers and limits."""
        defaults, limits = queue.defaults, queue.limits
        return {
            "version": kandinsky22.__version__,
            "model": services.model,
            "ready": defaults is not None,
            "height": defaults and defaults.height,
            "width": defaults and defaults.width,
            "samplers": list(SAMPLERS),
            "limits": {
                "pixels": limits.max_pixels,
                "pictures": limits.max_pictures,
                "waiting": limits.waiting,
            },
        }

    @routes.get("/tasks")
    async def tasks(_: Asker) -> list[dict[str, Any]]:
        """The tasks and their options. Pictures and embeddings are given by the id of an upload."""
        return [
            {
                "name": name,
                "help": (task.__doc__ or "").partition("\n")[0],
                "parameters": [_parameter(p) for p in parameters(task).values() if p.name not in LOCAL],
            }
            for name, task in all_tasks().items()
        ]

    @routes.post("/uploads", status_code=201)
    async def upload(file: UploadFile, key: Asker) -> dict[str, Any]:
        """Upload a PNG, JPEG or WebP picture, or an embedding that was saved here; returns its id."""
        content = await file.read()
        await asyncio.to_thread(queue.check_space, len(content))
        name = Path(file.filename or "").name[:100]
        if name.endswith(".safetensors"):
            embedding = await asyncio.to_thread(_read_embedding, content)
            return await _store_embedding(services, embedding, name, key)
        picture = await services.decoder.picture(content, "file")
        await store_picture(services, picture, name, key)
        return {"id": picture.sha256, "kind": "picture", "name": name, "width": picture.width, "height": picture.height}

    @routes.head("/uploads/{upload}", response_class=Response)
    async def has_upload(upload: str, _: Asker) -> Response:
        """Whether there is such an upload."""
        for kind in ("picture", "embedding"):
            if await asyncio.to_thread(store.file, upload, kind) is not None:
                return Response()
        return Response(status_code=404)

    @routes.get("/uploads/{upload}", response_class=FileResponse)
    async def get_upload(upload: str, _: Asker) -> Response:
        """An uploaded picture as PNG, or an embedding's file."""
        for kind, media in (("picture", "image/png"), ("embedding", "application/octet-stream")):
            path = await asyncio.to_thread(store.file, upload, kind)
            if path is not None:
                return FileResponse(
                    path, media_type=media, filename=f"{upload[:16]}.{'png' if kind == 'picture' else 'safetensors'}"
                )
        raise ApiError("not found", "there is no such upload; upload the file again")

    @routes.post("/jobs", status_code=202)
    async def create(job: NewJob, key: Asker, idempotency_key: str | None = Header(None, max_length=200)) -> JobView:
        """Paint something. Repeating a call with the same `Idempotency-Key` returns the same job."""
        request = await _request(services, job)
        wish = None if job.preview is None else Preview(job.preview.every, job.preview.side)
        live = await queue.submit(
            key, request, source="native", preview=wish, hidden=job.hidden, idempotency_key=idempotency_key
        )
        return await job_view(services, live)

    @routes.get("/jobs")
    async def jobs(key: Asker, before: Number = None, count: int = Query(50, ge=1, le=200)) -> list[JobView]:
        """Your jobs, the newest first; before: the `number` of a job."""
        found = await asyncio.to_thread(store.jobs, key.name, before=before, count=count)
        lives = [await queue.live(job.id, key.name) for job in found]
        return [await job_view(services, live) for live in lives if live is not None]

    async def find(job: str, key: Key) -> LiveJob:
        live = await queue.live(job, key.name)
        if live is None:
            raise ApiError("not found", "there is no such job")
        return live

    @routes.get("/jobs/{job}")
    async def get_job(job: str, key: Asker) -> JobView:
        """A job."""
        return await job_view(services, await find(job, key))

    @routes.post("/jobs/{job}/cancel")
    async def cancel(job: str, key: Asker) -> JobView:
        """Cancel a job; one that has ended stays as it is."""
        live = await find(job, key)
        await queue.cancel(live)
        return await job_view(services, live)

    @routes.get(
        "/jobs/{job}/events",
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {}}}},
    )
    async def events(job: str, key: Asker, last_event_id: str | None = Header(None)) -> StreamingResponse:
        """A job's events as server-sent events: queued, started, notice, progress (with a preview), result, failed,
        cancelled. After a break, `Last-Event-ID` continues where it stopped."""
        live = await find(job, key)
        events, _, number = (last_event_id or "").rpartition("-")
        after = int(number) if events == live.id and number.isdecimal() and len(number) < 10 else 0
        return StreamingResponse(_stream(services, live, after), media_type="text/event-stream", headers=NO_CACHE)

    @routes.get("/gallery")
    async def gallery(
        key: Asker,
        before: Number = None,
        count: int = Query(50, ge=1, le=200),
        search: str = Query("", max_length=200),
        starred: bool = False,
    ) -> list[PictureView]:
        """Your pictures, the newest first. before: the `number` of the last picture seen; search: words of prompts."""
        found = await asyncio.to_thread(
            store.gallery, key.name, before=before, count=count, search=search, starred=starred
        )
        return [picture_view(picture) for picture in found]

    async def find_picture(picture: str, key: Key) -> StoredPicture:
        found = await asyncio.to_thread(store.picture, picture, key.name)
        if found is None:
            raise ApiError("not found", "there is no such picture")
        return found

    @routes.get("/pictures/{picture}", response_class=FileResponse)
    async def get_picture(picture: str, key: Asker) -> Response:
        """A picture's PNG file, with its request in its metadata."""
        found = await find_picture(picture, key)
        return FileResponse(
            found.path, media_type="image/png", filename=f"{found.id}.png", content_disposition_type="inline"
        )

    @routes.patch("/pictures/{picture}")
    async def star(picture: str, change: Star, key: Asker) -> PictureView:
        """Star a picture, or not."""
        await asyncio.to_thread(store.star, picture, key.name, change.starred)
        return picture_view(await find_picture(picture, key))

    @routes.delete("/pictures/{picture}", status_code=204)
    async def delete(picture: str, key: Asker) -> None:
        """Delete a picture."""
        if not await asyncio.to_thread(store.delete_picture, picture, key.name):
            raise ApiError("not found", "there is no such picture")

    @routes.post("/embeddings", status_code=201)
    async def embed(wish: NewEmbedding, key: Asker) -> dict[str, Any]:
        """Make an embedding that later jobs may use."""
        made = []
        for part in wish.parts:
            source = await _part(services, part)
            if isinstance(source, Embedding):
                made.append(source)
                continue
            request = build("interpolate", {"images_and_prompts": [part], "seed": wish.seed}, partial(_give, [source]))
            made.append(await asyncio.to_thread(services.embed, queue.resolve(request, await queue.ready())))
        try:
            if wish.how == "slerp":
                if len(made) != 2:
                    raise ValueError("slerp turns one embedding towards another; give two parts")
                result = made[0].slerp(made[1], wish.t)
            else:
                weights = wish.weights or [1 / len(made)] * len(made)
                if len(weights) != len(made):
                    raise ValueError(f"weights must have a number for each of {len(made)} parts")
                result = sum((e * w for e, w in zip(made[1:], weights[1:], strict=True)), made[0] * weights[0])
        except ValueError as error:
            raise ApiError("invalid", str(error)) from None
        return await _store_embedding(services, result, wish.name, key)

    routes.include_router(backend.router(services, partial(with_uploads, services)))
    return routes


def error(problem: ApiError, request_id: str) -> Any:
    """The JSON body of an error."""
    values = {"kind": problem.kind, "message": problem.message, "parameter": problem.parameter}
    return {"error": {**values, "censored": problem.censored, "request_id": request_id}}


async def job_view(services: Services, live: LiveJob) -> JobView:
    """A job as JSON."""
    job = await asyncio.to_thread(services.store.job, live.job.id)
    assert job is not None
    pictures = await asyncio.to_thread(services.store.pictures_of, job.id) if job.state == "succeeded" else []
    return JobView(
        id=job.id,
        state="running" if job.state == "queued" and live.is_running else job.state,
        position=services.queue.position(live),
        request=json.loads(job.request.to_json()),
        error=job.error,
        created=job.created,
        started=job.started,
        ended=job.ended,
        pictures=[picture_view(picture) for picture in pictures],
    )


def picture_view(picture: StoredPicture) -> PictureView:
    """A stored picture as JSON."""
    values = {name: getattr(picture, name) for name in PictureView.model_fields if name != "url"}
    return PictureView(url=f"{PREFIX}/pictures/{picture.id}", **values)


def _parameter(parameter: Parameter) -> dict[str, Any]:
    fields = ("name", "kind", "help", "required", "default", "choices")
    return {name: getattr(parameter, name) for name in fields}


async def _request(services: Services, job: NewJob) -> PaintRequest:
    if job.request is not None:
        return await with_uploads(services, PaintRequest.from_json(json.dumps(job.request)))
    found: dict[str, Any] = {}  # what uploads are, read beforehand, since a task's function cannot wait
    known = parameters(all_tasks()[job.task]) if job.task in all_tasks() else {}
    for name, value in job.options.items():
        if name in known and known[name].kind == "picture" and value is not None:
            found[name] = await _picture(services, value, name)
        elif name in known and known[name].kind == "parts":
            if not isinstance(value, list):
                raise ApiError("invalid", f"{name} must be a list of parts", name)
            found[name] = [await _part(services, part) for part in value]
    return build(job.task, job.options, lambda parameter, _: found[parameter.name])


async def with_uploads(services: Services, request: PaintRequest) -> PaintRequest:
    """The request with the pixels of its pictures. Raises `ApiError` for one that was not uploaded."""
    pictures = {path: await _picture(services, p.sha256, path) for path, p in request.pictures.items()}
    return request.with_pictures(pictures)


async def _picture(services: Services, upload: Any, name: str) -> Picture:
    path = await asyncio.to_thread(services.store.file, str(upload), "picture")
    if path is None or not path.is_file():
        raise ApiError("invalid", f"{name} must be the id of an uploaded picture; upload it to {PREFIX}/uploads", name)
    return await asyncio.to_thread(Picture.of, path)


async def _part(services: Services, part: Any) -> Text | Picture | Embedding:
    if isinstance(part, str):
        return Text(part)
    if isinstance(part, Mapping) and len(part) == 1:
        ((kind, value),) = part.items()
        if kind == "text" and isinstance(value, str):
            return Text(value)
        if kind == "picture":
            return await _picture(services, value, "a part")
        if kind == "embedding":
            path = await asyncio.to_thread(services.store.file, str(value), "embedding")
            if path is not None and path.is_file():
                return await asyncio.to_thread(Embedding.load, path)
            raise ApiError("invalid", f"there is no embedding {value!r:.80}; upload it to {PREFIX}/uploads")
    raise ApiError("invalid", 'a part is a text, {"text": ...}, {"picture": id} or {"embedding": id}')


def _give(value: Any, _parameter: Parameter, _: Any) -> Any:
    return value


def _read_embedding(content: bytes) -> Embedding:
    if len(content) > MAX_EMBEDDING:
        raise ApiError("too large", f"an embedding has at most {MAX_EMBEDDING} bytes")
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(content)
        file.flush()
        try:
            return Embedding.load(file.name)
        except ValueError:
            raise ApiError("invalid", "this is not an embedding saved by kandinsky22", "file") from None


async def _store_embedding(services: Services, embedding: Embedding, name: str, key: Key) -> dict[str, Any]:
    def write() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return embedding.save(Path(folder) / "embedding.safetensors").read_bytes()

    content, digest = await asyncio.to_thread(write), hashlib.sha256(embedding.encoder.encode() + embedding.data)
    upload = digest.hexdigest()[:32]
    await asyncio.to_thread(services.store.add_file, upload, "embedding", name, key.name, content)
    return {"id": upload, "kind": "embedding", "name": name, "length": embedding.length}


async def _stream(services: Services, live: LiveJob, after: int) -> AsyncIterator[bytes]:
    """Server-sent events of a job, with a comment whenever it is silent for long."""
    async for item in with_pauses(services.queue.events(live, after)):
        if item is None:
            yield b": waiting\n\n"
            continue
        number, event = item
        kind = type(event).__name__.lower()
        data = json.dumps(event_values(live, event), ensure_ascii=False)
        yield f"id: {live.id}-{number}\nevent: {kind}\ndata: {data}\n\n".encode()


def event_values(live: LiveJob, event: Event) -> dict[str, Any]:
    """An event as JSON values: those of `event_json`, with a preview in base64, and of a result the stored pictures."""
    values, files = event_json.to_json(event)
    if isinstance(event, Progress):
        values["preview"] = base64.b64encode(files[0]).decode() if files else None
    elif isinstance(event, Result):
        values["pictures"] = [picture_view(picture).model_dump() for picture in live.pictures]
    return values
