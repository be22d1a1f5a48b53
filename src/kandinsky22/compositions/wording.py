"""Random captions of scenes of all kinds, in English and Russian, with a record of the facts that they state.

Unlike `captions`, which has the plain caption of scenes of shapes, these captions also use "and" and digits.
Independent of pixels and of tokens.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from kandinsky22.compositions import russian as ru
from kandinsky22.compositions.captions import (
    AFTER,
    BETWEEN,
    COUNTS,
    OPENINGS,
    OPPOSITES,
    SIZE_WORDS,
    STYLE_ENDINGS,
    STYLE_OPENINGS,
)
from kandinsky22.compositions.thing_scenes import ThingGroup, ThingScene
from kandinsky22.compositions.things import DRAWINGS, EnglishName, RussianName
from kandinsky22.compositions.world import PLURALS, STYLES, Group, Scene

N = TypeVar("N", EnglishName, RussianName)
T = TypeVar("T")
AnyScene = Scene | ThingScene
AnyGroup = Group | ThingGroup

# The share of captions that omit each of these, unless they are to state everything.
OMIT_GROUND, OMIT_DECORATION, OMIT_SIZE, OMIT_DRAWING = 0.25, 0.25, 0.2, 0.35
OMIT_PAPER = 0.8  # of the default style
OMIT_RELATION, OMIT_SIDE = 0.2, 0.12  # of two groups: the relation; of groups side by side: which one is left
DIGITS = 0.25  # share of the counts from 2 that are digits
SYNONYM = 0.35  # share of the names that are not the most common one

ENGLISH_GROUNDS = {"grey": ("grey", "gray"), "sky blue": ("sky blue", "light blue")}
ENGLISH_GROUNDING = ("on a {} ground", "on a {} background", "against a {} background", "with a {} background", "on {}")
BESIDES = ("beside", "next to")
DRAWN = {
    "flat": ("flat", "in a flat style", "a flat emoji of", "flat emoji:"),
    "shaded": ("shaded", "in a shaded style", "a shaded emoji of", "shaded emoji:"),
}
THING_OPENINGS = ("an emoji of", "a picture of", "a drawing of")

RUSSIAN_GROUNDS = {
    "cream": ("кремовом",),
    "white": ("белом",),
    "grey": ("сером",),
    "sky blue": ("голубом", "небесно-голубом"),
    "pink": ("розовом",),
}
RUSSIAN_GROUNDING = ("на {} фоне", "на {} фоне", "на {} фоне", "на {}")
RUSSIAN_DECORATIONS = {
    "thin black lines": ("с тонкими чёрными линиями", "и тонкие чёрные линии"),
    "a grid": ("с сеткой", "и сетка"),
    "arcs": ("с дугами", "и дуги"),
}
RUSSIAN_OPENINGS = ("картина:", "абстрактная картина:", "композиция:", "абстрактная композиция:", "рисунок:")
RUSSIAN_STYLE_OPENINGS = {
    "paper": ("бумажный коллаж:",),
    "watercolour": ("акварель:", "акварельный рисунок:"),
    "ink": ("рисунок тушью:",),
    "pastel": ("рисунок пастелью:",),
    "clay": ("глиняный рельеф:",),
}
RUSSIAN_STYLE_ENDINGS = {
    "paper": ("из цветной бумаги",),
    "watercolour": ("акварелью",),
    "ink": ("тушью",),
    "pastel": ("пастелью",),
    "clay": ("из глины",),
}
RUSSIAN_THING_OPENINGS = ("эмодзи:", "картинка:", "рисунок:")
RUSSIAN_DRAWN = {
    "flat": ("плоский эмодзи:", "плоский рисунок:", "в плоском стиле"),
    "shaded": ("объёмный эмодзи:", "объёмный рисунок:", "в объёмном стиле"),
}
# A relation between its groups, with the case of the second; and the places of both, which are then in the nominative.
RUSSIAN_BETWEEN = {
    "above": (("над", "ins"), ("выше", "gen")),
    "below": (("под", "ins"), ("ниже", "gen")),
    "left of": (("слева от", "gen"), ("левее", "gen")),
    "right of": (("справа от", "gen"), ("правее", "gen")),
}
RUSSIAN_PLACES = {
    "above": (("сверху", "снизу"), ("вверху", "внизу")),
    "below": (("снизу", "сверху"), ("внизу", "вверху")),
    "left of": (("слева", "справа"),),
    "right of": (("справа", "слева"),),
}
AFTER_COMMA = (*DRAWINGS, "в плоском", "в объёмном")  # endings that follow a comma
KEEP_YO = 0.4  # share of the Russian captions that are spelled with ё


class Caption(NamedTuple):
    """A caption, and which facts of the scene it states."""

    text: str
    ground: bool
    decoration: bool
    style: bool
    relation: bool
    drawing: bool


class _Parts(NamedTuple):
    """The phrases of a caption; `subject` has the groups and relation; `has_comma`: a comma must follow."""

    opening: str
    subject: str
    ground_phrase: str
    decoration_phrase: str
    endings: tuple[str, ...]
    has_comma: bool


def describe(scene: AnyScene, rng: np.random.Generator, *, russian: bool = False, whole: bool = False) -> Caption:
    """A caption of a scene, in random words.

    Unless `whole`, it may omit the ground, the decoration, a size, the drawing style and the relation. The style is
    stated if the scene has shapes, except paper, the default, which most captions omit.
    """
    facts = _Facts(
        ground=whole or rng.random() >= OMIT_GROUND,
        decoration=scene.decoration != "" and (whole or rng.random() >= OMIT_DECORATION),
        style=_has_shapes(scene) and (scene.style != STYLES[0] or rng.random() >= OMIT_PAPER),
        drawing=isinstance(scene, ThingScene) and (whole or rng.random() >= OMIT_DRAWING),
        relation=scene.relation is not None and (whole or rng.random() >= OMIT_RELATION),
        side=whole or rng.random() >= OMIT_SIDE,
        whole=whole,
    )
    if scene.relation in ("above", "below"):
        facts = facts._replace(side=True)
    parts = (_russian if russian else _english)(scene, rng, facts)
    ground_first = bool(parts.ground_phrase) and not parts.opening and rng.random() < 0.15
    if ground_first:
        parts = parts._replace(
            subject=f"{_join((parts.ground_phrase, parts.decoration_phrase))}{'' if russian else ','} {parts.subject}",
            ground_phrase="",
            decoration_phrase="",
        )
    rest = (parts.ground_phrase, parts.decoration_phrase, *parts.endings)
    start = _join((parts.opening, parts.subject))
    text = start
    for phrase in filter(None, rest):
        text += (", " if parts.has_comma or phrase.startswith(AFTER_COMMA) else " ") + phrase
    if russian and rng.random() >= KEEP_YO:
        text = text.replace("ё", "е")
    relation = facts.relation and facts.side
    return Caption(text, facts.ground, facts.decoration, facts.style or _is_plain_paper(scene), relation, facts.drawing)


class _Facts(NamedTuple):
    """Which facts a caption is to state; `side`: which of two groups side by side is left."""

    ground: bool
    decoration: bool
    style: bool
    drawing: bool
    relation: bool
    side: bool
    whole: bool


# English


def _english(scene: AnyScene, rng: np.random.Generator, facts: _Facts) -> _Parts:
    opening, endings, adjective = "", [], ""
    if facts.style:
        if rng.random() < 0.4:
            opening = _choice(STYLE_OPENINGS[scene.style], rng)
        else:
            endings.append(_choice(STYLE_ENDINGS[scene.style], rng))
    if isinstance(scene, ThingScene) and facts.drawing:
        word, ending, *openings = DRAWN[scene.drawing]
        draw = rng.random()
        if draw < 0.55:
            adjective = word
        elif draw < 0.8 or opening or scene.has_shapes:
            endings.append(ending if scene.has_shapes else _choice((word, ending), rng))
        else:
            opening = openings[int(rng.random() < 0.35)]
    is_emoji = isinstance(scene, ThingScene) and len(scene.groups) == 1 and not opening and rng.random() < 0.12
    groups = [_english_group(group, rng, facts.whole, adjective, is_emoji) for group in scene.groups]
    if not opening and not endings and not is_emoji and rng.random() < 0.25:
        opening = _choice(THING_OPENINGS if isinstance(scene, ThingScene) else OPENINGS, rng)
    subject, has_comma = _english_subject(scene, groups, rng, facts)
    ground = _choice(ENGLISH_GROUNDS.get(scene.ground, (scene.ground,)), rng)
    ground_phrase = _choice(ENGLISH_GROUNDING, rng).format(ground) if facts.ground else ""
    decoration_phrase = f"with {scene.decoration}" if facts.decoration else ""
    if ground_phrase.startswith("with ") and decoration_phrase:
        decoration_phrase = f"and {scene.decoration}"
    return _Parts(opening, subject, ground_phrase, decoration_phrase, tuple(endings), has_comma)


def _english_subject(scene: AnyScene, groups: list[str], rng: np.random.Generator, facts: _Facts) -> tuple[str, bool]:
    if scene.relation is None:
        return groups[0], False
    relation = scene.relation
    if rng.random() < 0.5:
        groups, relation = groups[::-1], OPPOSITES[relation]
    if not facts.relation:
        return f"{groups[0]} and {groups[1]}", False
    if not facts.side:
        return f"{groups[0]} {_choice(BESIDES, rng)} {groups[1]}", False
    if rng.random() < 0.12:
        return f"{groups[0]}, {groups[1]} {_choice(AFTER[OPPOSITES[relation]], rng)}", True
    return f"{groups[0]} {_choice(BETWEEN[relation], rng)} {groups[1]}", False


def _english_group(group: AnyGroup, rng: np.random.Generator, whole: bool, drawing: str, is_emoji: bool) -> str:
    if isinstance(group, Group):
        name = EnglishName(group.shape, PLURALS[group.shape], article=True)
        words = [group.color]
        if group.size is not None and (whole or rng.random() >= OMIT_SIZE):
            words.insert(0, _choice(SIZE_WORDS[group.size], rng))
    else:
        name, words = _name(group.thing.english, rng, whole), [drawing] if drawing else []
    if group.count > 1:
        return " ".join((_number(group.count, rng, COUNTS[group.count - 1]), *words, name.plural or name.name))
    phrase = " ".join((*words, name.name))
    if is_emoji:
        return f"{_article(phrase)} {phrase} emoji" if rng.random() < 0.5 else f"{phrase} emoji"
    if not name.article or name.name.startswith("the "):
        return phrase
    chance = rng.random()
    if chance < 0.2 and (isinstance(group, Group) or group.thing.counted):
        return f"{'1' if chance < 0.04 else 'one'} {phrase}"
    return f"{_article(phrase)} {phrase}"


def _article(phrase: str) -> str:
    """ "a" or "an", by the sound of the phrase's first word."""
    word = phrase.lower().split(" ")[0]
    if word.startswith(("uni", "use", "euro", "ufo", "one", "ukulele")):
        return "a"
    if word.startswith(("hour", "x-", "sos")) or word in ("f", "l", "m", "n", "o", "r", "s", "x"):
        return "an"
    return "an" if word[0] in "aeiou" else "a"


