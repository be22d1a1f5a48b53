"""Quality against steps, sampler by sampler, in the picture world: the curves that a default is chosen from.

A cell is one way of sampling; every cell paints the same captions with the same seeds, in a run folder of its own, so that a
sweep that was stopped goes on. A cell whose request has a seed paints them with others, from there on. The oracle reads every
picture.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from PIL import Image

from kandinsky22.backends.work_units import Painter
from kandinsky22.compositions import Scene, caption
from kandinsky22.evaluation import fidelity, plots, suite
from kandinsky22.evaluation.captions import Captioned
from kandinsky22.evaluation.distances import NORMAL, frechet
from kandinsky22.evaluation.features import ClipFeatures
from kandinsky22.evaluation.fidelity import Rates
from kandinsky22.evaluation.generate import Estimate, Standing, begin, calls, estimate, failed, generate, seconds_each
from kandinsky22.evaluation.manifest import Run, differences
from kandinsky22.evaluation.protocol import of_run
from kandinsky22.evaluation.report import Grid, Number, Plot, Report, Shown, Table
from kandinsky22.evaluation.scores import Say, caption_score, mean_discrepancy, measured
from kandinsky22.request import Request, Sampling

SAMPLERS = ("ddpm", "ddim", "dpmpp_2m", "unipc", "euler", "heun")
STEPS = (5, 10, 15, 20, 30, 50)
GUIDANCE = (1.0, 2.0, 3.0, 4.0, 6.0)
SEEDS, SCENES = 5, 40
STREAM = 10  # of scenes: others than the box's scores are told of
PICTURED = 4  # of the scenes, on the page
CHOSEN_BY, WITHIN = ("plain", "whole"), 0.0201  # of all pictures; a picture more is not to decide by rounding
JUDGED = "plain"  # the caption but for the style, which MoVQ decides more than sampling does


@dataclass(frozen=True, slots=True)
class Cell:
    """One way of sampling, and what came of it."""

    name: str
    request: Request
    rates: Rates
    by_caption: Mapping[str, float]
    by_seed: tuple[float, ...]
    clip_score: float
    cmmd: float
    frechet: float | None = None  # where there are more pictures than the CLIP has numbers
    pictures: Mapping[str, Shown] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """Of the decoder for a picture."""
        return calls(self.request)

    @property
    def cost(self) -> int:
        """Rows that its calls compute: a guided picture has two."""
        return self.calls * (1 if self.request.decoder.guidance_scale == 1 else 2)

    @property
    def interval(self) -> tuple[float, float, float]:
        """The share judged right, and from where to where it lies at 95%: captions are drawn, and pictures of one caption are
        alike, so the spread is that of captions."""
        return _lies([*self.by_caption.values()])

    def above(self, other: "Cell") -> tuple[float, float, float]:
        """How much more of it is judged right, and from where to where that lies at 95%: caption by caption, of those that both
        have pictures of. Raises `ValueError` where there are none."""
        both = [name for name in self.by_caption if name in other.by_caption]
        if not both:
            raise ValueError(f"{self.name} and {other.name} have no caption in common; see failed-*.jsonl in both")
        return _lies([self.by_caption[name] - other.by_caption[name] for name in both])

    @property
    def values(self) -> dict[str, Any]:
        """As JSON holds it."""
        shares = {name: {"share": rate.share, "interval": [*rate.interval]} for name, rate in self.rates.items()}
        return {
            "cell": self.name,
            "calls": self.calls,
            "guidance_scale": self.request.decoder.guidance_scale,
            "rates": shares,
            "judged": [*self.interval],
            "by_seed": self.by_seed,
            "clip_score": self.clip_score,
            "cmmd": self.cmmd,
            "frechet": self.frechet,
        }


def grid(template: Request, samplers: Sequence[str] = SAMPLERS, steps: Sequence[int] = STEPS) -> dict[str, Request]:
    """The cells of samplers and steps, by name; the rest is as the template has it. Raises `ValueError` for one that there is
    not."""
    return {
        f"{sampler}-{n}": replace(template, decoder=replace(template.decoder, sampler=sampler, steps=n))
        for sampler in samplers
        for n in steps
    }


def around(name: str, chosen: Request) -> dict[str, Request]:
    """The cells beside a chosen one, of other guidance than its own."""
    return {
        f"{name}-guidance-{scale:g}": replace(chosen, decoder=replace(chosen.decoder, guidance_scale=scale))
        for scale in GUIDANCE
        if scale != chosen.decoder.guidance_scale
    }


def linear(name: str, chosen: Request) -> dict[str, Request]:
    """A chosen cell again, with the linear prior."""
    return {f"{name}-linear-prior": replace(chosen, prior=Sampling(sampler="linear"))}


def expect(
    painter: Painter,
    folder: Path,
    cells: Mapping[str, Request],
    scenes: int = SCENES,
    seeds: int = SEEDS,
    *,
    stream: int = STREAM,
    retry: bool = False,
    noted: Callable[[], Mapping[str, Any]] = dict,
) -> Estimate:
    """What all cells still need, before they are painted. Where nothing is known of how long their pictures take, a pack each
    of the cell with the most and of the one with the fewest network calls is painted and timed; others lie between.
    stream: of scenes. retry: as `generate` takes it. noted: see `Run.begun`.

    Raises `ValueError` as `begin` does for any of the cells, and for a disk without room.
    """
    runs = [
        _begun(painter, folder / name, request, _items(scenes, seeds, stream), noted) for name, request in cells.items()
    ]
    needs = [estimate(run, processes=painter.processes, retry=retry) for run in runs]
    sum(needs, start=Estimate.none(folder)).check()
    lacking = sorted((run for run, of in zip(runs, needs, strict=True) if of.pictures), key=_calls, reverse=True)
    for run in (*lacking[:1], *lacking[-1:]):
        if seconds_each(run) is None:
            for _ in generate(painter, run, packs=1, retry=retry):
                pass
    known = {_calls(run): seconds for run in runs if (seconds := seconds_each(run)) is not None}
    total = Estimate.none(folder)
    for run in runs:
        of = estimate(run, processes=painter.processes, retry=retry)
        if of.seconds is None and known:
            each = float(np.interp(_calls(run), sorted(known), [known[calls] for calls in sorted(known)]))
            of = replace(of, seconds=each * of.pictures / painter.processes)
        total += of
    return total


def paint(
    painter: Painter,
    folder: Path,
    cells: Mapping[str, Request],
    scenes: int = SCENES,
    seeds: int = SEEDS,
    *,
    stream: int = STREAM,
    retry: bool = False,
) -> Iterator[tuple[str, Standing]]:
    """Paint every cell's captions, telling which and how far it is; retry: as `generate` takes it."""
    for name, request in cells.items():
        for standing in generate(
            painter, _begun(painter, folder / name, request, _items(scenes, seeds, stream)), retry=retry
        ):
            yield name, standing


