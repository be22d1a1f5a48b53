"""Quality against steps, sampler by sampler, in the picture world: the curves that a default is chosen from.

A cell is one way of sampling; every cell paints the same captions with the same seeds, in a run folder of its own, so that a
sweep that was stopped goes on. The oracle reads every picture.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from PIL import Image

from kandinsky22.backends.packs import Painter
from kandinsky22.compositions import Scene, caption
from kandinsky22.evaluation import fidelity, plots, suite
from kandinsky22.evaluation.captions import Captioned
from kandinsky22.evaluation.distances import NORMAL, frechet
from kandinsky22.evaluation.features import ClipFeatures
from kandinsky22.evaluation.fidelity import Rates
from kandinsky22.evaluation.generate import Standing, begin, generate
from kandinsky22.evaluation.manifest import Run
from kandinsky22.evaluation.report import Number, Plot, Report, Table
from kandinsky22.evaluation.scores import Say, caption_score, mean_discrepancy, measured
from kandinsky22.request import Request, Sampling

SAMPLERS = ("ddpm", "ddim", "dpmpp_2m", "unipc", "euler", "heun")
STEPS = (5, 10, 15, 20, 30, 50)
GUIDANCE = (1.0, 2.0, 3.0, 4.0, 6.0)
SEEDS, SCENES = 5, 40
STREAM = 10  # of scenes: others than the box's scores are told of
JUDGED = "plain"  # the caption but for the style, which MoVQ decides more than sampling does


@dataclass(frozen=True, slots=True)
class Cell:
    """One way of sampling, and what came of it."""

    name: str
    request: Request
    rates: Rates
    by_caption: tuple[float, ...]
    by_seed: tuple[float, ...]
    clip_score: float
    cmmd: float
    frechet: float | None = None  # where there are more pictures than the CLIP has numbers

    @property
    def calls(self) -> int:
        """Of the decoder for a picture."""
        steps = self.request.decoder.steps
        assert steps is not None
        return 2 * steps - 1 if self.request.decoder.sampler == "heun" else steps

    @property
    def interval(self) -> tuple[float, float, float]:
        """The share judged right, and from where to where it lies at 95%: captions are drawn, and pictures of one caption are
        alike, so the spread is that of captions."""
        return _lies(self.by_caption)

    def above(self, other: "Cell") -> tuple[float, float, float]:
        """By how much more is judged right, and from where to where that lies at 95%, caption by caption."""
        return _lies([mine - theirs for mine, theirs in zip(self.by_caption, other.by_caption, strict=True)])

    def worse(self, other: "Cell") -> bool:
        """Whether it is measurably worse, caption by caption."""
        return self.above(other)[2] < 0

    @property
    def values(self) -> dict[str, Any]:
        """As JSON holds it."""
        shares = {name: {"share": rate.share, "interval": [*rate.interval]} for name, rate in self.rates.items()}
        return {
            "cell": self.name, "calls": self.calls, "rates": shares, "judged": [*self.interval], "by_seed": self.by_seed,
            "clip_score": self.clip_score, "cmmd": self.cmmd, "frechet": self.frechet,
        }  # fmt: skip


def grid(template: Request, samplers: Sequence[str] = SAMPLERS, steps: Sequence[int] = STEPS) -> dict[str, Request]:
    """The cells of samplers and steps, by name; the rest is as the template has it. Raises `ValueError` for one that there is
    not."""
    return {
        f"{sampler}-{n}": replace(template, decoder=replace(template.decoder, sampler=sampler, steps=n))
        for sampler in samplers
        for n in steps
    }


def around(name: str, chosen: Request) -> dict[str, Request]:
    """The cells beside a chosen one: other guidance, and the linear prior."""
    cells = {
        f"{name}-guidance-{scale:g}": replace(chosen, decoder=replace(chosen.decoder, guidance_scale=scale))
        for scale in GUIDANCE
    }
    return {**cells, f"{name}-linear-prior": replace(chosen, prior=Sampling(sampler="linear"))}


def paint(
    painter: Painter, folder: Path, cells: Mapping[str, Request], scenes: int = SCENES, seeds: int = SEEDS
) -> Iterator[tuple[str, Standing]]:
    """Paint every cell's captions, telling which and how far it is."""
    captions = suite.captions_of(_items(scenes, seeds))
    for name, request in cells.items():
        run = begin(painter, folder / name, captions, request)
        for standing in generate(painter, run):
            yield name, standing


def judge(folder: Path, names: Sequence[str], clip: ClipFeatures, say: Say, seeds: int = SEEDS) -> list[Cell]:
    """What came of painted cells. Raises `ValueError` for one that is not complete."""
    return [_judged(folder, name, clip, say, seeds) for name in names]