# Russian


def _russian(scene: AnyScene, rng: np.random.Generator, facts: _Facts) -> _Parts:
    opening, endings, adjective = "", [], ""
    if facts.style:
        if rng.random() < 0.4:
            opening = _choice(RUSSIAN_STYLE_OPENINGS[scene.style], rng)
        else:
            endings.append(_choice(RUSSIAN_STYLE_ENDINGS[scene.style], rng))
    if isinstance(scene, ThingScene) and facts.drawing:
        emoji, drawn, ending = RUSSIAN_DRAWN[scene.drawing]
        inflected = all(thing.counted for thing in scene.things)
        draw = rng.random()
        if draw < 0.5 and inflected:
            adjective = scene.drawing
        elif draw < 0.75 or opening or scene.has_shapes:
            endings.append(ending)
        else:
            opening = emoji if draw < 0.9 else drawn
    if not opening and not endings and rng.random() < 0.2:
        opening = _choice(RUSSIAN_THING_OPENINGS if isinstance(scene, ThingScene) else RUSSIAN_OPENINGS, rng)
    subject, has_comma = _russian_subject(scene, rng, facts, adjective)
    ground = _choice(RUSSIAN_GROUNDS[scene.ground], rng)
    ground_phrase = _choice(RUSSIAN_GROUNDING, rng).format(ground) if facts.ground else ""
    decoration_phrase = RUSSIAN_DECORATIONS[scene.decoration][0] if facts.decoration else ""
    return _Parts(opening, subject, ground_phrase, decoration_phrase, tuple(endings), has_comma)


