"""Resizing: the filters of the three projects written out in numpy, and pictures of all modes."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from kandinsky22.evaluation.resize import RESIZINGS, Resizing, centre_crop, clean, legacy, rounded

torch.set_num_threads(1)


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def drawing() -> Image.Image:
    """Edges, a thin line and a ramp, on which filters differ."""
    picture = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (150, 1, 3)))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((30, 20, 120, 110), fill=(255, 0, 0))
    draw.line((0, 149, 199, 0), fill=(0, 255, 0))
    return picture


PICTURES = {"noise": noise(90, 133), "small": noise(20, 31), "drawing": drawing()}


def bicubic(size: int, side: int) -> np.ndarray:
    """Weights [side, size] of clean-fid's filter: Keys' cubic with a = -1/2, widened when it shrinks.

    It is cut off at the edges and normalised to a sum of 1. Pixel centres are at half-integers.
    """
    scale = size / side
    width = max(scale, 1.0)
    centres = (np.arange(side) + 0.5) * scale
    x = np.abs((np.arange(size) + 0.5)[None] - centres[:, None]) / width
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    first = np.floor(centres - 2 * width + 0.5).astype(int).clip(0)  # complete pixels, as in Pillow
    last = np.floor(centres + 2 * width + 0.5).astype(int).clip(max=size)
    index = np.arange(size)[None]
    weights = weights * ((index >= first[:, None]) & (index < last[:, None]))
    return weights / weights.sum(1, keepdims=True)


def bilinear(size: int, side: int) -> np.ndarray:
    """Weights [side, size] of pytorch-fid's filter: the two nearest pixels, at any scale."""
    weights = np.zeros((side, size))
    for i, centre in enumerate((np.arange(side) + 0.5) * size / side - 0.5):
        low = int(np.floor(max(centre, 0)))
        part = max(centre, 0) - low
        weights[i, low] += 1 - part
        weights[i, min(low + 1, size - 1)] += part
    return weights


Filter = Callable[[int, int], np.ndarray]


def by_hand(
    picture: Image.Image, side: int, weights: Filter, between: Callable[[np.ndarray], np.ndarray] = np.array
) -> np.ndarray:
    """Resize the width, apply `between`, then resize the height; clipped to [0, 255]."""
    pixels = np.asarray(picture).astype(np.float64).transpose(2, 0, 1)
    down, across = (weights(size, side) for size in pixels.shape[1:])
    return (down @ between(pixels @ across.T)).clip(0, 255)


def eight_bits(pixels: np.ndarray) -> np.ndarray:
    return pixels.round().clip(0, 255)


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES.keys())
@pytest.mark.parametrize("side", [64, 299])
def test_clean_equals_clean_fids_filter(picture: Image.Image, side: int) -> None:
    ours = clean(picture, side)
    assert ours.shape == (3, side, side)
    assert ours.dtype == torch.float32
    assert np.abs(ours.numpy() - by_hand(picture, side, bicubic)).max() < 2e-3
    assert (ours != ours.round()).any()


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES.keys())
@pytest.mark.parametrize("side", [64, 299])
def test_legacy_equals_pytorch_fids_filter(picture: Image.Image, side: int) -> None:
    ours = legacy(picture, side)
    assert ours.shape == (3, side, side)
    assert np.abs(ours.numpy() - by_hand(picture, side, bilinear)).max() < 1e-2  # torch computes coordinates in float32


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES.keys())
def test_rounded_equals_text2image_benchmarks_filter(picture: Image.Image) -> None:
    ours = rounded(picture, 64)
    assert torch.equal(ours, ours.round())
    theirs = eight_bits(by_hand(picture, 64, bicubic, eight_bits))
    assert np.abs(ours.numpy() - theirs).max() <= 1  # Pillow uses fixed-point weights
    assert (ours.numpy() != theirs).mean() < 0.02


def test_clean_antialiases_and_legacy_does_not() -> None:
    """A fine checkerboard: grey with antialiasing, aliased without."""
    grid = Image.fromarray(np.indices((512, 512)).sum(0).astype(np.uint8) % 2 * 255).convert("RGB")
    assert clean(grid, 128).std() < 4
    assert legacy(grid, 100).std() > 20


@pytest.mark.parametrize("resizing", RESIZINGS.values(), ids=RESIZINGS.keys())
def test_resizing_keeps_pixels_of_the_right_size_and_clips_overshoots(resizing: Resizing) -> None:
    picture = noise(40, 40)
    assert np.array_equal(resizing.resize(picture, 40).permute(1, 2, 0).numpy(), np.asarray(picture))
    edge = Image.fromarray(np.repeat(np.array([[0, 255] * 8], np.uint8), 16, 0)).convert("RGB")
    pixels = resizing.resize(edge, 50)
    assert pixels.min() >= 0
    assert pixels.max() <= 255


@pytest.mark.parametrize("mode", ["L", "RGBA", "1", "P"])
def test_resizing_converts_other_modes_to_rgb(mode: str) -> None:
    picture = noise(30, 30).convert(mode)
    for resizing in RESIZINGS.values():
        assert torch.equal(resizing.resize(picture, 20), resizing.resize(picture.convert("RGB"), 20))


@pytest.mark.parametrize(
    ("size", "box"), [((10, 10), (0, 0, 10, 10)), ((13, 8), (2, 0, 10, 8)), ((8, 13), (0, 2, 8, 10))]
)
def test_centre_crop_takes_the_central_square(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    picture = noise(size[1], size[0])
    assert centre_crop(picture).tobytes() == picture.crop(box).tobytes()


def test_resizings_normalise_as_each_project_does() -> None:
    ends = torch.tensor([0.0, 255.0])
    for name, expected in (("clean", [-1.0, 127 / 128]), ("legacy", [-1.0, 1.0]), ("rounded", [-1.0, 1.0])):
        centre = RESIZINGS[name].centre
        assert ((ends - centre) / centre).tolist() == expected
