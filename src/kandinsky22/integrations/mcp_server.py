"""A server of the Model Context Protocol: the tasks as tools for agents, made from the task schema.

`tools` lists them, `call` carries one out, and `serve` connects both with standard input and output. A picture is given
as a path or in base64; what is painted is saved in one folder, and returned with its path. Needs the extra [mcp].
"""

import base64
import binascii
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import anyio
from anyio import from_thread, to_thread
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ContentBlock,
    ImageContent,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

import kandinsky22
from kandinsky22.console import echo
from kandinsky22.imaging.images import Painting
from kandinsky22.request import Embedding, Part, Picture, Request, Text
from kandinsky22.request.events import Backend, Event, Notice, Progress, Result, Started, stream
from kandinsky22.request.task_schema import Parameter, all_tasks, parameters, parse_part, typed
from kandinsky22.request.tasks import interpolate

INSTRUCTIONS = (
    "Paints pictures with Kandinsky 2.2. Options left out are the model's own choice. Give absolute paths. Each "
    "picture is saved, and its path is returned, so that it can be the image of a next call."
)
EMBED = "embed"
EMBED_HELP = (
    "Save the image embedding of a text or picture, or of a blend of several, to paint from it with interpolate."
)
EMBED_OPTIONS = ("images_and_prompts", "weights", "seed", "prior_num_inference_steps", "prior_guidance_scale")
PICTURE_HELP = "; the path of a PNG, JPEG or WebP file, or its content in base64"
PARTS_HELP = (
    "; each is a text, the path of a picture or of a .safetensors file that embed saved, or a picture in base64"
)
JSON_SCHEMA: Mapping[str, Mapping[str, Any]] = {
    "text": {"type": "string"},
    "string": {"type": "string"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "numbers": {"type": "array", "items": {"type": "number"}},
    "boolean": {"type": "boolean"},
    "picture": {"type": "string"},
    "parts": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    "loras": {"type": "array", "items": {"type": "string"}},
}
"""The JSON schema of a parameter of each kind."""
SIGNATURES = ("iVBORw0KGgo", "/9j/", "UklGR")  # how PNG, JPEG and WebP begin in base64
MAX_IMAGE = 700_000  # bytes of a returned PNG; a larger picture is returned as a JPEG, and saved as a PNG all the same
PRIOR_SHARE = 0.2  # of the progress
Report = Callable[[float, str], None]
"""Called with the progress from 0 to 1 and what is done; raises to cancel."""


class PictureBackend(Backend, Protocol):
    """What paints: `Kandinsky`, or `backends.remote.Remote`."""

    def embedding(self, request: Request) -> Embedding:
        """The image embedding of a resolved request's first picture."""
        ...


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What the tools work with. load: what carries a request out. save: writes a painting and returns its path.

    folder: where embeddings are saved.
    """

    load: Callable[[Request], PictureBackend]
    save: Callable[[Painting], Path]
    folder: Path


def tools() -> list[Tool]:
    """One tool for each task, and `embed`."""
    tasks = {name: ((task.__doc__ or "").partition("\n")[0], parameters(task)) for name, task in all_tasks().items()}
    tasks[EMBED] = (EMBED_HELP, _embed_parameters())
    harmless = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=False)
    return [
        Tool(name=name, description=summary, input_schema=_schema(known), annotations=harmless)
        for name, (summary, known) in tasks.items()
    ]


def call(tool_context: ToolContext, name: str, values: Mapping[str, Any], report: Report) -> CallToolResult:
    """Carry out a tool. Raises `ValueError` for a bad argument or a request that cannot be carried out."""
    if name == EMBED:
        return _embed(tool_context, values)
    task = all_tasks()[name]
    request = task(**_arguments(name, parameters(task), values))
    notices: list[str] = []
    with closing(stream(tool_context.load(request), request)) as events:
        for event in _reported(events, report):
            if isinstance(event, Notice):
                notices.append(event.text)
            if isinstance(event, Result):
                return _result(tool_context, event, notices)
    raise ValueError("the request was cancelled")


def serve(tool_context: ToolContext) -> None:
    """Serve on standard input and output until the input ends. Anything else that is printed goes to stderr."""
    anyio.run(_serve, server(tool_context))


def server(tool_context: ToolContext) -> Server[Any]:
    """The server; one call is carried out at a time, in a thread."""
    names = [tool.name for tool in tools()]
    turn = anyio.CapacityLimiter(1)

    async def list_tools(_: ServerRequestContext[Any], __: PaginatedRequestParams | None) -> ListToolsResult:
        return ListToolsResult(tools=tools())

    async def call_tool(context: ServerRequestContext[Any], params: CallToolRequestParams) -> CallToolResult:
        if params.name not in names:
            raise MCPError(INVALID_PARAMS, f"there is no tool {params.name!r:.80}; there are {', '.join(names)}")

        def report(done: float, what: str) -> None:
            from_thread.check_cancelled()
            from_thread.run(context.session.report_progress, done, 1.0, what)

        work = functools.partial(call, tool_context, params.name, params.arguments or {}, report)
        try:
            return await to_thread.run_sync(work, limiter=turn)
        except (ValueError, OSError, ArithmeticError, MemoryError) as error:
            text = str(error) or "there is not enough memory; ask for fewer or smaller pictures"
            return CallToolResult(content=[TextContent(text=text)], is_error=True)

    return Server(
        "kandinsky22",
        version=kandinsky22.__version__,
        title="Kandinsky 2.2",
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


async def _serve(server: Server[Any]) -> None:
    async with stdio_server() as (read_stream, write_stream):
        await server.run(read_stream, write_stream, server.create_initialization_options())


def _schema(known: Mapping[str, Parameter]) -> dict[str, Any]:
    """The JSON schema of a tool's arguments; the model is the server's."""
    properties = {name: _property(parameter) for name, parameter in known.items() if name != "model"}
    required = [name for name, parameter in known.items() if parameter.required]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _property(parameter: Parameter) -> dict[str, Any]:
    more = {"picture": PICTURE_HELP, "parts": PARTS_HELP}.get(parameter.kind, "")
    schema = {**JSON_SCHEMA[parameter.kind], "description": parameter.help + more}
    if parameter.choices:
        schema["enum"] = list(parameter.choices)
    return schema if parameter.default is None else {**schema, "default": parameter.default}


def _embed_parameters() -> dict[str, Parameter]:
    known = parameters(interpolate)
    slerp = Parameter("slerp", "number", "interpolate spherically between two instead: 0 is the first, 1 the second")
    return {name: known[name] for name in EMBED_OPTIONS} | {"slerp": slerp}


def _arguments(tool: str, known: Mapping[str, Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a tool as those of the task's function. Raises `ValueError` for those that do not fit."""
    arguments = {}
    for name, value in values.items():
        if name not in known or name == "model":
            raise ValueError(f"{tool} has no option {name!r}; it has {', '.join(n for n in known if n != 'model')}")
        if value is not None:
            arguments[name] = _argument(known[name], value)
    if missing := [name for name, parameter in known.items() if parameter.required and name not in arguments]:
        raise ValueError(f"{tool} needs {missing[0]}: {known[missing[0]].help}")
    return arguments


def _argument(parameter: Parameter, value: Any) -> Any:
    if parameter.kind == "picture":
        if not isinstance(value, str):
            raise ValueError(f"{parameter.name} must be a path or a picture in base64")
        return Picture.of(_decoded(value) or value, mask=parameter.name == "mask_image")
    if parameter.kind == "parts":
        if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
            raise ValueError(f"{parameter.name} must be a list of texts, paths, and pictures in base64")
        return [_part(part) for part in value]
    return typed(parameter, value)


def _part(value: str) -> Part:
    content = _decoded(value)
    return parse_part(value) if content is None else Picture.of(content)


def _decoded(value: str) -> bytes | None:
    """The bytes of a picture in base64, also as a data URL; None for any other text."""
    data = value.partition(",")[2] if value.startswith("data:image/") else value
    if not data.startswith(SIGNATURES):
        return None
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        return None


def _reported(events: Iterator[Event], report: Report) -> Iterator[Event]:
    """The events, with their progress reported: it only grows, also where the prior runs several times."""
    best = 0.0
    for event in events:
        match event:
            case Started():
                report(best, "started")
            case Progress(stage, i, n, _):
                share = i / n * (PRIOR_SHARE if stage == "prior" else 1 - PRIOR_SHARE)
                best = max(best, round(share if stage == "prior" else PRIOR_SHARE + share, 3))
                report(best, f"{stage} {i} of {n}")
            case Notice(text):
                echo(text, error=True)
        yield event


def _result(tool_context: ToolContext, result: Result, notices: list[str]) -> CallToolResult:
    content: list[ContentBlock] = [TextContent(text=notice) for notice in notices]
    pictures = []
    for painting in result.pictures:
        path, (width, height) = tool_context.save(painting).absolute(), painting.image.size
        pictures.append({"path": str(path), "seed": painting.request.seed, "width": width, "height": height})
        content += [_image(painting), TextContent(text=f"{path} (seed {painting.request.seed})")]
    return CallToolResult(content=content, structured_content={"pictures": pictures})


def _image(painting: Painting) -> ImageContent:
    file, kind = painting.to_png(), "image/png"
    if len(file) > MAX_IMAGE:
        file, kind = painting.encode("jpeg"), "image/jpeg"
    return ImageContent(data=base64.b64encode(file).decode(), mime_type=kind)


def _embed(tool_context: ToolContext, values: Mapping[str, Any]) -> CallToolResult:
    arguments = _arguments(EMBED, _embed_parameters(), values)
    slerp, parts = arguments.pop("slerp", None), arguments["images_and_prompts"]
    if slerp is not None and (len(parts) != 2 or "weights" in arguments):
        raise ValueError("slerp takes exactly two parts and no weights")
    if slerp is not None and not 0 <= slerp <= 1:
        raise ValueError(f"slerp goes from 0 to 1, got {slerp:g}; use weights to extrapolate")
    request = interpolate(**arguments)
    backend = tool_context.load(request)
    request = backend.resolve(request)
    if slerp is None:
        embedding = backend.embedding(request)
    else:
        ends = [interpolate(**arguments | {"images_and_prompts": [part], "seed": request.seed}) for part in parts]
        first, second = (backend.embedding(backend.resolve(end)) for end in ends)
        embedding = first.slerp(second, slerp)
    path = embedding.save(tool_context.folder / f"embedding-{embedding.digest}.safetensors").absolute()
    names = ", ".join(part.prompt if isinstance(part, Text) else "a picture or embedding" for part in parts)
    values = {"path": str(path), "seed": request.seed, "length": embedding.length}
    return CallToolResult(content=[TextContent(text=f"{path}: {names}")], structured_content=values)
