"""Quality against steps for each sampler, in the picture world: the curves from which a default is chosen."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

from kandinsky22.evaluation import plots
from kandinsky22.evaluation.cells import CRITERION, CaptionSet, Cell
from kandinsky22.evaluation.report import Grid, Number, Plot, Report, Table
from kandinsky22.request import Request, Sampling

SAMPLERS = ("ddpm", "ddim", "dpmpp_2m", "unipc", "euler", "heun")
STEPS = (5, 10, 15, 20, 30, 50)
GUIDANCE = (1.0, 2.0, 3.0, 4.0, 6.0)
CAPTIONS = CaptionSet(scenes=40, seeds=5, stream=10)  # other scenes than those of the box's published scores
MAX_PICTURED = 4  # scenes that the page shows
CHOSEN_BY = ("plain", "whole")
WITHIN = 0.0201  # of all pictures: two points, with a margin so that rounding does not decide
RULE = f"at most {WITHIN:.0%} below the best, with the style and without it,"


def grid(template: Request, samplers: Sequence[str] = SAMPLERS, steps: Sequence[int] = STEPS) -> dict[str, Request]:
    """The template with every sampler at every number of steps, by name. Raises `ValueError` for an unknown sampler."""
    return {
        f"{sampler}-{n}": replace(template, decoder=replace(template.decoder, sampler=sampler, steps=n))
        for sampler in samplers
        for n in steps
    }


def guidance_variants(name: str, chosen: Request) -> dict[str, Request]:
    """A chosen cell with other guidance scales than its own."""
    return {
        f"{name}-guidance-{scale:g}": replace(chosen, decoder=replace(chosen.decoder, guidance_scale=scale))
        for scale in GUIDANCE
        if scale != chosen.decoder.guidance_scale
    }


def linear_prior_variant(name: str, chosen: Request) -> dict[str, Request]:
    """A chosen cell with the linear prior."""
    return {f"{name}-linear-prior": replace(chosen, prior=Sampling(sampler="linear"))}


def best(cells: Sequence[Cell]) -> Cell:
    """The cheapest cell whose rates are all near the best; of equally cheap ones, the one with the highest rates.

    The rates are those of `CHOSEN_BY`, and near means within `WITHIN`. If no cell is near the best in all of them, the
    one with the highest sum.

    The rates themselves are compared: "not measurably worse" would be easier to satisfy with fewer captions.
    """
    tops = {name: max(cell.rates[name].share for cell in cells) for name in CHOSEN_BY}
    near = [cell for cell in cells if all(tops[name] - cell.rates[name].share <= WITHIN for name in CHOSEN_BY)]
    return min(near or [max(cells, key=total)], key=lambda cell: (cell.cost, -total(cell)))


def total(cell: Cell) -> float:
    """The sum of the rates of `CHOSEN_BY`."""
    return sum(cell.rates[name].share for name in CHOSEN_BY)


def report(
    model: str, cells: Sequence[Cell], guided: Sequence[Cell], others: Sequence[Cell], protocol: Mapping[str, Any]
) -> Report:
    """Curves and tables of a sweep.

    guided: the best of `cells` with other guidance. others: cells to compare with the best of these, such as the linear
    prior.
    """
    chosen = best(cells)
    final = best([chosen, *guided])
    curves: dict[str, list[plots.Point]] = {}
    for cell in sorted(cells, key=lambda cell: cell.request.decoder.steps or 0):
        point = plots.Point(float(cell.request.decoder.steps or 0), *(100 * value for value in cell.interval))
        curves.setdefault(str(cell.request.decoder.sampler), []).append(point)
    around = [chosen, *guided, *others]
    scale = f"{final.request.decoder.guidance_scale:g}"
    return Report(
        title=f"Samplers and steps, {model}",
        summary=f"{chosen.rates[CRITERION].of} pictures per cell, of equal captions and seeds, read by the oracle.",
        values={
            "cells": [cell.values for cell in cells],
            "around": [cell.values | {"against": [*cell.difference_from(final)]} for cell in around],
            "chosen": chosen.name,
            "guidance_scale": final.request.decoder.guidance_scale,
        },
        protocol=protocol,
        numbers=(
            Number("sampler and steps", chosen.name, f"of those {RULE} the one with the fewest network calls"),
            Number(
                "guidance", scale, f"at these, of those {RULE} the one that computes least (1 halves it), then the best"
            ),
            *(
                Number(cell.name, _points(cell.difference_from(final)), f"points more right than {final.name}")
                for cell in others
            ),
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
        grids=(*_grids(cells), _side_by_side(around)),
    )


def _header(reference: Cell) -> tuple[str, ...]:
    return (
        "cell",
        "network calls",
        "% right but for the style (95%)",
        f"points against {reference.name} (95%, by caption)",
        "over seeds",
        "shape",
        "count",
        "whole",
        "CLIP score",
        "CMMD",
    )


def _row(cell: Cell, reference: Cell) -> tuple[str, ...]:
    spread = f"{100 * mean(cell.by_seed):.0f} ± {100 * stdev(cell.by_seed):.0f}" if len(cell.by_seed) > 1 else ""
    middle, low, high = (100 * value for value in cell.interval)
    return (
        cell.name,
        str(cell.calls),
        f"{middle:.0f} ({low:.0f}-{high:.0f})",
        "" if cell is reference else _points(cell.difference_from(reference)),
        spread,
        *(str(cell.rates[name]) for name in ("shape", "count", "whole")),
        f"{cell.clip_score:.1f}",
        f"{cell.cmmd:.2f}",
    )


def _points(difference: tuple[float, float, float]) -> str:
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in difference))


def _grids(cells: Sequence[Cell]) -> Iterator[Grid]:
    """A grid for each of the first captions, with a row per sampler and a column per number of steps."""
    by_setting = {(str(cell.request.decoder.sampler), cell.request.decoder.steps): cell for cell in cells}
    samplers, steps = dict.fromkeys(sampler for sampler, _ in by_setting), dict.fromkeys(n for _, n in by_setting)
    for picture, caption in _first_captions(cells):
        rows = [
            (
                sampler,
                [by_setting[sampler, n].pictures.get(picture) if (sampler, n) in by_setting else None for n in steps],
            )
            for sampler in samplers
        ]
        yield Grid(caption, [f"{n} steps" for n in steps], rows)


def _side_by_side(cells: Sequence[Cell]) -> Grid:
    """A grid with a row for each of the first captions and a column per cell."""
    rows = [(caption, [cell.pictures.get(picture) for cell in cells]) for picture, caption in _first_captions(cells)]
    return Grid(f"Around {cells[0].name}", [cell.name for cell in cells], rows)


def _first_captions(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """(id, caption) of the first pictures, in their first seed."""
    captions = {name: picture.caption for cell in cells for name, picture in cell.pictures.items()}
    return [(name, captions[name]) for name in sorted(captions) if name.endswith("-0")][:MAX_PICTURED]
