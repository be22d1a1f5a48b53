"""OpenAI's interface, called with the real `openai` client and in the shapes of other clients."""

import asyncio
import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from kandinsky22.imaging import infotext
from kandinsky22.imaging.images import Painting
from kandinsky22.imaging.provenance import SOURCE_TYPE
from kandinsky22.request import Picture
from kandinsky22.request.parts import Mix, Text
from kandinsky22.server.job_queue import Limits
from kandinsky22.server.store import Store
from tests.server.fake_server import RunningServer

SHAPES = json.loads((Path(__file__).parent / "client_requests.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


def client_of(server: RunningServer, key: str = "anything") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)


def png(size: tuple[int, int] = (96, 64), colour: Any = (200, 30, 30), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


def half_transparent(size: tuple[int, int] = (96, 64)) -> bytes:
    """A picture whose left half is transparent."""
    image = Image.new("RGBA", size, (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, size[0] // 2, size[1]))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def opened(item: Any) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(item.b64_json)))
    image.load()
    return image


def test_generate_paints_a_prompt(client: openai.OpenAI, server: RunningServer) -> None:
    answer = client.images.generate(prompt="a red circle", size="128x96", model="gpt-image-1")
    assert answer.data and answer.usage
    assert opened(answer.data[0]).size == (128, 96)
    assert (answer.size, answer.output_format, answer.background) == ("128x96", "png", "opaque")
    assert answer.usage.input_tokens_details.text_tokens == 3
    assert answer.usage.total_tokens == 3 + 4 * 3
    assert server.last.condition == Text("a red circle")


def test_pictures_carry_their_request_and_the_parameters_of_a1111(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="красный круг", extra_body={"seed": 5})
    assert answer.data
    file = base64.b64decode(answer.data[0].b64_json or "")
    assert Painting.from_png(file).request.seed == 5
    assert infotext.parse(infotext.read(file)["parameters"])["Prompt"] == "красный круг"


def test_n_pictures_have_successive_seeds(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="x", n=2, extra_body={"seed": 3})
    assert answer.data
    assert [opened(item).getpixel((0, 0)) for item in answer.data] == [(3, 21, 90), (4, 28, 90)]


@pytest.mark.parametrize("extra", [{"num_inference_steps": 7, "guidance_scale": 2.5}, {"true_cfg_scale": 2.5}])
def test_extra_body_has_our_options_and_those_of_vllm_omni(
    client: openai.OpenAI, server: RunningServer, extra: dict[str, Any]
) -> None:
    more = {"negative_prompt": "blue", "prior_steps": 9, "scheduler": "DDIMScheduler", "vae_use_tiling": True}
    client.images.generate(prompt="x", extra_body=extra | more)
    request = server.last
    assert (request.decoder.guidance_scale, request.decoder.sampler, request.prior.steps) == (2.5, "ddim", 9)
    assert request.decoder.steps == extra.get("num_inference_steps", 2)
    assert request.negative == Text("blue")


def test_hint_in_extra_body_is_followed(client: openai.OpenAI, server: RunningServer) -> None:
    hint = base64.b64encode(png((64, 64), 90, "L")).decode()
    client.images.generate(prompt="x", extra_body={"hint": f"data:image/png;base64,{hint}"})
    assert server.last.hint is not None and server.last.hint.image.getpixel((0, 0)) == 90


@pytest.mark.parametrize(("quality", "steps"), [("low", 1), ("auto", 2), ("hd", 3), ("max", 6)])
def test_quality_is_a_number_of_steps(client: openai.OpenAI, server: RunningServer, quality: Any, steps: int) -> None:
    client.images.generate(prompt="x", quality=quality)
    assert server.last.decoder.steps == steps


@pytest.mark.parametrize("output", ["jpeg", "webp"])
def test_output_format_keeps_the_metadata(client: openai.OpenAI, output: Any) -> None:
    answer = client.images.generate(prompt="a red circle", output_format=output, output_compression=60)
    assert answer.data
    assert opened(answer.data[0]).format == output.upper()
    file = base64.b64decode(answer.data[0].b64_json or "")
    assert SOURCE_TYPE.encode() in file
    texts = infotext.read(file)
    assert texts["parameters"].startswith("a red circle\nSteps: 2, ")
    assert json.loads(texts["kandinsky22"])["request"]["condition"] == {"prompt": "a red circle"}


def test_stream_sends_partial_images_and_then_the_picture(client: openai.OpenAI, server: RunningServer) -> None:
    session = server.session
    session.by_step = True
    stream = client.images.generate(
        prompt="x", stream=True, partial_images=3, size="128x64", extra_body={"num_inference_steps": 8}
    )
    events = []
    session.allow(2)
    for event in stream:
        events.append(event)
        session.allow(2)
    assert [event.type for event in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:3]] == [0, 1, 2]  # type: ignore[union-attr]
    assert all(opened(event).size == (128, 64) for event in events)
    assert events[3].usage.output_tokens == 4 * 2  # type: ignore[union-attr]


def test_stream_of_several_pictures_completes_each(client: openai.OpenAI) -> None:
    events = [*client.images.generate(prompt="x", stream=True, n=2)]
    assert [event.to_dict()["index"] for event in events] == [0, 1]


def test_failure_within_a_stream_is_an_error_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIError, match="server failed"):
        [*client.images.generate(prompt="fail", stream=True)]


def test_async_client_generates_and_streams(server: RunningServer) -> None:
    async def use() -> tuple[int, list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="anything") as client:
            answer = await client.images.generate(prompt="x", n=2)
            stream = await client.images.generate(prompt="x", stream=True)
            return len(answer.data or []), [event.type async for event in stream]

    assert asyncio.run(use()) == (2, ["image_generation.completed"])


def test_mask_is_repainted_where_it_is_transparent(client: openai.OpenAI, server: RunningServer) -> None:
    client.images.edit(image=("a.png", png()), mask=("m.png", half_transparent()), prompt="a star")
    mask = server.last.mask
    assert mask is not None and mask.area is not None and mask.repaint == "white"
    assert [mask.area.image.getpixel((x, 5)) for x in (0, 95)] == [255, 0]
    assert (server.last.width, server.last.height) == (96, 64)


def test_picture_without_a_mask_is_repainted_where_it_is_transparent(
    client: openai.OpenAI, server: RunningServer
) -> None:
    client.images.edit(image=("a.png", half_transparent()), prompt="a star")
    assert server.last.mask is not None and server.last.start is None


def test_one_opaque_picture_is_changed(client: openai.OpenAI, server: RunningServer) -> None:
    client.images.edit(image=("a.png", png()), prompt="a star", extra_body={"strength": 0.6})
    assert server.last.start is not None and server.last.start.strength == 0.6


def test_several_pictures_are_blended_with_weights(client: openai.OpenAI, server: RunningServer) -> None:
    files = [("a.png", png()), ("b.png", png(colour="blue"))]
    client.images.edit(image=files, prompt="", extra_body={"weights": [0.25, 0.75]})
    condition = server.last.condition
    assert isinstance(condition, Mix) and condition.weights == (0.25, 0.75)
    assert all(isinstance(part, Picture) for part in condition.parts)
    client.images.edit(image=files, prompt="a star")
    assert isinstance(server.last.condition, Mix) and server.last.condition.parts[2] == Text("a star")


def test_mask_applies_to_the_first_of_several_pictures(client: openai.OpenAI, server: RunningServer) -> None:
    files = [("a.png", png()), ("b.png", png(colour="blue"))]
    client.images.edit(image=files, mask=("m.png", half_transparent()), prompt="a star")
    assert server.last.mask is not None and isinstance(server.last.condition, Mix)


def test_streamed_edit_has_its_own_events(client: openai.OpenAI) -> None:
    events = [*client.images.edit(image=("a.png", png()), prompt="x", stream=True, partial_images=1)]
    assert events[-1].type == "image_edit.completed"


def test_edit_in_json_takes_data_urls_and_files_made_here(client: openai.OpenAI, server: RunningServer) -> None:
    made = client.images.generate(prompt="x", response_format="url")
    assert made.data and made.data[0].url
    file_id = made.data[0].url.rpartition("/")[2]
    data = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    body = {"prompt": "", "images": [{"image_url": data}, {"file_id": file_id}]}
    assert server.post("/v1/images/edits", json=body).status_code == 200
    assert isinstance(server.last.condition, Mix)


def test_variations_come_from_the_picture(client: openai.OpenAI, server: RunningServer) -> None:
    with pytest.warns(DeprecationWarning):
        answer = client.images.create_variation(image=("a.png", png()), n=2, size="256x256")
    assert answer.data and len(answer.data) == 2
    assert isinstance(server.last.condition, Picture)


def test_url_answers_can_be_read_by_who_knows_them(client: openai.OpenAI, server: RunningServer) -> None:
    answer = client.images.generate(prompt="x", response_format="url", output_format="jpeg")
    assert answer.data and answer.data[0].url
    file = httpx.get(answer.data[0].url)
    assert file.headers["content-type"] == "image/jpeg" and file.headers["x-content-type-options"] == "nosniff"
    assert "attachment" in file.headers["content-disposition"] or "inline" in file.headers["content-disposition"]
    assert file.headers["cross-origin-resource-policy"] == "cross-origin"
    assert Image.open(io.BytesIO(file.content)).format == "JPEG"
    assert server.get("/v1/files/unknown-0.png").status_code == 404


def test_withheld_picture_is_an_error_that_says_so(start_server: Callable[..., RunningServer]) -> None:
    with client_of(start_server(content_filter=lambda _: "this picture is withheld")) as client:
        with pytest.raises(openai.BadRequestError, match="this picture is withheld") as caught:
            client.images.generate(prompt="x")
        assert caught.value.code == "content_policy_violation"
        with pytest.raises(openai.APIError, match="this picture is withheld") as streamed:
            list(client.images.generate(prompt="x", stream=True))
        assert streamed.value.code == "content_policy_violation"


def test_models_lists_one_and_answers_to_aliases(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["kandinsky-2.2"]
    assert client.models.retrieve("gpt-image-1").object == "model"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("llama")
    assert caught.value.code == "model_not_found"


def test_aliases_can_be_switched_off(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(aliases=False)
    with client_of(server) as client:
        with pytest.raises(openai.NotFoundError, match="there is no model"):
            client.images.generate(prompt="x", model="dall-e-2")
        assert client.images.generate(prompt="x", model="kandinsky-2.2").data


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"size": "32x64"}, "size"),
        ({"size": "large"}, "size"),
        ({"size": "99999x99999"}, "size"),
        ({"n": 11}, "n"),
        ({"background": "transparent"}, "background"),
        ({"output_format": "svg"}, "output_format"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"extra_body": {"steps_": 3}}, "steps_"),
        ({"extra_body": {"scheduler": "magic"}}, "sampler"),
        ({"extra_body": {"seed": "many"}}, "seed"),
        ({"extra_body": {"hint": "https://example.com/a.png"}}, "hint"),
    ],
)
def test_bad_options_are_a_bad_request_that_names_them(
    client: openai.OpenAI, options: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="x", **options)
    assert (caught.value.param, caught.value.type) == (param, "invalid_request_error")
    assert caught.value.request_id and caught.value.response.headers["x-should-retry"] == "false"


