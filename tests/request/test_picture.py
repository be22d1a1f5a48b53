"""Input pictures as values: every source gives the same pixels, and JSON contains only a reference."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kandinsky22.request import Picture, Request

RNG = np.random.default_rng(5)
PIXELS = RNG.integers(0, 256, (7, 11, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)


def png(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def has_the_pixels(picture: Picture) -> bool:
    return bool((np.asarray(picture.rgb) == PIXELS).all())


def test_every_source_gives_the_same_picture(tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(png(IMAGE))
    sources = [
        str(path),
        path,
        path.read_bytes(),
        IMAGE,
        PIXELS,
        PIXELS / 255,
        (PIXELS / 255).astype(np.float32),
        PIXELS.astype(int),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1)[None] / 255,
        torch.from_numpy(PIXELS).permute(2, 0, 1) / 127.5 - 1,
        Picture.of(path),
    ]
    pictures = [Picture.of(source) for source in sources]
    assert len(set(pictures)) == 1
    assert all(map(has_the_pixels, pictures))
    assert (pictures[0].name, pictures[3].name) == ("cat.png", None)
    assert (pictures[0].height, pictures[0].width) == (7, 11)


def test_pictures_differ_if_one_pixel_or_the_shape_differs() -> None:
    other = PIXELS.copy()
    other[3, 4, 1] ^= 1
    assert Picture.of(other) != Picture.of(PIXELS)
    assert Picture.of(PIXELS.reshape(11, 7, 3)) != Picture.of(PIXELS)  # same bytes, other shape


def test_exif_orientation_is_applied() -> None:
    """Orientation 6: the stored picture must be rotated clockwise by a quarter turn."""
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = Picture.of(png(IMAGE, exif=exif))
    assert (rotated.height, rotated.width) == (11, 7)
    assert (np.asarray(rotated.rgb) == np.rot90(PIXELS, -1)).all()


def test_transparency_becomes_white_in_rgb() -> None:
    clear = Image.fromarray(np.dstack([PIXELS, np.zeros((7, 11), np.uint8)]))
    assert (np.asarray(Picture.of(clear).rgb) == 255).all()
    palette = IMAGE.quantize(8)
    palette.info["transparency"] = 0
    indexed = Picture.of(png(palette, transparency=0))
    assert indexed.image.mode == "RGBA"
    assert Picture.of(IMAGE.quantize(8)).image.mode == "RGB"
    keyed = Picture.of(png(IMAGE.convert("L"), transparency=int(np.asarray(IMAGE.convert("L"))[0, 0])))
    assert keyed.image.getpixel((0, 0))[3] == 0 and np.asarray(keyed.image)[..., 3].max() == 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "I", "F", "I;16"])
def test_every_pil_mode_is_converted_to_eight_bits(mode: str) -> None:
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
    if mode in ("I", "I;16", "F"):  # the full range is preserved
        assert np.asarray(picture.image).max() > 235 and np.asarray(picture.image).min() == 0


def test_floats_that_overshoot_zero_to_one_slightly_are_clipped() -> None:
    """Values slightly below 0 must not make a picture count as one in [-1, 1], which would halve its contrast."""
    for kind in (np.float16, np.float32, np.float64):
        values = np.array([[-0.005, 0.5, 1.005, 0.25]], kind)
        assert np.asarray(Picture.of(values).image).tolist() == [[0, 128, 255, 64]]
        assert Picture.of(values) == Picture.of(torch.from_numpy(values)[None]) == Picture.of(values, mask=True)
    assert np.asarray(Picture.of(np.array([[-0.05, 0, 1]])).image).tolist() == [[0, 0, 255]]
    assert np.asarray(Picture.of(np.array([[-0.06, 0, 1.0]])).image).tolist() == [[120, 128, 255]]
    assert np.asarray(Picture.of(np.array([[-1, 0, 1.0]])).image).tolist() == [[0, 128, 255]]
    with pytest.raises(ValueError, match=r"a mask of floats must lie in \[0, 1\], got -1 to 1"):
        Picture.of(np.array([[-1, 0, 1.0]]), mask=True)
    with pytest.raises(ValueError, match="a mask of floats"):
        Picture.of(Image.fromarray(np.array([[-1, 0, 1]], np.float32)), mask=True)


def test_tensors_of_every_dtype_keep_their_levels() -> None:
    levels = torch.arange(24).reshape(1, 4, 6) * 11
    expected = Picture.of(levels.numpy()[0].astype(np.uint8))
    for dtype in (torch.uint8, torch.int16, torch.int32, torch.int64):
        assert Picture.of(levels.to(dtype)) == expected
    assert Picture.of(torch.tensor([[[False, True]]])) == Picture.of(np.array([[0, 255]], np.uint8))
    halves = Picture.of(torch.tensor([[[0, 0.5, 1]]], dtype=torch.bfloat16, requires_grad=True))
    assert np.asarray(halves.image).tolist() == [[0, 128, 255]]


def test_pil_integer_modes_are_read_as_8_or_16_bits() -> None:
    """Mode "I" does not state its number of bits; "I;16" does, so its low levels stay dark."""
    low, high = np.array([[0, 7, 255]]), np.array([[0, 256, 65535]])
    assert np.asarray(Picture.of(Image.fromarray(low.astype(np.int32))).image).tolist() == [[0, 7, 255]]
    assert np.asarray(Picture.of(Image.fromarray(high.astype(np.int32))).image).tolist() == [[0, 1, 255]]
    assert np.asarray(Picture.of(Image.fromarray(high.astype(np.uint16))).image).tolist() == [[0, 1, 255]]
    assert np.asarray(Picture.of(Image.fromarray(low.astype(np.uint16))).image).tolist() == [[0, 0, 0]]


def test_mask_array_of_zeros_and_ones_is_black_and_white() -> None:
    """Only in mask arrays; in PIL images and in pictures that are not masks, a level of 1 is almost black."""
    truth = RNG.integers(0, 2, (6, 5))
    white = Picture.of(truth.astype(np.uint8) * 255)
    for kind in (bool, np.uint8, np.int64, np.float32):
        values = truth.astype(kind)
        shapes = [values, values[None], values[None, None], values[..., None], torch.from_numpy(values)[None, None]]
        assert all(Picture.of(shape, mask=True) == white for shape in shapes), kind
    dark = Image.fromarray(truth.astype(np.uint8))
    assert np.asarray(Picture.of(dark, mask=True).image).max() == 1
    assert np.asarray(Picture.of(truth).image).max() == 1
    grey = np.array([[0, 1, 2]])
    assert np.asarray(Picture.of(grey, mask=True).image).tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match=r"got shape \(1, 6, 5\)"):
        Picture.of(truth[None])


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nowhere.png", "nowhere.png does not exist"),
        (b"not a picture", "cannot read these bytes: it is not a complete picture"),
        (png(IMAGE)[:60], "cannot read these bytes"),
        (np.zeros((2, 3, 5)), r"a picture is a file, .*got shape \(2, 3, 5\)"),
        (np.zeros((0, 3)), "no pixels"),
        (np.full((3, 3), 200.0), "divide 8-bit values by 255"),
        (np.full((3, 3), np.nan), "must lie in"),
        (np.full((3, 3), 300), "must lie in 0 to 255"),
        (torch.zeros(2, 3, 4, 4), "one at a time"),
        (torch.full((3, 4, 4), 300), "must lie in 0 to 255, got 0 to 300"),
        (torch.full((3, 4, 4), -1), "must lie in 0 to 255, got -1"),
        (np.array([[-0.06, 1.2]]), "must lie in"),
        (Image.fromarray(np.full((3, 3), 70000, np.int32)), "0 to 65535, got 70000 to 70000"),
        (Image.fromarray(np.full((3, 3), -1, np.int32)), "0 to 65535, got -1"),
        (Image.fromarray(np.full((3, 3), 200, np.float32)), "divide 8-bit values by 255"),
        (np.zeros((3, 3), complex), "one at a time"),
        ([[0, 255], [255, 0]], "one at a time; got list"),
        ([IMAGE, IMAGE], "one at a time; got list"),
        ("", "name of the picture is empty"),
        (" ", "name of the picture is empty"),
        (5, "got int"),
    ],
)
def test_anything_but_a_picture_is_refused_in_one_sentence(source: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Picture.of(source)  # type: ignore[arg-type]


def test_json_contains_a_reference_without_pixels_or_folder(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir()
    IMAGE.save(tmp_path / "private" / "me.png")
    picture = Picture.of(tmp_path / "private" / "me.png")
    text = json.dumps(picture.to_dict())
    assert "private" not in text and len(text) < 200
    reference = Picture.from_dict(json.loads(text))
    assert reference == picture
    with pytest.raises(ValueError, match=r"me\.png .* a request holds no pixels; pass the file"):
        _ = reference.image


@pytest.mark.parametrize(
    "change",
    [{"height": 7.0}, {"width": "11"}, {"width": True}, {"sha256": 5}, {"sha256": None}, {"name": 3}, {"x": 1}],
)
def test_malformed_references_are_refused(change: dict[str, object]) -> None:
    """Also inside a request, which may be read from an untrusted file."""
    values = {**Picture.of(IMAGE).to_dict(), **change}
    with pytest.raises(TypeError):
        Picture.from_dict(values)
    with pytest.raises(ValueError, match="not a request of kandinsky22"):
        Request.from_json(json.dumps({"condition": {"picture": values}}))
