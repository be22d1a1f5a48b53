"""OpenAI's interface for images, `/v1`: generations, edits, variations, models, and the files behind `url` answers.

Our own options are further fields, under our names or vLLM-Omni's. A mask's transparent part is repainted; several
pictures are blended; no URL is ever fetched.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ValidationError

from kandinsky22.request import Request
from kandinsky22.request.events import Cancelled, Failed, Preview, Progress, Result
from kandinsky22.server.app import Services
from kandinsky22.server.dialects import common
from kandinsky22.server.dialects.common import Asker
from kandinsky22.server.dialects.openai_call import (
    Generation,
    ImageOptions,
    Inputs,
    read_fields,
    read_inputs,
    request_of,
    task_options,
    variations_of,
)
from kandinsky22.server.errors import ApiError, Kind, api_error_of
from kandinsky22.server.limits import exception_of
from kandinsky22.server.live_job import LiveJob
from kandinsky22.server.store import Key

PREFIX = "/v1"
SOURCE = "openai"
URL_SECONDS = 3600.0  # that a `url` answer can be read
TOKEN = 32  # pixels: the side of the square that `usage` counts as one token of a picture
ERRORS: Mapping[Kind, tuple[str, str]] = {
    "invalid": ("invalid_request_error", "invalid_value"),
    "unauthorized": ("invalid_request_error", "invalid_api_key"),
    "forbidden": ("invalid_request_error", "forbidden"),
    "not found": ("invalid_request_error", "not_found"),
    "conflict": ("invalid_request_error", "conflict"),
    "too large": ("invalid_request_error", "request_too_large"),
    "busy": ("rate_limit_error", "rate_limit_exceeded"),
}
"""The type and the code of an error; others are the server's."""


class OneImage(BaseModel):
    """A picture: in base64, or where to get it."""

    b64_json: str | None = None
    url: str | None = None


class Images(BaseModel):
    """The finished pictures."""

    created: int
    data: list[OneImage]
    background: str
    output_format: str
    quality: str
    size: str
    usage: dict[str, Any]


