"""Texts in the metadata of picture files, and AUTOMATIC1111's parameters."""

import io

import numpy as np
import pytest
from PIL import Image

from kandinsky22.imaging.file_texts import PARAMETERS, RECIPE, Format, read_texts, save_options
from kandinsky22.imaging.images import Painting
from kandinsky22.imaging.infotext import infotext, parse
from kandinsky22.request import Defaults, Request, Sampling
from kandinsky22.request.tasks import img2img, text2img

DEFAULTS = Defaults(
    height=64,
    width=96,
    prior=Sampling(sampler="unclip", steps=2, guidance_scale=2.0),
    decoder=Sampling(sampler="dpmpp_2m", steps=3, guidance_scale=4.5, guidance_interval=(0, 1), reuse=1),
)
TEXTS = {RECIPE: '{"prompt": "кружок"}', PARAMETERS: "кружок, a star\nSteps: 3"}


def resolved() -> Request:
    return text2img("a star: 5, 6", negative_prompt="кружок", seed=3).resolved(DEFAULTS)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "gif"])
def test_texts_survive_in_each_format(format: Format) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format, **save_options(format, TEXTS))
    with Image.open(file) as image:
        image.load()
        texts = read_texts(image)
    assert texts[RECIPE] in (TEXTS[RECIPE], '{"prompt": "\\u043a\\u0440\\u0443\\u0436\\u043e\\u043a"}')
    assert format == "gif" or texts[PARAMETERS] == TEXTS[PARAMETERS]


def test_a_text_that_a_jpeg_has_no_room_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"too long to be stored in a JPEG; name the picture \.png"):
        save_options("jpeg", {RECIPE: '"' + "a" * 70_000 + '"'})


@pytest.mark.parametrize(("format", "difference"), [("png", 0), ("webp", 0), ("jpeg", 20)])
def test_png_and_webp_keep_the_pixels(format: Format, difference: int) -> None:
    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    file = Painting(Image.fromarray(smooth), resolved(), {}).encode(format)
    with Image.open(io.BytesIO(file)) as image:
        assert np.abs(np.asarray(image.convert("RGB")).astype(int) - smooth).max() <= difference


def test_parameters_say_what_other_programs_read() -> None:
    text = infotext(resolved())
    assert text.splitlines()[:2] == ["a star: 5, 6", "Negative prompt: кружок"]
    values = parse(text)
    assert (values["Prompt"], values["Negative prompt"]) == ("a star: 5, 6", "кружок")
    assert (values["Steps"], values["Sampler"], values["CFG scale"], values["Seed"]) == ("3", "DPM++ 2M", "4.5", "3")
    assert (values["Size"], values["Model"]) == ("96x64", "box")


def test_parameters_name_the_strength_and_the_variation() -> None:
    request = img2img("a", image=np.zeros((64, 64)), strength=0.4, seed=1, variation_seed=2, variation_strength=0.5)
    values = parse(infotext(request.resolved(DEFAULTS)))
    assert (values["Denoising strength"], values["Variation seed"]) == ("0.4", "2")


def test_text_without_settings_has_no_parameters() -> None:
    assert parse("a photo of a cat") == {}
