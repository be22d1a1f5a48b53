"""AUTOMATIC1111's interface, called with the real client `webuiapi` and in the shapes of other programs."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import webuiapi
from PIL import Image

from kandinsky22.imaging.images import Painting
from kandinsky22.request.parts import Text
from kandinsky22.server.store import Store
from tests.server.fake_server import WAIT, RunningServer

SHAPES = json.loads((Path(__file__).parent / "client_requests.json").read_text("utf-8"))
RED = Image.new("RGB", (96, 64), "red")


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[webuiapi.WebUIApi]:
    client = webuiapi.WebUIApi(port=server.port, steps=4)
    yield client
    client.session.close()


def mask(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """A mask whose left half is white."""
    image = Image.new("L", size, 0)
    image.paste(255, (0, 0, size[0] // 2, size[1]))
    return image


def picture(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def in_thread(function: Callable[[], Any]) -> Callable[[], Any]:
    """Start a function in a thread; returns what waits for its result."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()

    def wait() -> Any:
        thread.join(WAIT)
        return results[0]

    return wait


def wait_for_step(client: webuiapi.WebUIApi, step: int) -> dict[str, Any]:
    """The progress, once so many steps are done."""
    end = time.monotonic() + WAIT
    while (progress := client.get_progress())["state"]["sampling_step"] < step:
        assert time.monotonic() < end, progress
    return progress


def test_txt2img_honours_its_fields(client: webuiapi.WebUIApi, server: RunningServer) -> None:
    result = client.txt2img(
        prompt="a red circle", negative_prompt="blue", seed=7, steps=5, cfg_scale=3, width=128, height=96, batch_size=2
    )
    request = server.last
    assert (request.condition, request.negative) == (Text("a red circle"), Text("blue"))
    assert (request.decoder.steps, request.decoder.guidance_scale) == (5, 3)
    assert [image.size for image in result.images] == [(128, 96)] * 2
    assert (result.info["all_seeds"], result.info["steps"], result.info["cfg_scale"]) == ([7, 8], 5, 3)
    assert result.parameters["prompt"] == "a red circle"


def test_infotexts_stand_in_info_and_in_the_pictures(client: webuiapi.WebUIApi) -> None:
    result = client.txt2img(prompt="круг", seed=7, width=64, height=64)
    assert result.image.info["parameters"] == result.info["infotexts"][0]
    assert result.info["infotexts"][0].startswith("круг\nSteps: 4, Sampler: DDPM, CFG scale: 7, Seed: 7, Size: 64x64")
    file = base64.b64decode(result.json["images"][0])
    assert Painting.from_png(file).request.seed == 7


def test_n_iter_paints_batches_with_successive_seeds(client: webuiapi.WebUIApi) -> None:
    result = client.txt2img(prompt="x", seed=10, n_iter=2, batch_size=2, width=64, height=64)
    assert [image.getpixel((0, 0))[0] for image in result.images] == [10, 11, 12, 13]
    assert result.info["all_seeds"] == [10, 11, 12, 13]


@pytest.mark.parametrize(
    ("name", "sampler", "comment"),
    [
        ("Euler a", "ddpm", ""),
        ("DPM++ 2M Karras", "dpmpp_2m", ""),
        ("UniPC", "unipc", ""),
        ("k_euler", "euler", ""),
        ("automatic", "ddpm", ""),
        ("Restart", "ddpm", "there is no sampler 'Restart'"),
    ],
)
def test_sampler_names_are_translated(
    client: webuiapi.WebUIApi, server: RunningServer, name: str, sampler: str, comment: str
) -> None:
    result = client.txt2img(prompt="x", sampler_name=name, width=64, height=64)
    assert server.last.decoder.sampler == sampler
    assert result.info["comments"].startswith(comment) and bool(result.info["comments"]) == bool(comment)


def test_what_is_not_offered_is_left_out_and_named(client: webuiapi.WebUIApi, server: RunningServer) -> None:
    result = client.txt2img(
        prompt="x <lora:style:1>", scheduler="Karras", enable_hr=True, alwayson_scripts={"other": {"args": []}}
    )
    comments = result.info["comments"]
    assert all(word in comments for word in ("enable_hr", "scheduler 'Karras'", "script 'other'", "extra networks"))
    assert server.last.condition == Text("x")


