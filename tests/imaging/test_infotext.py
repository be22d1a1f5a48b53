"""The parameters that AUTOMATIC1111's users read: written beside our own record, and read from strangers' pictures."""

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from kandinsky22.imaging import infotext
from kandinsky22.imaging.images import Painting
from kandinsky22.request import Defaults, Request, Sampling
from kandinsky22.request.tasks import img2img, text2img

STAGE = Sampling(sampler="dpmpp_2m", steps=4, guidance_scale=4.5)
DEFAULTS = Defaults(height=64, width=64, prior=STAGE, decoder=STAGE)
PIXELS = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 64, 3))


def resolved(prompt: str = "a red circle", **options: object) -> Request:
    return text2img(prompt, seed=7, **options).resolved(DEFAULTS)  # type: ignore[arg-type]


def png(request: Request) -> bytes:
    return Painting(PIXELS, request, {"weights": {"fake": "0"}}).to_png()


def test_infotext_has_the_lines_of_a1111() -> None:
    text = infotext.infotext(resolved(negative_prompt="blue"), "box")
    settings = "Steps: 4, Sampler: DPM++ 2M, CFG scale: 4.5, Seed: 7, Size: 64x64, Model: box, Version: kandinsky22"
    assert text.startswith(f"a red circle\nNegative prompt: blue\n{settings}")


def test_infotext_has_the_strength_of_a_start_image() -> None:
    request = img2img("x", image=PIXELS, strength=0.4, seed=1).resolved(DEFAULTS)
    assert ", Denoising strength: 0.4, " in infotext.infotext(request, "box")


@pytest.mark.parametrize("prompt", ["a, b: c", "two\nlines", 'with "quotes"', "красный круг", "Steps: 3"])
def test_parse_reads_what_infotext_writes(prompt: str) -> None:
    text = infotext.infotext(resolved(prompt, negative_prompt="blue, green"), 'a "model", named: so')
    values = infotext.parse(text)
    assert (values["Prompt"], values["Negative prompt"], values["Seed"]) == (prompt, "blue, green", "7")
    assert values["Model"] == 'a "model", named: so'


def test_parse_of_other_text_is_empty() -> None:
    assert infotext.parse("a caption") == infotext.parse("") == {}


def test_read_returns_the_texts_of_a_strangers_picture() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "x\nSteps: 20, Sampler: Euler a")
    info.add_text("Comment", "hello")
    file = io.BytesIO()
    PIXELS.save(file, "PNG", pnginfo=info)
    assert infotext.read(file.getvalue()) == {"parameters": "x\nSteps: 20, Sampler: Euler a", "Comment": "hello"}


@pytest.mark.parametrize("file", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_read_of_no_picture_raises(file: bytes) -> None:
    with pytest.raises(ValueError, match="not a whole"):
        infotext.read(file)