def _russian_subject(scene: AnyScene, rng: np.random.Generator, facts: _Facts, adjective: str) -> tuple[str, bool]:
    groups = [_russian_group(group, rng, facts.whole, adjective) for group in scene.groups]
    if scene.relation is None:
        return groups[0]("nom"), False
    relation = scene.relation
    first, second = groups
    is_inflected = [_inflects(group) for group in scene.groups]
    if rng.random() < 0.5:
        first, second, relation, is_inflected = second, first, OPPOSITES[relation], is_inflected[::-1]
    if not facts.relation or not (facts.side or is_inflected[1]):
        return f"{first('nom')} и {second('nom')}", False
    if not facts.side:
        return f"{first('nom')} рядом {ru.with_(second('ins'))}", False
    if is_inflected[1] and rng.random() < 0.75:
        options = RUSSIAN_BETWEEN[relation]
        word, case = options[0] if rng.random() < 0.8 else options[1]
        return f"{first('nom')} {word} {second(case)}", False
    first_place, second_place = _choice(RUSSIAN_PLACES[relation], rng)
    if rng.random() < 0.5:
        return f"{first_place} {first('nom')}, {second_place} {second('nom')}", True
    return f"{first('nom')} {first_place}, {second('nom')} {second_place}", True


def _inflects(group: AnyGroup) -> bool:
    return isinstance(group, Group) or group.thing.counted


