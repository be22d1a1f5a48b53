"""Russian grammar for captions: adjectives, numerals and the names of shapes in the cases that captions need.

Independent of scenes. All words are spelled with ё where it belongs.
"""

from kandinsky22.compositions.things import RussianForms, RussianName

Case = str
"""One of "nom", "gen" and "ins"."""

# Endings of adjectives by case: masculine, feminine, neuter, plural.
_HARD = {"nom": ("ый", "ая", "ое", "ые"), "gen": ("ого", "ой", "ого", "ых"), "ins": ("ым", "ой", "ым", "ыми")}
_SOFT = {"nom": ("ий", "яя", "ее", "ие"), "gen": ("его", "ей", "его", "их"), "ins": ("им", "ей", "им", "ими")}
_VELAR = {"nom": ("ий", "ая", "ое", "ие"), "gen": ("ого", "ой", "ого", "их"), "ins": ("им", "ой", "им", "ими")}
_STRESSED = {"nom": ("ой", "ая", "ое", "ие"), "gen": ("ого", "ой", "ого", "их"), "ins": ("им", "ой", "им", "ими")}
_GENDERS = "mfn"

_ADJECTIVES = {
    "red": ("красн", _HARD),
    "orange": ("оранжев", _HARD),
    "yellow": ("жёлт", _HARD),
    "green": ("зелён", _HARD),
    "teal": ("бирюзов", _HARD),
    "blue": ("син", _SOFT),
    "purple": ("фиолетов", _HARD),
    "black": ("чёрн", _HARD),
    "small": ("маленьк", _VELAR),
    "large": ("больш", _STRESSED),
    "flat": ("плоск", _VELAR),
    "shaded": ("объёмн", _HARD),
}
SHAPES = {
    "circle": RussianName("круг", RussianForms("m", "круга", "кругом", "круга", "кругов", "кругами")),
    "square": RussianName("квадрат", RussianForms("m", "квадрата", "квадратом", "квадрата", "квадратов", "квадратами")),
    "triangle": RussianName(
        "треугольник",
        RussianForms("m", "треугольника", "треугольником", "треугольника", "треугольников", "треугольниками"),
    ),
    "ring": RussianName("кольцо", RussianForms("n", "кольца", "кольцом", "кольца", "колец", "кольцами")),
    "cross": RussianName("крест", RussianForms("m", "креста", "крестом", "креста", "крестов", "крестами")),
    "star": RussianName("звезда", RussianForms("f", "звезды", "звездой", "звезды", "звёзд", "звёздами")),
    "half moon": RussianName(
        "полумесяц", RussianForms("m", "полумесяца", "полумесяцем", "полумесяца", "полумесяцев", "полумесяцами")
    ),
}
_ONE = {"nom": ("один", "одна", "одно"), "gen": ("одного", "одной", "одного"), "ins": ("одним", "одной", "одним")}
_MORE = {"nom": ("два", "три", "четыре"), "gen": ("двух", "трёх", "четырёх"), "ins": ("двумя", "тремя", "четырьмя")}


def adjective(word: str, gender: str, case: Case, *, plural: bool = False) -> str:
    """The form of an adjective, given in English, that agrees with a noun of gender m, f or n."""
    stem, endings = _ADJECTIVES[word]
    return stem + endings[case][3 if plural else _GENDERS.index(gender)]


def numeral(count: int, gender: str, case: Case) -> str:
    """The number 1 to 4 in words."""
    if count == 1:
        return _ONE[case][_GENDERS.index(gender)]
    return "две" if (count, gender, case) == (2, "f", "nom") else _MORE[case][count - 2]


def counted(name: RussianName, count: int, case: Case, *adjectives: str, number: str = "") -> str:
    """A noun phrase for a count of 1 to 4: `number` as it is to be written, adjectives (in English, in order), the
    noun.

    After 2 to 4 in the nominative the noun is in the genitive singular. Adjectives are then in the genitive plural,
    with feminine nouns in the nominative plural ("два красных круга", "две красные звезды").
    """
    forms = name.forms
    assert forms is not None
    if count == 1:
        noun = {"nom": name.name, "gen": forms.gen, "ins": forms.ins}[case]
        agreeing = [adjective(word, forms.gender, case) for word in adjectives]
    else:
        noun = {"nom": forms.few, "gen": forms.gen_pl, "ins": forms.ins_pl}[case]
        adjective_case = "gen" if case == "nom" and forms.gender != "f" else case
        agreeing = [adjective(word, forms.gender, adjective_case, plural=True) for word in adjectives]
    return " ".join(filter(None, (number, *agreeing, noun)))


def with_(phrase: str) -> str:
    """ "с" or "со" before a phrase in the instrumental."""
    clustered = len(phrase) > 1 and phrase[0] in "сзшжщ" and phrase[1] not in "аеёиоуыэюя"
    return f"{'со' if clustered else 'с'} {phrase}"


def words() -> list[str]:
    """All forms of all adjectives and numerals."""
    cases = ("nom", "gen", "ins")
    adjectives = [stem + ending for stem, table in _ADJECTIVES.values() for case in cases for ending in table[case]]
    return [*dict.fromkeys([*adjectives, *(word for case in cases for word in (*_ONE[case], *_MORE[case])), "две"])]
