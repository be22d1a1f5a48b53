"""The geometry of inpainting: areas, feathers, crops and pasting, as properties over seeded random masks."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageDraw

from kandinsky22.imaging.masks import (
    MOST,
    MUCH,
    ZOOM,
    FloatArray,
    check,
    feathered,
    padded,
    paste_back,
    reminder,
    repaint_area,
    share,
    window,
)
from kandinsky22.request import Picture


def random_areas(count: int = 40) -> Iterator[tuple[np.random.Generator, FloatArray]]:
    """Areas of all kinds: blobs, lines, single pixels, soft and nearly full ones, in all aspect ratios."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        height, width = (int(side) for side in rng.integers(3, 70, 2))
        image = Image.new("L", (width, height))
        draw = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(1, 4))):
            x0, x1 = sorted(rng.integers(0, width, 2).tolist())
            y0, y1 = sorted(rng.integers(0, height, 2).tolist())
            shade = int(rng.choice([255, 255, 128, 20]))
            [draw.rectangle, draw.ellipse, draw.line][seed % 3]([x0, y0, x1, y1], fill=shade)
        draw.point((int(rng.integers(width)), int(rng.integers(height))), fill=255)
        yield rng, repaint_area(image, (height, width))


def random_picture(rng: np.random.Generator, area: FloatArray) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (*area.shape, 3), dtype=np.uint8))


def square(height: int, width: int, top: int, left: int, tall: int, wide: int) -> FloatArray:
    area = np.zeros((height, width), np.float32)
    area[top : top + tall, left : left + wide] = 1
    return area


def test_mask_mode_selects_the_colour_to_repaint() -> None:
    """The breaking change on the model card: the same mask in the other mode gives the inverse area."""
    mask = Image.fromarray(np.array([[0, 51, 255]], np.uint8))
    white, black = repaint_area(mask, (1, 3)), repaint_area(mask, (1, 3), "black")
    assert white.tolist() == [pytest.approx([0, 0.2, 1])] and white.dtype == np.float32
    assert black.tolist() == [pytest.approx([1, 0.8, 0])]
    with pytest.raises(ValueError, match="'white' or 'black'"):
        repaint_area(mask, (1, 3), "red")


