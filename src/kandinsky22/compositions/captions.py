"""English captions of scenes of shapes: the plain caption, random wordings, and hard negatives that differ in one fact.

A caption states only the scene's description: groups, relation, ground, decoration and style. Independent of pixels and
of tokens.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from kandinsky22.compositions.world import (
    COLORS,
    DECORATIONS,
    GROUNDS,
    HELD_OUT_PAIRS,
    MAX_COUNT,
    PLURALS,
    RELATIONS,
    SHAPES,
    SIZES,
    STYLES,
    Group,
    Scene,
)

COUNTS: tuple[str, ...] = ("one", "two", "three", "four")
OPPOSITES: dict[str, str] = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}

# A relation between its two groups, and after both ("a circle, a star below").
BETWEEN: dict[str, tuple[str, ...]] = {
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath"),
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
}
AFTER: dict[str, tuple[str, ...]] = {
    "above": ("above",),
    "below": ("below", "beneath"),
    "left of": ("to the left", "on the left"),
    "right of": ("to the right", "on the right"),
}
SIZE_WORDS: dict[str, tuple[str, ...]] = {"small": ("small", "little"), "large": ("large", "big")}
OPENINGS: tuple[str, ...] = (
    "a painting of",
    "an abstract painting of",
    "a composition of",
    "an abstract composition with",
)
GROUNDING: tuple[str, ...] = ("on a {} ground", "on a {} background", "against a {} background", "on {}")
GROUNDING_ODDS = (0.4, 0.3, 0.15, 0.15)

# A style before the groups, and at the end.
STYLE_OPENINGS: dict[str, tuple[str, ...]] = {
    "paper": ("a paper collage of",),
    "watercolour": ("a watercolour of", "a watercolor of"),
    "ink": ("an ink drawing of",),
    "pastel": ("a pastel drawing of",),
    "clay": ("a clay relief of",),
}
STYLE_ENDINGS: dict[str, tuple[str, ...]] = {
    "paper": ("in cut paper",),
    "watercolour": ("in watercolour", "in watercolor"),
    "ink": ("in ink",),
    "pastel": ("in pastel",),
    "clay": ("in clay",),
}

EXAMPLES: tuple[str, ...] = (
    "three red circles over a blue triangle",
    "a large yellow star on a sky blue ground",
    "a watercolour of two purple rings to the left of a small orange half moon on cream with arcs",
    "an abstract composition with four green crosses on a white background with a grid",
    "one black square, three teal triangles below, on a pink ground with thin black lines",
    "on a grey background, a big red star above two blue circles in clay",
    "an ink drawing of three orange squares under a purple triangle",
    "two teal half moons on cream in pastel",
)


def caption(scene: Scene, rng: np.random.Generator | None = None, *, whole: bool = False) -> str:
    """The caption of a scene. Without a generator it is the plain caption, which states everything.

    With a generator, the wording is random: synonyms, either group first (with the opposite relation), an opening, the
    ground first, commas. Unless `whole`, the ground and the decoration are each omitted in a quarter of captions, and a
    size in a fifth. The style is always stated, except paper, the default, which four in five captions omit.
    """
    if rng is None:
        return _plain(scene)
    subject, has_comma = _subject(scene, rng, whole)
    opening, ending = _style(scene.style, rng)
    grounded = _one(GROUNDING, rng, GROUNDING_ODDS).format(scene.ground) if whole or rng.random() < 0.75 else ""
    decorated = f"with {scene.decoration}" if scene.decoration and (whole or rng.random() < 0.75) else ""
    if grounded and not opening and rng.random() < 0.2:
        return _joined((f"{_joined((grounded, decorated))}, {subject}", ending), after_comma=has_comma)
    if not (opening or ending) and rng.random() < 0.3:
        opening = _one(OPENINGS, rng)
    rest = _joined((grounded, decorated, ending))
    return _joined((_joined((opening, subject)), rest), after_comma=has_comma)


def perturb(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same description with exactly one change, for hard negatives; only for captions, because the pieces do not
    change.

    The change is the opposite relation (in two of five scenes that have one), another colour, shape, count, ground or
    style, or the colours or shapes of two groups swapped. The change never creates a held-out pair.
    Compare complete captions (`whole=True`): others may omit what changed.
    """
    if scene.relation is not None and rng.random() < 0.4:
        return replace(scene, relation=OPPOSITES[scene.relation])
    kinds = ["color", "shape", "ground", "style"]
    countable = [index for index, group in enumerate(scene.groups) if group.size is None]
    if countable:
        kinds.append("count")
    if len(scene.groups) == 2 and not _crossed(scene.groups) & set(HELD_OUT_PAIRS):
        kinds.append("swap colors")
        if scene.groups[0].shape != scene.groups[1].shape:
            kinds.append("swap shapes")
    index = int(rng.integers(len(scene.groups)))
    group = scene.groups[index]
    match _one(tuple(kinds), rng):
        case "color":
            taken = {other.color for other in scene.groups}
            taken |= {color for color, shape in HELD_OUT_PAIRS if shape == group.shape}
            return _with(scene, index, replace(group, color=_other(COLORS, taken, rng)))
        case "shape":
            taken = {group.shape} | {shape for color, shape in HELD_OUT_PAIRS if color == group.color}
            return _with(scene, index, replace(group, shape=_other(SHAPES, taken, rng)))
        case "count":
            index = countable[rng.integers(len(countable))]
            group = scene.groups[index]
            counts = [count for count in range(1, MAX_COUNT + 1 - index) if count != group.count]
            return _with(scene, index, replace(group, count=counts[rng.integers(len(counts))]))
        case "swap colors":
            first, second = scene.groups
            return replace(scene, groups=(replace(first, color=second.color), replace(second, color=first.color)))
        case "swap shapes":
            first, second = scene.groups
            return replace(scene, groups=(replace(first, shape=second.shape), replace(second, shape=first.shape)))
        case "style":
            return replace(scene, style=_other(STYLES, {scene.style}, rng))
        case _:
            return replace(scene, ground=_other(GROUNDS, {scene.ground}, rng))


