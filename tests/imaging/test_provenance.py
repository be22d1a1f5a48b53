"""Files say in XMP that a model made the picture."""

import io

import pytest
from PIL import Image

from kandinsky22.imaging.file_texts import Format
from kandinsky22.imaging.images import encode
from kandinsky22.imaging.provenance import SOURCE_TYPE


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_every_format_names_the_source_type(format: Format) -> None:
    file = encode(Image.new("RGB", (8, 8)), format, xmp=True)
    with Image.open(io.BytesIO(file)) as image:
        image.load()
        xmp = image.info.get("xmp") or image.info["XML:com.adobe.xmp"]
    assert SOURCE_TYPE in (xmp.decode() if isinstance(xmp, bytes) else str(xmp))
