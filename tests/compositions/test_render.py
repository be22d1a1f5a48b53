"""Pictures and their layers."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from kandinsky22.compositions import COLORS, GROUNDS, SHAPES, STYLES, Group, Scene, layers, render, sample
from kandinsky22.compositions.pieces import visible


def test_a_picture_is_determined_by_its_seed() -> None:
    one, again, other = (sample(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(render(one, 64), render(again, 64))
    assert not np.array_equal(render(one, 64), render(other, 64))
    assert not np.array_equal(render(one, 64), render(replace(one, seed=one.seed + 1), 64))


@pytest.mark.parametrize(
    ("height", "width", "side", "shape"),
    [(1.0, 1.0, 64, (64, 64)), (1.0, 2.0, 64, (64, 128)), (2.0, 1.0, 32, (64, 32)), (1.0, 1.5, 128, (128, 192))],
)
def test_side_is_the_length_of_the_shorter_side(height: float, width: float, side: int, shape: tuple[int, int]) -> None:
    scene = sample(np.random.default_rng(1), height=height, width=width)
    picture, maps = render(scene, side), layers(scene, side)
    assert picture.shape == (*shape, 3)
    assert picture.dtype == np.uint8
    assert maps.depth.shape == maps.ids.shape == shape
    assert (maps.depth.dtype, maps.ids.dtype) == (np.float32, np.int16)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", range(3))
def test_all_resolutions_show_the_same_picture(seed: int, style: str) -> None:
    scene = replace(sample(np.random.default_rng(seed), width=1.5), style=style)
    small = render(scene, 64).astype(float)
    reduced = np.asarray(Image.fromarray(render(scene, 256)).resize((96, 64), Image.Resampling.BOX), float)
    assert np.abs(small - reduced).mean() < 2.5


@pytest.mark.parametrize("seed", range(8))
def test_layers_agree_with_the_pieces(seed: int) -> None:
    scene = sample(np.random.default_rng(seed), height=1.5)
    maps = layers(scene, 128)
    ground = maps.ids == 0
    assert 0.05 <= maps.depth[ground].min() < maps.depth[ground].max() <= 0.25
    assert maps.depth[0].mean() < maps.depth[-1].mean()  # the ground comes nearer towards the bottom
    assert set(np.unique(maps.ids)) == set(range(len(scene.pieces) + 1))
    for number, piece in enumerate(scene.pieces, start=1):
        y, x = np.nonzero(maps.ids == number)
        assert np.all(maps.depth[y, x] == np.float32(piece.z))
        if visible(scene.pieces)[number - 1] == 1:
            assert abs((x.mean() + 0.5) / 128 - piece.x) < 0.02
            assert abs((y.mean() + 0.5) / 128 - piece.y) < 0.02


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("seed", range(4))
def test_pixels_agree_with_the_layers(seed: int, style: str) -> None:
    """Every style shows the palette's colours where the pieces are, washed or shaded but the same hue."""
    scene = replace(sample(np.random.default_rng(seed)), style=style, decoration="")
    picture, maps = render(scene, 128), layers(scene, 128)
    for number, piece in enumerate(scene.pieces, start=1):
        median = np.median(picture[maps.ids == number], axis=0)
        nearest = min(COLORS, key=lambda name: np.abs(median - COLORS[name]).sum())
        assert nearest == piece.color, (piece, median)
    sheet = np.median(picture[maps.ids == 0], axis=0)
    assert np.abs(sheet - GROUNDS[scene.ground]).max() < 25


def test_styles_change_the_picture_and_not_the_layers() -> None:
    scene = sample(np.random.default_rng(11))
    pictures = [render(replace(scene, style=style), 128).astype(float) for style in STYLES]
    apart = [np.abs(one - other).mean() for one, other in itertools.combinations(pictures, 2)]
    assert min(apart) > 1.5
    maps = [layers(replace(scene, style=style), 128) for style in STYLES]
    assert all(np.array_equal(one.ids, maps[0].ids) for one in maps)


def test_only_paper_and_clay_cast_shadows() -> None:
    bare = Scene.of((Group(1, "red", "circle"),), None, "white", "", np.random.default_rng(0))
    for style in STYLES:
        scene = replace(bare, style=style)
        x, y, r = (getattr(bare.pieces[0], name) for name in "xyr")
        row, column = int((y + 0.75 * (r + 0.02)) * 128), int((x + 0.75 * (r + 0.02)) * 128)
        darker = render(replace(scene, pieces=()), 128)[row, column].mean() - render(scene, 128)[row, column].mean()
        assert (darker > 15) == (style in ("paper", "clay")), (style, darker)


def test_nearer_pieces_cast_wider_shadows() -> None:
    bare = Scene.of((Group(1, "red", "circle"),), None, "white", "", np.random.default_rng(0))
    shade = []
    for z in (0.4, 1.0):
        scene = replace(bare, pieces=(replace(bare.pieces[0], z=z),))
        ground = layers(scene, 128).ids == 0
        without = render(replace(scene, pieces=()), 128).astype(float)
        shade.append(int((without[ground] - render(scene, 128)[ground] > 8).all(axis=1).sum()))
    assert shade[1] > 1.4 * shade[0]


@pytest.mark.parametrize("decoration", ["thin black lines", "a grid", "arcs"])
@pytest.mark.parametrize("side", [64, 128])
def test_decorations_are_visible_and_faint(decoration: str, side: int) -> None:
    plain = replace(sample(np.random.default_rng(3)), decoration="", ground="white", pieces=())
    drawn = replace(plain, decoration=decoration)
    darker = render(plain, side).astype(float).mean(axis=2) - render(drawn, side).astype(float).mean(axis=2)
    assert (darker > 40).mean() > 0.03
    assert darker.max() < 190


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_renders_where_it_reaches_the_border(shape: str) -> None:
    scene = Scene.of((Group(1, "blue", shape),), None, "cream", "", np.random.default_rng(0))
    moved = replace(scene, pieces=tuple(replace(piece, x=0.0, y=1.0) for piece in scene.pieces))
    assert render(moved, 64).shape == (64, 64, 3)
    assert (layers(moved, 64).ids == 1).any()


def test_too_small_a_side_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least 16 pixels, got 8; try 64"):
        render(sample(np.random.default_rng(0)), 8)
