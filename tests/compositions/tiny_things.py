"""A few things for tests: discs of one colour in both drawing styles, with English and Russian names."""

import numpy as np
from numpy.typing import NDArray

from kandinsky22.compositions.things import EnglishName, RussianForms, RussianName, Thing, Things

SIDE = 64


def tiny_things() -> Things:
    """Two apples, a pear, a held-out plum and, not counted, bread and a held-out nerd."""
    templates = [
        _counted("A1", "fruit", ("red apple", "red apples", "apple", "apples"), APPLE),
        _counted("A2", "fruit", ("pear", "pears"), PEAR),
        _counted("A3", "vehicle", ("unicycle", "unicycles"), CAR),
        _counted("A4", "fruit", ("plum", "plums"), PLUM, held_out=True),
        _plain("B1", "food", "bread", "хлеб"),
        _plain("B2", "face", "nerd face", "очкарик", held_out=True, article=True),
    ]
    things, pictures = [], []
    for thing in templates:
        rows = {"flat": len(pictures), "shaded": len(pictures) + 1}
        pictures += [_disc(len(things), 255), _disc(len(things), 128)]
        things.append(
            Thing(
                thing.hexcode,
                thing.group,
                thing.subgroup,
                thing.english,
                thing.russian,
                rows,
                thing.counted,
                thing.held_out,
            )
        )
    return Things(things, np.stack(pictures))


APPLE = RussianName(
    "красное яблоко",
    RussianForms("n", "красного яблока", "красным яблоком", "красных яблока", "красных яблок", "красными яблоками"),
)
PEAR = RussianName("груша", RussianForms("f", "груши", "грушей", "груши", "груш", "грушами"))
CAR = RussianName("самокат", RussianForms("m", "самоката", "самокатом", "самоката", "самокатов", "самокатами"))
PLUM = RussianName("слива", RussianForms("f", "сливы", "сливой", "сливы", "слив", "сливами"))


def _counted(
    hexcode: str, subgroup: str, names: tuple[str, ...], russian: RussianName, *, held_out: bool = False
) -> Thing:
    english = tuple(EnglishName(one, many, article=True) for one, many in zip(names[::2], names[1::2], strict=True))
    return Thing(hexcode, "group", subgroup, english, (russian,), {}, counted=True, held_out=held_out)


def _plain(
    hexcode: str, subgroup: str, english: str, russian: str, *, held_out: bool = False, article: bool = False
) -> Thing:
    names = (EnglishName(english, None, article),), (RussianName(russian),)
    return Thing(hexcode, "group", subgroup, *names, {}, held_out=held_out)


def _disc(number: int, brightness: int) -> NDArray[np.uint8]:
    """An opaque disc on a transparent ground; the number determines its colour and radius."""
    axis = np.arange(SIDE) - SIDE / 2 + 0.5
    inside = np.hypot(axis[:, None], axis[None, :]) < SIDE * (0.3 + 0.03 * number)
    picture = np.zeros((SIDE, SIDE, 4), np.uint8)
    picture[..., number % 3] = brightness
    picture[..., 3] = inside * 255
    return picture
