"""What speeding up costs, in the picture world: fewer steps and deep features used again, together and alone, guidance on part
of the noise, and fewer steps of the prior, against the exact pictures of the same captions and seeds, and against exact pictures
of other seeds, which tell what chance does. The values of speeds are chosen from it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.checkpoints import catalog, full_size
from kandinsky22.diffusion import SAMPLERS, Job, NoiseSchedule, sample_many
from kandinsky22.diffusion.denoiser import Denoiser, Guidance
from kandinsky22.engine.cost import UNetStep
from kandinsky22.engine.kandinsky import Kandinsky
from kandinsky22.evaluation import plots, suite, sweep
from kandinsky22.evaluation.features import ClipFeatures
from kandinsky22.evaluation.generate import logged
from kandinsky22.evaluation.manifest import Run
from kandinsky22.evaluation.report import Number, Plot, Report, Table
from kandinsky22.evaluation.scores import Say, measured
from kandinsky22.evaluation.sweep import Cell
from kandinsky22.models.timestep_cache import repeat_guided
from kandinsky22.models.unet import Conditioned
from kandinsky22.request import Request, Sampling
from kandinsky22.request.parts import EVERYWHERE

EXACT = "exact"
SAMPLERS_BESIDE, STEPS = ("ddpm", "euler", "dpmpp_2m"), (15, 10, 5)
INTERVALS = ((0.0, 0.8), (0.2, 0.8))
REUSE = (2, 3, 5)
PRIOR_STEPS = (10, 5)
LOST = {"fast": 0.03, "turbo": 0.06}  # of all pictures: what a speed may lose at most
SPREADS = 2  # of the exact cells' Frechet distances, above their mean: what a fast one's may be
AGAIN = (100_000, 200_000)  # the first seeds of the exact cell's repetitions, which show what chance does
SCENES, SEEDS = 400, 1  # more pictures than the box's CLIP has numbers, as a Frechet distance needs
STREAM = 30  # of scenes: others than samplers are chosen by


def grid(
    template: Request,
    samplers: Sequence[str] = SAMPLERS_BESIDE,
    steps: Sequence[int] = STEPS,
    intervals: Sequence[tuple[float, float]] = INTERVALS,
    reuse: Sequence[int] = REUSE,
) -> dict[str, Request]:
    """The cells by name, the exact one first: it again with other seeds; every reuse at the template's own steps and at fewer;
    guidance on part of the noise alone, and fewer steps of the prior alone. Raises `ValueError` for one that cannot be."""
    cells = exact(template)
    whole = cells[EXACT]
    for (name, request), n in product({EXACT: whole, **sweep.grid(whole, samplers, steps)}.items(), (1, *reuse)):
        cells[name + (f"-reuse-{n}" if n > 1 else "")] = _with(request, reuse=n)
    for interval in intervals:
        guided = _with(whole, guidance_interval=interval)
        cells["{}-guided-{:g}-{:g}".format(EXACT, *interval)] = guided
    priors = {f"{EXACT}-prior-{n}": replace(whole, prior=replace(whole.prior, steps=n)) for n in PRIOR_STEPS}
    return cells | priors


def exact(template: Request) -> dict[str, Request]:
    """The exact cell, and it again with other seeds."""
    whole = _with(template, guidance_interval=EVERYWHERE, reuse=1)
    return {EXACT: whole} | {f"{EXACT}-seeds-{first}": replace(whole, seed=first) for first in AGAIN}


def _with(request: Request, **dials: Any) -> Request:
    return replace(request, decoder=replace(request.decoder, **dials))


class Work(NamedTuple):
    """What the U-Net does for a picture: calls, their rows, and the rows whose deeper levels are computed."""

    calls: int
    rows: int
    deep: int

    @classmethod
    def of(cls, sampling: Sampling, schedule: NoiseSchedule) -> "Work":
        """Counted, with the sampler and the denoiser that paint, for a resolved sampling from noise."""
        assert sampling.sampler and sampling.steps and sampling.guidance_interval and sampling.reuse
        network, nothing = _Counting(), Conditioned(torch.empty(1, 0), (), None)
        interval = schedule.timestep_interval(*sampling.guidance_interval)
        guided = {0: Guidance.of(nothing, nothing, torch.tensor([sampling.weight]), interval)}
        denoiser: Denoiser[Conditioned] = Denoiser(network, schedule, guided, torch.float32, {0: sampling.reuse})
        x, timesteps = torch.zeros(1, 4, 1, 1), schedule.timesteps(sampling.steps)
        for _ in sample_many({0: Job(SAMPLERS[sampling.sampler](schedule, x, timesteps, torch.zeros_like))}, denoiser):
            pass
        return cls(network.calls, network.rows, network.deep)

    def operations(self, step: UNetStep) -> int:
        """Of a U-Net of which a row's step is this."""
        return self.rows * step.first + self.deep * (step.whole - step.first)


