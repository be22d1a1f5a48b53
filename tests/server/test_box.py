"""The server as a command, with the model in the box: pictures, previews and masks for real."""

import base64
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import webuiapi
from PIL import Image


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server that is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    command = [sys.executable, "-m", "kandinsky22", "serve", "--port", str(port), "--workers", "1", "--data"]
    folder = tmp_path_factory.mktemp("data")
    with subprocess.Popen([*command, folder], env=os.environ, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while not _is_ready(port):
            assert process.poll() is None and time.monotonic() < end, "the server does not get ready"
            time.sleep(0.1)
        yield port
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.ConnectError:
        return False


def pixels(picture: str | Image.Image | None) -> Any:
    image = Image.open(io.BytesIO(base64.b64decode(picture or ""))) if not isinstance(picture, Image.Image) else picture
    return np.asarray(image.convert("RGB"), dtype=int)


def test_openai_client_streams_previews_of_the_picture(port: int) -> None:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any") as client:
        options: dict[str, Any] = {"prompt": "a red circle", "size": "64x64", "extra_body": {"seed": 3}}
        *partial, whole = client.images.generate(stream=True, partial_images=2, **options)
        plain = client.images.generate(**options)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * len(partial) and partial
    assert plain.data and (pixels(whole.b64_json) == pixels(plain.data[0].b64_json)).all()
    assert np.abs(pixels(partial[-1].b64_json) - pixels(whole.b64_json)).mean() < 60


def test_webuiapi_repaints_under_the_mask_alone(port: int) -> None:
    api = webuiapi.WebUIApi(port=port, steps=6)
    picture = api.txt2img(prompt="a red circle", seed=3, width=64, height=64).image
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    for fill in (0, 1):  # from noise, and from the picture
        options = {"mask_image": mask, "inpainting_fill": fill, "denoising_strength": 0.8, "width": 64, "height": 64}
        painted = api.img2img(images=[picture], prompt="a blue star", **options).image
        difference = np.abs(pixels(painted) - pixels(picture)).max(axis=-1)
        assert difference[:, 32:].max() == 0 and difference[:, :32].max() > 10
    api.session.close()
