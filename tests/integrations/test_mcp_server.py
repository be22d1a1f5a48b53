"""The MCP server with the package's own client: in this process, and as the command over its standard streams."""

import asyncio
import base64
import io
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcp import Client, StdioServerParameters
from mcp.shared.exceptions import MCPError
from PIL import Image

from kandinsky22 import Kandinsky, img2img, text2img
from kandinsky22.cli.app import run
from kandinsky22.cli.output import Destination, save_picture
from kandinsky22.integrations.mcp_server import ToolContext, call, server, tools
from kandinsky22.request import Embedding
from kandinsky22.request.task_schema import all_tasks, parameters
from kandinsky22.request.tasks import interpolate

PRIOR: dict[str, Any] = {"seed": 5, "prior_num_inference_steps": 2}
SMALL: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": 2, **PRIOR}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Kandinsky:
    return Kandinsky.load(tiny_model)


@pytest.fixture
def tool_context(model: Kandinsky, tmp_path: Path) -> ToolContext:
    return ToolContext(lambda _: model, partial(save_picture, destination=Destination(tmp_path)), tmp_path)


def ask(tool_context: ToolContext, work: Callable[[Client], Awaitable[Any]]) -> Any:
    """What `work` returns for a client of the server in this process."""

    async def main() -> Any:
        async with Client(server(tool_context)) as client:
            return await work(client)

    return asyncio.run(main())


def pixels(source: bytes | Path | Image.Image) -> np.ndarray:
    image = (
        source
        if isinstance(source, Image.Image)
        else Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    )
    return np.asarray(image.convert("RGB"))


def test_every_task_is_a_tool_with_its_options() -> None:
    schemas = {tool.name: tool.input_schema for tool in tools()}
    for name, task in all_tasks().items():
        known = parameters(task)
        assert schemas[name]["properties"].keys() == known.keys() - {"model"}
        assert schemas[name]["required"] == [option for option, value in known.items() if value.required]
    assert schemas.keys() == {*all_tasks(), "embed"}


def test_a_picture_comes_back_is_saved_and_progress_grows(tool_context: ToolContext, model: Kandinsky) -> None:
    done: list[float] = []

    async def work(client: Client) -> Any:
        async def progress(value: float, total: float | None, message: str | None) -> None:
            assert total == 1.0 and message
            done.append(value)

        return await client.call_tool("text2img", {"prompt": "a red circle", **SMALL}, progress_callback=progress)

    result = ask(tool_context, work)
    (painting,) = model(text2img("a red circle", model=model.name, **SMALL))
    (saved,) = result.structured_content["pictures"]
    image = next(block for block in result.content if block.type == "image")
    assert image.mime_type == "image/png" and saved["seed"] == 5
    for source in (base64.b64decode(image.data), Path(saved["path"])):
        assert np.array_equal(pixels(source), pixels(painting.image))
    assert done == sorted(done) and done[-1] == 1.0 and len(done) > 3


def test_a_picture_is_given_by_its_path_or_in_base64(
    tool_context: ToolContext, model: Kandinsky, tmp_path: Path
) -> None:
    Image.new("RGB", (64, 64), "navy").save(path := tmp_path / "navy.png")
    data = base64.b64encode(path.read_bytes()).decode()
    (painting,) = model(img2img("a star", image=path, strength=0.6, model=model.name, **SMALL))
    for image in (str(path), data, f"data:image/png;base64,{data}"):
        values = {"prompt": "a star", "image": image, "strength": 0.6, **SMALL}
        result = call(tool_context, "img2img", values, lambda *_: None)
        assert np.array_equal(pixels(Path(result.structured_content["pictures"][0]["path"])), pixels(painting.image))


