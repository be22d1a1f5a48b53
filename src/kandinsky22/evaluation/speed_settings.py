"""What settings that save time cost in quality, in the picture world: the values of named speeds are chosen from it.

Settings are compared alone and combined: fewer steps, deep features reused between steps, guidance in part of the
schedule, and fewer steps of the prior. Each cell is compared with the exact pictures of the same captions and seeds.
Exact pictures with other seeds show how much chance alone changes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.backends.run_state import logged
from kandinsky22.checkpoints import catalog, full_size
from kandinsky22.engine.cost import UNetStep
from kandinsky22.engine.kandinsky import Kandinsky
from kandinsky22.evaluation import painted_run, plots, sweep
from kandinsky22.evaluation.cells import CRITERION, CaptionSet, Cell
from kandinsky22.evaluation.features import ClipFeatures
from kandinsky22.evaluation.manifest import Run
from kandinsky22.evaluation.report import Number, Plot, Report, Table
from kandinsky22.evaluation.scores import ShowProgress, cached_statistics
from kandinsky22.evaluation.unet_work import UNetWork
from kandinsky22.request import Request
from kandinsky22.request.parts import EVERYWHERE
from kandinsky22.request.picture_file import read_picture

EXACT = "exact"
SAMPLERS, STEPS = ("ddpm", "euler", "dpmpp_2m"), (15, 10, 5)
INTERVALS = ((0.0, 0.8), (0.2, 0.8))
REUSE = (2, 3, 5)
PRIOR_STEPS = (10, 5)
MAX_LOSS = {"fast": 0.03, "turbo": 0.06}  # the share of pictures that a speed may lose
FRECHET_SPREADS = 2  # how many ranges of the exact cells' Frechet distances above their mean that of "fast" may be
REPEAT_SEEDS = (100_000, 200_000)  # first seeds of the exact cell's repetitions
# More pictures than the box's CLIP has dimensions, as a Frechet distance needs; other scenes than the sweep's
CAPTIONS = CaptionSet(scenes=400, seeds=1, stream=30)
RULES = {
    "fast": f"the least work of those that lose at most {MAX_LOSS['fast']:.0%} of the pictures "
    "and none of the Frechet distance",
    "turbo": f"the least work of those that lose at most {MAX_LOSS['turbo']:.0%} of the pictures",
}


def grid(
    template: Request,
    samplers: Sequence[str] = SAMPLERS,
    steps: Sequence[int] = STEPS,
    intervals: Sequence[tuple[float, float]] = INTERVALS,
    reuse: Sequence[int] = REUSE,
) -> dict[str, Request]:
    """The cells by name, the exact ones first.

    Every reuse is combined with the template's steps and with every sampler at every number of `steps`; guidance
    intervals and fewer steps of the prior are changed alone. Raises `ValueError` for values out of range.
    """
    cells = exact_cells(template)
    exact = cells[EXACT]
    for (name, request), n in product({EXACT: exact, **sweep.grid(exact, samplers, steps)}.items(), (1, *reuse)):
        cells[name + (f"-reuse-{n}" if n > 1 else "")] = _with_decoder(request, reuse=n)
    for interval in intervals:
        cells["{}-guided-{:g}-{:g}".format(EXACT, *interval)] = _with_decoder(exact, guidance_interval=interval)
    priors = {f"{EXACT}-prior-{n}": replace(exact, prior=replace(exact.prior, steps=n)) for n in PRIOR_STEPS}
    return cells | priors


def exact_cells(template: Request) -> dict[str, Request]:
    """The exact cell, and its repetitions with other seeds."""
    exact = _with_decoder(template, guidance_interval=EVERYWHERE, reuse=1)
    return {EXACT: exact} | {f"{EXACT}-seeds-{first}": replace(exact, seed=first) for first in REPEAT_SEEDS}


def _with_decoder(request: Request, **settings: Any) -> Request:
    return replace(request, decoder=replace(request.decoder, **settings))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A cell compared with the exact one.

    work: of the U-Net for a picture. seconds: wall-clock time per picture of the process that painted it. operations:
    of the U-Net, as a share of the exact cell's, by the name of the U-Net. right: the difference in the share that is
    right, and its 95% interval, caption by caption. pixels: the mean absolute difference from the exact picture, of
    255. cosine: the mean cosine of the CLIP embeddings of both.
    """

    cell: Cell
    work: UNetWork
    seconds: float
    operations: Mapping[str, float]
    right: tuple[float, float, float]
    pixels: float
    cosine: float

    @property
    def published_work(self) -> float:
        """Operations of the published U-Net, as a share of the exact cell's."""
        return [*self.operations.values()][-1]

    @property
    def values(self) -> dict[str, Any]:
        """Its scores as JSON, for `report.json`."""
        return {
            **self.cell.values,
            "work": self.work._asdict(),
            "seconds": self.seconds,
            "operations": dict(self.operations),
            "right": [*self.right],
            "pixels": self.pixels,
            "cosine": self.cosine,
        }


def unet_steps(model: Kandinsky, request: Request) -> dict[str, UNetStep]:
    """The cost of a step of the model's own U-Net, at the size of a resolved request, and then of the published one."""
    height, width = request.height or 0, request.width or 0
    decoder, published = model.decoder(catalog.DECODER), 512 // full_size.MOVQ.factor
    own = UNetStep.of(decoder.stored.unet.config, *decoder.shape(1, height, width)[-2:])
    return {request.model: own, "published at 512x512": UNetStep.of(full_size.UNET, published, published)}