def test_subseed_rotates_the_noise(client: webuiapi.WebUIApi, server: RunningServer) -> None:
    client.txt2img(prompt="x", seed=1, subseed=5, subseed_strength=0.25, width=64, height=64)
    assert (server.last.variation_seed, server.last.variation_strength) == (5, 0.25)


def test_img2img_starts_from_the_picture(client: webuiapi.WebUIApi, server: RunningServer) -> None:
    result = client.img2img(images=[RED], prompt="x", denoising_strength=0.4, width=96, height=64)
    start = server.last.start
    assert start is not None and start.strength == 0.4 and start.image.rgb.getpixel((0, 0)) == (255, 0, 0)
    assert result.info["denoising_strength"] == 0.4


def test_inpainting_repaints_white(client: webuiapi.WebUIApi, server: RunningServer) -> None:
    client.img2img(images=[RED], mask_image=mask(), prompt="x", mask_blur=3, width=96, height=64)
    request = server.last
    assert request.mask is not None and request.mask.area is not None
    assert request.mask.repaint == "white" and request.mask.area.image.getpixel((0, 0)) == 255
    assert (request.mask.feather, request.start) == (3, None)
    client.img2img(images=[RED], mask_image=mask(), prompt="x", inpainting_mask_invert=1, inpainting_fill=1)
    assert server.last.mask is not None and server.last.mask.repaint == "black"
    assert server.last.start is not None  # fill 1 starts from the picture


def test_transparent_mask_is_repainted_where_it_is_opaque(client: webuiapi.WebUIApi, server: RunningServer) -> None:
    strokes = Image.new("RGBA", (96, 64), (0, 0, 0, 0))
    strokes.paste((0, 0, 0, 255), (0, 0, 10, 10))
    client.img2img(images=[RED], mask_image=strokes, prompt="x")
    assert server.last.mask is not None and server.last.mask.area is not None
    assert [server.last.mask.area.image.getpixel(p) for p in ((0, 0), (50, 50))] == [255, 0]


def test_controlnet_follows_a_depth_picture(client: webuiapi.WebUIApi, server: RunningServer) -> None:
    unit = webuiapi.ControlNetUnit(image=mask(), module="depth")
    result = client.txt2img(prompt="x", controlnet_units=[unit])
    assert server.last.hint is not None and "depth is not estimated" in result.info["comments"]
    client.img2img(images=[RED], prompt="x", controlnet_units=[unit], denoising_strength=0.6)
    assert server.last.hint is not None and server.last.start is not None
    with pytest.raises(RuntimeError, match="depth is the only one"):
        client.txt2img(prompt="x", controlnet_units=[webuiapi.ControlNetUnit(image=mask(), module="canny")])


def test_lists_are_what_programs_expect(client: webuiapi.WebUIApi) -> None:
    assert {"DDIM", "Euler a", "DPM++ 2M"} <= set(client.util_get_sampler_names())
    assert client.util_get_model_names() == ["kandinsky-2.2"] and client.util_get_current_model() == "kandinsky-2.2"
    assert client.util_get_scheduler_names() == ["automatic"]
    assert [one["name"] for one in client.get_upscalers()] == ["None"]
    assert client.get_loras() == client.get_latent_upscale_modes() == client.get_sd_vae() == []
    assert client.get_memory()["ram"]["total"] > 0
    assert client.controlnet_model_list() == ["depth"]
    client.refresh_checkpoints()


def test_options_choose_the_model_that_there_is(client: webuiapi.WebUIApi) -> None:
    assert client.set_options({"sd_model_checkpoint": "kandinsky-2.2", "samples_save": True}) is None
    assert client.set_options({"sd_model_checkpoint": "another"})["error"] == "not found"


def test_progress_has_steps_and_a_preview(client: webuiapi.WebUIApi, server: RunningServer) -> None:
    assert client.get_progress()["state"]["job_count"] == 0
    server.session.by_step = True
    result = in_thread(lambda: client.txt2img(prompt="x", steps=8, width=64, height=64))
    server.session.allow(4)
    progress = wait_for_step(client, 4)
    assert progress["progress"] == 0.5 and progress["eta_relative"] > 0
    assert progress["state"]["job_count"] == 1 and progress["state"]["sampling_steps"] == 8
    assert Image.open(io.BytesIO(base64.b64decode(progress["current_image"]))).size == (64, 64)
    assert server.get("/sdapi/v1/progress?skip_current_image=true").json()["current_image"] is None
    server.session.allow(4)
    assert result().image.size == (64, 64)


