"""Captions in English and Russian: facts, grammar, hard negatives and vocabulary."""

import re

import numpy as np
import pytest

from kandinsky22.compositions import Group, Scene, sample
from kandinsky22.compositions import russian as ru
from kandinsky22.compositions.hard_negatives import hard_negative
from kandinsky22.compositions.languages import vocabulary
from kandinsky22.compositions.thing_scenes import ThingGroup, ThingScene, sample_things
from kandinsky22.compositions.wording import AnyScene, Caption, describe
from kandinsky22.request.vocabulary import unknown_words_notice
from tests.compositions.tiny_things import APPLE, PEAR, tiny_things

THINGS = tiny_things()


def scenes(number: int = 300) -> list[AnyScene]:
    return [
        sample_things(np.random.default_rng((3, i)), THINGS) if i % 2 else sample(np.random.default_rng((3, i)))
        for i in range(number)
    ]


def describe_many(scene: AnyScene, *, russian: bool, whole: bool = False, number: int = 40) -> list[Caption]:
    return [describe(scene, np.random.default_rng((5, i)), russian=russian, whole=whole) for i in range(number)]


def apples_above_a_star() -> ThingScene:
    groups = (ThingGroup(3, THINGS["A1"]), Group(1, "blue", "star"))
    return ThingScene.of(groups, "above", "flat", "pink", "", np.random.default_rng(0))


def test_captions_depend_on_the_generator_alone() -> None:
    for scene in scenes(20):
        for russian in (False, True):
            assert describe_many(scene, russian=russian) == describe_many(scene, russian=russian)


@pytest.mark.parametrize("russian", [False, True])
def test_a_whole_caption_states_everything_and_others_what_they_report(russian: bool) -> None:
    ground = "розовом" if russian else "pink"
    for caption in describe_many(apples_above_a_star(), russian=russian, whole=True):
        assert caption.ground and caption.relation and ground in caption.text
    captions = describe_many(apples_above_a_star(), russian=russian)
    assert {caption.ground for caption in captions} == {caption.relation for caption in captions} == {True, False}
    assert all((ground in caption.text) == caption.ground for caption in captions)


def test_english_captions_vary_words_and_have_correct_articles() -> None:
    texts = " | ".join(caption.text for scene in scenes() for caption in describe_many(scene, russian=False, number=4))
    for word in ("2 ", "3 ", " and ", "beside", "gray", "grey", "watercolor", "watercolour", "emoji", "an orange"):
        assert word in texts, word
    assert not re.search(r"\b(a [aeio]|an [^aeiouhx])", texts.replace("a unicycle", "")), "articles"
    assert not re.search(r"  | ,|,,", texts)


def test_counts_agree_with_nouns() -> None:
    texts = [caption.text for caption in describe_many(apples_above_a_star(), russian=False)]
    assert all(re.search(r"(three|3) (flat )?(red )?apples", text) for text in texts)
    texts = [caption.text.replace("ё", "е") for caption in describe_many(apples_above_a_star(), russian=True)]
    three = (
        r"((три|3) (плоских )?красных яблока|(трех|3) (плоских )?красных яблок|(тремя|3) (плоскими )?красными яблоками)"
    )
    assert all(re.search(three, text) for text in texts)


@pytest.mark.parametrize(
    ("count", "case", "words"),
    [
        (1, "nom", "одна синяя звезда"),
        (2, "nom", "две синие звезды"),
        (4, "gen", "четырёх синих звёзд"),
        (3, "ins", "тремя синими звёздами"),
    ],
)
def test_russian_shapes_agree_with_their_number_and_case(count: int, case: str, words: str) -> None:
    assert ru.counted(ru.SHAPES["star"], count, case, "blue", number=ru.numeral(count, "f", case)) == words


def test_russian_agrees_by_gender_and_number() -> None:
    assert ru.counted(ru.SHAPES["circle"], 2, "nom", "large", "red", number="два") == "два больших красных круга"
    assert ru.counted(ru.SHAPES["ring"], 1, "ins", "small", "teal") == "маленьким бирюзовым кольцом"
    assert ru.counted(ru.SHAPES["cross"], 1, "gen", "black", number="одного") == "одного чёрного креста"
    assert ru.counted(APPLE, 2, "nom", "flat", number="два") == "два плоских красных яблока"
    assert ru.counted(PEAR, 3, "nom", "shaded", number="3") == "3 объёмные груши"
    assert [ru.numeral(2, gender, "nom") for gender in "mfn"] == ["два", "две", "два"]
    assert ru.with_("звездой") == "со звездой" and ru.with_("собакой") == "с собакой"


def test_russian_relations_govern_their_case() -> None:
    scene = Scene.of(
        (Group(1, "red", "circle"), Group(1, "yellow", "star")), "above", "white", "", np.random.default_rng(0)
    )
    texts = {caption.text.replace("ё", "е") for caption in describe_many(scene, russian=True, number=300)}
    joined = " | ".join(texts)
    for phrase in ("над желтой звездой", "под красным кругом", "выше желтой звезды", "красный круг и желтая звезда"):
        assert phrase in joined
    assert "сверху" in joined and "снизу" in joined


def test_a_name_without_forms_stays_in_the_nominative() -> None:
    groups = (Group(1, "red", "circle"), ThingGroup(1, THINGS["B1"]))
    scene = ThingScene.of(groups, "left of", "flat", "white", "", np.random.default_rng(0))
    for caption in describe_many(scene, russian=True, number=100):
        assert re.search(r"\bхлеб\b", caption.text)


def test_a_hard_negative_changes_one_fact_and_the_whole_caption() -> None:
    for number, scene in enumerate(scenes()):
        other = hard_negative(scene, THINGS, np.random.default_rng((9, number)))
        first, second = (describe(s, np.random.default_rng(1), whole=True).text for s in (scene, other))
        assert first != second
        if isinstance(scene, ThingScene) and isinstance(other, ThingScene):
            facts = ("ground", "relation", "drawing", "groups")
            assert sum(getattr(scene, fact) != getattr(other, fact) for fact in facts) == 1
            assert not any(thing.held_out for thing in other.things)


def test_the_vocabulary_has_every_word_of_every_caption() -> None:
    words = vocabulary(THINGS)
    for scene in scenes():
        for russian in (False, True):
            for caption in describe_many(scene, russian=russian, number=3):
                assert unknown_words_notice([caption.text], words) is None, caption.text
    assert unknown_words_notice(["a plum"], words) is not None, "held out"
