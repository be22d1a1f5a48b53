"""Speed settings: counting the U-Net's work, comparing cells with exact pictures, and choosing a speed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from kandinsky22 import Kandinsky, Sampling, text2img
from kandinsky22.backends.work_units import UnitPainter
from kandinsky22.checkpoints import full_size
from kandinsky22.checkpoints.catalog import DECODER
from kandinsky22.compositions import caption
from kandinsky22.engine.cost import UNetStep
from kandinsky22.evaluation import cells, speed_settings
from kandinsky22.evaluation.cells import CaptionSet, Cell
from kandinsky22.evaluation.features import ClipFeatures
from kandinsky22.evaluation.fidelity import Rate
from kandinsky22.evaluation.manifest import Run
from kandinsky22.evaluation.report import write
from kandinsky22.evaluation.speed_settings import Comparison
from kandinsky22.evaluation.unet_work import UNetWork
from tests.diffusion.toy import DECODER as SCHEDULE
from tests.evaluation.conftest import check_progress


def sampling(sampler: str = "ddim", steps: int = 10, scale: float = 3.0, reuse: int = 1, *interval: float) -> Sampling:
    low, high = interval or (0, 1)
    return Sampling(sampler=sampler, steps=steps, guidance_scale=scale, guidance_interval=(low, high), reuse=reuse)


@pytest.mark.parametrize(
    ("chosen", "work"),
    [
        (sampling(), (10, 20, 20)),
        (sampling(scale=1.0), (10, 10, 10)),
        (sampling("heun"), (19, 38, 38)),
        (sampling("ddim", 10, 3.0, 1, 0.35, 0.75), (10, 14, 14)),  # timesteps 1, 101 .. 901: guided at 401 to 701
        (sampling("ddim", 10, 3.0, 3), (10, 20, 8)),
        (sampling("ddim", 10, 3.0, 4, 0.35, 0.75), (10, 14, 4)),  # 901, 701 where guidance starts, and 301
    ],
)
def test_unet_work_counts_the_calls_rows_and_deep_rows_of_a_sampling(
    chosen: Sampling, work: tuple[int, int, int]
) -> None:
    assert UNetWork.of(chosen, SCHEDULE) == work


def test_unet_work_is_what_a_picture_computes(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kandinsky = Kandinsky.load(tiny_model)
    decoder, counts = kandinsky.decoder(DECODER), {"calls": 0, "rows": 0, "deep": 0}
    forward_cached = decoder.unet.forward_cached

    def count_call(*args: Any, **kwargs: Any) -> Any:
        counts["calls"] += 1
        counts["rows"] += len(args[2])
        return forward_cached(*args, **kwargs)

    def count_deep_rows(module: nn.Module, args: Any) -> None:
        counts["deep"] += len(args[0])

    monkeypatch.setattr(decoder.unet, "forward_cached", count_call)
    hook = decoder.unet.mid_block.register_forward_pre_hook(count_deep_rows)
    request = kandinsky.resolve(text2img("a ring", seed=1, sampler="heun", guidance_interval=(0.2, 0.6), reuse=3))
    list(kandinsky.stream(request))
    hook.remove()
    assert UNetWork.of(request.decoder, decoder.schedule)._asdict() == counts


def test_operations_count_deep_levels_only_where_they_are_computed() -> None:
    step = UNetStep.of(full_size.UNET, 64, 64)
    assert step.whole == pytest.approx(856e9, rel=0.01)  # 1.712 TFLOP for two rows, by another count
    assert 0.2 < step.first / step.whole < 0.3
    assert UNetWork(3, 4, 2).operations(UNetStep(10, 3)) == 4 * 3 + 2 * 7


def test_grid_combines_steps_with_reuse_and_changes_other_settings_alone() -> None:
    template = text2img("", num_inference_steps=9)
    grid = speed_settings.grid(template, ["ddim"], [5], [(0.2, 0.8)], [2, 3])
    exact = grid["exact"]
    assert len(grid) == 2 * 3 + 2 + 1 + 2 and next(iter(grid)) == "exact"
    assert exact.decoder == Sampling(steps=9, guidance_interval=(0, 1), reuse=1)
    both = grid["ddim-5-reuse-3"].decoder
    assert both == Sampling(sampler="ddim", steps=5, guidance_interval=(0, 1), reuse=3)
    alone = grid["exact-guided-0.2-0.8"].decoder
    assert alone == replace(exact.decoder, guidance_interval=(0.2, 0.8))
    assert grid["exact-prior-5"].prior.steps == 5 and grid["exact-prior-5"].decoder == exact.decoder
    repetitions = [grid[name] for name in speed_settings.exact_cells(template)]
    assert len({request.seed for request in repetitions}) == 3
    assert all(replace(request, seed=None) == exact for request in repetitions)


def test_compare_measures_each_cell_against_the_exact_pictures(tiny_model: Path, tmp_path: Path) -> None:
    kandinsky = Kandinsky.load(tiny_model)
    clip = ClipFeatures.of_model(kandinsky.stored.prior)
    template = text2img(
        "", model="tiny-model", num_inference_steps=4, prior_num_inference_steps=1, prior_guidance_scale=1.0
    )
    grid = speed_settings.grid(template, ["ddim"], [2], [(0.2, 0.8)], [2])
    cheapest, other_seeds = "ddim-2-reuse-2", "exact-seeds-100000"
    names = (cheapest, "exact-reuse-2", "exact", other_seeds, "exact-prior-5", "exact-guided-0.2-0.8")
    requests = {name: grid[name] for name in names} | {"same": grid["exact"]}
    captions = CaptionSet(scenes=3, seeds=2, stream=7)
    list(cells.paint_cells(UnitPainter(kandinsky, batch=6), tmp_path, requests, captions))
    scored = cells.score_cells(tmp_path, [*requests], clip, captions, check_progress)
    items = {name: Run.open(tmp_path / name).items for name in names}
    assert [(o.caption, o.seed) for o in items[other_seeds]] == [(e.caption, e.seed + 100_000) for e in items["exact"]]
    assert {e.caption for e in items["exact"]} == {caption(scene, whole=True) for scene in captions.draw()}
    assert all(cell.frechet is None for cell in scored)  # 6 pictures, and embeddings of 32 dimensions
    comparisons = speed_settings.compare(tmp_path, scored, kandinsky, clip, check_progress)
    by_name = {one.cell.name: one for one in comparisons}
    for name in ("exact", "same"):
        one = by_name[name]
        assert one.pixels == 0 and one.cosine == pytest.approx(1) and one.right == (0, 0, 0)
    for name in (cheapest, "exact-reuse-2", "exact-prior-5", "exact-guided-0.2-0.8", other_seeds):
        assert by_name[name].pixels > 0 and by_name[name].cosine < 1 and by_name[name].seconds > 0
    assert by_name["exact-reuse-2"].work == (4, 8, 4)
    assert by_name["exact-reuse-2"].pixels < by_name[cheapest].pixels
    assert set(by_name["exact-prior-5"].operations.values()) == {1}
    report = speed_settings.report("tiny-model", comparisons, {})
    (table,) = report.tables
    assert len(table.rows) == len(requests) and all(len(row) == len(table.header) for row in table.rows)
    assert [table.rows[i][0] for i in (0, 1)] == [cheapest, "exact-reuse-2"]  # the least work first
    assert "exact-reuse-2" in write(tmp_path, report).read_text("utf-8")


def one(name: str, work: float, whole: int, plain: int, frechet: float | None = 50.0) -> Comparison:
    """A cell of a hundred pictures, of which so many are right with the style, and without."""
    rates: Mapping[str, Rate] = {"whole": Rate(whole, 100), "plain": Rate(plain, 100)}
    cell = Cell(name, text2img(""), rates, {"a": plain / 100}, (0.5,), 80.0, 0.1, frechet)
    return Comparison(cell, UNetWork(1, 1, 1), 1.0, {"published": work}, (0.0, 0.0, 0.0), 0.0, 1.0)


EXACT = [one("exact", 1, 50, 60, 50), one("exact-seeds-1", 1, 52, 58, 52), one("exact-seeds-2", 1, 51, 59, 51)]


@pytest.mark.parametrize(
    ("others", "fast", "turbo"),
    [
        ([], "exact", "exact"),
        ([one("a", 0.5, 49, 57), one("b", 0.3, 47, 60), one("c", 0.2, 46, 54), one("d", 0.1, 60, 52)], "a", "c"),
        ([one("a", 0.5, 49, 57, 55.1), one("b", 0.6, 49, 57, 54.9)], "b", "a"),  # the limit is 51 + 2 * (52 - 50)
        ([one("a", 0.5, 70, 56), one("b", 0.4, 44, 80)], "a", "a"),  # a gain in one rate does not offset the other
        ([one("a", 0.5, 49, 58), one("b", 0.5, 50, 58), one("c", 0.5, 49, 57)], "b", "b"),
        ([one("a", 0.5, 49, 58, 90), one("b", 0.6, 49, 58, 90)], "exact", "a"),
    ],
)
def test_best_is_the_least_work_within_the_loss_of_a_speed(others: list[Comparison], fast: str, turbo: str) -> None:
    """The exact cells have 51 and 59 right pictures of 100 on average."""
    for comparisons in ([*EXACT, *others], [*reversed(others), *EXACT]):
        for speed, name in (("fast", fast), ("turbo", turbo)):
            chosen = speed_settings.best(comparisons, speed)
            assert chosen is not None and chosen.cell.name == name


def test_best_ignores_the_frechet_distance_where_there_is_none() -> None:
    chosen = speed_settings.best([one("exact", 1, 50, 60, None), one("a", 0.5, 50, 60, None)], "fast")
    assert chosen is not None and chosen.cell.name == "a"
