"""Scenes in words: the one plain caption, the many other ways to say it, and descriptions that are wrong by a hair.

Says only what a scene's description holds (groups, relation, ground, decoration); knows nothing of pixels or of tokens.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from .world import COLORS, DECORATIONS, GROUNDS, MOST, PLURALS, RELATIONS, SHAPES, SIZES, Group, Scene

COUNTS: tuple[str, ...] = ("one", "two", "three", "four")
OPPOSITES: dict[str, str] = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}

# How a relation is said between its two groups, and after them ("a circle, a star below").
BETWEEN: dict[str, tuple[str, ...]] = {
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
}
AFTER: dict[str, tuple[str, ...]] = {
    "above": ("above",),
    "below": ("below", "beneath"),
    "left of": ("to the left",),
    "right of": ("to the right",),
}
OPENINGS: tuple[str, ...] = (
    "a painting of",
    "an abstract painting of",
    "a composition of",
    "an abstract composition with",
)
GROUND_NOUNS: tuple[str, ...] = ("ground", "background")

EXAMPLES: tuple[str, ...] = (
    "three red circles over a blue triangle",
    "a large yellow star on a sky blue ground",
    "two purple rings to the left of a small orange half moon on cream with arcs",
    "an abstract composition with four green crosses on a white background with a grid",
    "one black square, three teal triangles below, on a pink ground with thin black lines",
)


def caption(scene: Scene, rng: np.random.Generator | None = None, *, whole: bool = False) -> str:
    """Describe a scene. Without a generator: the full plain caption, always the same.

    With one, the wording varies: synonyms, either group first (with the opposite relation), an opening, commas. Unless
    `whole`, the ground and the decoration each go unsaid a quarter of the time, and a size one time in five.
    """
    if rng is None:
        return _plain(scene)
    text = f"{_one(OPENINGS, rng)} " if rng.random() < 0.25 else ""
    subject, comma = _subject(scene, rng, whole)
    text += subject
    rest = [_ground(scene.ground, rng)] if whole or rng.random() < 0.75 else []
    if scene.decoration and (whole or rng.random() < 0.75):
        rest.append(f"with {scene.decoration}")
    return f"{text}{comma} {' '.join(rest)}" if rest else text


def perturb(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same description with exactly one change, for hard negatives: only the words of the result are meant.

    The change is a relation turned round (two times in five where there is one), a colour, shape, count or ground, or
    the colours or shapes of two groups swapped. The pieces are left as they were, so do not render the result. Compare
    whole captions (`whole=True`): others may not mention what changed.
    """
    if scene.relation is not None and rng.random() < 0.4:
        return replace(scene, relation=OPPOSITES[scene.relation])
    kinds = ["color", "shape", "ground"]
    countable = [index for index, group in enumerate(scene.groups) if group.size is None]
    if countable:
        kinds.append("count")
    if len(scene.groups) == 2:
        kinds.append("swap colors")
        if scene.groups[0].shape != scene.groups[1].shape:
            kinds.append("swap shapes")
    index = int(rng.integers(len(scene.groups)))
    group = scene.groups[index]
    match _one(tuple(kinds), rng):
        case "color":
            taken = {other.color for other in scene.groups}
            return _with(scene, index, replace(group, color=_other(COLORS, taken, rng)))
        case "shape":
            return _with(scene, index, replace(group, shape=_other(SHAPES, {group.shape}, rng)))
        case "count":
            index = countable[rng.integers(len(countable))]
            group = scene.groups[index]
            counts = [count for count in range(1, MOST + 1 - index) if count != group.count]
            return _with(scene, index, replace(group, count=counts[rng.integers(len(counts))]))
        case "swap colors":
            first, second = scene.groups
            return replace(scene, groups=(replace(first, color=second.color), replace(second, color=first.color)))
        case "swap shapes":
            first, second = scene.groups
            return replace(scene, groups=(replace(first, shape=second.shape), replace(second, shape=first.shape)))
        case _:
            return replace(scene, ground=_other(GROUNDS, {scene.ground}, rng))


def language() -> dict[str, tuple[str, ...]]:
    """Everything captions are made of, by kind; phrases of several words stay together."""
    return {
        "counts": ("a", "an", *COUNTS),
        "sizes": SIZES,
        "colors": tuple(COLORS),
        "shapes": SHAPES,
        "plurals": tuple(PLURALS.values()),
        "relations": tuple(dict.fromkeys(say for relation in RELATIONS for say in BETWEEN[relation] + AFTER[relation])),
        "grounds": tuple(GROUNDS),
        "decorations": tuple(filter(None, DECORATIONS)),
        "openings": OPENINGS,
        "others": ("on", "with", *GROUND_NOUNS),
    }


WORDS: frozenset[str] = frozenset(word for kind in language().values() for phrase in kind for word in phrase.split())


def _plain(scene: Scene) -> str:
    text = f" {scene.relation} ".join(_group(group) for group in scene.groups) + f" on a {scene.ground} ground"
    return f"{text} with {scene.decoration}" if scene.decoration else text


def _subject(scene: Scene, rng: np.random.Generator, whole: bool) -> tuple[str, str]:
    """The groups in words, and the comma that has to follow if theirs was told with one."""
    groups = [_group(group, rng, whole) for group in scene.groups]
    if scene.relation is None:
        return groups[0], ""
    relation = scene.relation
    if rng.random() < 0.5:
        groups.reverse()
        relation = OPPOSITES[relation]
    if rng.random() < 0.12:
        return f"{groups[0]}, {groups[1]} {_one(AFTER[OPPOSITES[relation]], rng)}", ","
    return f"{groups[0]} {_one(BETWEEN[relation], rng)} {groups[1]}", ""


def _group(group: Group, rng: np.random.Generator | None = None, whole: bool = True) -> str:
    says_size = group.size is not None and (rng is None or whole or rng.random() < 0.8)
    kind = f"{group.size} {group.color}" if says_size else group.color
    if group.count > 1:
        return f"{COUNTS[group.count - 1]} {kind} {PLURALS[group.shape]}"
    article = "an" if kind[0] in "aeiou" else "a"
    if rng is not None and rng.random() < 0.3:
        article = COUNTS[0]
    return f"{article} {kind} {group.shape}"


def _ground(ground: str, rng: np.random.Generator) -> str:
    if rng.random() < 0.15:
        return f"on {ground}"
    return f"on a {ground} {_one(GROUND_NOUNS, rng)}"


def _with(scene: Scene, index: int, group: Group) -> Scene:
    return replace(scene, groups=(*scene.groups[:index], group, *scene.groups[index + 1 :]))


def _other(choices: Iterable[str], taken: set[str], rng: np.random.Generator) -> str:
    return _one(tuple(choice for choice in choices if choice not in taken), rng)


def _one(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[rng.integers(len(choices))]