def compare(
    folder: Path, cells: Sequence[Cell], model: Kandinsky, clip: ClipFeatures, show_progress: ShowProgress
) -> list[Comparison]:
    """Scored cells, each compared with the exact one, which is one of them."""
    exact = next(cell for cell in cells if cell.name == EXACT)
    schedule, steps = model.decoder(catalog.DECODER).schedule, unet_steps(model, exact.request)
    exact_run, exact_embeds = Run.open(folder / EXACT), _embeddings(folder / EXACT, clip, show_progress)
    exact_work = UNetWork.of(exact.request.decoder, schedule)
    comparisons = []
    for i, cell in enumerate(cells):
        run, work = Run.open(folder / cell.name), UNetWork.of(cell.request.decoder, schedule)
        pairs = [(_pixels(run.picture(item)), _pixels(exact_run.picture(item))) for item in run.items]
        comparisons.append(
            Comparison(
                cell,
                work,
                seconds=mean(record["milliseconds"] for record in logged(run).values()) / 1000,
                operations={name: work.operations(step) / exact_work.operations(step) for name, step in steps.items()},
                right=cell.difference_from(exact),
                pixels=mean(float(np.abs(ours - theirs).mean()) for ours, theirs in pairs),
                cosine=float(
                    F.cosine_similarity(_embeddings(folder / cell.name, clip, show_progress), exact_embeds).mean()
                ),
            )
        )
        show_progress("comparing with the exact pictures", i + 1, len(cells))
    return comparisons


def best(comparisons: Sequence[Comparison], speed: str) -> Comparison | None:
    """The cell with the least work that meets the requirements of a speed, "fast" or "turbo"; None if there is none.

    Its rates of `sweep.CHOSEN_BY` may be at most `MAX_LOSS` below the mean of the exact cells. For "fast", its Frechet
    distance to true pictures must also lie within what chance does to exact ones (see `FRECHET_SPREADS`). Of cells with
    equal work, the one with the highest rates.
    """
    exact = [one.cell for one in comparisons if one.cell.name == EXACT or one.cell.name.startswith(f"{EXACT}-seeds-")]
    least = {name: mean(cell.rates[name].share for cell in exact) - MAX_LOSS[speed] for name in sweep.CHOSEN_BY}
    distances = [cell.frechet for cell in exact if cell.frechet is not None]
    limit = mean(distances) + FRECHET_SPREADS * (max(distances) - min(distances)) if distances else math.inf
    good = [
        one
        for one in comparisons
        if all(one.cell.rates[name].share >= share for name, share in least.items())
        and (speed != "fast" or (one.cell.frechet or 0.0) <= limit)
    ]
    return min(good, key=lambda one: (one.published_work, -sweep.total(one.cell)), default=None)


def report(model: str, comparisons: Sequence[Comparison], protocol: Mapping[str, Any]) -> Report:
    """A table of all cells, the least work first, curves of quality against work, and the cells chosen as speeds."""
    ordered = sorted(comparisons, key=lambda one: one.published_work)
    exact = next(one for one in comparisons if one.cell.name == EXACT)
    chosen = {name: one for name in MAX_LOSS if (one := best(comparisons, name)) is not None}
    networks = list(exact.operations)
    header = (
        "cell",
        "calls",
        "rows",
        "deep rows",
        *(f"% of the work, {name}" for name in networks),
        "s per picture",
        "% whole caption",
        "% right but for the style",
        "gained (95% of captions)",
        "Frechet",
        "CMMD",
        "CLIP score",
        "pixels apart",
        "cosine",
    )
    points: dict[str, list[plots.Point]] = {}
    for one in ordered:
        family = one.cell.name.partition("-guided")[0].partition("-reuse")[0].partition("-prior")[0]
        point = plots.Point(100 * one.published_work, *(100 * value for value in one.right))
        points.setdefault(family, []).append(point)
    curves = plots.lines(points, f"% of the work, {networks[-1]}", "% of pictures")
    return Report(
        title=f"What speeding up costs, {model}",
        summary=f"{exact.cell.rates[CRITERION].of} pictures per cell, of equal captions and seeds, read by the oracle.",
        values={
            "tried": [one.values for one in ordered],
            "chosen": {name: one.cell.name for name, one in chosen.items()},
        },
        protocol=protocol,
        numbers=[Number(name, one.cell.name, RULES[name]) for name, one in chosen.items()],
        plots=(Plot("Gained in % right, against work", curves),),
        tables=(Table("All settings", header, [_row(one) for one in ordered]),),
    )


def _row(one: Comparison) -> tuple[str, ...]:
    gained, low, high = (100 * value for value in one.right)
    return (
        one.cell.name,
        *map(str, one.work),
        *(f"{100 * share:.0f}" for share in one.operations.values()),
        f"{one.seconds:.2f}",
        *(str(one.cell.rates[name]) for name in ("whole", CRITERION)),
        f"{gained:+.1f} ({low:+.1f} to {high:+.1f})",
        "" if one.cell.frechet is None else f"{one.cell.frechet:.1f}",
        f"{one.cell.cmmd:.2f}",
        f"{one.cell.clip_score:.1f}",
        f"{one.pixels:.1f}",
        f"{one.cosine:.3f}",
    )


def _embeddings(folder: Path, clip: ClipFeatures, show_progress: ShowProgress) -> Tensor:
    """The CLIP embeddings of a cell's pictures, in the order of their names; cached since the cell was scored."""
    run = Run.open(folder)
    return cached_statistics(painted_run.pictures_of(run), clip, folder, "pictures", show_progress).rows


def _pixels(path: Path) -> np.ndarray:
    return np.asarray(read_picture(path).convert("RGB"), np.float32)