def language() -> dict[str, tuple[str, ...]]:
    """All words of the captions, by kind; phrases of several words are one entry."""
    return {
        "counts": ("a", "an", *COUNTS),
        "sizes": tuple(word for size in SIZES for word in SIZE_WORDS[size]),
        "colors": tuple(COLORS),
        "shapes": SHAPES,
        "plurals": tuple(PLURALS.values()),
        "relations": tuple(
            dict.fromkeys(phrase for relation in RELATIONS for phrase in BETWEEN[relation] + AFTER[relation])
        ),
        "grounds": tuple(GROUNDS),
        "decorations": tuple(filter(None, DECORATIONS)),
        "styles": tuple(phrase for style in STYLES for phrase in STYLE_OPENINGS[style] + STYLE_ENDINGS[style]),
        "openings": OPENINGS,
        "others": ("on", "against", "with", "ground", "background"),
    }


WORDS: frozenset[str] = frozenset(word for kind in language().values() for phrase in kind for word in phrase.split())


def _plain(scene: Scene) -> str:
    subject = f" {scene.relation} ".join(_group(group) for group in scene.groups)
    decorated = f"with {scene.decoration}" if scene.decoration else ""
    ending = STYLE_ENDINGS[scene.style][0] if scene.style != STYLES[0] else ""
    return _joined((subject, GROUNDING[0].format(scene.ground), decorated, ending))


def _joined(parts: Iterable[str], after_comma: bool = False) -> str:
    """The parts that are not empty, joined by spaces or commas."""
    return (", " if after_comma else " ").join(filter(None, parts))


def _subject(scene: Scene, rng: np.random.Generator, whole: bool) -> tuple[str, bool]:
    """The groups in words, and whether the relation is after both, so that a comma must follow."""
    groups = [_group(group, rng, whole) for group in scene.groups]
    if scene.relation is None:
        return groups[0], False
    relation = scene.relation
    if rng.random() < 0.5:
        groups.reverse()
        relation = OPPOSITES[relation]
    if rng.random() < 0.12:
        return f"{groups[0]}, {groups[1]} {_one(AFTER[OPPOSITES[relation]], rng)}", True
    return f"{groups[0]} {_one(BETWEEN[relation], rng)} {groups[1]}", False


def _group(group: Group, rng: np.random.Generator | None = None, whole: bool = True) -> str:
    kind = group.color
    if group.size is not None and (rng is None or whole or rng.random() < 0.8):
        kind = f"{group.size if rng is None else _one(SIZE_WORDS[group.size], rng)} {group.color}"
    if group.count > 1:
        return f"{COUNTS[group.count - 1]} {kind} {PLURALS[group.shape]}"
    article = "an" if kind[0] in "aeiou" else "a"
    if rng is not None and rng.random() < 0.3:
        article = COUNTS[0]
    return f"{article} {kind} {group.shape}"


def _style(style: str, rng: np.random.Generator) -> tuple[str, str]:
    """A style's opening and ending; one of the two is empty, and for paper mostly both."""
    if style == STYLES[0] and rng.random() < 0.8:
        return "", ""
    if rng.random() < 0.4:
        return _one(STYLE_OPENINGS[style], rng), ""
    return "", _one(STYLE_ENDINGS[style], rng)


def _crossed(groups: tuple[Group, ...]) -> set[tuple[str, str]]:
    """The (colour, shape) pairs of two groups after swapping their colours, or their shapes: the pairs are the same."""
    first, second = groups
    return {(first.color, second.shape), (second.color, first.shape)}


def _with(scene: Scene, index: int, group: Group) -> Scene:
    return replace(scene, groups=(*scene.groups[:index], group, *scene.groups[index + 1 :]))


def _other(choices: Iterable[str], taken: set[str], rng: np.random.Generator) -> str:
    return _one(tuple(choice for choice in choices if choice not in taken), rng)


def _one(choices: tuple[str, ...], rng: np.random.Generator, odds: tuple[float, ...] | None = None) -> str:
    return choices[rng.integers(len(choices)) if odds is None else rng.choice(len(choices), p=odds)]
