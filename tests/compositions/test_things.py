"""Scenes with things: their composition, their pictures, and their depth and instance maps."""

from dataclasses import replace

import numpy as np
import pytest

from kandinsky22.compositions import Group
from kandinsky22.compositions.thing_scenes import (
    PlacedThing,
    ThingGroup,
    ThingScene,
    render_things,
    sample_things,
    thing_layers,
)
from kandinsky22.compositions.things import Thing, Things
from tests.compositions.tiny_things import tiny_things

THINGS = tiny_things()
APPLE, PEAR, BREAD = THINGS["A1"], THINGS["A2"], THINGS["B1"]


def sample_many(number: int = 300, *, held_out: bool = False) -> list[ThingScene]:
    return [sample_things(np.random.default_rng((7, i)), THINGS, held_out=held_out) for i in range(number)]


def test_a_scene_depends_on_its_seed_alone() -> None:
    first, second = sample_many(20), sample_many(20)
    assert first == second
    assert (render_things(first[3], THINGS, 64) == render_things(second[3], THINGS, 64)).all()


def test_training_scenes_have_no_held_out_things() -> None:
    assert not any(thing.held_out for scene in sample_many() for thing in scene.things)
    unseen = sample_many(100, held_out=True)
    assert all(any(thing.held_out for thing in scene.things) for scene in unseen)


def test_all_kinds_of_scenes_are_sampled() -> None:
    scenes = sample_many()
    alone = [scene for scene in scenes if len(scene.pieces) == 1]
    assert 0.4 < len(alone) / len(scenes) < 0.65
    assert sum(max(piece.r for piece in scene.pieces) > 0.35 for scene in alone) > 0.6 * len(alone)
    assert any(scene.has_shapes for scene in scenes)
    assert {scene.groups[0].count for scene in scenes if scene.relation is None} == {1, 2, 3, 4}


def test_things_do_not_overlap_and_are_inside_the_picture() -> None:
    for scene in sample_many(100):
        for number, piece in enumerate(scene.pieces):
            assert piece.x - piece.r * 0.999 >= 0 and piece.x + piece.r * 0.999 <= 1
            assert piece.y - piece.r * 0.999 >= 0 and piece.y + piece.r * 0.999 <= 1
            for other in scene.pieces[number + 1 :]:
                assert np.hypot(piece.x - other.x, piece.y - other.y) > piece.r + other.r


def test_the_relation_is_true_of_the_mean_positions() -> None:
    for scene in sample_many(200):
        if scene.relation is None:
            continue
        x, y = (
            [np.mean([getattr(piece, axis) for piece in scene.pieces if piece.group == group]) for group in (0, 1)]
            for axis in "xy"
        )
        first, second = y if scene.relation in ("above", "below") else x
        assert (first < second) == (scene.relation in ("above", "left of"))


def test_a_thing_that_is_not_counted_or_lacks_the_drawing_is_rejected() -> None:
    with pytest.raises(ValueError, match="a group has 1 to 1 of 'bread', got 2"):
        ThingGroup(2, BREAD)
    with pytest.raises(ValueError, match="a group has 1 to 4 of 'red apple', got 5"):
        ThingGroup(5, APPLE)
    undrawn = replace(APPLE, rows={"flat": 0})
    with pytest.raises(ValueError, match="'red apple' has no shaded drawing"):
        ThingScene("white", "", (ThingGroup(1, undrawn),), None, "shaded", (), 0)


def test_the_layers_of_a_thing_follow_its_alpha() -> None:
    scene = ThingScene.of((ThingGroup(1, APPLE),), None, "flat", "white", "", np.random.default_rng(1))
    maps = thing_layers(scene, THINGS, 64)
    (piece,) = scene.pieces
    assert isinstance(piece, PlacedThing)
    clear = THINGS.pictures[APPLE.rows["flat"]][..., 3] < 128
    assert abs((maps.ids == 1).mean() - (2 * piece.r) ** 2 * (1 - clear.mean())) < 0.02
    assert (maps.depth[maps.ids == 1] == np.float32(piece.z)).all()
    assert maps.depth[maps.ids == 0].max() <= 0.25
    picture = render_things(scene, THINGS, 64)
    assert (picture[maps.ids == 1][:, 0] > picture[maps.ids == 1][:, 2] + 100).mean() > 0.95


def test_layers_include_the_shapes_beside_things() -> None:
    groups = (ThingGroup(2, PEAR), Group(1, "red", "square"))
    scene = ThingScene.of(groups, "above", "shaded", "cream", "a grid", np.random.default_rng(2), style="ink")
    assert set(np.unique(thing_layers(scene, THINGS, 64).ids)) == {0, 1, 2, 3}
    wide = scene.stretched(1.0, 2.0)
    assert render_things(wide, THINGS, 64).shape == (64, 128, 3)
    assert thing_layers(wide, THINGS, 64).ids.max() == 3


def test_things_are_chosen_by_weight() -> None:
    rare = replace(PEAR, weight=0.1)
    things = Things([APPLE, rare], THINGS.pictures)
    rng = np.random.default_rng(0)
    chosen: list[Thing | None] = [things.choose(rng, "flat") for _ in range(300)]
    assert 10 < sum(thing == rare for thing in chosen) < 50
    assert things.choose(rng, "flat", other_than=(APPLE, rare)) is None
    assert things.choose(rng, "flat", subgroup="vehicle") is None