def judge(
    folder: Path, names: Sequence[str], clip: ClipFeatures, say: Say, seeds: int = SEEDS, *, stream: int = STREAM
) -> list[Cell]:
    """What came of painted cells. Raises `ValueError` for one that is not complete."""
    return [_judged(folder, name, clip, say, seeds, stream) for name in names]


def best(cells: Sequence[Cell]) -> Cell:
    """The cell that computes least of those that come as near as `WITHIN` to the best in each rate of `CHOSEN_BY`; of several,
    the one with the highest. Where none does in all, the one with the highest sum.

    It goes by the rates themselves: "not measurably worse" would be the easier to be, the fewer the captions.
    """
    tops = {name: max(cell.rates[name].share for cell in cells) for name in CHOSEN_BY}
    near = [cell for cell in cells if all(tops[name] - cell.rates[name].share <= WITHIN for name in CHOSEN_BY)]
    return min(near or [max(cells, key=total)], key=lambda cell: (cell.cost, -total(cell)))


def total(cell: Cell) -> float:
    """What is right of it by all that cells are chosen by, added up."""
    return sum(cell.rates[name].share for name in CHOSEN_BY)


def protocol(folder: Path, names: Sequence[str], clip: ClipFeatures, command: str) -> dict[str, Any]:
    """What a sweep's numbers follow from: the first cell's run, how the others differ from it, by what they are judged."""
    runs = {name: Run.opened(folder / name) for name in names}
    first = next(iter(runs.values()))
    cells = {name: {what: now for what, _, now in differences(first.about, run.about)} for name, run in runs.items()}
    scenes = len({item.caption for item in first.items})
    lost = {name: sorted(failed(run)) for name, run in runs.items()}
    return of_run(first, {"clip": clip}, command) | {
        "cells": cells,
        "captions": {"scenes": scenes, "pictures": len(first.items)},
        "failed": lost,
        "oracle": f"{JUDGED}: {fidelity.ATTRIBUTES[JUDGED]}",
        "reference": f"{len(first.items)} true pictures of other fresh scenes",
    }


