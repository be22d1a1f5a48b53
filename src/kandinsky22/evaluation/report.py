"""The report files of an evaluation.

`report.json` has the numbers and `protocol.json` what they depend on; `report.html` is a page that embeds pictures and
plots.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from kandinsky22.files import atomic_write
from kandinsky22.request.picture_file import read_picture

REPORT, PROTOCOL, PAGE = "report.json", "protocol.json", "report.html"
MAX_PICTURES, THUMBNAIL_SIDE = 48, 256  # pictures on the page, and their longer side in pixels


@dataclass(frozen=True, slots=True)
class Number:
    """A number as text, and what to know about it."""

    name: str
    value: str
    about: str = ""


@dataclass(frozen=True, slots=True)
class Plot:
    """A plot from `plots`, as SVG."""

    title: str
    svg: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; `ours` is the index of the row to highlight."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    about: str = ""
    ours: int | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture's file and caption."""

    path: Path
    caption: str

    @property
    def data(self) -> str:
        """A small JPEG of the picture, in base64."""
        small = read_picture(self.path).convert("RGB")
        small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=88)
        return base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of pictures. columns: headings. rows: (heading, pictures); None for one that could not be painted."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Picture | None]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The contents of a report. values, protocol: JSON values, for `report.json` and `protocol.json`."""

    title: str
    summary: str
    values: Mapping[str, Any]
    protocol: Mapping[str, Any]
    numbers: Sequence[Number] = ()
    remarks: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    grids: Sequence[Grid] = ()
    pictures: Sequence[Picture] = ()


def write(folder: Path, report: Report) -> Path:
    """Write the three files, each atomically and the page last; returns the page's path. Raises `OSError`."""
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