def test_every_format_of_a_mask_gives_the_same_area() -> None:
    """Pictures of any mode, and arrays of any common form: 0..1, 0..255, boolean, with axes of length one."""
    truth = square(9, 7, 2, 1, 4, 3)
    bits = (truth * 255).astype(np.uint8)
    image = Image.fromarray(bits)
    masks = [image, *(image.convert(mode) for mode in ("1", "RGB", "P", "RGBA", "LA", "CMYK"))]
    masks += [Image.fromarray(values) for values in (truth, bits.astype(np.uint16) * 257, bits.astype(np.int32))]
    arrays = [truth, truth.astype(np.float64), bits, bits // 255, truth > 0, truth[None, None], bits[..., None]]
    for mask in [*masks, *arrays]:
        assert np.array_equal(repaint_area(Picture.of(mask, mask=True).image, (9, 7)), truth)
    assert np.array_equal(repaint_area(truth, (9, 7)), truth)
    assert not repaint_area(
        Image.fromarray(bits // 255), (9, 7)
    ).any()  # in a picture's 0..255, level 1 is nearly black


def test_transparent_pixels_of_a_mask_are_never_repainted() -> None:
    """In both modes, for any hidden colour, resized or not; a half transparent pixel counts half."""
    alpha = np.array([[255, 255, 128, 128, 0, 0]], np.uint8)
    level = np.array([[255, 0, 255, 0, 255, 0]], np.uint8)
    picture = Image.fromarray(np.dstack([level, level, level, alpha]))
    half = pytest.approx(128 / 255)
    assert repaint_area(picture, (1, 6)).tolist() == [[1, 0, half, 0, 0, 0]]
    assert repaint_area(picture, (1, 6), "black").tolist() == [[0, 1, 0, half, 0, 0]]
    for colour in ("white", "black"):
        hidden = Image.new("RGBA", (8, 6), (*[255 * (colour == "white")] * 3, 0))
        for size in ((6, 8), (3, 4), (60, 80)):
            assert not repaint_area(hidden, size, colour).any()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.putpixel((1, 2), 0)
    file = io.BytesIO()
    palette.save(file, "PNG", transparency=1)
    area = repaint_area(Picture.of(file.getvalue(), mask=True).image, (4, 4), "black")
    assert np.array_equal(area, square(4, 4, 2, 1, 1, 1))


def test_repaint_area_does_not_modify_its_mask() -> None:
    for mask in (np.full((4, 4), 0.25, np.float32), Image.new("L", (4, 4), 200)):
        before = np.array(mask)
        repaint_area(mask, (4, 4), "black")[:] = 9
        repaint_area(mask, (4, 4))[:] = 9
        assert np.array_equal(np.asarray(mask), before)


def test_repaint_area_resizes_a_mask_smoothly() -> None:
    ramp = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (16, 1))
    area = repaint_area(ramp, (40, 24))
    assert area.shape == (40, 24)
    # smooth up to the rim, without overshoot
    assert np.allclose(area[20, 1:-1], np.linspace(0, 1, 24)[1:-1], atol=0.02)
    assert (np.diff(area[0]) > 0).all() and area.min() >= 0 and area.max() <= 1
    for level in (0, 1):
        for size in ((3, 5), (100, 31)):
            assert (repaint_area(np.full((17, 23), level, np.float32), size) == level).all()


def test_jpeg_noise_around_a_mask_is_not_repainted() -> None:
    """A JPEG mask of good quality has no exact black and white around its outline; the area is still exact."""
    image, file = Image.new("L", (200, 160)), io.BytesIO()
    ImageDraw.Draw(image).ellipse([30, 41, 151, 122], fill=255)
    image.save(file, "JPEG", quality=95)
    noisy = np.asarray(Image.open(file))
    assert len(np.unique(noisy)) > 2
    for mask, repaint in ((noisy, "white"), (255 - noisy, "black")):
        area = repaint_area(Image.fromarray(mask), (160, 200), repaint)
        assert np.array_equal(area, np.asarray(image) / 255)


def test_a_single_pixel_survives_downscaling() -> None:
    area = repaint_area(square(512, 512, 300, 200, 1, 1), (64, 64))
    assert area[300 // 8, 200 // 8] > 0
    check(area)


def test_invalid_masks_are_refused() -> None:
    for mask, sentence in (
        (np.zeros((4, 4, 3)), "one value per pixel"),
        (np.zeros((0, 4)), "one value per pixel"),
        (np.full((4, 4), 255.0), "from 0 to 1, got 255 to 255"),
        (np.full((4, 4), -1.0), "from 0 to 1"),
        (np.full((4, 4), np.nan), "from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            repaint_area(mask, (4, 4))


def test_an_empty_mask_is_refused_with_the_other_mask_mode() -> None:
    nothing = np.zeros((8, 8), np.float32)
    with pytest.raises(ValueError, match=r"nothing; make white, .* use mask_mode='black'"):
        check(nothing)
    with pytest.raises(ValueError, match=r"nothing; make black, .* use mask_mode='white'"):
        check(1 - repaint_area(np.zeros((8, 8)), (8, 8), "black"), "black")
    with pytest.raises(ValueError, match="repaints nothing"):
        window(nothing, 8, 8)
    check(square(8, 8, 3, 3, 1, 1))


def test_reminder_appears_only_when_most_of_the_picture_is_repainted() -> None:
    assert share(square(10, 10, 0, 0, 5, 5)) == 0.25
    assert reminder(MUCH) is None
    for message, repainted, other in (
        (reminder(share(square(100, 100, 0, 0, 97, 100))), "white", "black"),
        (reminder(0.97, "black"), "black", "white"),
    ):
        assert message is not None and "97%" in message
        assert f"{repainted} is repainted" in message and f"mask_mode='{other}'" in message


def test_paste_back_keeps_pixels_outside_the_mask_bit_for_bit() -> None:
    """`paste_back` keeps the original at weight 0, takes the painted at weight 1, and interpolates between."""
    for rng, area in random_areas():
        original, painted = random_picture(rng, area), random_picture(rng, area)
        weight = feathered(area, int(rng.integers(0, 12)))
        assert weight.dtype == np.float32 and ((weight > 0) == (area > 0)).all() and (weight <= area).all()
        a, b, c = (np.asarray(im, int) for im in (original, painted, paste_back(original, painted, weight)))
        assert (c == a)[area == 0].all()
        assert (c == b)[weight == 1].all()
        assert (np.abs(c - (a + weight[..., None].astype(float) * (b - a))) <= 0.5 + 1e-4).all()


def test_a_feather_of_zero_is_the_mask() -> None:
    for _, area in random_areas(10):
        assert np.array_equal(feathered(area, 0), area)
    with pytest.raises(ValueError, match="feather must be"):
        feathered(area, -1)


def brute_depth(inside: np.ndarray) -> np.ndarray:
    """Distance of each pixel to the nearest pixel outside, by brute force; very large where there is none."""
    y, x = np.nonzero(~inside)
    rows, columns = np.indices(inside.shape)
    every = (rows[..., None] - y) ** 2 + (columns[..., None] - x) ** 2
    return np.sqrt(every.min(-1, initial=1e9))


def test_feather_follows_the_distance_to_the_border() -> None:
    """In an area deep enough for the feather, the weight is the smoothstep of the exact Euclidean distance."""
    image = Image.new("L", (61, 47))
    ImageDraw.Draw(image).ellipse([8, 5, 50, 40], fill=255)
    area = repaint_area(image, (47, 61))
    for pixels in (1, 5, 9):
        t = np.clip(brute_depth(area > 0) / (pixels + 1), 0, 1)
        assert np.allclose(feathered(area, pixels), t * t * (3 - 2 * t), atol=1e-6)


def test_feather_ignores_the_edge_of_the_picture() -> None:
    """In outpainting, the weight is 1 up to the picture's edge and falls only towards the old picture."""
    assert (feathered(np.ones((9, 30), np.float32), 8) == 1).all()
    weight = feathered(square(20, 40, 0, 0, 20, 16), 4)
    assert np.array_equal(weight, np.tile(weight[:1], (20, 1)))
    assert (weight[0, :12] == 1).all() and (np.diff(weight[0, 11:17]) < 0).all() and (weight[0, 16:] == 0).all()


def test_feather_keeps_thin_areas_at_full_weight() -> None:
    """A line or a single pixel, thinner than the feather, still has weight 1 in its middle."""
    area = square(40, 60, 5, 5, 25, 25)
    area[35, 2:58] = 1
    area[10, 50] = 1
    weight = feathered(area, 8)
    assert (weight[35, 2:58] == 1).all() and weight[10, 50] == 1 and weight[17, 17] == 1
    assert 0 < weight[17, 5] < 0.1
    for _, random_area in random_areas(20):
        assert feathered((random_area > 0).astype(np.float32), 10).max() == 1


def test_feather_keeps_lower_mask_values() -> None:
    area = np.full((30, 30), 0.5, np.float32)
    area[:, 15:] = 0
    weight = feathered(area, 4)
    assert (weight[:, :8] == 0.5).all() and (weight[:, 14] < 0.5).all() and (weight[:, 15:] == 0).all()


def test_paste_back_refuses_different_sizes() -> None:
    image, other = Image.new("RGB", (4, 6)), Image.new("RGB", (6, 4))
    for parts in ((image, other, np.zeros((6, 4), np.float32)), (image, image, np.zeros((4, 6), np.float32))):
        with pytest.raises(ValueError, match="one size"):
            paste_back(*parts)


def test_window_contains_the_area_at_the_requested_ratio() -> None:
    """Over random masks and sizes: inside the picture, around the area, at the ratio, and smaller than the picture."""
    windows = 0
    for rng, small in random_areas(60):
        area = np.pad(small, [tuple(rng.integers(0, 200, 2).tolist()) for _ in range(2)])
        height, width = (int(side) for side in rng.integers(64, 256, 2))
        box = window(area, height, width, margin=float(rng.uniform(0, 1)))
        if box is None:
            continue
        windows += 1
        assert 0 <= box.left < box.right <= area.shape[1] and 0 <= box.top < box.bottom <= area.shape[0]
        outside = area.copy()
        outside[box.top : box.bottom, box.left : box.right] = 0
        assert not outside.any()
        assert abs(box.width / width * height - box.height) <= 0.5 + height / width / 2
        assert box.height * box.width <= MOST * area.size
        assert Image.fromarray(area).crop(box).size == (box.width, box.height)
    assert windows > 20


def test_window_leaves_a_margin_around_the_area() -> None:
    """Half the area's size on each side, centred; shifted at the picture's edge; at least 1 / ZOOM of the size."""
    assert window(square(1000, 1000, 400, 600, 100, 100), 512, 512) == (550, 350, 750, 550)
    assert window(square(1000, 1000, 0, 900, 100, 100), 512, 512) == (800, 0, 1000, 200)
    assert window(square(1000, 1000, 400, 600, 100, 100), 512, 512, margin=0) == (586, 386, 714, 514)  # 512 / ZOOM
    assert window(square(1000, 1000, 400, 400, 100, 100), 512, 768) == (300, 350, 600, 550)
    tiny = window(square(1000, 1000, 500, 500, 1, 1), 768, 512)
    assert tiny is not None and (tiny.height, tiny.width) == (768 // ZOOM, 512 // ZOOM)
    with pytest.raises(ValueError, match="margin"):
        window(square(9, 9, 1, 1, 2, 2), 8, 8, margin=-1)


def test_window_is_none_where_a_crop_saves_nothing() -> None:
    """An area of most of the picture, one that no box of the ratio contains, and a picture smaller than the crop."""
    assert window(np.ones((100, 100), np.float32), 512, 512) is None
    assert window(square(100, 100, 5, 5, 90, 90), 512, 512) is None
    assert window(square(100, 300, 40, 10, 10, 280), 512, 512) is None
    assert window(square(100, 100, 50, 50, 4, 4), 512, 512) is None


def test_padded_marks_only_the_new_margins() -> None:
    rng = np.random.default_rng(0)
    image = random_picture(rng, np.zeros((5, 7), np.float32))
    for seed in range(10):
        top, right, bottom, left = np.random.default_rng(seed).integers(0, 4, 4).tolist()
        wider, area = padded(image, top + 1, right, bottom, left)
        assert wider.size == (7 + left + right, 6 + top + bottom) == area.shape[::-1]
        pixels, old = np.asarray(wider), np.asarray(image)
        inner = (slice(top + 1, top + 6), slice(left, left + 7))
        assert np.array_equal(pixels[inner], old) and (area[inner] == 0).all()
        assert area.sum() == area.size - 35 and area.dtype == np.float32
        assert (pixels[: top + 1, left : left + 7] == old[0]).all()
        assert (pixels[0, 0] == old[0, 0]).all() and (pixels[-1, -1] == old[-1, -1]).all()


def test_padded_without_margins_returns_the_picture() -> None:
    image = random_picture(np.random.default_rng(2), np.zeros((5, 7), np.float32))
    same, area = padded(image)
    assert same.tobytes() == image.tobytes() and not area.any()
    with pytest.raises(ValueError, match="0 pixels or more"):
        padded(image, left=-3)


def test_cropping_and_pasting_back_changes_only_the_mask() -> None:
    """The engine's sequence of crop, enlarge, paint, shrink and paste leaves pixels outside the mask unchanged."""
    rng = np.random.default_rng(1)
    area = square(200, 300, 60, 100, 30, 40)
    original = random_picture(rng, area)
    box = window(area, 128, 128)
    assert box is not None and box.width == box.height == 80
    painted = original.copy()
    painted.paste(original.crop(box).resize((128, 128)).transpose(Image.Transpose.ROTATE_90).resize((80, 80)), box[:2])
    result = np.asarray(paste_back(original, painted, feathered(area, 6)))
    assert np.array_equal(result[area == 0], np.asarray(original)[area == 0])
    assert (result != np.asarray(original)).any(-1)[area == 1].mean() > 0.5
