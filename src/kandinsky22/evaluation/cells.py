"""Cells of a comparison in the picture world: each is one way of sampling, with its own run folder and its scores.

All cells paint the same captions with the same seeds. A comparison that was stopped resumes, as its runs do. A cell
whose request has a seed adds it to the seeds of all captions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from kandinsky22.backends.estimate import Estimate, estimate, seconds_per_picture
from kandinsky22.backends.run_folder import differences
from kandinsky22.backends.run_painting import RunProgress
from kandinsky22.backends.run_state import failed
from kandinsky22.backends.work_units import UnitPainter
from kandinsky22.compositions import Scene, caption
from kandinsky22.evaluation import fidelity, painted_run, world
from kandinsky22.evaluation.captions import Captioned
from kandinsky22.evaluation.distances import NORMAL, frechet
from kandinsky22.evaluation.features import ClipFeatures
from kandinsky22.evaluation.fidelity import Rates
from kandinsky22.evaluation.generate import generate, open_run
from kandinsky22.evaluation.manifest import Run
from kandinsky22.evaluation.protocol import run_protocol
from kandinsky22.evaluation.report import Picture
from kandinsky22.evaluation.scores import ShowProgress, cached_statistics, caption_score, cmmd_score
from kandinsky22.request import Request
from kandinsky22.request.picture_file import read_picture

CRITERION = "plain"  # all attributes but the style, which depends on MoVQ more than on sampling


@dataclass(frozen=True, slots=True)
class CaptionSet:
    """The captions that every cell paints: `scenes` of them, each with `seeds` seeds; `stream` selects the scenes."""

    scenes: int
    seeds: int
    stream: int

    def draw(self) -> list[Scene]:
        """The scenes."""
        return world.scenes(self.scenes, self.stream)

    def items(self, first_seed: int = 0) -> list[Captioned]:
        """Every caption with every seed; ids are "SCENE-SEED", seeds start from `first_seed`."""
        texts = [caption(scene, whole=True) for scene in self.draw()]
        return [
            Captioned(f"{i:04}-{seed}", text, seed=1000 * seed + i + first_seed)
            for seed in range(self.seeds)
            for i, text in enumerate(texts)
        ]


@dataclass(frozen=True, slots=True)
class Cell:
    """One way of sampling, and its scores.

    rates: of each attribute. by_caption, by_seed: the share of pictures that are right by `CRITERION`. frechet: None
    unless there are more pictures than the CLIP's embedding has dimensions.
    """

    name: str
    request: Request
    rates: Rates
    by_caption: Mapping[str, float]
    by_seed: tuple[float, ...]
    clip_score: float
    cmmd: float
    frechet: float | None = None
    pictures: Mapping[str, Picture] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """Calls of the decoder's U-Net for a picture."""
        return self.request.decoder.network_calls

    @property
    def cost(self) -> int:
        """Rows in all calls for a picture: guidance doubles the rows of a call."""
        return self.calls * (1 if self.request.decoder.guidance_scale == 1 else 2)

    @property
    def interval(self) -> tuple[float, float, float]:
        """The share that is right by `CRITERION`, and its 95% interval: (mean, low, high).

        The error is that of the captions' means, since pictures of the same caption are correlated.
        """
        return _mean_interval([*self.by_caption.values()])

    def difference_from(self, other: "Cell") -> tuple[float, float, float]:
        """The difference in the share that is right, and its 95% interval, over captions that both have pictures of.

        Raises `ValueError` if there are none.
        """
        common = [name for name in self.by_caption if name in other.by_caption]
        if not common:
            raise ValueError(f"{self.name} and {other.name} have no caption in common; see failed-*.jsonl in both")
        return _mean_interval([self.by_caption[name] - other.by_caption[name] for name in common])

    @property
    def values(self) -> dict[str, Any]:
        """Its scores as JSON, for `report.json`."""
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


def estimate_cells(
    painter: UnitPainter,
    folder: Path,
    cells: Mapping[str, Request],
    captions: CaptionSet,
    *,
    retry: bool = False,
    annotations: Callable[[], Mapping[str, Any]] = dict,
) -> Estimate:
    """What all cells still need.

    Where the time is unknown, one work unit each of the cells with the most and the fewest network calls is painted and
    timed, and other cells are interpolated. retry: as `generate` takes it. annotations: see `Run.create_or_open`.

    Raises `ValueError` as `open_run` does for any of the cells, and if the disk has too little space.
    """
    runs = [_open_cell(painter, folder / name, request, captions, annotations) for name, request in cells.items()]
    needs = [estimate(run, processes=painter.processes, retry=retry) for run in runs]
    sum(needs, start=Estimate.none(folder)).check()
    unfinished = sorted((run for run, need in zip(runs, needs, strict=True) if need.pictures), key=_calls, reverse=True)
    for run in (*unfinished[:1], *unfinished[-1:]):
        if seconds_per_picture(run) is None:
            for _ in generate(painter, run, max_units=1, retry=retry):
                pass
    known = {_calls(run): seconds for run in runs if (seconds := seconds_per_picture(run)) is not None}
    total = Estimate.none(folder)
    for run in runs:
        need = estimate(run, processes=painter.processes, retry=retry)
        if need.seconds is None and known:
            seconds = float(np.interp(_calls(run), sorted(known), [known[calls] for calls in sorted(known)]))
            need = replace(need, seconds=seconds * need.pictures / painter.processes)
        total += need
    return total