def _russian_group(group: AnyGroup, rng: np.random.Generator, whole: bool, drawing: str) -> Callable[[str], str]:
    """A group's phrase as a function of its case; the choice of words is made once."""
    if isinstance(group, Group):
        name = ru.SHAPES[group.shape]
        words = [group.color]
        if group.size is not None and (whole or rng.random() >= OMIT_SIZE):
            words.insert(0, group.size)
    else:
        name, words = _name(group.thing.russian, rng, whole), [drawing] if drawing else []
        if name.forms is None:
            bare = name.name
            return lambda case: bare
    gender = name.forms.gender if name.forms else "m"
    chance = rng.random()
    if group.count == 1:
        digit, is_bare = chance < 0.04, chance >= 0.15
    else:
        digit, is_bare = chance < DIGITS, False

    def inflected(case: str) -> str:
        number = "" if is_bare else str(group.count) if digit else ru.numeral(group.count, gender, case)
        return ru.counted(name, group.count, case, *words, number=number)

    return inflected


# Both languages


def _name(names: Sequence[N], rng: np.random.Generator, whole: bool) -> N:
    """The most common name, or a synonym."""
    if whole or len(names) == 1 or rng.random() >= SYNONYM:
        return names[0]
    return names[1 + int(rng.integers(len(names) - 1))]


def _number(count: int, rng: np.random.Generator, word: str) -> str:
    return str(count) if rng.random() < DIGITS else word


def _has_shapes(scene: AnyScene) -> bool:
    return isinstance(scene, Scene) or scene.has_shapes


def _is_plain_paper(scene: AnyScene) -> bool:
    """Whether a caption without a style implies it."""
    return isinstance(scene, Scene) and scene.style == STYLES[0]


def _join(parts: Sequence[str]) -> str:
    return " ".join(filter(None, parts))


def _choice(choices: Sequence[T], rng: np.random.Generator) -> T:
    return choices[int(rng.integers(len(choices)))]
