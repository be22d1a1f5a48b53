"""Names of things: English plurals and Russian forms of emoji labels, with tables of exceptions to the rules.

Used by `fetch_things.py` only. pymorphy3 inflects Russian, and inflect forms English plurals; neither is needed to read
the resulting list. The tables are in `things_words.json`, by English label.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

_TABLES: dict[str, Any] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))

# All hearts, which are reserved for showing that adapters learn something new; and concepts with the name of a shape.
SKIPPED_SUBGROUPS, SKIPPED = frozenset(_TABLES["skipped_subgroups"]), frozenset(_TABLES["skipped"])
# Better names than the labels, and synonyms.
ENGLISH_NAMES, RUSSIAN_NAMES = _TABLES["english_names"], _TABLES["russian_names"]
ENGLISH_SYNONYMS, RUSSIAN_SYNONYMS = _TABLES["english_synonyms"], _TABLES["russian_synonyms"]
# Things that are counted: those of these subgroups, except masses, pairs, scenes and things that are hard to
# distinguish.
COUNTED_SUBGROUPS, NOT_COUNTED = frozenset(_TABLES["counted_subgroups"]), frozenset(_TABLES["not_counted"])
ENGLISH_PLURALS = _TABLES["english_plurals"]
MASS = frozenset(_TABLES["mass"])  # names without an article, besides plurals
TAILS = (" with ", " of ", " in ", " on ", " under ", " without ", " facing ", " tilted ", " showing ")


@cache
def _english() -> Any:
    import inflect

    return inflect.engine()


@cache
def _russian() -> Any:
    import pymorphy3

    return pymorphy3.MorphAnalyzer(lang="ru")


def english_plural(name: str) -> str:
    """The plural of an English noun phrase: "four leaf clover" -> "four leaf clovers", "pot of food" -> "pots of
    food"."""
    if name in ENGLISH_PLURALS:
        return ENGLISH_PLURALS[name]
    for tail in TAILS:
        if tail in name:
            head, _, rest = name.partition(tail)
            return f"{english_plural(head)}{tail}{rest}"
    *before, last = name.split(" ")
    plural = ENGLISH_PLURALS.get(last) or _english().plural_noun(last)
    return " ".join([*before, plural])


def russian_forms(name: str) -> dict[str, str] | None:
    """The forms of a Russian noun phrase in the nominative singular; None for any other phrase.

    "gender" is m, f or n; "gen" and "ins" are the genitive and the instrumental, "gen_pl" and "ins_pl" their plurals;
    "few" is the form after 2 to 4 in the nominative. Adjectives before the noun agree with it; words after it do not
    change.
    """
    words = name.split(" ")
    adjectives: list[Any] = []
    for number, word in enumerate(words):
        parsed = _parsed(word, words[number + 1 : number + 2])
        if parsed is None:
            return None
        if parsed.tag.POS in ("ADJF", "PRTF"):
            adjectives.append(parsed)
            continue
        return _phrase(adjectives, parsed, words[number + 1 :])
    return None


def _readings(word: str) -> list[Any]:
    """The analyses of a word as a noun or adjective in the nominative singular, the most likely first."""
    if not word.replace("-", "").isalpha() or word.lower() != word:
        return []
    parts_of_speech = ("NOUN", "ADJF", "PRTF")
    analyses = [
        p for p in _russian().parse(word) if p.tag.POS in parts_of_speech and "nomn" in p.tag and "sing" in p.tag
    ]
    return [p for p in analyses if "Surn" not in p.tag and "Name" not in p.tag]


def _parsed(word: str, after: list[str]) -> Any:
    """The analysis of a word: an adjective if the next word agrees with it, else a noun; None if it is neither."""
    readings = _readings(word)
    genders = {reading.tag.gender for later in after for reading in _readings(later)}
    for reading in readings:
        if reading.tag.POS != "NOUN" and reading.tag.gender in genders:
            return reading
    return next((reading for reading in readings if reading.tag.POS == "NOUN"), None)


def _phrase(adjectives: list[Any], noun: Any, rest: list[str]) -> dict[str, str] | None:
    gender = {"masc": "m", "femn": "f", "neut": "n"}.get(noun.tag.gender)
    if gender is None or "Pltm" in noun.tag or "Sgtm" in noun.tag:
        return None
    if any(adjective.tag.gender != noun.tag.gender for adjective in adjectives):
        return None

    def form(of_adjective: set[str], of_noun: set[str]) -> str | None:
        parts = [adjective.inflect(of_adjective) for adjective in adjectives]
        head = noun.inflect(of_noun)
        if head is None or None in parts:
            return None
        return " ".join([*(part.word for part in parts), head.word, *rest])

    forms = {
        "gen": form({"gent", "sing", noun.tag.gender}, {"gent", "sing"}),
        "ins": form({"ablt", "sing", noun.tag.gender}, {"ablt", "sing"}),
        "few": form({"nomn" if gender == "f" else "gent", "plur"}, {"gent", "sing"}),
        "gen_pl": form({"gent", "plur"}, {"gent", "plur"}),
        "ins_pl": form({"ablt", "plur"}, {"ablt", "plur"}),
    }
    if None in forms.values():
        return None
    return {"gender": gender, **{key: value.replace("ё", "е") for key, value in forms.items() if value is not None}}


def russian_face(label: str) -> str:
    """A face's Russian label as a noun phrase: most are sentences without a subject ("широко улыбается")."""
    first, *_ = label.split(" ")
    tags = [_russian().parse(word)[0].tag for word in label.replace(",", "").split(" ")]
    if any(tag.POS == "VERB" and "pres" in tag for tag in tags[:2]):
        return f"смайлик, который {label}"
    if first in ("с", "в", "на"):
        return f"смайлик {label}"
    if tags[0].POS == "NOUN" and first in ("лицо", "очкарик", "гримаса", "лжец", "смайлик", "череп"):
        return label
    return f"смайлик: {label}"


def takes_article(name: str, subgroup: str) -> bool:
    """Whether an English name has an article: names of people, faces and single objects do, of gestures do not."""
    head = name
    for tail in TAILS:
        head = head.partition(tail)[0]
    last = head.split(" ")[-1]
    if name in MASS or (last.endswith("s") and not last.endswith("ss")):
        return False
    if subgroup in COUNTED_SUBGROUPS or subgroup in ("person", "person-role"):
        return True
    return subgroup.startswith("face-") and last == "face"