def best(cells: Sequence[Cell]) -> Cell:
    """The cell with the fewest calls of the network that is not measurably worse than the one with the highest rate."""
    highest = max(cells, key=lambda cell: cell.interval[0])
    return min((cell for cell in cells if not cell.worse(highest)), key=lambda cell: (cell.calls, -cell.interval[0]))


def report(model: str, cells: Sequence[Cell], beside: Sequence[Cell], protocol: Mapping[str, Any]) -> Report:
    """Curves and tables of a sweep; `beside` are the cells around the best one."""
    chosen = best(cells)
    curves: dict[str, list[plots.Point]] = {}
    for cell in sorted(cells, key=lambda cell: cell.request.decoder.steps or 0):
        point = plots.Point(float(cell.request.decoder.steps or 0), *(100 * value for value in cell.interval))
        curves.setdefault(str(cell.request.decoder.sampler), []).append(point)
    header = (
        "cell",
        "network calls",
        "% right but for the style (95% of captions)",
        "over seeds",
        "shape",
        "count",
        "whole",
        "CLIP score",
        "CMMD",
    )
    return Report(
        title=f"Samplers and steps, {model}",
        summary=f"{chosen.rates[JUDGED].of} pictures a cell, of the same captions and seeds. Rates are what the oracle reads.",
        values={
            "cells": [cell.values for cell in cells],
            "around": [cell.values for cell in beside],
            "chosen": chosen.name,
        },
        protocol=protocol,
        numbers=(
            Number("chosen", chosen.name, "the fewest network calls of those not measurably worse than the best"),
        ),
        plots=(Plot("Right but for the style, against steps", plots.lines(curves, "steps", "% of pictures")),),
        tables=(
            Table("Samplers and steps", header, [_row(cell) for cell in cells], ours=[*cells].index(chosen)),
            Table(f"Around {chosen.name}", header, [_row(chosen), *(_row(cell) for cell in beside)], ours=0),
        ),
    )


def _row(cell: Cell) -> tuple[str, ...]:
    spread = f"{100 * mean(cell.by_seed):.0f} ± {100 * stdev(cell.by_seed):.0f}" if len(cell.by_seed) > 1 else ""
    told = (str(cell.rates[name]) for name in ("shape", "count", "whole"))
    return (
        cell.name,
        str(cell.calls),
        str(cell.rates[JUDGED]),
        spread,
        *told,
        f"{cell.clip_score:.1f}",
        f"{cell.cmmd:.2f}",
    )


def _items(scenes: int, seeds: int) -> list[Captioned]:
    """Every scene's caption with every seed."""
    said = [caption(scene, whole=True) for scene in suite.world_scenes(scenes, STREAM)]
    return [
        Captioned(f"{i:04}-{seed}", text, seed=1000 * seed + i) for seed in range(seeds) for i, text in enumerate(said)
    ]


def _judged(folder: Path, name: str, clip: ClipFeatures, say: Say, seeds: int) -> Cell:
    run = Run.opened(folder / name)
    pictures = suite.painted(run)
    scenes = suite.world_scenes(len(run.items) // seeds, STREAM)
    told = {picture: fidelity.verdict(_opened(path), _scene(picture, scenes)) for picture, path in pictures.items()}
    by_caption, by_seed = _means(told, 0), _means(told, 2)
    true = suite.draw_true(folder / suite.TRUE, len(run.items), run.template, say)
    theirs = measured(true, clip, folder, "true-pictures", say)
    ours = measured(pictures, clip, run.folder, "pictures", say)
    captions = {item.id: item.caption for item in run.items}
    return Cell(
        name, run.template, fidelity.rates(told.values()), by_caption, by_seed,
        caption_score(ours, captions, clip, say).values["clip_score"]["mean"], mean_discrepancy(ours, theirs).values["cmmd"],
        frechet(ours.moments, theirs.moments) if min(ours.count, theirs.count) > clip.dim else None,
    )  # fmt: skip


def _means(told: Mapping[str, Mapping[str, bool]], part: int) -> tuple[float, ...]:
    """The share judged right of the pictures that have a part of their names in common, in the order of those."""
    shares: dict[str, list[bool]] = {}
    for picture, verdict in told.items():
        shares.setdefault(picture.partition("-")[part], []).append(verdict[JUDGED])
    return tuple(mean(shares[name]) for name in sorted(shares))


def _lies(values: Sequence[float]) -> tuple[float, float, float]:
    """A mean, and from where to where it lies at 95%."""
    middle, half = mean(values), NORMAL * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return middle, middle - half, middle + half


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _scene(picture: str, scenes: Sequence[Scene]) -> Scene:
    return scenes[int(picture.partition("-")[0])]