class _Counting:
    """In a U-Net's place."""

    calls = rows = deep = 0

    def __call__(self, x: Tensor, t: Tensor, conditioned: Conditioned, guided_rows: Tensor) -> Tensor:
        return self.forward_cached(x, t, conditioned, None, None, guided_rows)[0]

    def forward_cached(
        self,
        x: Tensor,
        t: Tensor,
        conditioned: Conditioned,
        deep: Tensor | None,
        rows: Tensor | None,
        guided_rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        self.calls += 1
        self.rows += len(conditioned)
        self.deep += len(conditioned) if deep is None else 0 if rows is None else len(rows)
        answer = torch.zeros_like(repeat_guided(x, guided_rows))
        return answer.repeat(1, 2, 1, 1), answer


@dataclass(frozen=True, slots=True)
class Tried:
    """A cell beside the exact one.

    seconds: of a picture, on the clock, by the process that painted it. operations: of the U-Net, as shares of what the exact
    one takes, by the names of U-Nets. right: what the share judged right gained, and from where to where that lies at 95%,
    caption by caption. pixels: the mean difference from the exact picture, of 255. cosine: of the two's CLIP embeddings.
    """

    cell: Cell
    work: Work
    seconds: float
    operations: Mapping[str, float]
    right: tuple[float, float, float]
    pixels: float
    cosine: float

    @property
    def values(self) -> dict[str, Any]:
        """As JSON holds it."""
        beside = {"work": self.work._asdict(), "seconds": self.seconds, "operations": dict(self.operations)}
        apart = {"right": [*self.right], "pixels": self.pixels, "cosine": self.cosine}
        return {**self.cell.values, **beside, **apart}


def unets(model: Kandinsky, request: Request) -> dict[str, UNetStep]:
    """The U-Nets whose operations are told: the model's own at the size of a resolved request, and the published one."""
    height, width = request.height or 0, request.width or 0
    decoder, published = model.decoder(catalog.DECODER), 512 // full_size.MOVQ.factor
    own = UNetStep.of(decoder.stored.unet.config, *decoder.shape(1, height, width)[-2:])
    return {request.model: own, "published at 512x512": UNetStep.of(full_size.UNET, published, published)}


def tried(folder: Path, cells: Sequence[Cell], model: Kandinsky, clip: ClipFeatures, say: Say) -> list[Tried]:
    """Judged cells beside the exact one, which is one of them."""
    exact = next(cell for cell in cells if cell.name == EXACT)
    schedule, steps = model.decoder(catalog.DECODER).schedule, unets(model, exact.request)
    before, seen = Run.opened(folder / EXACT), _seen(folder / EXACT, clip, say)
    full = Work.of(exact.request.decoder, schedule)
    made = []
    for i, cell in enumerate(cells):
        run, work = Run.opened(folder / cell.name), Work.of(cell.request.decoder, schedule)
        pairs = [(_pixels(run.picture(item)), _pixels(before.picture(item))) for item in run.items]
        made.append(
            Tried(
                cell,
                work,
                seconds=mean(record["milliseconds"] for record in logged(run).values()) / 1000,
                operations={name: work.operations(step) / full.operations(step) for name, step in steps.items()},
                right=cell.above(exact),
                pixels=mean(float(np.abs(ours - theirs).mean()) for ours, theirs in pairs),
                cosine=float(F.cosine_similarity(_seen(folder / cell.name, clip, say), seen).mean()),
            )
        )
        say("beside the exact pictures", i + 1, len(cells))
    return made


def report(model: str, made: Sequence[Tried], protocol: Mapping[str, Any]) -> Report:
    """A table of what was tried, the least work first, curves of what is lost against it, and what the rules choose."""
    ordered = sorted(made, key=_cost)
    exact = next(one for one in made if one.cell.name == EXACT)
    chosen = {name: one for name in LOST if (one := best(made, name)) is not None}
    nets = list(exact.operations)
    header = (
        "cell",
        "calls",
        "rows",
        "deep rows",
        *(f"% of the work, {name}" for name in nets),
        "s a picture",
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
        point = plots.Point(100 * one.operations[nets[-1]], *(100 * value for value in one.right))
        points.setdefault(family, []).append(point)
    return Report(
        title=f"What speeding up costs, {model}",
        summary=f"{exact.cell.rates[sweep.JUDGED].of} pictures a cell, of the same captions and seeds; the oracle reads them.",
        values={
            "tried": [one.values for one in ordered],
            "chosen": {name: one.cell.name for name, one in chosen.items()},
        },
        protocol=protocol,
        numbers=[Number(name, one.cell.name, RULES[name]) for name, one in chosen.items()],
        plots=(
            Plot("Gained in % right, against work", plots.lines(points, f"% of the work, {nets[-1]}", "% of pictures")),
        ),
        tables=(Table("Every dial", header, [_row(one) for one in ordered]),),
    )


def best(made: Sequence[Tried], speed: str) -> Tried | None:
    """The cell with the least work of those that lose no more than a speed may, of the exact cells' mean, with the style and
    without it; for the fast one, no further from true pictures either, by the Frechet distance, than chance puts exact ones.
    Of equals the one with more right. None where there is none."""
    exact = [one.cell for one in made if one.cell.name == EXACT or one.cell.name.startswith(f"{EXACT}-seeds-")]
    least = {name: mean(cell.rates[name].share for cell in exact) - LOST[speed] for name in sweep.CHOSEN_BY}
    distances = [cell.frechet for cell in exact if cell.frechet is not None]
    furthest = mean(distances) + SPREADS * (max(distances) - min(distances)) if distances else math.inf
    good = [
        one
        for one in made
        if all(one.cell.rates[name].share >= share for name, share in least.items())
        and (speed != "fast" or (one.cell.frechet or 0.0) <= furthest)
    ]
    return min(good, key=lambda one: (_cost(one), -sweep.total(one.cell)), default=None)


RULES = {
    "fast": f"the least work of those that lose at most {LOST['fast']:.0%} of the pictures and none of the Frechet distance",
    "turbo": f"the least work of those that lose at most {LOST['turbo']:.0%} of the pictures",
}


def _cost(one: Tried) -> float:
    return [*one.operations.values()][-1]


def _row(one: Tried) -> tuple[str, ...]:
    gained, low, high = (100 * value for value in one.right)
    frechet = "" if one.cell.frechet is None else f"{one.cell.frechet:.1f}"
    rates = (str(one.cell.rates[name]) for name in ("whole", sweep.JUDGED))
    return (
        one.cell.name,
        *map(str, one.work),
        *(f"{100 * share:.0f}" for share in one.operations.values()),
        f"{one.seconds:.2f}",
        *rates,
        f"{gained:+.1f} ({low:+.1f} to {high:+.1f})",
        frechet,
        f"{one.cell.cmmd:.2f}",
        f"{one.cell.clip_score:.1f}",
        f"{one.pixels:.1f}",
        f"{one.cosine:.3f}",
    )


def _seen(folder: Path, clip: ClipFeatures, say: Say) -> Tensor:
    """The embeddings of a cell's pictures, in the order of their names; they were kept when it was judged."""
    run = Run.opened(folder)
    return measured(suite.painted(run), clip, folder, "pictures", say).rows


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), np.float32)
