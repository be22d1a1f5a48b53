"""FusionBrain's interface, `/key/api/v1`, which the Kandinsky models' own service has: run, then ask for the status.

The older paths, `models` and `text2image`, answer in their older shapes. A style is some words after the prompt.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile

from kandinsky22.request.events import Cancelled, Failed, Result
from kandinsky22.server.app import Services
from kandinsky22.server.dialects import common
from kandinsky22.server.dialects.common import Asker
from kandinsky22.server.errors import ApiError
from kandinsky22.server.live_job import LiveJob
from kandinsky22.server.requests import build
from kandinsky22.server.store import Key

PREFIX = "/key"
PIPELINE, MODEL = "5f3b0c8e-2d1a-4c7e-9b46-8a2f0d6e1c22", 1  # the ids of what this server has
SINCE = "2023-07-12T00:00:00.000Z"  # when the model was published
MAX_QUERY = 1000  # characters, as there
EXAMPLE = '{"type": "GENERATE", "width": 64, "height": 64, "generateParams": {"query": "a red circle"}}'
STYLES: Mapping[str, tuple[str, str, str]] = {
    "DEFAULT": ("Свой стиль", "No style", ""),
    "KANDINSKY": ("Кандинский", "Kandinsky", "abstract painting in the style of Wassily Kandinsky"),
    "UHD": ("Детальное фото", "Detailed photo", "detailed photo, sharp, high resolution"),
    "ANIME": ("Аниме", "Anime", "anime style"),
}
"""By name: the titles in Russian and English, and the words that are added to a prompt."""


class GenerateParams(BaseModel):
    """What to paint."""

    query: str = Field(max_length=MAX_QUERY)


class Params(BaseModel):
    """The field `params`, JSON."""

    model_config = ConfigDict(populate_by_name=True)

    type: Literal["GENERATE"] = "GENERATE"
    style: str | None = None
    width: int | None = None
    height: int | None = None
    num_images: int | None = Field(None, alias="numImages")
    negative_decoder: str | None = Field(None, alias="negativePromptDecoder")
    negative_unclip: str | None = Field(None, alias="negativePromptUnclip")
    generate: GenerateParams = Field(alias="generateParams")


class Run(BaseModel):
    """A job that was accepted. `status_time`: seconds in this status."""

    uuid: str
    status: str
    status_time: int = 0


def router(services: Services) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["FusionBrain"])
    api = f"{PREFIX}/api/v1"
    queue = services.queue

    def availability() -> str:
        return "DISABLED_BY_QUEUE" if queue.waiting() >= queue.limits.waiting else "ACTIVE"

    @routes.get(f"{api}/pipelines")
    async def pipelines(_: Asker, type: str = "TEXT2IMAGE") -> list[dict[str, Any]]:
        """The pipelines: one."""
        name = common.model_name(services)
        pipeline = {"id": PIPELINE, "name": name, "nameEn": name, "description": "", "descriptionEn": "", "tags": []}
        dates = {"createdDate": SINCE, "lastModified": SINCE}
        whole = pipeline | {"version": 2.2, "status": availability(), "type": "TEXT2IMAGE"} | dates
        return [whole] if type == "TEXT2IMAGE" else []

    @routes.get(f"{api}/pipeline/{{pipeline}}/availability")
    async def pipeline_availability(pipeline: str, _: Asker) -> dict[str, str]:
        """Whether the pipeline takes requests."""
        check(pipeline, PIPELINE, "pipeline_id")
        return {"status": availability(), "pipeline_status": availability()}

    @routes.post(f"{api}/pipeline/run", status_code=201, openapi_extra=_form("pipeline_id"))
    async def pipeline_run(key: Asker, request: HttpRequest, pipeline_id: Annotated[str, Query()] = "") -> Run:
        """Paint something."""
        return await run(request, key, "pipeline_id", pipeline_id, PIPELINE)

    @routes.get(f"{api}/pipeline/status/{{uuid}}")
    async def pipeline_status(uuid: str, key: Asker) -> dict[str, Any]:
        """How far a job is, and its pictures."""
        status, files, censored = await state(uuid, key)
        return status | {"result": {"files": files, "censored": censored} if files or censored else None}

    @routes.get(f"{api}/models")
    async def models(_: Asker) -> list[dict[str, Any]]:
        """The models: one."""
        return [{"id": MODEL, "name": common.model_name(services), "version": 2.2, "type": "TEXT2IMAGE"}]

    @routes.get(f"{api}/text2image/availability")
    async def model_availability(_: Asker, model_id: str = str(MODEL)) -> dict[str, str]:
        """Whether the model takes requests."""
        check(model_id, str(MODEL), "model_id")
        return {"model_status": availability()}

    @routes.post(f"{api}/text2image/run", status_code=201, openapi_extra=_form("model_id"))
    async def model_run(key: Asker, request: HttpRequest, model_id: Annotated[str, Query()] = "") -> Run:
        """Paint something."""
        return await run(request, key, "model_id", model_id, str(MODEL))

    @routes.get(f"{api}/text2image/status/{{uuid}}")
    async def model_status(uuid: str, key: Asker) -> dict[str, Any]:
        """How far a job is, and its pictures."""
        status, files, censored = await state(uuid, key)
        return status | {"images": files or None, "censored": censored}

    @routes.get(f"{api}/styles")
    @routes.get("/static/styles/{kind}")
    async def styles(kind: str = "key") -> list[dict[str, str]]:
        """The styles. No key is needed, as there."""
        return [
            {"name": name, "title": title, "titleEn": english, "image": ""}
            for name, (title, english, _) in STYLES.items()
        ]

    def check(given: str, own: str, parameter: str) -> None:
        if given != own and not services.aliases:
            raise ApiError("not found", f"there is no {parameter} {given!r:.60}; this server has {own}", parameter)

    async def run(request: HttpRequest, key: Key, parameter: str, given: str, own: str) -> Run:
        fields = {parameter: given} | await _fields(request)
        check(fields[parameter], own, parameter)
        try:
            params = Params.model_validate_json(fields.get("params", ""))
        except ValidationError as error:
            if error.errors()[0]["type"] == "json_invalid":
                raise ApiError("invalid", "params must be a JSON object", "params") from None
            raise RequestValidationError(error.errors()) from None
        live = await common.submit(services, key, build("text2img", _options(params), common.as_is), "fusionbrain")
        return Run(uuid=live.job.id, status="INITIAL")

    async def state(uuid: str, key: Key) -> tuple[dict[str, Any], list[str], bool]:
        """The status of a job, its pictures in base64 when it is done, and whether they are withheld."""
        live = await queue.live(uuid, key.name)
        if live is None:
            raise ApiError("not found", "there is no such job")
        status, error, seconds = _status(live)
        files = [common.to_base64(await common.encoded(services, picture)) for picture in live.pictures]
        values = {"uuid": uuid, "status": status, "errorDescription": error, "generationTime": seconds}
        return values, files, isinstance(live.last, Failed) and live.last.reason == "censored"

    return routes


def error(problem: ApiError, request_id: str) -> Any:
    """The JSON body of an error."""
    names = {status.value: status.phrase for status in HTTPStatus}
    name = names.get(problem.status, "Error")
    return {"status": problem.status, "error": name, "message": problem.message, "requestId": request_id}


def _form(parameter: str) -> dict[str, Any]:
    """The description of a multipart body for OpenAPI."""
    params = {"type": "string", "contentMediaType": "application/json", "examples": [EXAMPLE]}
    properties = {parameter: {"type": "string"}, "params": params}
    schema = {"type": "object", "properties": properties, "required": ["params"]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


async def _fields(request: HttpRequest) -> dict[str, str]:
    """The fields of a form as text; some clients send `params` as a file."""
    fields = {}
    async with request.form(max_files=4, max_fields=20) as form:
        for name, item in form.multi_items():
            value = (await item.read()).decode(errors="replace") if isinstance(item, UploadFile) else item
            fields[name] = value
    return fields


def _options(params: Params) -> dict[str, Any]:
    """The options of text2img. An unknown style is used as words."""
    style = (params.style or "DEFAULT").strip()
    words = STYLES[style.upper()][2] if style.upper() in STYLES else style
    negative = dict.fromkeys(filter(None, (params.negative_unclip, params.negative_decoder)))
    return {
        "prompt": ", ".join(filter(None, (params.generate.query, words))),
        "negative_prompt": ", ".join(negative) or None,
        "width": params.width,
        "height": params.height,
        "num_images": params.num_images,
    }


def _status(live: LiveJob) -> tuple[Literal["INITIAL", "PROCESSING", "DONE", "FAIL"], str | None, int | None]:
    """The status of a job, what went wrong, and the seconds that painting took."""
    match live.last:
        case Result(_, _, seconds):
            return "DONE", None, round(seconds)
        case Failed("censored", text):  # as there, where it is a result without files
            return "DONE", text, None
        case Failed(_, text):
            return "FAIL", text, None
        case Cancelled():
            return "FAIL", "the job was cancelled", None
    return ("PROCESSING" if live.is_running else "INITIAL"), None, None