def test_interrupt_answers_with_the_state_so_far(client: webuiapi.WebUIApi, server: RunningServer) -> None:
    server.session.by_step = True
    result = in_thread(lambda: client.txt2img(prompt="x", steps=50, n_iter=3, width=128, height=64))
    server.session.allow(4)
    wait_for_step(client, 4)
    client.interrupt()
    answer = result()
    assert [image.size for image in answer.images] == [(128, 64)]
    assert answer.info["comments"] == "interrupted" and len(answer.info["infotexts"]) == 1


def test_skip_goes_on_with_the_next_batch(client: webuiapi.WebUIApi, server: RunningServer) -> None:
    server.session.by_step = True
    result = in_thread(lambda: client.txt2img(prompt="x", seed=20, steps=3, n_iter=2, width=64, height=64))
    server.session.allow(1)
    wait_for_step(client, 1)
    before = len(server.session.cancelled)
    client.skip()
    while len(server.session.cancelled) == before:
        time.sleep(0.01)
    server.session.allow(1 + 3)  # the skipped picture may still take one
    assert result().image.getpixel((0, 0))[0] == 21


def test_client_that_hangs_up_cancels_its_job(server: RunningServer) -> None:
    server.session.by_step = True
    with httpx.Client(timeout=httpx.Timeout(20, read=0.5)) as client, pytest.raises(httpx.ReadTimeout):
        client.post(f"{server.url}/sdapi/v1/txt2img", json={"prompt": "x", "steps": 50, "n_iter": 3})
    server.wait_until_idle()
    assert server.store.jobs("local", count=1)[0].state == "cancelled"


def test_png_info_reads_parameters(client: webuiapi.WebUIApi, server: RunningServer) -> None:
    image = client.txt2img(prompt="a, red circle", negative_prompt="blue", seed=3, width=64, height=64).image
    answer = client.png_info(image)
    assert answer.info.startswith("a, red circle\nNegative prompt: blue\nSteps: 4")
    assert (answer.parameters["Prompt"], answer.parameters["Seed"]) == ("a, red circle", "3")
    assert server.post("/sdapi/v1/png-info", json={"image": picture(RED)}).json()["info"] == ""


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("img2img", {"prompt": "x"}, 404),
        ("img2img", {"prompt": "x", "init_images": ["https://example.com/a.png"]}, 400),
        ("img2img", {"prompt": "x", "init_images": ["????"]}, 400),
        ("txt2img", {"prompt": "x", "width": 32}, 400),
        ("txt2img", {"prompt": "x", "batch_size": 999}, 400),
        ("png-info", {"image": "bm90IGEgcGljdHVyZQ=="}, 400),
    ],
)
def test_bad_calls_are_refused_in_its_shape(server: RunningServer, path: str, body: Any, status: int) -> None:
    answer = server.post(f"/sdapi/v1/{path}", json=body)
    assert answer.status_code == status
    assert answer.json().keys() == {"error", "detail", "body", "errors"} and answer.json()["detail"]


def test_basic_authentication_takes_a_key_as_password(
    start_server: Callable[..., RunningServer], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    secret = store.add_key("me", ["paint"], 4)
    store.close()
    server = start_server()
    client = webuiapi.WebUIApi(port=server.port, username="me", password=secret)
    assert client.txt2img(prompt="x", steps=2, width=64, height=64).image.size == (64, 64)
    client.set_auth("me", "wrong")
    with pytest.raises(RuntimeError, match="401"):
        client.txt2img(prompt="x")
    client.session.close()


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape["path"].startswith("/sdapi")])
def test_other_programs_requests_are_answered(server: RunningServer, name: str) -> None:
    """Open WebUI, LibreChat and SillyTavern, as they send them, and what they read."""
    answer = server.post(SHAPES[name]["path"], json=SHAPES[name]["json"])
    assert answer.status_code == 200, answer.text
    assert all(field in answer.json() for field in SHAPES[name]["reads"])
    info = json.loads(answer.json()["info"])
    assert info["infotexts"][0] and {"seed", "width", "height"} <= info.keys()


def test_sillytavern_finds_what_it_asks_for_at_start(server: RunningServer) -> None:
    for path in ("options", "upscalers", "latent-upscale-modes", "sd-vae", "samplers", "schedulers", "sd-models"):
        assert server.get(f"/sdapi/v1/{path}").status_code == 200, path
    assert server.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
    assert server.post("/sdapi/v1/interrupt").json() == {}
