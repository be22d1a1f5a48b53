"""Pictures as values: wherever they come from they are the same pixels, and in JSON they are a reference alone."""

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


def same(picture: Picture) -> bool:
    return bool((np.asarray(picture.rgb) == PIXELS).all())


def test_every_source_is_the_same_picture(tmp_path: Path) -> None:
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


def test_transparency_is_white_in_colour() -> None:
    clear = Image.fromarray(np.dstack([PIXELS, np.zeros((7, 11), np.uint8)]))
    assert (np.asarray(Picture.of(clear).rgb) == 255).all()
    palette = IMAGE.quantize(8)
    palette.info["transparency"] = 0
    again = Picture.of(png(palette, transparency=0))
    assert again.image.mode == "RGBA"
    assert Picture.of(IMAGE.quantize(8)).image.mode == "RGB"
    keyed = Picture.of(png(IMAGE.convert("L"), transparency=int(np.asarray(IMAGE.convert("L"))[0, 0])))
    assert keyed.image.getpixel((0, 0))[3] == 0 and np.asarray(keyed.image)[..., 3].max() == 255


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
        assert np.asarray(picture.image).max() > 235 and np.asarray(picture.image).min() == 0


def test_a_resize_that_overshoots_is_still_in_zero_to_one() -> None:
    """A hair below 0 must not turn a picture into one in [-1, 1], which would halve its contrast; more than a hair does."""
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


def test_tensors_of_every_kind_keep_their_numbers() -> None:
    levels = torch.arange(24).reshape(1, 4, 6) * 11
    there = Picture.of(levels.numpy()[0].astype(np.uint8))
    for kind in (torch.uint8, torch.int16, torch.int32, torch.int64):
        assert Picture.of(levels.to(kind)) == there
    assert Picture.of(torch.tensor([[[False, True]]])) == Picture.of(np.array([[0, 255]], np.uint8))
    halves = Picture.of(torch.tensor([[[0, 0.5, 1]]], dtype=torch.bfloat16, requires_grad=True))
    assert np.asarray(halves.image).tolist() == [[0, 128, 255]]


def test_pils_integers_are_eight_bits_or_sixteen() -> None:
    """Mode "I" does not say how many bits it has; "I;16" does, and stays dark where it is dark."""
    low, high = np.array([[0, 7, 255]]), np.array([[0, 256, 65535]])
    assert np.asarray(Picture.of(Image.fromarray(low.astype(np.int32))).image).tolist() == [[0, 7, 255]]
    assert np.asarray(Picture.of(Image.fromarray(high.astype(np.int32))).image).tolist() == [[0, 1, 255]]
    assert np.asarray(Picture.of(Image.fromarray(high.astype(np.uint16))).image).tolist() == [[0, 1, 255]]
    assert np.asarray(Picture.of(Image.fromarray(low.astype(np.uint16))).image).tolist() == [[0, 0, 0]]


def test_a_mask_of_zeros_and_ones_is_black_and_white() -> None:
    """As arrays, where 1 can only mean all; in PIL, and in a picture that is no mask, a level of 1 is nearly black."""
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
        ("nowhere.png", "nowhere.png is not there"),
        (b"not a picture", "cannot read these bytes: it is not a whole picture"),
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
        ("", "no file was named"),
        (" ", "no file was named"),
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


@pytest.mark.parametrize(
    "change",
    [{"height": 7.0}, {"width": "11"}, {"width": True}, {"sha256": 5}, {"sha256": None}, {"name": 3}, {"x": 1}],
)
def test_a_reference_that_is_none_is_refused(change: dict[str, object]) -> None:
    """Also through a request, which is where it would be read from a file somebody sends."""
    values = {**Picture.of(IMAGE).to_dict(), **change}
    with pytest.raises(TypeError):
        Picture.from_dict(values)
    with pytest.raises(ValueError, match="no request of kandinsky22"):
        Request.from_json(json.dumps({"condition": {"picture": values}}))
