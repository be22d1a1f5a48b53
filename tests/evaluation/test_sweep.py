"""Sweeps of samplers and steps on a small random model: painting cells, choosing the best, and the report."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kandinsky22 import text2img
from kandinsky22.backends.work_units import UnitPainter
from kandinsky22.evaluation import cells, sweep
from kandinsky22.evaluation.cells import CaptionSet, Cell
from kandinsky22.evaluation.features import ClipFeatures
from kandinsky22.evaluation.fidelity import Rate
from kandinsky22.evaluation.manifest import Run
from kandinsky22.evaluation.report import write
from tests.evaluation.conftest import check_progress, few_steps

CELLS = sweep.grid(few_steps(), ["ddim", "heun"], [1, 2])
CAPTIONS = CaptionSet(scenes=3, seeds=2, stream=10)


@pytest.fixture(scope="module")
def folder(painter: UnitPainter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A painted sweep. Its first estimate times one work unit of the cheapest and of the most expensive cell."""
    folder = tmp_path_factory.mktemp("sweep")
    before = cells.estimate_cells(painter, folder, CELLS, CAPTIONS)
    assert before.pictures == 4 * 6 - 2 * 6 and before.calls == (1 + 2) * 6
    assert before.seconds is not None and before.seconds > 0
    progress = list(cells.paint_cells(painter, folder, CELLS, CAPTIONS))
    assert list(dict.fromkeys(name for name, _ in progress)) == ["ddim-1", "ddim-2", "heun-1", "heun-2"]
    after = cells.estimate_cells(painter, folder, CELLS, CAPTIONS)
    assert (after.pictures, after.calls, after.bytes, after.seconds) == (0, 0, 0, 0)
    return folder


def test_sweep_report_compares_all_cells_and_chooses_one(folder: Path, clip: ClipFeatures, tmp_path: Path) -> None:
    scored = cells.score_cells(folder, [*CELLS], clip, CAPTIONS, check_progress)
    assert [cell.calls for cell in scored] == [1, 2, 1, 3]
    assert all(cell.rates["plain"].of == 6 and len(cell.by_seed) == 2 for cell in scored)
    assert sweep.best(scored).name == "ddim-1"  # with random weights no cell is better than another
    report = sweep.report("tiny-model", scored, scored[1:2], scored[2:3], {})
    assert report.values["chosen"] == "ddim-1" and len(report.tables[0].rows) == 4
    assert [row[0] for row in report.tables[1].rows] == ["ddim-1", "ddim-2", "heun-1"]
    assert report.values["around"][2]["against"] == [0, 0, 0] and "heun-1" in {number.name for number in report.numbers}
    seeds = {(item.caption, item.seed) for item in Run.open(folder / "ddim-1").items}
    assert seeds == {(item.caption, item.seed) for item in Run.open(folder / "heun-2").items} and len(seeds) == 6
    *by_caption, side_by_side = report.grids
    assert len(by_caption) == 3 and all(grid.columns == ["1 steps", "2 steps"] for grid in by_caption)
    assert [heading for heading, _ in by_caption[0].rows] == ["ddim", "heun"] and len(side_by_side.rows) == 3
    assert write(tmp_path, report).read_text("utf-8").count("<img") == 3 * 4 + 3 * 3


def test_sweep_protocol_has_one_run_and_the_differences_of_the_others(folder: Path, clip: ClipFeatures) -> None:
    protocol = cells.cells_protocol(folder, [*CELLS], clip, "kandinsky22 evaluate sweep")
    assert protocol["command"] == "kandinsky22 evaluate sweep"
    run = protocol["run"]
    assert run["weights"]["unet"] and run["captions"]["sha256"] and run["dtype"] == "float32" and run["batch"] == 8
    assert run["request"]["height"] == 64 and run["request"]["decoder"]["guidance_scale"] == 1
    assert protocol["cells"]["ddim-1"] == {}
    assert protocol["cells"]["heun-2"] == {"request.decoder.sampler": "heun", "request.decoder.steps": 2}
    assert protocol["captions"] == {"scenes": 3, "pictures": 6} and protocol["painted_on"][0]["device"] == "cpu"
    assert json.loads(json.dumps(protocol)) == protocol


def cell_with(name: str, shares: Sequence[float], *, steps: int = 20, scale: float = 4.0) -> Cell:
    """A cell with these shares of right pictures, by caption."""
    request = text2img("", sampler="ddim", num_inference_steps=steps, guidance_scale=scale)
    right = Rate(round(100 * float(np.sum(shares))), 100 * len(shares))
    rates = {"plain": right, "whole": right}
    return Cell(name, request, rates, {str(i): share for i, share in enumerate(shares)}, (), 0.0, 0.0)


def test_best_is_the_cheapest_cell_near_the_highest_rates() -> None:
    scored = [
        cell_with("poor", [0.5, 0.6], steps=5),
        cell_with("enough", [0.6, 0.7], steps=20),
        cell_with("as many calls", [0.6, 0.69], steps=20),
        cell_with("most", [0.61, 0.73], steps=50),
    ]
    assert sweep.best(scored).name == "enough" and sweep.best([scored[0], scored[3]]).name == "most"


def test_best_requires_the_style_too() -> None:
    """A cell that is right but for the style is not near the best; if none is near in both rates, the sum decides."""

    def cell(name: str, steps: int, plain: int, whole: int) -> Cell:
        return replace(cell_with(name, [], steps=steps), rates={"plain": Rate(plain, 100), "whole": Rate(whole, 100)})

    assert sweep.best([cell("blurred", 5, 66, 40), cell("full", 20, 65, 50)]).name == "full"
    assert sweep.best([cell("one", 5, 70, 40), cell("other", 20, 60, 52)]).name == "other"


def test_best_counts_a_cell_without_guidance_as_half_the_cost() -> None:
    four, six, none = (
        cell_with("4", [0.5, 0.7, 0.6]),
        cell_with("6", [0.52, 0.72, 0.61], scale=6),
        cell_with("1", [0.5, 0.7, 0.6], scale=1),
    )
    assert sweep.best([four, six]).name == "6" and sweep.best([four, six, none]).name == "1"
    assert sweep.best([four, six, cell_with("1", [0.1, 0.2, 0.1], scale=1)]).name == "6"


def test_a_comparison_of_cells_leaves_out_captions_without_pictures_in_both() -> None:
    complete, part = cell_with("complete", [0.5, 0.7, 0.1]), cell_with("part", [0.4, 0.6])
    assert complete.difference_from(part) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match=r"complete and none have no caption in common; see failed-\*\.jsonl in both"):
        complete.difference_from(cell_with("none", []))


def test_variants_of_a_cell_change_guidance_or_the_prior_alone() -> None:
    chosen = text2img("", sampler="ddim", num_inference_steps=20, guidance_scale=4.0)
    guided = sweep.guidance_variants("ddim-20", chosen)
    assert [*guided] == [f"ddim-20-guidance-{scale}" for scale in (1, 2, 3, 6)]  # its own is painted already
    linear = sweep.linear_prior_variant("ddim-20", chosen)
    assert linear["ddim-20-linear-prior"].prior.linear
    assert all(r.decoder.steps == 20 and r.decoder.sampler == "ddim" for r in (*guided.values(), *linear.values()))