def report(
    model: str, cells: Sequence[Cell], guided: Sequence[Cell], beside: Sequence[Cell], protocol: Mapping[str, Any]
) -> Report:
    """Curves and tables of a sweep. guided: the best cell with other guidance. beside: what is compared with the best of these,
    such as the linear prior."""
    chosen = best(cells)
    final = best([chosen, *guided])
    curves: dict[str, list[plots.Point]] = {}
    for cell in sorted(cells, key=lambda cell: cell.request.decoder.steps or 0):
        point = plots.Point(float(cell.request.decoder.steps or 0), *(100 * value for value in cell.interval))
        curves.setdefault(str(cell.request.decoder.sampler), []).append(point)
    around = [chosen, *guided, *beside]
    scale = f"{final.request.decoder.guidance_scale:g}"
    return Report(
        title=f"Samplers and steps, {model}",
        summary=f"{chosen.rates[JUDGED].of} pictures a cell, of the same captions and seeds. Rates are what the oracle reads.",
        values={
            "cells": [cell.values for cell in cells],
            "around": [cell.values | {"against": [*cell.above(final)]} for cell in around],
            "chosen": chosen.name,
            "guidance_scale": final.request.decoder.guidance_scale,
        },
        protocol=protocol,
        numbers=(
            Number("sampler and steps", chosen.name, f"of those {RULE} the one with the fewest network calls"),
            Number(
                "guidance", scale, f"at these, of those {RULE} the one that computes least (1 halves it), then the best"
            ),
            *(Number(cell.name, _points(cell.above(final)), f"points more right than {final.name}") for cell in beside),
        ),
        plots=(Plot("Right but for the style, against steps", plots.lines(curves, "steps", "% of pictures")),),
        tables=(
            Table(
                "Samplers and steps",
                _header(chosen),
                [_row(cell, chosen) for cell in cells],
                ours=[*cells].index(chosen),
            ),
            Table(
                f"Around {chosen.name}",
                _header(final),
                [_row(cell, final) for cell in around],
                ours=around.index(final),
            ),
        ),
        grids=(*_grids(cells), _beside(around)),
    )


RULE = f"at most {WITHIN:.0%} below the best, with the style and without it,"


def _header(against: Cell) -> tuple[str, ...]:
    judged = "% right but for the style (95%)"
    return (
        "cell",
        "network calls",
        judged,
        f"points against {against.name} (95%, by caption)",
        "over seeds",
        "shape",
        "count",
        "whole",
        "CLIP score",
        "CMMD",
    )


def _row(cell: Cell, against: Cell) -> tuple[str, ...]:
    spread = f"{100 * mean(cell.by_seed):.0f} ± {100 * stdev(cell.by_seed):.0f}" if len(cell.by_seed) > 1 else ""
    middle, low, high = (100 * value for value in cell.interval)
    return (
        cell.name,
        str(cell.calls),
        f"{middle:.0f} ({low:.0f}-{high:.0f})",
        "" if cell is against else _points(cell.above(against)),
        spread,
        *(str(cell.rates[name]) for name in ("shape", "count", "whole")),
        f"{cell.clip_score:.1f}",
        f"{cell.cmmd:.2f}",
    )


