"""What speeding up costs: the work that is counted is the work that is done, and pictures are held against the exact ones."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from kandinsky22 import Kandinsky, Sampling, text2img
from kandinsky22.backends.local import Here
from kandinsky22.checkpoints import full_size
from kandinsky22.checkpoints.catalog import DECODER
from kandinsky22.compositions import caption
from kandinsky22.engine.cost import UNetStep
from kandinsky22.evaluation import dials, suite, sweep
from kandinsky22.evaluation.dials import Tried, Work
from kandinsky22.evaluation.features import ClipFeatures
from kandinsky22.evaluation.fidelity import Rate
from kandinsky22.evaluation.manifest import Run
from kandinsky22.evaluation.report import write
from kandinsky22.evaluation.sweep import Cell
from tests.diffusion.toy import DECODER as SCHEDULE

FEW = {"num_inference_steps": 4, "prior_num_inference_steps": 1, "prior_guidance_scale": 1.0}


def silent(what: str, done: int, of: int) -> None:
    assert 0 < done <= of


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
        (sampling("ddim", 10, 3.0, 4, 0.35, 0.75), (10, 14, 4)),  # 901, 701 as guidance comes, 301
    ],
)
def test_work_is_counted_by_what_paints(chosen: Sampling, work: tuple[int, int, int]) -> None:
    assert Work.of(chosen, SCHEDULE) == work


def test_the_work_that_is_counted_is_done(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kandinsky = Kandinsky.load(tiny_model)
    decoder, done = kandinsky.decoder(DECODER), [0, 0, 0]
    forward_cached, below = decoder.unet.forward_cached, decoder.unet._below

    def counted(*a, **how):  # type: ignore[no-untyped-def]
        done[0], done[1] = done[0] + 1, done[1] + len(a[2])
        return forward_cached(*a, **how)

    def counted_below(*a):  # type: ignore[no-untyped-def]
        done[2] += len(a[0])
        return below(*a)

    monkeypatch.setattr(decoder.unet, "forward_cached", counted)
    monkeypatch.setattr(decoder.unet, "_below", counted_below)
    request = kandinsky.resolved(text2img("a ring", seed=1, sampler="heun", guidance_interval=(0.2, 0.6), reuse=3))
    list(kandinsky.stream(request))
    assert Work.of(request.decoder, decoder.schedule) == tuple(done)


def test_the_first_level_is_a_part_of_the_network() -> None:
    step = UNetStep.of(full_size.UNET, 64, 64)
    assert step.whole == pytest.approx(856e9, rel=0.01)  # shared/SPEED.md counts 1.712 TFLOP for two rows
    assert 0.2 < step.first / step.whole < 0.3
    assert Work(3, 4, 2).operations(UNetStep(10, 3)) == 4 * 3 + 2 * 7


def test_the_cells_are_steps_with_reuse_and_every_dial_alone_and_the_exact_one_is_first() -> None:
    template = text2img("", num_inference_steps=9)
    cells = dials.grid(template, ["ddim"], [5], [(0.2, 0.8)], [2, 3])
    exact = cells["exact"]
    assert len(cells) == 2 * 3 + 2 + 1 + 2 and next(iter(cells)) == "exact"
    assert exact.decoder == Sampling(steps=9, guidance_interval=(0, 1), reuse=1)
    both = cells["ddim-5-reuse-3"].decoder
    assert both == Sampling(sampler="ddim", steps=5, guidance_interval=(0, 1), reuse=3)
    alone = cells["exact-guided-0.2-0.8"].decoder
    assert alone == replace(exact.decoder, guidance_interval=(0.2, 0.8))
    assert cells["exact-prior-5"].prior.steps == 5 and cells["exact-prior-5"].decoder == exact.decoder
    again = [cells[name] for name in dials.exact(template)]
    assert len({request.seed for request in again}) == 3
    assert all(replace(request, seed=None) == exact for request in again)


def test_cells_are_held_against_the_exact_pictures(tiny_model: Path, tmp_path: Path) -> None:
    kandinsky = Kandinsky.load(tiny_model)
    clip = ClipFeatures.of_model(kandinsky.stored.prior)
    least, template = "ddim-2-reuse-2", text2img("", model="tiny-model", **FEW)  # type: ignore[arg-type]
    grid = dials.grid(template, ["ddim"], [2], [(0.2, 0.8)], [2])
    other = "exact-seeds-100000"
    names = (least, "exact-reuse-2", "exact", other, "exact-prior-5", "exact-guided-0.2-0.8")
    cells = {name: grid[name] for name in names} | {"same": grid["exact"]}
    list(sweep.paint(Here(kandinsky, batch=6), tmp_path, cells, scenes=3, seeds=2, stream=7))
    judged = sweep.judge(tmp_path, [*cells], clip, silent, seeds=2, stream=7)
    items = {name: Run.opened(tmp_path / name).items for name in names}
    assert [(o.caption, o.seed) for o in items[other]] == [(e.caption, e.seed + 100_000) for e in items["exact"]]
    assert {e.caption for e in items["exact"]} == {caption(s, whole=True) for s in suite.world_scenes(3, 7)}
    assert all(cell.frechet is None for cell in judged)  # 6 pictures, 32 numbers
    made = {one.cell.name: one for one in dials.tried(tmp_path, judged, kandinsky, clip, silent)}
    for name in ("exact", "same"):
        assert made[name].pixels == 0 and made[name].cosine == pytest.approx(1) and made[name].right == (0, 0, 0)
    for name in (least, "exact-reuse-2", "exact-prior-5", "exact-guided-0.2-0.8", other):
        assert made[name].pixels > 0 and made[name].cosine < 1 and made[name].seconds > 0
    assert made["exact-reuse-2"].work == (4, 8, 4) and made["exact-reuse-2"].pixels < made[least].pixels
    assert set(made["exact-prior-5"].operations.values()) == {1}
    report = dials.report("tiny-model", [*made.values()], {})
    (table,) = report.tables
    assert len(table.rows) == len(cells) and all(len(row) == len(table.header) for row in table.rows)
    assert [table.rows[i][0] for i in (0, 1)] == [least, "exact-reuse-2"]  # the least work
    assert "exact-reuse-2" in write(tmp_path, report).read_text("utf-8")


def of(name: str, work: float, whole: int, plain: int, frechet: float | None = 50.0) -> Tried:
    """A cell of a hundred pictures: so many right, with the style and without."""
    rates: Mapping[str, Rate] = {"whole": Rate(whole, 100), "plain": Rate(plain, 100)}
    cell = Cell(name, text2img(""), rates, {"a": plain / 100}, (0.5,), 80.0, 0.1, frechet)
    return Tried(cell, Work(1, 1, 1), 1.0, {"published": work}, (0.0, 0.0, 0.0), 0.0, 1.0)


EXACT = [of("exact", 1, 50, 60, 50), of("exact-seeds-1", 1, 52, 58, 52), of("exact-seeds-2", 1, 51, 59, 51)]


@pytest.mark.parametrize(
    ("others", "fast", "turbo"),
    [
        ([], "exact", "exact"),
        ([of("a", 0.5, 49, 57), of("b", 0.3, 47, 60), of("c", 0.2, 46, 54), of("d", 0.1, 60, 52)], "a", "c"),
        ([of("a", 0.5, 49, 57, 55.1), of("b", 0.6, 49, 57, 54.9)], "b", "a"),  # 51, and twice 52 - 50
        ([of("a", 0.5, 70, 56), of("b", 0.4, 44, 80)], "a", "a"),  # what one rate gains does not make up for the other
        ([of("a", 0.5, 49, 58), of("b", 0.5, 50, 58), of("c", 0.5, 49, 57)], "b", "b"),
        ([of("a", 0.5, 49, 58, 90), of("b", 0.6, 49, 58, 90)], "exact", "a"),
    ],
)
def test_a_speed_is_the_least_work_that_loses_little(others: list[Tried], fast: str, turbo: str) -> None:
    """Of exact cells which have 51 and 59 of 100 in the mean."""
    for cells in ([*EXACT, *others], [*reversed(others), *EXACT]):
        for speed, name in (("fast", fast), ("turbo", turbo)):
            chosen = dials.best(cells, speed)
            assert chosen is not None and chosen.cell.name == name


def test_few_pictures_have_no_distance_to_go_by() -> None:
    chosen = dials.best([of("exact", 1, 50, 60, None), of("a", 0.5, 50, 60, None)], "fast")
    assert chosen is not None and chosen.cell.name == "a"
