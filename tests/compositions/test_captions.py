"""Captions: grammar, truth and the words they may use; and what a perturbation changes."""

import re
from dataclasses import replace

import numpy as np
import pytest

from kandinsky22.compositions import EXAMPLES, PLURALS, WORDS, Group, Scene, caption, language, perturb, sample
from kandinsky22.compositions.captions import OPPOSITES

THREE_OVER_ONE = Scene.of(
    (Group(3, "red", "circle"), Group(1, "blue", "triangle")),
    "above",
    "cream",
    "thin black lines",
    np.random.default_rng(0),
)


def many(number: int = 500) -> list[tuple[Scene, np.random.Generator]]:
    generators = [np.random.default_rng((7, index)) for index in range(number)]
    return [(sample(rng), rng) for rng in generators]


def test_the_plain_caption_says_everything() -> None:
    assert caption(THREE_OVER_ONE) == "three red circles above a blue triangle on a cream ground with thin black lines"
    orange = Scene.of((Group(1, "orange", "half moon"),), None, "sky blue", "", np.random.default_rng(0))
    assert caption(orange) == "an orange half moon on a sky blue ground"
    small = Scene.of((Group(1, "orange", "star", "small"),), None, "grey", "a grid", np.random.default_rng(0))
    assert caption(small) == "a small orange star on a grey ground with a grid"


def test_a_seed_is_a_caption() -> None:
    said = [caption(THREE_OVER_ONE, np.random.default_rng(seed)) for seed in (1, 1)]
    assert said[0] == said[1]
    assert len({caption(THREE_OVER_ONE, np.random.default_rng(seed)) for seed in range(60)}) > 30


def test_every_word_is_known_and_every_known_word_is_said() -> None:
    said = {word for scene, rng in many(700) for word in re.findall(r"\w+", caption(scene, rng))}
    assert said == WORDS
    assert all(set(re.findall(r"\w+", example)) <= WORDS for example in EXAMPLES)
    assert "three red circles over a blue triangle" in EXAMPLES
    assert set(re.findall(r"\w+", " ".join(" ".join(kind) for kind in language().values()))) == WORDS


def test_grammar() -> None:
    colors, sizes = "|".join(language()["colors"]), "|".join(language()["sizes"])
    singular, plural = "|".join(PLURALS), "|".join(PLURALS.values())
    group = rf"(?:(?:an|one) orange|(?:a|one) (?:(?:{sizes}) )?(?!orange)(?:{colors})|(?:a|one) (?:{sizes}) orange) "
    group = rf"(?:{group}(?:{singular})|(?:two|three|four) (?:{colors}) (?:{plural}))"
    between = r"above|over|below|under|beneath|(?:to the )?(?:left|right) of"
    after = r"above|below|beneath|to the (?:left|right)"
    subject = rf"{group}(?: (?:{between}) {group}|, {group} (?:{after}))?"
    grounds = "|".join(language()["grounds"])
    ground = rf"(?:,? on (?:a (?:{grounds}) (?:ground|background)|(?:{grounds})))?"
    decoration = r"(?:,? with (?:thin black lines|a grid|arcs))?"
    sentence = re.compile(rf"(?:(?:{'|'.join(language()['openings'])}) )?{subject}{ground}{decoration}")
    for scene, rng in many():
        for said in (caption(scene), caption(scene, rng), caption(scene, rng, whole=True)):
            assert sentence.fullmatch(said), said


def test_relations_are_told_truly_from_either_side() -> None:
    words = {
        "above": "above|over",
        "below": "below|under|beneath",
        "left of": r"left( of)?",
        "right of": r"right( of)?",
    }
    orders = set()
    for scene, rng in many(300):
        if scene.relation is None:
            continue
        said = caption(scene, rng)
        first, second = (re.search(rf"{group.color} {group.shape}", said) for group in scene.groups)
        assert first
        assert second
        orders.add(first.start() < second.start())
        relation = scene.relation if first.start() < second.start() else OPPOSITES[scene.relation]
        if re.search(r", (a|an|one|two|three|four) ", said):  # "one, another below": the second is the one told about
            relation = OPPOSITES[relation]
        assert re.search(rf"\b({words[relation]})\b", said), (said, scene.relation)
        assert not re.search(rf"\b({words[OPPOSITES[relation]]})\b", said), (said, scene.relation)
    assert orders == {True, False}


def test_grounds_and_decorations_go_unsaid_sometimes_but_not_when_whole() -> None:
    pairs = [(scene, caption(scene, rng), caption(scene, rng, whole=True)) for scene, rng in many() if scene.decoration]
    for kind in ("ground", "decoration"):
        said = sum(f" {getattr(scene, kind)}" in free for scene, free, _ in pairs) / len(pairs)
        assert 0.65 < said < 0.85
        assert all(f" {getattr(scene, kind)}" in whole for scene, _, whole in pairs)
    assert all(
        group.size is None or f"{group.size} {group.color}" in whole
        for scene, _, whole in pairs
        for group in scene.groups
    )


def changes(before: Scene, after: Scene) -> list[str]:
    """The names of what differs; a swap of two groups' colours or shapes is one change."""
    found = [name for name in ("ground", "decoration", "relation") if getattr(before, name) != getattr(after, name)]
    for name in ("count", "color", "shape", "size"):
        old, new = ([getattr(group, name) for group in scene.groups] for scene in (before, after))
        if old == new:
            continue
        differ = sum(one != other for one, other in zip(old, new, strict=True))
        found += [f"{name} swapped"] if differ == 2 and old == new[::-1] else [name] * differ
    return found


def test_a_perturbation_changes_exactly_one_thing() -> None:
    seen = []
    for scene, rng in many(600):
        other = perturb(scene, rng)
        found = changes(scene, other)
        assert len(found) == 1, (scene, other)
        assert caption(other) != caption(scene)
        if scene.relation is not None:
            seen += found
    assert seen.count("relation") / len(seen) > 1 / 3
    assert set(seen) == {"relation", "ground", "color", "shape", "count", "color swapped", "shape swapped"}


@pytest.mark.parametrize("seed", range(20))
def test_a_perturbed_sized_shape_stays_single(seed: int) -> None:
    scene = replace(THREE_OVER_ONE, groups=(Group(1, "red", "ring", "large"),), relation=None)
    assert perturb(scene, np.random.default_rng(seed)).groups[0].count == 1
