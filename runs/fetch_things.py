"""Download the things of the picture world: `python runs/fetch_things.py FOLDER [--packages DIR]`.

Three npm packages have about 1,500 emoji in two drawing styles, and their names in English and Russian. They are
downloaded once, verified by their hashes, rendered with an alpha channel, and written to FOLDER as `things.npy`, uint8
[N, 128, 128, 4], and `things.json`, which `kandinsky22.compositions.things` reads. This repository has no copy of them.

Needs npm, and `pip install resvg-py pymorphy3 pymorphy3-dicts-ru inflect`.
"""

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import things_words as words
from PIL import Image

SIDE = 128
HELD_OUT = 13  # of 256 values of a hash's first byte: 5% of the concepts


class Package(NamedTuple):
    """A version of an npm package, and the SHA-256 of its tarball."""

    name: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        """The file name that `npm pack` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


LABELS = Package("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")
DRAWINGS = {
    "flat": Package(
        "@iconify-json/fluent-emoji-flat", "1.2.6", "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"
    ),
    "shaded": Package(
        "@iconify-json/noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"
    ),
}
"""The sets of drawings by their style, as captions name it."""

WEIGHTS = {"people-body": 0.5, "symbols": 0.5, "flags": 0.5, "time": 0.3, "alphanum": 0.4, "arrow": 0.4}
"""Frequencies below 1, by group or subgroup: many of these concepts differ only in a detail."""


def tarball(package: Package, folder: Path, offline: bool) -> Path:
    """The package's tarball, downloaded if it is missing. Raises `ValueError` if that fails or its hash differs."""
    path = folder / package.file
    if not path.exists():
        if offline:
            raise ValueError(f"{path} does not exist; omit --packages to download it with npm")
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", f"{package.name}@{package.version}", "--silent"]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            raise ValueError(
                f"npm could not download {package.name}@{package.version}; check that npm is installed and online"
            ) from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise ValueError(f"{path} has SHA-256 {digest} instead of {package.sha256}; remove it and run this again")
    return path


def read(path: Path, *names: str) -> list[Any]:
    """The parsed JSON files of a package."""
    with tarfile.open(path) as archive:
        return [json.load(io.TextIOWrapper(archive.extractfile(f"package/{name}"), "utf-8")) for name in names]  # type: ignore[arg-type]


