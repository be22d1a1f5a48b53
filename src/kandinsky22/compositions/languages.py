"""The vocabulary of captions of scenes with and without things, in English and Russian, by kind."""

from collections.abc import Sequence

from kandinsky22.compositions import captions
from kandinsky22.compositions import russian as ru
from kandinsky22.compositions.captions import language
from kandinsky22.compositions.things import RussianName, Things
from kandinsky22.compositions.wording import (
    BESIDES,
    RUSSIAN_BETWEEN,
    RUSSIAN_DECORATIONS,
    RUSSIAN_DRAWN,
    RUSSIAN_GROUNDS,
    RUSSIAN_OPENINGS,
    RUSSIAN_PLACES,
    RUSSIAN_STYLE_ENDINGS,
    RUSSIAN_STYLE_OPENINGS,
    RUSSIAN_THING_OPENINGS,
)

EXAMPLES: tuple[str, ...] = (
    "a nerd face on a pink background",
    "three red apples on a white background",
    "a shaded cat beside two shaded palm trees",
    "a red circle and a blue star",
    "a rocket above 2 yellow stars on a sky blue ground",
    "смайлик, который широко улыбается",
    "два синих круга слева от жёлтой звезды на сером фоне",
    "объёмный кит на голубом фоне",
)


def language_metadata(things: Things | None) -> dict[str, object]:
    """The entries of a model's metadata about its language: "words" by kind, and "examples"; without things those of
    the world of shapes."""
    if things is None:
        return {"words": language(), "examples": captions.EXAMPLES}
    return {"words": vocabulary(things), "examples": EXAMPLES}


def vocabulary(things: Things) -> dict[str, tuple[str, ...]]:
    """All words of `wording.describe`, by kind: those of `captions.language`, the other words of both languages, and
    the names of all things that are not held out."""
    trained = [thing for thing in things.things if not thing.held_out]
    english = [name for thing in trained for name in thing.english]
    russian = [name for thing in trained for name in thing.russian]
    shapes = [form for name in ru.SHAPES.values() for form in _forms(name)]
    tables = RUSSIAN_GROUNDS, RUSSIAN_DECORATIONS, RUSSIAN_STYLE_OPENINGS, RUSSIAN_STYLE_ENDINGS, RUSSIAN_DRAWN
    phrases = [phrase for table in tables for phrases in table.values() for phrase in phrases]
    phrases += [word for options in RUSSIAN_BETWEEN.values() for word, _ in options]
    phrases += [word for options in RUSSIAN_PLACES.values() for pair in options for word in pair]
    phrases += [*RUSSIAN_OPENINGS, *RUSSIAN_THING_OPENINGS, "на фоне", "и", "рядом с", "со", *ru.words(), *shapes]
    return {
        **language(),
        "digits": ("1", "2", "3", "4"),
        "more": (
            "gray",
            "light blue",
            "and",
            *BESIDES,
            "flat",
            "shaded",
            "emoji",
            "drawing",
            "picture",
            "in a flat style",
        ),
        "things": tuple(dict.fromkeys(form for name in english for form in (name.name, name.plural) if form)),
        "русский": tuple(dict.fromkeys(_with_and_without_yo([phrase.rstrip(":") for phrase in phrases]))),
        "вещи": tuple(dict.fromkeys(_with_and_without_yo([form for name in russian for form in _forms(name)]))),
    }


def _forms(name: RussianName) -> list[str]:
    forms = name.forms
    return [name.name, *((forms.gen, forms.ins, forms.few, forms.gen_pl, forms.ins_pl) if forms else ())]


def _with_and_without_yo(phrases: Sequence[str]) -> list[str]:
    """Each phrase with ё and with е in its place."""
    return [spelling for phrase in phrases for spelling in (phrase, phrase.replace("ё", "е"))]