def paint_cells(
    painter: UnitPainter, folder: Path, cells: Mapping[str, Request], captions: CaptionSet, *, retry: bool = False
) -> Iterator[tuple[str, RunProgress]]:
    """Paint every cell's captions; yields the cell's name and its progress. retry: as `generate` takes it."""
    for name, request in cells.items():
        for progress in generate(painter, _open_cell(painter, folder / name, request, captions), retry=retry):
            yield name, progress


def score_cells(
    folder: Path, names: Sequence[str], clip: ClipFeatures, captions: CaptionSet, show_progress: ShowProgress
) -> list[Cell]:
    """The scores of painted cells. Raises `ValueError` for a cell that is not complete."""
    scenes = captions.draw()
    return [_score(folder, name, clip, scenes, show_progress) for name in names]


def cells_protocol(folder: Path, names: Sequence[str], clip: ClipFeatures, command: str) -> dict[str, Any]:
    """The protocol of a comparison: the first cell's run, the other cells' differences from it, and the scoring."""
    runs = {name: Run.open(folder / name) for name in names}
    first = next(iter(runs.values()))
    cells = {
        name: {what: now for what, _, now in differences(first.settings, run.settings)} for name, run in runs.items()
    }
    scenes = len({item.caption for item in first.items})
    lost = {name: sorted(failed(run)) for name, run in runs.items()}
    return run_protocol(first, {"clip": clip}, command) | {
        "cells": cells,
        "captions": {"scenes": scenes, "pictures": len(first.items)},
        "failed": lost,
        "oracle": f"{CRITERION}: {fidelity.ATTRIBUTES[CRITERION]}",
        "reference": f"{len(first.items)} true pictures of other fresh scenes",
    }


def _open_cell(
    painter: UnitPainter,
    folder: Path,
    request: Request,
    captions: CaptionSet,
    annotations: Callable[[], Mapping[str, Any]] = dict,
) -> Run:
    items = captions.items(request.seed or 0)
    return open_run(painter, folder, world.unfiled_captions(items), request, annotations=annotations)


def _calls(run: Run) -> int:
    return run.template.decoder.network_calls


def _score(folder: Path, name: str, clip: ClipFeatures, scenes: Sequence[Scene], show_progress: ShowProgress) -> Cell:
    run = Run.open(folder / name)
    pictures = painted_run.pictures_of(run)
    verdicts = {picture: _verdict(path, scenes[int(picture.partition("-")[0])]) for picture, path in pictures.items()}
    true = world.true_pictures(folder / world.TRUE, len(run.items), run.template, show_progress)
    theirs = cached_statistics(true, clip, folder, "true-pictures", show_progress)
    ours = cached_statistics(pictures, clip, run.folder, "pictures", show_progress)
    captions = painted_run.captions_of(run)
    return Cell(
        name,
        run.template,
        fidelity.rates(verdicts.values()),
        by_caption=_shares(verdicts, 0),
        by_seed=tuple(_shares(verdicts, 2).values()),
        clip_score=caption_score(ours, captions, clip, show_progress).values["clip_score"]["mean"],
        cmmd=cmmd_score(ours, theirs).values["cmmd"],
        frechet=frechet(ours.moments, theirs.moments) if min(ours.count, theirs.count) > clip.dim else None,
        pictures={picture: Picture(path, captions[picture]) for picture, path in pictures.items()},
    )


def _verdict(path: Path, scene: Scene) -> dict[str, bool]:
    return fidelity.verdict(read_picture(path), scene)


def _shares(verdicts: Mapping[str, Mapping[str, bool]], part: int) -> dict[str, float]:
    """The share of right pictures by a part of their ids "SCENE-SEED" (0: scene, 2: seed), in ascending order."""
    right: dict[str, list[bool]] = {}
    for picture, verdict in verdicts.items():
        right.setdefault(picture.partition("-")[part], []).append(verdict[CRITERION])
    return {name: mean(right[name]) for name in sorted(right)}


def _mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The mean of values and its 95% interval: (mean, low, high)."""
    middle, half = mean(values), NORMAL * stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return middle, middle - half, middle + half