def test_an_embedding_is_saved_mixed_and_painted(tool_context: ToolContext, model: Kandinsky) -> None:
    def embed(*parts: str, **options: Any) -> Embedding:
        result = call(tool_context, "embed", {"images_and_prompts": list(parts), **options, **PRIOR}, lambda *_: None)
        return Embedding.load(result.structured_content["path"])

    star, ring = embed("a star"), embed("a ring")
    mixed = embed("a star", "a ring", weights=[0.25, 0.75])
    assert np.allclose(mixed.vector, 0.25 * star.vector + 0.75 * ring.vector, atol=1e-4)
    assert np.allclose(embed("a star", "a ring", slerp=0.5).vector, star.slerp(ring, 0.5).vector, atol=1e-4)
    path = next(tool_context.folder.glob(f"*{mixed.digest}.safetensors"))
    result = call(tool_context, "interpolate", {"images_and_prompts": [str(path)], **SMALL}, lambda *_: None)
    (painting,) = model(interpolate([mixed], model=model.name, **SMALL))
    assert np.array_equal(pixels(Path(result.structured_content["pictures"][0]["path"])), pixels(painting.image))


@pytest.mark.parametrize(
    ("tool", "values", "sentence"),
    [
        ("text2img", {}, "text2img needs prompt: what to paint"),
        ("text2img", {"prompt": "a star", "steps": 3}, "no option 'steps'"),
        ("text2img", {"prompt": "a star", "model": "box"}, "no option 'model'"),
        ("text2img", {"prompt": "a star", "seed": "one"}, "seed must be a integer"),
        ("img2img", {"prompt": "a star", "image": "/nowhere.png"}, "/nowhere.png does not exist"),
        ("interpolate", {"images_and_prompts": "a star"}, "must be a list"),
        ("embed", {"images_and_prompts": ["a star"], "slerp": 0.5}, "exactly two"),
    ],
)
def test_a_mistake_is_an_error_that_the_agent_reads(
    tool_context: ToolContext, tool: str, values: dict[str, Any], sentence: str
) -> None:
    result = ask(tool_context, lambda client: client.call_tool(tool, values))
    assert result.is_error and sentence in result.content[0].text


def test_an_unknown_tool_is_refused(tool_context: ToolContext) -> None:
    async def work(client: Client) -> None:
        with pytest.raises(MCPError, match="there are text2img"):
            await client.call_tool("erase", {})

    ask(tool_context, work)


def test_a_cancelled_call_stops_the_painting(tool_context: ToolContext) -> None:
    steps: list[str] = []

    def stop(_: float, what: str) -> None:
        steps.append(what)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(tool_context, "text2img", {"prompt": "a star", **SMALL}, stop)
    assert steps == ["started"]


def test_the_command_speaks_with_its_client(tiny_model: Path, tmp_path: Path) -> None:
    command = ["-m", "kandinsky22", "mcp", "--model", str(tiny_model), "-o", str(tmp_path / "out")]

    async def main() -> Any:
        async with Client(StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ))) as client:
            return await client.call_tool("text2img", {"prompt": "a zebra", "num_images": 2, **SMALL})

    result = asyncio.run(main())
    assert [Path(picture["path"]).is_file() for picture in result.structured_content["pictures"]] == [True, True]


def test_standard_output_carries_the_protocol_alone(tiny_model: Path, tmp_path: Path) -> None:
    def message(number: int, method: str, params: dict[str, Any]) -> str:
        return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}) + "\n"

    client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    started = json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}) + "\n"
    arguments = {"prompt": "a zebra that this model does not know", **SMALL}  # which prints a notice
    command = [sys.executable, "-m", "kandinsky22", "mcp", "--model", tiny_model, "-o", tmp_path / "out"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(message(1, "initialize", client) + started)
        process.stdin.write(message(2, "tools/call", {"name": "text2img", "arguments": arguments}))
        process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for _ in range(2)]
        process.stdin.close()
        rest = process.stdout.read()
        assert process.wait(30) == 0
    assert [answer["id"] for answer in answers] == [1, 2] and not rest
    assert answers[1]["result"]["structuredContent"]["pictures"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["a prompt"], "takes options alone"),
        (["-o", "picture.png"], "names a folder"),
        (["--model", "nowhere"], "there is no model 'nowhere'"),
    ],
)
def test_the_command_refuses_what_it_cannot_use(
    capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert run(["mcp", *arguments]) == 2
    assert sentence in capsys.readouterr().err
