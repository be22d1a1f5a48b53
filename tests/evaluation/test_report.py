"""Report files: two JSON files with the given values, and a page that embeds its plots and pictures."""

import base64
import io
import json
import re
from pathlib import Path

from PIL import Image

from kandinsky22.evaluation import plots
from kandinsky22.evaluation.published import CARD_TABLE, FAMILY, PROTOCOLS_DIFFER
from kandinsky22.evaluation.report import Number, Picture, Plot, Report, Table, write


def report(folder: Path) -> Report:
    picture = folder / "one.png"
    Image.new("RGB", (600, 300), "red").save(picture)
    return Report(
        title="A <model>",
        summary="A summary.",
        values={"fid": 12.5},
        protocol={"steps": 50, "name": "ŷ"},
        numbers=[Number("FID", "12.500", "lower is better")],
        remarks=["One remark."],
        plots=[
            Plot("A curve", plots.lines({"ddpm": [plots.Point(1, 2, 1.5, 2.5), plots.Point(2, 3, 2, 4)]}, "x", "y"))
        ],
        tables=[Table("A table", ("name", "FID"), [("theirs", "8.21"), ("ours", "12.50")], ours=1)],
        pictures=[Picture(picture, 'a "red" <square>')],
    )


def test_report_files_hold_the_given_values(tmp_path: Path) -> None:
    page = write(tmp_path / "out", report(tmp_path))
    assert json.loads((tmp_path / "out" / "report.json").read_text("utf-8")) == {"fid": 12.5}
    assert json.loads((tmp_path / "out" / "protocol.json").read_text("utf-8")) == {"steps": 50, "name": "ŷ"}
    assert page == tmp_path / "out" / "report.html"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "protocol.json", "report.html"}


def test_the_page_embeds_everything_and_escapes_captions(tmp_path: Path) -> None:
    page = write(tmp_path / "out", report(tmp_path)).read_text("utf-8")
    assert "A &lt;model&gt;" in page and "<square>" not in page and "&lt;square&gt;" in page
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)  # no other file or address
    assert page.count("<svg") == 1 and '<tr class="ours"><td>ours</td>' in page
    (data,) = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert small.size == (256, 128)


def test_plots_of_the_same_values_have_the_same_bytes() -> None:
    for draw in (
        lambda: plots.bars({"a": 3.0, "b": 1.0}, "FID", ours="b"),
        lambda: plots.histogram([1.0, 2.0, 2.5], "score"),
        lambda: plots.lines({"ddpm": [plots.Point(5, 1, 0, 2)], "ddim": [plots.Point(5, 2, 1, 3)]}, "steps", "%"),
    ):
        first = draw()
        assert first == draw() and first.startswith("<svg") and first.rstrip().endswith("</svg>")


def test_the_card_table_has_eleven_rows_and_none_of_kandinsky_2_2() -> None:
    assert len(CARD_TABLE) == 11 and [f.fid for f in CARD_TABLE] == sorted(f.fid for f in CARD_TABLE)
    assert next(f for f in CARD_TABLE if f.fid == 8.21).model.startswith("Kandinsky 2.1")
    assert not any("2.2" in f.model for f in (*CARD_TABLE, *FAMILY)) and "Kandinsky 2.1" in PROTOCOLS_DIFFER