def _points(difference: tuple[float, float, float]) -> str:
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in difference))


def _grids(cells: Sequence[Cell]) -> Iterator[Grid]:
    """Of each of the first captions: samplers below each other, steps side by side."""
    found = {(str(cell.request.decoder.sampler), cell.request.decoder.steps): cell for cell in cells}
    samplers, steps = dict.fromkeys(sampler for sampler, _ in found), dict.fromkeys(n for _, n in found)
    for picture, said in _first(cells):
        rows = [
            (sampler, [found[sampler, n].pictures.get(picture) if (sampler, n) in found else None for n in steps])
            for sampler in samplers
        ]
        yield Grid(said, [f"{n} steps" for n in steps], rows)


def _beside(cells: Sequence[Cell]) -> Grid:
    """Cells side by side, the first captions below each other."""
    rows = [(said, [cell.pictures.get(picture) for cell in cells]) for picture, said in _first(cells)]
    return Grid(f"Around {cells[0].name}", [cell.name for cell in cells], rows)


def _first(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """The first captions and their pictures' names, in their first seed."""
    shown = {picture: found.caption for cell in cells for picture, found in cell.pictures.items()}
    return [(picture, shown[picture]) for picture in sorted(shown) if picture.endswith("-0")][:PICTURED]


def _begun(
    painter: Painter,
    folder: Path,
    request: Request,
    items: list[Captioned],
    noted: Callable[[], Mapping[str, Any]] = dict,
) -> Run:
    seeded = [replace(item, seed=(item.seed or 0) + (request.seed or 0)) for item in items]
    return begin(painter, folder, suite.captions_of(seeded), request, noted=noted)


def _calls(run: Run) -> int:
    return calls(run.template)


def _items(scenes: int, seeds: int, stream: int) -> list[Captioned]:
    """Every scene's caption with every seed."""
    said = [caption(scene, whole=True) for scene in suite.world_scenes(scenes, stream)]
    return [
        Captioned(f"{i:04}-{seed}", text, seed=1000 * seed + i) for seed in range(seeds) for i, text in enumerate(said)
    ]


def _judged(folder: Path, name: str, clip: ClipFeatures, say: Say, seeds: int, stream: int) -> Cell:
    run = Run.opened(folder / name)
    pictures = suite.painted(run)
    scenes = suite.world_scenes(len(run.items) // seeds, stream)
    told = {picture: fidelity.verdict(_opened(path), _scene(picture, scenes)) for picture, path in pictures.items()}
    by_caption, by_seed = _means(told, 0), tuple(_means(told, 2).values())
    true = suite.draw_true(folder / suite.TRUE, len(run.items), run.template, say)
    theirs = measured(true, clip, folder, "true-pictures", say)
    ours = measured(pictures, clip, run.folder, "pictures", say)
    captions = {item.id: item.caption for item in run.items}
    return Cell(
        name,
        run.template,
        fidelity.rates(told.values()),
        by_caption,
        by_seed,
        caption_score(ours, captions, clip, say).values["clip_score"]["mean"],
        mean_discrepancy(ours, theirs).values["cmmd"],
        frechet(ours.moments, theirs.moments) if min(ours.count, theirs.count) > clip.dim else None,
        {picture: Shown(path, captions[picture]) for picture, path in pictures.items()},
    )


def _means(told: Mapping[str, Mapping[str, bool]], part: int) -> dict[str, float]:
    """The share judged right of the pictures that have a part of their names in common, by that part, ascending."""
    shares: dict[str, list[bool]] = {}
    for picture, verdict in told.items():
        shares.setdefault(picture.partition("-")[part], []).append(verdict[JUDGED])
    return {name: mean(shares[name]) for name in sorted(shares)}


def _lies(values: Sequence[float]) -> tuple[float, float, float]:
    """A mean, and from where to where it lies at 95%."""
    middle, half = mean(values), NORMAL * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return middle, middle - half, middle + half


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _scene(picture: str, scenes: Sequence[Scene]) -> Scene:
    return scenes[int(picture.partition("-")[0])]
