"""Scenes: sampling, layout, words and validation."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from kandinsky22.compositions import (
    COLORS,
    GROUNDS,
    HELD_OUT_PAIRS,
    RELATIONS,
    SHAPES,
    STYLES,
    Group,
    Piece,
    Scene,
    judge,
    layers,
    read,
    render,
    sample,
)
from kandinsky22.compositions.pieces import SEEN, visible
from kandinsky22.compositions.segments import lab
from kandinsky22.compositions.shapes import distance

EXTENTS = [(1.0, 1.0), (1.0, 2.0), (2.0, 1.0), (1.0, 1.5)]


def scenes(number: int, height: float = 1.0, width: float = 1.0) -> list[Scene]:
    return [sample(np.random.default_rng((31, index)), height=height, width=width) for index in range(number)]


def gap(one: Piece, other: Piece) -> float:
    return math.hypot(one.x - other.x, one.y - other.y) - one.r - other.r


def test_a_scene_is_determined_by_its_seed() -> None:
    assert sample(np.random.default_rng(5)) == sample(np.random.default_rng(5))
    assert sample(np.random.default_rng(5)) != sample(np.random.default_rng(6))


@pytest.mark.parametrize(("height", "width"), EXTENTS)
def test_pieces_show_the_groups_inside_the_picture(height: float, width: float) -> None:
    for scene in scenes(80, height, width):
        for index, group in enumerate(scene.groups):
            members = [piece for piece in scene.pieces if piece.group == index]
            assert len(members) == group.count
            assert {(piece.color, piece.shape) for piece in members} == {(group.color, group.shape)}
        for piece in scene.pieces:
            assert piece.r < piece.x < width - piece.r
            assert piece.r < piece.y < height - piece.r
            assert 0.35 < piece.z <= 1
        assert [piece.z for piece in scene.pieces] == sorted(piece.z for piece in scene.pieces)


@pytest.mark.parametrize(("height", "width"), EXTENTS)
def test_pieces_of_one_group_never_touch_and_those_of_two_hide_little(height: float, width: float) -> None:
    for scene in scenes(80, height, width):
        for one, other in itertools.combinations(scene.pieces, 2):
            assert one.group != other.group or gap(one, other) > 0.03
        shares = visible(scene.pieces)
        assert min(shares) >= 0.7
        assert min(shares) == 1 or len(scene.groups) == 2


def test_a_moderate_share_of_scenes_overlap() -> None:
    pairs = [scene for scene in scenes(300) if scene.relation]
    assert 0.1 < sum(min(visible(scene.pieces)) < 1 for scene in pairs) / len(pairs) < 0.3


def test_visible_shares_are_those_of_the_instance_map() -> None:
    """Measured on a grid about each piece; the map at 256 pixels agrees, compared with the piece drawn alone."""
    overlapping = [scene for scene in scenes(120) if min(visible(scene.pieces)) < 1]
    assert len(overlapping) > 5
    for scene in overlapping[:8]:
        seen = layers(scene, 256).ids
        for number, (piece, share) in enumerate(zip(scene.pieces, visible(scene.pieces), strict=True), start=1):
            alone = layers(replace(scene, pieces=(piece,)), 256).ids
            assert abs((seen == number).sum() / (alone == 1).sum() - share) < 0.02


def test_groups_overlap_only_on_request() -> None:
    groups = (Group(2, "red", "circle"), Group(2, "blue", "square"))
    layouts = [
        [
            Scene.of(groups, "above", "cream", "", np.random.default_rng(seed), overlap=overlap).pieces
            for seed in range(20)
        ]
        for overlap in (True, False)
    ]
    together, apart = ([min(visible(pieces)) for pieces in scenes] for scenes in layouts)
    assert set(apart) == {1.0}
    assert sum(SEEN <= share < 1 for share in together) > 12


@pytest.mark.parametrize(("height", "width"), EXTENTS)
def test_relations_are_true_of_every_pair_and_of_the_mean_positions(height: float, width: float) -> None:
    for scene in scenes(80, height, width):
        if scene.relation is None:
            continue
        along, sign = ("y", 1) if scene.relation in ("above", "below") else ("x", 1)
        sign = -sign if scene.relation in ("below", "right of") else sign
        first, second = ([piece for piece in scene.pieces if piece.group == index] for index in (0, 1))
        overlap = min(visible(scene.pieces)) < 1
        for one, other in itertools.product(first, second):
            least = 0.05 if overlap else one.r + other.r + 0.05
            assert sign * (getattr(other, along) - getattr(one, along)) > least
        offset = {axis: abs(_mean(first, axis) - _mean(second, axis)) for axis in ("x", "y")}
        assert offset.pop(along) > next(iter(offset.values())), scene.relation


def test_held_out_pairs_are_sampled_on_request_only() -> None:
    many = scenes(600)
    seen = {(group.color, group.shape) for scene in many for group in scene.groups}
    assert seen == set(itertools.product(COLORS, SHAPES)) - set(HELD_OUT_PAIRS)
    unseen = [sample(np.random.default_rng((32, index)), held_out=True) for index in range(120)]
    firsts = {(scene.groups[0].color, scene.groups[0].shape) for scene in unseen}
    assert firsts == set(HELD_OUT_PAIRS)
    assert all((group.color, group.shape) in seen for scene in unseen for group in scene.groups[1:])


def _mean(pieces: list[Piece], axis: str) -> float:
    return sum(getattr(piece, axis) for piece in pieces) / len(pieces)


def test_layouts_use_the_longer_side() -> None:
    wide, tall = scenes(60, width=2.0), scenes(60, height=2.0)
    assert max(piece.x for scene in wide for piece in scene.pieces) > 1.5
    assert max(piece.y for scene in tall for piece in scene.pieces) > 1.5
    assert max(piece.y for scene in wide for piece in scene.pieces) < 1
    assert max(piece.x for scene in tall for piece in scene.pieces) < 1


def test_all_words_of_the_world_are_used() -> None:
    many = scenes(400)
    assert {group.color for scene in many for group in scene.groups} == set(COLORS)
    assert {group.shape for scene in many for group in scene.groups} == set(SHAPES)
    assert {scene.ground for scene in many} == set(GROUNDS)
    assert {scene.style for scene in many} == set(STYLES)
    assert {scene.relation for scene in many} == {None, *RELATIONS}
    assert {group.size for scene in many for group in scene.groups} == {None, "small", "large"}
    assert 0.55 < sum(len(scene.groups) == 2 for scene in many) / len(many) < 0.75
    assert {scene.groups[0].count for scene in many} == {1, 2, 3, 4}
    assert {scene.groups[1].count for scene in many if scene.relation} == {1, 2, 3}


def test_a_large_shape_is_larger_than_a_small_one() -> None:
    def radius(size: str | None, seed: int) -> float:
        group = Group(1, "red", "star", size)
        return Scene.of((group,), None, "cream", "", np.random.default_rng(seed)).pieces[0].r

    for seed in range(20):
        assert radius("small", seed) < 0.75 * radius(None, seed + 100)
        assert radius(None, seed) < radius("large", seed + 100)


def test_any_description_can_be_laid_out() -> None:
    groups = (Group(4, "red", "star"), Group(4, "blue", "star"))
    for relation in RELATIONS:
        scene = Scene.of(groups, relation, "pink", "arcs", np.random.default_rng(0), height=1.0, width=4.0)
        assert scene.groups == groups
        assert min(piece.r for piece in scene.pieces) > 0.06


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fill_their_disc_and_balance_on_its_centre(shape: str) -> None:
    axis = (np.arange(400) + 0.5) / 160 - 1.25
    x, y = np.meshgrid(axis, axis)
    inside = distance(shape, x, y) < 0
    assert 0.93 < np.hypot(x, y)[inside].max() <= 1.01
    assert np.hypot(x[inside].mean(), y[inside].mean()) < 0.03


def test_colours_of_the_palette_are_far_apart() -> None:
    names = [*COLORS, *GROUNDS]
    values = lab(np.array([*COLORS.values(), *GROUNDS.values()], np.uint8))
    for one, other in itertools.combinations(range(len(names)), 2):
        apart = float(np.linalg.norm(values[one] - values[other]))
        assert apart > (15 if one >= len(COLORS) else 35), (names[one], names[other], apart)


@pytest.mark.parametrize(
    ("make_scene", "message"),
    [
        (lambda: Group(5, "red", "star"), "1 to 4"),
        (lambda: Group(1, "mauve", "star"), "unknown color 'mauve'.*'red'"),
        (lambda: Group(1, "red", "blob"), "unknown shape"),
        (lambda: Group(2, "red", "star", "small"), "only a single shape has a size"),
        (
            lambda: Scene.of((Group(1, "red", "star"),), None, "cream", "", np.random.default_rng(0), style="oil"),
            "unknown style 'oil'.*'paper'",
        ),
        (lambda: sample(np.random.default_rng(0), height=2.0, width=2.0), "shorter side must be 1"),
        (lambda: sample(np.random.default_rng(0), width=5.0), "at most 4"),
        (
            lambda: Scene.of((Group(1, "red", "star"),), "above", "cream", "", np.random.default_rng(0)),
            "one group and no relation, or two groups and one",
        ),
        (
            lambda: Scene.of(
                (Group(1, "red", "star"), Group(1, "red", "ring")), "above", "cream", "", np.random.default_rng(0)
            ),
            "different colors",
        ),
    ],
)
def test_impossible_scenes_are_rejected_with_a_reason(make_scene, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make_scene()


def test_a_stretched_scene_keeps_its_pieces_and_their_order() -> None:
    for i in range(50):
        scene = sample(np.random.default_rng([4, i]))
        wide = scene.stretched(1, 2)
        assert (wide.height, wide.width) == (1, 2)
        assert wide.groups == scene.groups and wide.relation == scene.relation
        for before, after in zip(scene.pieces, wide.pieces, strict=True):
            assert (after.x, after.y, after.r) == (2 * before.x, before.y, before.r)
        assert judge(read(render(wide)), wide)["whole"]
