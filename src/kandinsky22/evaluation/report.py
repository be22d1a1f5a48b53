"""What an evaluation leaves in its folder: the numbers, the protocol they follow from, and a page to look at.

`report.json` and `protocol.json` are for programs, `report.html` is one file for people, with pictures and plots in it.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from kandinsky22.files import atomic_write

REPORT, PROTOCOL, PAGE = "report.json", "protocol.json", "report.html"
SHOWN, THUMBNAIL = 48, 256  # pictures on the page, and their longer side in pixels


@dataclass(frozen=True, slots=True)
class Number:
    """A number as people read it, and what to know about it."""

    name: str
    value: str
    about: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot that `plots` drew."""

    title: str
    svg: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; `ours` is the row that stands out."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    about: str = ""
    ours: int | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture's file, and its caption."""

    path: Path
    caption: str

    @property
    def data(self) -> str:
        """A small JPEG of it, in base64."""
        with Image.open(self.path) as picture:
            small = picture.convert("RGB")
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        written = io.BytesIO()
        small.save(written, "JPEG", quality=88)
        return base64.b64encode(written.getvalue()).decode()


@dataclass(frozen=True, slots=True)
class Grid:
    """Pictures to be compared: rows with a heading each, below the columns' headings; None where one could not be painted."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Shown | None]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that is told of an evaluation. values, protocol: what JSON can hold."""

    title: str
    summary: str
    values: Mapping[str, Any]
    protocol: Mapping[str, Any]
    numbers: Sequence[Number] = ()
    remarks: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    grids: Sequence[Grid] = ()
    shown: Sequence[Shown] = ()


def write(folder: Path, report: Report) -> Path:
    """Write the three files, each whole, the page last; returns where that is. Raises `OSError`."""
    from jinja2 import Environment

    template = files("kandinsky22.evaluation").joinpath("report.html.jinja").read_text(encoding="utf-8")
    parts = {field.name: getattr(report, field.name) for field in fields(report)}
    page = Environment(autoescape=True).from_string(template).render(**parts | {"protocol": _json(report.protocol)})
    for name, text in ((PROTOCOL, _json(report.protocol)), (REPORT, _json(report.values)), (PAGE, page)):
        with atomic_write(folder / name) as partial:
            partial.write_text(text + "\n", encoding="utf-8")
    return folder / PAGE


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, indent=1)