def test_bad_pictures_are_a_bad_request(client: openai.OpenAI) -> None:
    for files, param in (
        ({"image": ("a.png", b"no picture")}, "image"),
        ({"image": ("a.png", png()), "mask": ("m.png", half_transparent((64, 64)))}, "mask"),
        ({"image": ("a.png", png()), "extra_body": {"weights": [1, 2, 3]}}, "weights"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.images.edit(prompt="x", **files)  # type: ignore[arg-type]
        assert caught.value.param == param


def test_missing_or_wrong_key_is_an_authentication_error(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    secret = store.add_key("me", ["paint"], 4)
    store.close()
    server = start_server()
    with client_of(server, "wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.images.generate(prompt="x")
    assert caught.value.code == "invalid_api_key"
    with client_of(server, secret) as client:
        made = client.images.generate(prompt="x", response_format="url")
    assert made.data and httpx.get(made.data[0].url or "").status_code == 200


def test_full_queue_is_a_rate_limit_error(start_server: Callable[..., RunningServer]) -> None:
    server = start_server(Limits(waiting=1, running=1, free_bytes=0))
    server.session.by_step = True
    with client_of(server) as client:
        streams = [client.images.generate(prompt="x", stream=True) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as caught:
            client.images.generate(prompt="x")
        assert caught.value.code == "rate_limit_exceeded"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        for stream in streams:
            stream.close()
    server.wait_until_idle()


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_hangs_up_cancels_its_job(server: RunningServer, stream: bool) -> None:
    server.session.by_step = True
    before = len(server.session.requests)
    body = {"prompt": "x", "stream": stream, "num_inference_steps": 50}
    with httpx.Client(timeout=httpx.Timeout(20, read=0.5)) as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{server.url}/v1/images/generations", json=body)
    server.wait_until_idle()
    assert len(server.session.requests) == before + 1
    assert server.store.jobs("local", count=1)[0].state == "cancelled"


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_asks_to_keep_its_job_may_hang_up(server: RunningServer, stream: bool) -> None:
    server.session.by_step = True
    body = {"prompt": "x", "stream": stream, "num_inference_steps": 3}
    with httpx.Client(timeout=httpx.Timeout(20, read=0.5)) as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{server.url}/v1/images/generations", json=body, headers={"X-Keep-Job": "true"})
    server.session.allow(3)
    server.wait_until_idle()
    assert server.store.jobs("local", count=1)[0].state == "succeeded"


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape["path"].startswith("/v1")])
def test_other_clients_requests_are_answered(server: RunningServer, name: str) -> None:
    """Open WebUI, LibreChat, LiteLLM and the Vercel AI SDK, as they send them."""
    shape = SHAPES[name]
    if "json" in shape:
        answer = server.post(shape["path"], json=shape["json"])
    else:
        files = [(field, ("picture.png", png(), "image/png")) for field in shape["files"]]
        answer = server.post(shape["path"], data=shape["form"], files=files)
    assert answer.status_code == 200, answer.text
    item = answer.json()["data"][0]
    assert all(field in item for field in shape["reads"])


def test_errors_outside_of_every_dialect_have_openais_shape(server: RunningServer) -> None:
    assert server.get("/nothing").json()["error"]["type"] == "invalid_request_error"
