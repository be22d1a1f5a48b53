"""The script that downloads the things: rejected packages, reading of packages, and names derived from labels."""

import importlib.util
import io
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

RUNS = Path(__file__).parents[2] / "runs"


@pytest.fixture
def fetch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(RUNS))
    spec = importlib.util.spec_from_file_location("fetch_things", RUNS / "fetch_things.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fetch_things", module)
    spec.loader.exec_module(module)
    return module


def test_a_package_with_another_hash_is_rejected(fetch: ModuleType, tmp_path: Path) -> None:
    (tmp_path / fetch.LABELS.file).write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"emojibase-data-17\.0\.0\.tgz has SHA-256 \w+ instead of d01d0e2c"):
        fetch.tarball(fetch.LABELS, tmp_path, offline=True)


def test_a_missing_package_is_reported(fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="does not exist; omit --packages to download it with npm"):
        fetch.tarball(fetch.LABELS, tmp_path, offline=True)

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no npm here")

    monkeypatch.setattr(fetch.subprocess, "run", unreachable)
    with pytest.raises(
        ValueError, match=r"npm could not download emojibase-data@17\.0\.0; check that npm is installed"
    ):
        fetch.tarball(fetch.LABELS, tmp_path, offline=False)


def test_drawings_are_found_by_hex_code_and_alias(fetch: ModuleType, tmp_path: Path) -> None:
    files = {
        "icons.json": {
            "icons": {"red-apple": {"body": "<circle r='4'/>"}},
            "aliases": {"apple": {"parent": "red-apple"}},
            "width": 32,
            "height": 32,
        },
        "chars.json": {"1f34e": "apple"},
    }
    with tarfile.open(tmp_path / "set.tgz", "w:gz") as archive:
        for name, value in files.items():
            text = json.dumps(value).encode()
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    drawn = fetch.Drawings(tmp_path / "set.tgz")
    assert "1F34E-FE0F" in drawn and "1F34F" not in drawn
    assert drawn.svg("1F34E") == ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><circle r=\'4\'/></svg>')


def test_variants_of_one_concept_are_held_out_together(fetch: ModuleType) -> None:
    for base in ("1F3C3", "1F3CB", "1F937", "1F481"):
        people = {fetch.is_held_out(f"{base}{variant}") for variant in ("", "-200D-2640-FE0F", "-200D-2642-FE0F")}
        assert len(people) == 1
    assert 20 < sum(fetch.is_held_out(f"{number:X}") for number in range(0x1F300, 0x1F300 + 1000)) < 90


def test_english_names_get_their_plural(fetch: ModuleType) -> None:
    pytest.importorskip("inflect")
    plural = fetch.words.english_plural
    assert plural("four leaf clover") == "four leaf clovers"
    assert plural("pot of food") == "pots of food"
    assert [plural(name) for name in ("wolf", "sheep", "cherry blossom", "bus")] == [
        "wolves",
        "sheep",
        "cherry blossoms",
        "buses",
    ]


def test_russian_names_are_declined_with_their_adjectives(fetch: ModuleType) -> None:
    pytest.importorskip("pymorphy3")
    forms = fetch.words.russian_forms
    assert forms("красное яблоко") == {
        "gender": "n",
        "gen": "красного яблока",
        "ins": "красным яблоком",
        "few": "красных яблока",
        "gen_pl": "красных яблок",
        "ins_pl": "красными яблоками",
    }
    assert forms("полицейская машина")["few"] == "полицейские машины"
    assert forms("бокал вина")["ins_pl"] == "бокалами вина"
    assert forms("ножницы") is None
    assert fetch.words.russian_face("широко улыбается") == "смайлик, который широко улыбается"


def test_things_and_persons_take_an_article_and_gestures_and_substances_do_not(fetch: ModuleType) -> None:
    article = fetch.words.takes_article
    assert article("nerd face", "face-glasses") and article("slot machine", "game")
    assert not article("bread", "food-prepared") and not article("thumbs up", "hand-fingers-closed")
