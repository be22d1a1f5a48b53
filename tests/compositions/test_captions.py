"""Captions: their grammar, vocabulary and correctness; and what a perturbation changes."""

import re
from dataclasses import replace

import numpy as np
import pytest

from kandinsky22.compositions import (
    EXAMPLES,
    HELD_OUT_PAIRS,
    PLURALS,
    STYLES,
    WORDS,
    Group,
    Scene,
    caption,
    language,
    perturb,
    sample,
)
from kandinsky22.compositions.captions import OPPOSITES

THREE_OVER_ONE = Scene.of(
    (Group(3, "red", "circle"), Group(1, "blue", "triangle")),
    "above",
    "cream",
    "thin black lines",
    np.random.default_rng(0),
)


def samples(number: int = 500) -> list[tuple[Scene, np.random.Generator]]:
    generators = [np.random.default_rng((7, index)) for index in range(number)]
    return [(sample(rng), rng) for rng in generators]


def test_the_plain_caption_names_everything() -> None:
    assert caption(THREE_OVER_ONE) == "three red circles above a blue triangle on a cream ground with thin black lines"
    orange = Scene.of((Group(1, "orange", "half moon"),), None, "sky blue", "", np.random.default_rng(0))
    assert caption(orange) == "an orange half moon on a sky blue ground"
    small = Scene.of((Group(1, "orange", "star", "small"),), None, "grey", "a grid", np.random.default_rng(0))
    assert caption(small) == "a small orange star on a grey ground with a grid"
    assert caption(replace(small, style="ink")) == "a small orange star on a grey ground with a grid in ink"


def test_a_seed_gives_the_same_caption() -> None:
    first, second = (caption(THREE_OVER_ONE, np.random.default_rng(1)) for _ in range(2))
    assert first == second
    assert len({caption(THREE_OVER_ONE, np.random.default_rng(seed)) for seed in range(60)}) > 30


def test_captions_use_exactly_the_words_of_the_vocabulary() -> None:
    words = {word for scene, rng in samples(1500) for word in re.findall(r"\w+", caption(scene, rng))}
    assert words == WORDS
    assert all(set(re.findall(r"\w+", example)) <= WORDS for example in EXAMPLES)
    assert "three red circles over a blue triangle" in EXAMPLES
    assert set(re.findall(r"\w+", " ".join(" ".join(kind) for kind in language().values()))) == WORDS


def test_captions_follow_the_grammar() -> None:
    kinds = {kind: "|".join(phrases) for kind, phrases in language().items()}
    singular, plural = "|".join(PLURALS), "|".join(PLURALS.values())
    one = rf"(?:an|one) orange|(?:a|one) (?:(?:{kinds['sizes']}) )?(?!orange)(?:{kinds['colors']})"
    one = rf"(?:{one}|(?:a|one) (?:{kinds['sizes']}) orange) (?:{singular})"
    group = rf"(?:{one}|(?:two|three|four) (?:{kinds['colors']}) (?:{plural}))"
    between = r"above|over|on top of|below|under|beneath|(?:(?:to|on) the )?(?:left|right) of"
    after = r"above|below|beneath|(?:to|on) the (?:left|right)"
    relation_last = rf"{group}, {group} (?:{after})"
    subject = rf"{group}(?: (?:{between}) {group})?"
    ground = rf"(?:(?:on|against) a (?:{kinds['grounds']}) (?:ground|background)|on (?:{kinds['grounds']}))"
    decoration, style = r"with (?:thin black lines|a grid|arcs)", r"in (?:cut paper|watercolou?r|ink|pastel|clay)"
    openings = [say for say in language()["styles"] if not say.startswith("in ")] + [*language()["openings"]]
    rest = rf"(?: {ground})?(?: {decoration})?(?: {style})?"
    sentences = re.compile(
        rf"(?:(?:{'|'.join(openings)}) )?(?:{subject}{rest}|{relation_last}(?:,{rest})?)"
        rf"|{ground}(?: {decoration})?, (?:{subject}(?: {style})?|{relation_last}(?:, {style})?)"
    )
    for scene, rng in samples():
        for text in (caption(scene), caption(scene, rng), caption(scene, rng, whole=True)):
            assert sentences.fullmatch(text), text