def normalise(hexcode: str) -> str:
    """A hex code in the spelling of all packages: lower case, without the variation selector."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def is_held_out(hexcode: str) -> bool:
    """Whether a concept is used for evaluation only: by a hash that variants for men and women have in common."""
    people = {"1f468": "1f9d1", "1f469": "1f9d1"}
    parts = [people.get(part, part) for part in normalise(hexcode).split("-") if part not in ("200d", "2640", "2642")]
    return hashlib.sha256("-".join(parts).encode()).digest()[0] < HELD_OUT


class Drawings:
    """The drawings of one set, by hex code."""

    def __init__(self, path: Path) -> None:
        self.icons, characters = read(path, "icons.json", "chars.json")
        self.names = {normalise(hexcode): name for hexcode, name in characters.items()}

    def __contains__(self, hexcode: str) -> bool:
        return normalise(hexcode) in self.names

    def svg(self, hexcode: str) -> str:
        """The drawing of a concept as an SVG document."""
        name = self.names[normalise(hexcode)]
        name = self.icons.get("aliases", {}).get(name, {}).get("parent", name)
        icon = self.icons["icons"][name]
        height, width = (icon.get(side, self.icons.get(side, 16)) for side in ("height", "width"))
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'


def render(svg: str) -> np.ndarray:
    """An SVG document as RGBA pixels, uint8 [128, 128, 4]."""
    import resvg_py

    picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE)))).convert(
        "RGBA"
    )
    if picture.size != (SIDE, SIDE):
        picture = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def concepts(labels: Path, drawings: dict[str, Drawings]) -> Iterator[dict[str, Any]]:
    """All concepts with a drawing, and their names; without skin tones, hearts, and concepts with the name of a
    shape."""
    english, russian, groups = read(labels, "en/data.json", "ru/data.json", "meta/groups.json")
    translated = {entry["hexcode"]: entry for entry in russian}
    for entry in english:
        label, hexcode = entry["label"], entry["hexcode"]
        if "group" not in entry or hexcode not in translated:
            continue
        group, subgroup = groups["groups"][str(entry["group"])], groups["subgroups"][str(entry["subgroup"])]
        sets = [name for name, drawn in drawings.items() if hexcode in drawn]
        skipped = label in words.SKIPPED or subgroup in words.SKIPPED_SUBGROUPS or "facing right" in label
        if not sets or skipped or "heart" in label or label.startswith(("Japanese “", "kiss:", "couple")):
            continue
        weight = min(WEIGHTS.get(group, 1.0), WEIGHTS.get(subgroup, 1.0))
        yield {
            "hexcode": hexcode,
            "group": group,
            "subgroup": subgroup,
            "weight": weight,
            "held_out": is_held_out(hexcode),
            "sets": sets,
            **names_of(label, translated[hexcode]["label"], subgroup),
            "tags": {"en": entry.get("tags", []), "ru": translated[hexcode].get("tags", [])},
        }


def names_of(label: str, russian_label: str, subgroup: str) -> dict[str, Any]:
    """The names of a concept in both languages, the most common one first, and whether it is counted in both."""
    english = words.ENGLISH_NAMES.get(label, label.replace("’", "'").replace("“", '"').replace("”", '"'))
    english = english.replace(": ", " with ") if english.startswith(("man:", "woman:", "person:")) else english
    english = english.replace(" with bald", " with a bald head").replace("keycap: ", "keycap ")
    russian = words.RUSSIAN_NAMES.get(label)
    if russian is None:
        russian = (
            words.russian_face(russian_label)
            if subgroup.startswith("face-") and subgroup != "face-costume"
            else russian_label
        )
        russian = russian.replace("клавиши: ", "клавиша ").replace(": ", ", " if "смайлик: " not in russian else ": ")
    if english.endswith(("o'clock", "-thirty")):
        english = f"clock showing {english}"
        russian = russian if label in words.RUSSIAN_NAMES else f"часы: {russian}"
    synonyms = (*words.ENGLISH_SYNONYMS.get(label, ()), *words.ENGLISH_SYNONYMS.get(english, ()))
    names = {
        "en": [*dict.fromkeys((english, *synonyms))],
        "ru": [*dict.fromkeys((russian, *words.RUSSIAN_SYNONYMS.get(label, ())))],
    }
    forms = [words.russian_forms(name) for name in names["ru"]]
    counted = subgroup in words.COUNTED_SUBGROUPS and label not in words.NOT_COUNTED and forms[0] is not None
    return {
        "counted": counted,
        "en": [
            {
                "name": name,
                "plural": words.english_plural(name) if counted else None,
                "article": counted or words.takes_article(name, subgroup),
            }
            for name in names["en"]
        ],
        "ru": [
            {"name": name, "forms": form if counted else None}
            for name, form in zip(names["ru"], forms, strict=True)
            if form is not None or not counted
        ],
    }


def main() -> None:
    """Parse the arguments and write the things."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="the folder to write things.npy and things.json to")
    parser.add_argument("--packages", type=Path, help="a folder with the packages' tarballs, to use instead of npm")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    packages, offline = args.packages or args.folder / "packages", args.packages is not None
    drawings = {name: Drawings(tarball(package, packages, offline)) for name, package in DRAWINGS.items()}
    things = [*concepts(tarball(LABELS, packages, offline), drawings)]
    pictures = []
    for number, concept in enumerate(things):
        concept["rows"] = {}
        for name in concept.pop("sets"):
            concept["rows"][name] = len(pictures)
            pictures.append(render(drawings[name].svg(concept["hexcode"])))
        if number % 100 == 0:
            print(f"{number} of {len(things)} things are rendered", flush=True)
    np.save(args.folder / "things.npy", np.stack(pictures))
    text = json.dumps(things, ensure_ascii=False, indent=0)
    (args.folder / "things.json").write_text(text + "\n", encoding="utf-8")
    counted, held_out = (sum(concept[key] for concept in things) for key in ("counted", "held_out"))
    print(f"{len(things)} things in {len(pictures)} pictures; {counted} are counted, {held_out} are held out")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"fetch_things: {error}")
