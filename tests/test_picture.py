"""Pictures as values: wherever they come from they are the same pixels, and in JSON they are a reference alone."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kandinsky22.picture import Picture

RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (7, 11, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)


def png(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def same(picture: Picture) -> bool:
    return bool((np.asarray(picture.rgb) == PIXELS).all())


def test_every_source_is_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(png(IMAGE))
    sources = [
        str(path), path, path.read_bytes(), IMAGE, PIXELS, PIXELS / 255, (PIXELS / 255).astype(np.float32), PIXELS.astype(int),
        torch.from_numpy(PIXELS).permute(2, 0, 1), torch.from_numpy(PIXELS).permute(2, 0, 1)[None] / 255,
        torch.from_numpy(PIXELS).permute(2, 0, 1) / 127.5 - 1, Picture.of(path),
    ]  # fmt: skip
    pictures = [Picture.of(source) for source in sources]
    assert len(set(pictures)) == 1
    assert all(map(same, pictures))
    assert (pictures[0].name, pictures[3].name) == ("cat.png", None)
    assert (pictures[0].height, pictures[0].width) == (7, 11)


def test_one_other_pixel_is_another_picture() -> None:
    other = PIXELS.copy()
    other[3, 4, 1] ^= 1
    assert Picture.of(other) != Picture.of(PIXELS)
    assert Picture.of(PIXELS.reshape(11, 7, 3)) != Picture.of(PIXELS)  # the same bytes in another shape


def test_exif_turns_it_upright() -> None:
    """A camera held upright: what is stored lies on its side (orientation 6, a quarter turn clockwise to be made)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Picture.of(png(IMAGE, exif=exif))
    assert (turned.height, turned.width) == (11, 7)
    assert (np.asarray(turned.rgb) == np.rot90(PIXELS, -1)).all()


def test_transparency_is_white_in_colour_and_black_in_a_mask() -> None:
    clear = Image.fromarray(np.dstack([PIXELS, np.zeros((7, 11), np.uint8)]))
    assert (np.asarray(Picture.of(clear).rgb) == 255).all()
    assert (np.asarray(Picture.of(clear).grey) == 0).all()
    palette = IMAGE.quantize(8)
    palette.info["transparency"] = 0
    again = Picture.of(png(palette, transparency=0))
    assert again.image.mode == "RGBA"
    assert Picture.of(IMAGE.quantize(8)).image.mode == "RGB"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_every_mode_becomes_eight_bits(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray((np.arange(77, dtype=np.uint16) * 800).reshape(7, 11))
    elif mode == "F":
        image = Image.fromarray((np.arange(77, dtype=np.float32) / 76).reshape(7, 11))
    elif mode == "I":
        image = Image.fromarray((np.arange(77, dtype=np.int32) * 800).reshape(7, 11))
    else:
        image = IMAGE.convert(mode)
    picture = Picture.of(image)
    assert picture.image.mode in ("L", "RGB", "RGBA")
    assert picture.rgb.size == (11, 7)
    if mode in ("I", "I;16", "F"):  # the full range stays the full range
        assert np.asarray(picture.grey).max() > 235 and np.asarray(picture.grey).min() == 0


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nowhere.png", "nowhere.png is not there"),
        (b"not a picture", "cannot read these bytes: it is not a whole picture"),
        (png(IMAGE)[:60], "cannot read these bytes"),
        (np.zeros((2, 3, 5)), r"a picture is a file, .*got shape \(2, 3, 5\)"),
        (np.zeros((0, 3)), "no pixels"),
        (np.full((3, 3), 200.0), "divide 8-bit values by 255"),
        (np.full((3, 3), np.nan), "must lie in"),
        (np.full((3, 3), 300), "must lie in 0 to 255"),
        (torch.zeros(2, 3, 4, 4), "one at a time"),
        (5, "got int"),
    ],
)
def test_what_is_no_picture_is_refused_in_a_sentence(source: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Picture.of(source)  # type: ignore[arg-type]


def test_json_holds_a_reference_and_finding_checks_the_pixels(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    IMAGE.save(tmp_path / "private" / "me.png")
    picture = Picture.of(tmp_path / "private" / "me.png")
    text = json.dumps(picture.to_dict())
    assert "private" not in text and len(text) < 200
    reference = Picture.from_dict(json.loads(text))
    assert reference == picture
    with pytest.raises(ValueError, match=r"me\.png .* a request holds no pixels; pass the file"):
        _ = reference.image
    assert same(reference.found(IMAGE))
    with pytest.raises(ValueError, match="is not the picture that was used"):
        reference.found(PIXELS[::-1])
