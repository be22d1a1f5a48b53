"""The scores of a run's pictures, against a reference and against their captions, as a report shows them."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any, Self

import torch

from kandinsky22.evaluation import plots, reference
from kandinsky22.evaluation.distances import SEED, SUBSETS, Mean, clip_score, cmmd, frechet, kernel_distance
from kandinsky22.evaluation.features import ClipFeatures, Features
from kandinsky22.evaluation.fidelity import ATTRIBUTES, Rates
from kandinsky22.evaluation.reference import Statistics
from kandinsky22.evaluation.report import Number, Plot, Table
from kandinsky22.moments import Moments

ShowProgress = Callable[[str, int, int], None]
"""(what is being done, steps done, steps in all)"""
DIVISORS = (8, 4, 2)  # the Frechet distance is also plotted for these fractions of the pictures


@dataclass(frozen=True)
class Scores:
    """Scores as JSON (`values`), as text, and as plots and tables. Those of several metrics can be added."""

    values: dict[str, Any] = field(default_factory=dict)
    numbers: tuple[Number, ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()

    def __add__(self, other: Self) -> Self:
        values = {**self.values, **other.values}
        return type(self)(values, self.numbers + other.numbers, self.plots + other.plots, self.tables + other.tables)


def cached_statistics(
    pictures: Mapping[str, Path],
    features: Features,
    folder: Path,
    name: str,
    show_progress: ShowProgress,
    *,
    part: bool = False,
) -> Statistics:
    """The statistics of pictures, cached in `folder` in a file whose name identifies the picture files and the network.

    part: these are part of a larger set, measured by one of several workers; a later call for the complete set uses the
    parts that are cached and measures the rest. Raises `ValueError` as `reference.measure` does.
    """
    stem = f"{name}-part" if part else name
    cache = folder / f"{stem}-{_digest(pictures, features)}.safetensors"
    if cache.exists():
        return reference.load(cache)
    parts = [*_cached_parts(pictures, features, folder, name)]
    measured = {picture for statistics in parts for picture in statistics.names}
    missing = {picture: path for picture, path in pictures.items() if picture not in measured}
    if missing:
        what = f"measuring {name.replace('-', ' ')}"
        parts.append(reference.measure(missing, features, progress=lambda done, of: show_progress(what, done, of)))
    statistics = reduce(add, parts)
    reference.save(cache, statistics)
    if not part:
        for outdated in set(folder.glob(f"{name}-{'[0-9a-f]' * 16}.safetensors")) - {cache}:
            outdated.unlink()
    return statistics


def _digest(pictures: Mapping[str, Path], features: Features) -> str:
    """Identifies picture files, by name, size and time of modification, and the network that measures them."""
    identity = [*reference.source_of(features)]
    for picture, path in sorted(pictures.items()):
        status = path.stat()
        identity += [picture, str(status.st_size), str(status.st_mtime_ns)]
    return hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]


def _cached_parts(pictures: Mapping[str, Path], features: Features, folder: Path, name: str) -> Iterator[Statistics]:
    """The cached statistics of disjoint parts of these pictures whose files have not changed since."""
    seen: set[str] = set()
    for cache in sorted(folder.glob(f"{name}-part-*.safetensors")):
        part = reference.load(cache)
        if not seen.isdisjoint(part.names) or not pictures.keys() >= set(part.names):
            continue
        if _digest({picture: pictures[picture] for picture in part.names}, features) == cache.stem.rpartition("-")[2]:
            seen.update(part.names)
            yield part


def frechet_distance(name: str, ours: Statistics, theirs: Statistics) -> Scores:
    """The Frechet distance, called `name`, also plotted for fewer pictures, since few pictures bias it upwards.

    Raises `ValueError` for too few pictures.
    """
    value = frechet(ours.moments, theirs.moments)
    rows, points = ours.rows, []
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    for divisor in DIVISORS:
        subset = rows[order[: len(rows) // divisor]]
        if len(subset) > rows.shape[1]:
            distance = frechet(Moments.of(subset), theirs.moments)
            points.append(plots.Point(len(subset), distance, distance, distance))
    points.append(plots.Point(len(rows), value, value, value))
    about = f"{ours.count:.0f} pictures against {_count(theirs)}; lower is better, and few pictures raise it"
    plot = Plot(f"{name} against the number of pictures", plots.lines({name: points}, "pictures", name))
    key = name.lower().replace(" ", "_")
    return Scores({key: value}, (Number(name, f"{value:.3f}", about),), (plot,) if len(points) > 1 else ())


def kid(ours: Statistics, theirs: Statistics, size: int) -> Scores:
    """KID, with its standard deviation over subsets of `size`. Raises `ValueError` for fewer pictures than that."""
    mean, deviation = kernel_distance(ours.rows, theirs.rows, size=size)
    text = f"{1000 * mean:.3f} ± {1000 * deviation:.3f}"
    about = f"times 1000; over {SUBSETS} subsets of {size}, ± their standard deviation"
    if deviation > abs(mean):
        about += "; it cannot be told from 0: the sets are alike, or more pictures are needed"
    values = {"mean": mean, "deviation": deviation, "subsets": SUBSETS, "size": size, "seed": SEED}
    return Scores({"kid": values}, (Number("KID", text, about),))


def cmmd_score(ours: Statistics, theirs: Statistics) -> Scores:
    """CMMD; both sets have embeddings of the same CLIP."""
    value = cmmd(ours.rows, theirs.rows)
    by = ours.source.name if ours.source is not None else ""
    return Scores({"cmmd": value}, (Number("CMMD", f"{value:.3f}", f"by {by}; lower is better"),))


def caption_score(
    ours: Statistics, captions: Mapping[str, str], clip: ClipFeatures, show_progress: ShowProgress, batch: int = 64
) -> Scores:
    """The CLIP score of pictures, from their embeddings by the same CLIP; captions: by the pictures' names."""
    means: list[Mean] = []
    values: list[float] = []
    names = ours.names
    for start in range(0, len(names), batch):
        part = names[start : start + batch]
        texts, rows = clip.texts([captions[name] for name in part]), ours.rows[start : start + batch]
        means.append(clip_score(texts, rows))
        values += [100 * max(0.0, float(c)) for c in torch.nn.functional.cosine_similarity(texts, rows)]
        show_progress("embedding captions", min(start + batch, len(names)), len(names))
    total = means[0]
    for other in means[1:]:
        total = total + other
    low, high = total.interval if total.count > 1 else (total.value, total.value)
    about = f"by {clip.name}; 100 times the cosine of a picture and its caption; higher is better"
    number = Number("CLIP score", f"{total.value:.2f} ({low:.2f}-{high:.2f})", about)
    plot = Plot("CLIP score of each picture", plots.histogram(values, "CLIP score"))
    return Scores(
        {"clip_score": {"mean": total.value, "interval": [low, high], "by": clip.fingerprint}}, (number,), (plot,)
    )


def fidelity(rates: Rates) -> Scores:
    """Prompt fidelity: the rate of each attribute, as the oracle reads it."""
    values = {
        name: {"right": rate.right, "of": rate.of, "share": rate.share, "interval": [*rate.interval]}
        for name, rate in rates.items()
    }
    rows = [(ATTRIBUTES[name], str(rate), str(rate.of)) for name, rate in rates.items()]
    table = Table(
        "Prompt fidelity",
        ("what", "% right (95% interval)", "pictures"),
        rows,
        "Read back from the pixels by the oracle of the picture world.",
    )
    whole = rates["whole"]
    return Scores({"fidelity": values}, (Number("whole caption right", f"{whole} %", "by the oracle"),), (), (table,))


def _count(statistics: Statistics) -> str:
    return f"{statistics.count:.0f}" if statistics.names else "a published reference"


def total(parts: Sequence[Scores]) -> Scores:
    """All scores together."""
    added = Scores()
    for part in parts:
        added = added + part
    return added
