"""Files of pictures carry their request, parameters and source in every format."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from kandinsky22.imaging import infotext
from kandinsky22.imaging.file_texts import Format
from kandinsky22.imaging.images import Painting
from kandinsky22.imaging.provenance import SOURCE_TYPE
from kandinsky22.request import Defaults, Request, Sampling
from kandinsky22.request.tasks import text2img
from kandinsky22.server.picture_files import PictureFiles

STAGE = Sampling(sampler="dpmpp_2m", steps=4, guidance_scale=4.5)
DEFAULTS = Defaults(height=64, width=64, prior=STAGE, decoder=STAGE)
PIXELS = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint32).astype(np.uint8).reshape(64, 64, 3))


def painting(prompt: str) -> Painting:
    return Painting(PIXELS, text2img(prompt, seed=7).resolved(DEFAULTS), {"weights": {"fake": "0"}})


@pytest.mark.parametrize("prompt", ["a red circle", "красный круг"])
def test_png_has_the_pixels_the_request_and_the_models_name(prompt: str) -> None:
    file = PictureFiles("box").encode(painting(prompt))
    assert Painting.from_png(file).request == painting(prompt).request
    assert (np.asarray(Painting.from_png(file).image) == np.asarray(PIXELS)).all()
    assert infotext.read(file)["parameters"].startswith(f"{prompt}\nSteps: 4, ")
    assert ", Model: box, " in infotext.read(file)["parameters"] and SOURCE_TYPE.encode() in file


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_other_formats_have_what_the_png_has(format: Format) -> None:
    files = PictureFiles("box")
    file = files.convert(files.encode(painting("красный круг")), format, quality=80)
    texts = infotext.read(file)
    assert ", Model: box, " in texts["parameters"] and SOURCE_TYPE.encode() in file
    assert (
        Request.from_json(json.dumps(json.loads(texts["kandinsky22"])["request"])) == painting("красный круг").request
    )


def test_jpeg_of_a_very_long_prompt_is_still_written() -> None:
    file = PictureFiles().encode(painting("ж" * 32_000), "jpeg")
    assert infotext.read(file)["parameters"].startswith("жжж")


def test_unfinished_picture_has_its_parameters_alone() -> None:
    file = PictureFiles("box").unfinished(PIXELS, painting("a star").request)
    assert infotext.read(file).keys() - {"XML:com.adobe.xmp"} == {"parameters"}


def test_what_leaves_is_signed() -> None:
    files = PictureFiles(sign=lambda file, format: file + format.encode())
    assert files.encode(painting("a star"), "webp").endswith(b"webp")
    with Image.open(io.BytesIO(files.encode(painting("a star"), "jpeg"))) as image:
        assert image.format == "JPEG"
