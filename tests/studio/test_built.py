"""The files of the studio that are in the repository: built from this source, small, and without anything elsewhere."""

import hashlib
import re
from pathlib import Path

from kandinsky22.server.openapi import schema

STUDIO = Path(__file__).parents[2] / "src" / "kandinsky22" / "studio"
APP, BUILT = STUDIO / "app", STUDIO / "built"
SOURCES = ("index.html", "package-lock.json", "package.json", "src", "tsconfig.json", "vite.config.ts")
MAX_BYTES = 400_000


def test_the_built_files_are_those_of_the_source() -> None:
    """As vite.config.ts computes it; `make studio` builds anew."""
    files = [file for name in SOURCES for file in ((APP / name).rglob("*") if (APP / name).is_dir() else [APP / name])]
    names = sorted(file.relative_to(APP).as_posix() for file in files if file.is_file())
    digest = hashlib.sha256()
    for name in names:
        if not name.endswith(".d.ts"):
            digest.update(f"{name}\0".encode() + (APP / name).read_bytes() + b"\0")
    assert (BUILT / "source.sha256").read_text().strip() == digest.hexdigest(), "run: make studio"


def test_the_built_files_are_small_and_load_nothing_from_elsewhere() -> None:
    files = [file for file in BUILT.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= MAX_BYTES
    page = (BUILT / "index.html").read_text()
    assert "http" not in page and not re.search(r"<script(?![^>]*src=)|<style|\son\w+=", page)
    assert "url(" not in next((BUILT / "assets").glob("*.css")).read_text()


def test_every_language_has_every_text() -> None:
    texts = {
        language: dict(re.findall(r'^  "?([\w.]+)"?:\s+"(.+)",$', (APP / f"src/text/{language}.ts").read_text(), re.M))
        for language in ("en", "ru")
    }
    assert texts["en"] and texts["en"].keys() == texts["ru"].keys()
    for key, text in texts["en"].items():
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", texts["ru"][key])), key


def test_the_server_has_every_route_that_the_types_were_generated_from() -> None:
    paths = set(re.findall(r'^    "(/api/v1/[^"]*)": \{', (APP / "src/api/schema.d.ts").read_text(), re.M))
    assert paths and paths <= schema()["paths"].keys(), "run: make studio"
