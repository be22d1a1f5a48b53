"""Batches of CLIP's training: captions, hard negatives, which pictures show the same things, and labels for the
probes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kandinsky22.compositions import OPPOSITES, caption, perturb
from kandinsky22.compositions.hard_negatives import hard_negative
from kandinsky22.compositions.thing_scenes import ThingGroup, ThingScene
from kandinsky22.compositions.things import DRAWINGS, Things
from kandinsky22.compositions.wording import Caption, describe
from kandinsky22.compositions.world import COLORS, SHAPES, Group, Scene
from kandinsky22.training.data import Compositions, Pictures
from kandinsky22.training.mixture import RUSSIAN, AnyScene, Mixture
from kandinsky22.training.probes import PER_COLOR, PLACES, UNSTATED, Probes, labels

Labels = dict[str, Tensor]


class ClipExamples(NamedTuple):
    """A batch of B pictures as CLIP learns from them.

    `captions` has one for each picture, `negatives` one with a single change for each of the first pictures. Pictures
    with equal `picture_ids` [B], int64, are not negatives of each other. The labels are the probes' classes; they are
    empty for pictures that are not of the world.
    """

    captions: list[str]
    negatives: list[str]
    picture_ids: np.ndarray
    picture_labels: Labels
    caption_labels: Labels
    negative_labels: Labels


def training_examples(data: Pictures, indices: np.ndarray, rng: np.random.Generator, hard: int) -> ClipExamples:
    """A batch with random captions; pictures of the world also have `hard` hard negatives and labels."""
    if isinstance(data, Mixture):
        return _of_mixture(data, indices, rng, hard)
    captions = data.captions(indices, rng)
    if not isinstance(data, Compositions):
        return ClipExamples(captions, [], indices, {}, {}, {})
    scenes = [data.scene(int(i)) for i in indices]
    others = [perturb(scene, rng) for scene in scenes[:hard]]
    wrong = [caption(scene, rng, whole=True) for scene in others]
    return ClipExamples(captions, wrong, indices, labels(scenes), labels(scenes, captions), labels(others, wrong))


def validation_examples(data: Pictures, count: int, rng: np.random.Generator) -> ClipExamples:
    """The first `count` pictures; of the world each with a caption that states everything and a hard negative."""
    indices = np.arange(count)
    if isinstance(data, Mixture):
        return _of_mixture(data, indices, rng, count, whole=True)
    if not isinstance(data, Compositions):
        return ClipExamples(data.captions(indices, rng), [], indices, {}, {}, {})
    scenes = [data.scene(i) for i in range(count)]
    captions = [caption(scene, rng, whole=True) for scene in scenes]
    others = [perturb(scene, rng) for scene in scenes]
    wrong = [caption(scene, rng, whole=True) for scene in others]
    return ClipExamples(captions, wrong, indices, labels(scenes), labels(scenes, captions), labels(others, wrong))


def probe_accuracy(probes: Probes, held_out: Compositions | Mixture) -> Callable[[Tensor, list[str]], dict[str, float]]:
    """A function that measures the probes' accuracy on embeddings [N, D] of the first N pictures, sampled for the
    captions that `prior.sample_grid` draws."""

    def accuracy(embeds: Tensor, captions: list[str]) -> dict[str, float]:
        rows = range(len(captions))
        if isinstance(held_out, Compositions):
            return probes.accuracy(embeds, labels([held_out.scene(i) for i in rows], captions))
        stated = held_out.stated_captions(rows, np.random.default_rng(0))  # with the seed of `prior.sample_grid`
        return probes.accuracy(embeds, scene_labels([held_out.scene(i) for i in rows], held_out.things, stated))

    return accuracy


def _of_mixture(
    data: Mixture, indices: np.ndarray, rng: np.random.Generator, hard: int, *, whole: bool = False
) -> ClipExamples:
    scenes = [data.scene(int(i)) for i in indices]
    stated = [describe(scene, rng, russian=rng.random() < RUSSIAN, whole=whole) for scene in scenes]
    others = [hard_negative(scene, data.things, rng) for scene in scenes[:hard]]
    wrong = [describe(scene, rng, russian=rng.random() < RUSSIAN, whole=True) for scene in others]
    picture_ids = np.array([_picture_id(scene, int(i), data) for scene, i in zip(scenes, indices, strict=True)])
    return ClipExamples(
        [caption.text for caption in stated],
        [caption.text for caption in wrong],
        picture_ids,
        scene_labels(scenes, data.things),
        scene_labels(scenes, data.things, stated),
        scene_labels(others, data.things, wrong),
    )


def _picture_id(scene: AnyScene, index: int, data: Mixture) -> int:
    """A number that pictures of the same things have in common, in either drawing style: a caption of one is mostly
    true of the others. Of a scene of shapes its index."""
    if isinstance(scene, Scene):
        return index
    rows = sorted(data.things.number(thing) for thing in scene.things)
    base = len(data.things) + 1
    shapes = int(scene.has_shapes)
    return len(data) + ((rows[0] + 1) * base + (rows[1] + 1 if len(rows) > 1 else 0)) * 2 + shapes


def scene_labels(scenes: Sequence[AnyScene], things: Things, captions: Sequence[Caption] | None = None) -> Labels:
    """The labels of `probes.labels`, also for scenes with things, and further ones for those.

    "thing" [N] is the thing of a scene with one kind of things, "thing_count" its number, "drawing" the drawing style;
    for other scenes they are UNSTATED. So are the attributes of colours that no shape of a scene with things has, and
    with captions, what a caption omits.
    """
    classes = labels([scene if isinstance(scene, Scene) else _shapes_of(scene) for scene in scenes])
    classes |= {name: torch.full((len(scenes),), UNSTATED) for name in ("thing", "thing_count", "drawing")}
    colors = list(COLORS)
    for row, scene in enumerate(scenes):
        if isinstance(scene, ThingScene):
            stated = {colors.index(group.color) for group in scene.groups if isinstance(group, Group)}
            absent = [color for color in range(len(colors)) if color not in stated]
            for name in PER_COLOR:
                classes[name][row, absent] = UNSTATED  # a thing may be of any colour
            if not scene.has_shapes:
                classes["style"][row] = UNSTATED
            first = scene.groups[0]
            if scene.relation is None and isinstance(first, ThingGroup):
                classes["thing"][row], classes["thing_count"][row] = things.number(first.thing), first.count
            classes["drawing"][row] = DRAWINGS.index(scene.drawing)
        if captions is not None:
            _mark_unstated(classes, row, scene, captions[row])
    return classes


def _mark_unstated(classes: Labels, row: int, scene: AnyScene, caption: Caption) -> None:
    if not caption.ground:
        classes["ground"][row] = UNSTATED
    if scene.decoration and not caption.decoration:
        classes["decoration"][row] = UNSTATED
    if not caption.style:
        classes["style"][row] = UNSTATED
    if not caption.drawing:
        classes["drawing"][row] = UNSTATED
    if scene.relation is not None and not caption.relation:
        place = classes["place"][row]
        place[(place != PLACES.index("absent")) & (place != UNSTATED)] = UNSTATED


def _shapes_of(scene: ThingScene) -> Scene:
    """A scene of shapes with the same ground, decoration, style and shapes, which have the same place in the
    relation."""
    groups = [group for group in scene.groups if isinstance(group, Group)]
    if not groups:
        alone = (Group(1, next(iter(COLORS)), SHAPES[0]),)
        return Scene(scene.ground, scene.decoration, alone, None, (), 0, style=scene.style)
    relation = scene.relation
    if relation is not None and not isinstance(scene.groups[0], Group):
        relation = OPPOSITES[relation]
    other = next(color for color in COLORS if color != groups[0].color)
    pair = (groups[0], Group(1, other, SHAPES[0]))
    return Scene(scene.ground, scene.decoration, pair, relation, (), 0, style=scene.style)
