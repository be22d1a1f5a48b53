"""Files say in XMP that a model made the picture."""

import io

import pytest
from PIL import Image

from kandinsky22.imaging.images import Painting
from kandinsky22.imaging.provenance import SOURCE_TYPE, Format, encode
from kandinsky22.request.tasks import text2img


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_every_format_names_the_source_type(format: Format) -> None:
    file = encode(Image.new("RGB", (8, 8)), format)
    with Image.open(io.BytesIO(file)) as image:
        image.load()
        xmp = image.info.get("xmp") or image.info["XML:com.adobe.xmp"]
    assert SOURCE_TYPE in (xmp.decode() if isinstance(xmp, bytes) else str(xmp))


def test_a_painting_keeps_its_request_beside_it() -> None:
    painting = Painting(Image.new("RGB", (8, 8), "red"), text2img("a star", seed=1), {"dtype": "float32"})
    file = painting.to_png(xmp=True)
    assert Painting.from_png(file) == painting
    assert SOURCE_TYPE.encode() not in painting.to_png()
