"""Hard negatives for CLIP: descriptions of scenes that differ from the right one in one fact."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from kandinsky22.compositions.captions import OPPOSITES, perturb
from kandinsky22.compositions.thing_scenes import ThingGroup, ThingScene
from kandinsky22.compositions.things import DRAWINGS, Things
from kandinsky22.compositions.wording import AnyGroup, AnyScene
from kandinsky22.compositions.world import COLORS, GROUNDS, HELD_OUT_PAIRS, MAX_COUNT, SHAPES, Group, Scene

T = TypeVar("T")


def hard_negative(scene: AnyScene, things: Things, rng: np.random.Generator) -> AnyScene:
    """The same description with exactly one change; only for captions, because the pieces do not change.

    Of scenes of shapes that of `captions.perturb`; else the opposite relation (in two of five scenes that have one),
    another count, another thing (of the same subgroup if possible), drawing style or ground, or another colour or shape
    of the shapes beside things. The change is never to a held-out thing or pair.
    """
    if isinstance(scene, Scene):
        return perturb(scene, rng)
    if scene.relation is not None and rng.random() < 0.4:
        return replace(scene, relation=OPPOSITES[scene.relation])
    index = int(rng.integers(len(scene.groups)))
    group = scene.groups[index]
    if isinstance(group, Group):
        taken = {color for color, shape in HELD_OUT_PAIRS if shape == group.shape} | {group.color}
        if rng.random() < 0.5:
            return _with(
                scene, index, replace(group, color=_choice([color for color in COLORS if color not in taken], rng))
            )
        taken = {shape for color, shape in HELD_OUT_PAIRS if color == group.color} | {group.shape}
        return _with(
            scene, index, replace(group, shape=_choice([shape for shape in SHAPES if shape not in taken], rng))
        )
    changes = ["thing", "thing", "drawing", "ground", *(["count", "count"] if group.thing.counted else [])]
    match _choice(changes, rng):
        case "count":
            counts = [count for count in range(1, MAX_COUNT + 1) if count != group.count]
            return _with(scene, index, ThingGroup(_choice(counts, rng), group.thing))
        case "thing":
            pool = {"counted": group.count > 1, "other_than": scene.things}
            other = things.choose(rng, scene.drawing, subgroup=group.thing.subgroup, **pool)  # type: ignore[arg-type]
            other = other or things.choose(rng, scene.drawing, **pool)  # type: ignore[arg-type]
            if other is not None:
                return _with(scene, index, ThingGroup(group.count, other))
        case "drawing":
            drawing = _choice([drawing for drawing in DRAWINGS if drawing != scene.drawing], rng)
            if all(drawing in thing.rows for thing in scene.things):
                return replace(scene, drawing=drawing)
    return replace(scene, ground=_choice([ground for ground in GROUNDS if ground != scene.ground], rng))


def _with(scene: ThingScene, index: int, group: AnyGroup) -> ThingScene:
    return replace(scene, groups=(*scene.groups[:index], group, *scene.groups[index + 1 :]))


def _choice(choices: Sequence[T], rng: np.random.Generator) -> T:
    return choices[int(rng.integers(len(choices)))]