def test_captions_fit_a_small_text_encoder() -> None:
    """Words and commas, with a start and an end token, fit into the 32 positions of the small model."""
    texts = [caption(scene, rng, whole=True) for scene, rng in samples(1500)]
    assert max(len(re.findall(r"\w+|,", text)) for text in texts) <= 28


def test_captions_always_name_the_style_and_rarely_paper() -> None:
    words = {"watercolour": "watercolou?r", "ink": "ink", "pastel": "pastel", "clay": "clay", "paper": "paper"}
    paper_named = []
    for scene, rng in samples(600):
        text = caption(scene, rng)
        found = [style for style in STYLES if re.search(rf"\b{words[style]}\b", text)]
        assert found == [scene.style] or (not found and scene.style == "paper")
        paper_named += [bool(found)] if scene.style == "paper" else []
    assert 0.1 < sum(paper_named) / len(paper_named) < 0.35


def test_captions_state_the_relation_correctly_from_either_group() -> None:
    words = {
        "above": "above|over|on top of",
        "below": "below|under|beneath",
        "left of": r"left( of)?",
        "right of": r"right( of)?",
    }
    orders = set()
    for scene, rng in samples(300):
        if scene.relation is None:
            continue
        text = caption(scene, rng)
        first, second = (re.search(rf"{group.color} {group.shape}", text) for group in scene.groups)
        assert first
        assert second
        orders.add(first.start() < second.start())
        relation = scene.relation if first.start() < second.start() else OPPOSITES[scene.relation]
        named = "|".join(PLURALS)
        # "one, another below": the relation is that of the second
        if re.search(rf"({named})(e?s)?, (a|an|one|two|three|four) ", text):
            relation = OPPOSITES[relation]
        assert re.search(rf"\b({words[relation]})\b", text), (text, scene.relation)
        assert not re.search(rf"\b({words[OPPOSITES[relation]]})\b", text), (text, scene.relation)
    assert orders == {True, False}


def test_grounds_and_decorations_are_omitted_sometimes_unless_whole() -> None:
    pairs = [
        (scene, caption(scene, rng), caption(scene, rng, whole=True)) for scene, rng in samples() if scene.decoration
    ]
    for kind in ("ground", "decoration"):
        share = sum(f" {getattr(scene, kind)}" in free for scene, free, _ in pairs) / len(pairs)
        assert 0.65 < share < 0.85
        assert all(f" {getattr(scene, kind)}" in whole for scene, _, whole in pairs)
    assert all(
        group.size is None
        or re.search(rf"{'small|little' if group.size == 'small' else 'large|big'} {group.color}", whole)
        for scene, _, whole in pairs
        for group in scene.groups
    )


def changes(before: Scene, after: Scene) -> list[str]:
    """The names of the differing attributes; a swap of two groups' colours or shapes is one change."""
    found = [
        name for name in ("ground", "decoration", "style", "relation") if getattr(before, name) != getattr(after, name)
    ]
    for name in ("count", "color", "shape", "size"):
        old, new = ([getattr(group, name) for group in scene.groups] for scene in (before, after))
        if old == new:
            continue
        differ = sum(one != other for one, other in zip(old, new, strict=True))
        found += [f"{name} swapped"] if differ == 2 and old == new[::-1] else [name] * differ
    return found


def test_a_perturbation_changes_exactly_one_thing() -> None:
    seen = []
    for scene, rng in samples(600):
        other = perturb(scene, rng)
        found = changes(scene, other)
        assert len(found) == 1, (scene, other)
        assert caption(other) != caption(scene)
        assert not {(group.color, group.shape) for group in other.groups} & set(HELD_OUT_PAIRS)
        if scene.relation is not None:
            seen += found
    assert seen.count("relation") / len(seen) > 1 / 3
    assert set(seen) == {"relation", "ground", "style", "color", "shape", "count", "color swapped", "shape swapped"}


@pytest.mark.parametrize("seed", range(20))
def test_a_perturbed_shape_with_a_size_stays_single(seed: int) -> None:
    scene = replace(THREE_OVER_ONE, groups=(Group(1, "red", "ring", "large"),), relation=None)
    assert perturb(scene, np.random.default_rng(seed)).groups[0].count == 1