def router(services: Services) -> APIRouter:
    """The routes."""
    routes = APIRouter(prefix=PREFIX, tags=["OpenAI"])
    queue, store = services.queue, services.store

    @routes.get("/models")
    async def models(_: Asker) -> dict[str, Any]:
        """The model of this server."""
        return {"object": "list", "data": [_model(common.model_name(services))]}

    @routes.get("/models/{model}")
    async def model(model: str, _: Asker) -> dict[str, Any]:
        """The model, under its own name or another that it answers to."""
        _check_model(services, model)
        return _model(model)

    @routes.post("/images/generations", response_model=Images, responses=STREAM)
    async def generations(wish: Generation, key: Asker, request: HttpRequest) -> Response:
        """Paint a prompt."""
        inputs, values = await read_inputs(services, dict(wish.model_extra or {}), key)
        return await paint(wish, inputs, values, "image_generation", request, key)

    @routes.post("/images/edits", response_model=Images, responses=STREAM, openapi_extra=_form("prompt"))
    async def edits(key: Asker, request: HttpRequest) -> Response:
        """Change a picture: with a mask the masked part, without one all of it; or blend several with `weights`."""
        wish, inputs, values = await read(request, key)
        if not inputs.images:
            raise ApiError("invalid", "an edit needs a picture; send one as image", "image")
        return await paint(wish, inputs, values, "image_edit", request, key)

    @routes.post("/images/variations", response_model=Images, openapi_extra=_form())
    async def variations(key: Asker, request: HttpRequest) -> Response:
        """Paint pictures similar to a picture."""
        wish, inputs, values = await read(request, key)
        if len(inputs.images) != 1 or inputs.mask or inputs.hint:
            raise ApiError("invalid", "variations are made of one picture; send it as image", "image")
        return await paint(wish, inputs, values, "image_generation", request, key, variations_of)

    async def read(request: HttpRequest, key: Key) -> tuple[ImageOptions, Inputs, dict[str, Any]]:
        """The options, pictures and further options of a form, or of a JSON body."""
        fields = await read_fields(request)
        inputs, values = await read_inputs(services, fields, key)
        try:
            wish = ImageOptions.model_validate(values)
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None
        return wish, inputs, dict(wish.model_extra or {})

    async def paint(
        wish: ImageOptions,
        inputs: Inputs,
        values: dict[str, Any],
        kind: str,
        request: HttpRequest,
        key: Key,
        make: Callable[[ImageOptions, Inputs, dict[str, Any]], Request] = request_of,
    ) -> Response:
        _check_model(services, wish.model)
        defaults = await queue.ready()
        values = task_options(wish, values, defaults, queue.limits.max_pixels)
        wanted = await asyncio.to_thread(make, wish, inputs, values)
        preview = None
        if wish.stream and wish.partial_images:
            steps = wanted.expand_speed(defaults).decoder.steps or defaults.decoder.steps or 1
            preview = Preview(every=max(1, steps // (wish.partial_images + 1)))
        live = await common.submit(services, key, wanted, SOURCE, preview)
        if wish.stream:
            stream = _stream(services, live, wish, inputs, kind, request)
            return StreamingResponse(stream, media_type="text/event-stream", headers=common.NO_CACHE)
        pictures = await common.finished(services, live, request)
        data = []
        for picture in pictures:
            if wish.response_format == "url":
                query = "" if wish.format == "png" else f"?quality={wish.compression}"
                data.append({"url": f"{request.base_url}v1/files/{picture.id}.{wish.format}{query}"})
            else:
                file = await common.encoded(services, picture, wish.format, wish.compression)
                data.append({"b64_json": common.to_base64(file)})
        shape = _shape(live, wish)
        return JSONResponse({"created": int(time.time()), "data": data, **shape, "usage": _usage(live, inputs)})

    @routes.get("/files/{name}", response_class=Response, responses={200: {"content": {"image/*": {}}}})
    async def get_file(name: str, quality: int = Query(95, ge=0, le=100)) -> Response:
        """A picture that a `url` answer named; for an hour, to everyone who knows the name."""
        picture_id, _, format = name.rpartition(".")
        picture = await asyncio.to_thread(store.picture, picture_id)
        if picture is not None and format in ("png", "jpeg", "webp"):
            job = await asyncio.to_thread(store.job, picture.job)
            if job is not None and job.source == SOURCE and time.time() - picture.created < URL_SECONDS:
                file = await common.encoded(services, picture, format, quality)  # type: ignore[arg-type]  # checked
                headers = {
                    "content-disposition": f'inline; filename="{name}"',
                    "cache-control": "private, max-age=3600",
                    "cross-origin-resource-policy": "cross-origin",  # a page of the client's shows it
                }
                return Response(file, media_type=f"image/{format}", headers=headers)
        raise ApiError("not found", "there is no such file; a picture's URL is valid for 60 minutes")

    return routes


def error(problem: ApiError, request_id: str) -> Any:
    """The JSON body of an error."""
    kind, code = ERRORS.get(problem.kind, ("server_error", "server_error"))
    if problem.kind == "not found" and problem.parameter == "model":
        code = "model_not_found"
    elif problem.censored:
        code = "content_policy_violation"
    return {"error": {"message": problem.message, "type": kind, "param": problem.parameter, "code": code}}


STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}


def _form(*required: str) -> dict[str, Any]:
    """The description of a multipart body for OpenAPI."""
    files = {name: {"type": "string", "format": "binary"} for name in ("image", "mask", "hint")}
    options = ImageOptions.model_json_schema()["properties"]
    schema = {"type": "object", "properties": files | options, "required": ["image", *required]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "kandinsky22"}


def _check_model(services: Services, name: str | None) -> None:
    if not common.is_model(services, name):
        own = common.model_name(services)
        raise ApiError("not found", f"there is no model {name!r:.80}; this server has {own!r}", "model")


def _shape(live: LiveJob, wish: ImageOptions) -> dict[str, Any]:
    request = live.job.request
    size = f"{request.width}x{request.height}"
    return {"background": "opaque", "output_format": wish.format, "quality": wish.effort, "size": size}


def _usage(live: LiveJob, inputs: Inputs) -> dict[str, Any]:
    """Tokens: of texts, words and punctuation marks; of pictures, squares of `TOKEN` pixels a side."""
    request = live.job.request
    text = sum(len(re.findall(r"\w+|[^\w\s]", prompt)) for prompt in request.texts)
    pictures = [*inputs.images, *filter(None, (inputs.mask, inputs.hint))]
    image = sum(_tokens(picture.height, picture.width) for picture in pictures)
    output = request.num_images * _tokens(request.height or 0, request.width or 0)
    return {
        "input_tokens": text + image,
        "input_tokens_details": {"image_tokens": image, "text_tokens": text},
        "output_tokens": output,
        "output_tokens_details": {"image_tokens": output, "text_tokens": 0},
        "total_tokens": text + image + output,
    }


def _tokens(height: int, width: int) -> int:
    return -(-height // TOKEN) * -(-width // TOKEN)


async def _stream(
    services: Services, live: LiveJob, wish: ImageOptions, inputs: Inputs, kind: str, http: HttpRequest
) -> AsyncIterator[bytes]:
    """Server-sent events of a job: partial pictures, and then each picture. See `common.cancel_on_hang_up`."""
    shape, request, sent = _shape(live, wish), live.job.request, 0

    def event(name: str, file: bytes, **values: Any) -> bytes:
        data = {"type": f"{kind}.{name}", "b64_json": common.to_base64(file), "created_at": int(time.time())}
        return f"event: {kind}.{name}\ndata: {json.dumps(data | shape | values)}\n\n".encode()

    def failure(problem: ApiError) -> bytes:
        return f"data: {json.dumps(error(problem, ''))}\n\n".encode()

    try:
        async for item in common.with_pauses(services.queue.events(live)):
            match None if item is None else item[1]:
                case None:
                    yield b": waiting\n\n"
                case Progress(preview=bytes(preview)) if sent < (wish.partial_images or 0):
                    file = await asyncio.to_thread(
                        common.unfinished, services, preview, request, wish.format, wish.compression
                    )
                    yield event("partial_image", file, partial_image_index=sent)
                    sent += 1
                case Result():
                    for picture in live.pictures:
                        file = await common.encoded(services, picture, wish.format, wish.compression)
                        yield event("completed", file, index=picture.position, usage=_usage(live, inputs))
                case Failed() as failed:
                    yield failure(api_error_of(exception_of(failed)))
                case Cancelled():
                    yield failure(ApiError("conflict", "the job was cancelled"))
    finally:
        common.cancel_on_hang_up(services, live, http)
