"""The numbers of a run's pictures: against a reference, against their captions, and what to say beside each."""

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

Say = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, of how much)"""
FEWER = (8, 4, 2)  # parts of the pictures at which the Frechet distance is shown as well


@dataclass(frozen=True)
class Scores:
    """Numbers as JSON holds them (`values`), as people read them, and drawn. Those of several measures add up."""

    values: dict[str, Any] = field(default_factory=dict)
    numbers: tuple[Number, ...] = ()
    plots: tuple[Plot, ...] = ()
    tables: tuple[Table, ...] = ()

    def __add__(self, other: Self) -> Self:
        values = {**self.values, **other.values}
        return type(self)(values, self.numbers + other.numbers, self.plots + other.plots, self.tables + other.tables)


def measured(
    pictures: Mapping[str, Path], features: Features, folder: Path, name: str, say: Say, *, part: bool = False
) -> Statistics:
    """The statistics of pictures, kept in `folder` under a name that tells these very files and this network from others.

    part: of a set that workers share out; whoever asks for the whole set later takes what is kept of its parts, and measures the
    rest. Raises `ValueError` as `reference.measure` does.
    """
    stem = f"{name}-part" if part else name
    kept = folder / f"{stem}-{_digest(pictures, features)}.safetensors"
    if kept.exists():
        return reference.load(kept)
    parts = [*_parts(pictures, features, folder, name)]
    there = {picture for of in parts for picture in of.names}
    lacking = {picture: path for picture, path in pictures.items() if picture not in there}
    if lacking:
        what = f"looking at the {name.replace('-', ' ')}"
        parts.append(reference.measure(lacking, features, progress=lambda done, of: say(what, done, of)))
    made = reduce(add, parts)
    reference.save(kept, made)
    if not part:
        for other in set(folder.glob(f"{name}-{'[0-9a-f]' * 16}.safetensors")) - {kept}:
            other.unlink()
    return made


def _digest(pictures: Mapping[str, Path], features: Features) -> str:
    """What tells these very files, seen by this network, from others."""
    told = [*reference.by(features)]
    for picture, path in sorted(pictures.items()):
        found = path.stat()
        told += [picture, str(found.st_size), str(found.st_mtime_ns)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def _parts(pictures: Mapping[str, Path], features: Features, folder: Path, name: str) -> Iterator[Statistics]:
    """What is kept of parts of these pictures that do not overlap, as the files are now."""
    seen: set[str] = set()
    for kept in sorted(folder.glob(f"{name}-part-*.safetensors")):
        part = reference.load(kept)
        if not seen.isdisjoint(part.names) or not pictures.keys() >= set(part.names):
            continue
        if _digest({picture: pictures[picture] for picture in part.names}, features) == kept.stem.rpartition("-")[2]:
            seen.update(part.names)
            yield part


def frechet_distance(name: str, ours: Statistics, theirs: Statistics) -> Scores:
    """FID, or what it is called with other features, and how it falls with the number of pictures: it is biased upwards by
    few. Raises `ValueError` for too few."""
    value = frechet(ours.moments, theirs.moments)
    rows, points = ours.rows, []
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    for part in FEWER:
        some = rows[order[: len(rows) // part]]
        if len(some) > rows.shape[1]:
            distance = frechet(Moments.of(some), theirs.moments)
            points.append(plots.Point(len(some), distance, distance, distance))
    points.append(plots.Point(len(rows), value, value, value))
    about = f"{ours.count:.0f} pictures against {_count(theirs)}; lower is better, and few pictures raise it"
    drawn = Plot(f"{name} against the number of pictures", plots.lines({name: points}, "pictures", name))
    key = name.lower().replace(" ", "_")
    return Scores({key: value}, (Number(name, f"{value:.3f}", about),), (drawn,) if len(points) > 1 else ())


def kernel(ours: Statistics, theirs: Statistics, size: int) -> Scores:
    """KID with its deviation over subsets. Raises `ValueError` for fewer pictures than a subset has."""
    mean, deviation = kernel_distance(ours.rows, theirs.rows, size=size)
    shown = f"{1000 * mean:.3f} ± {1000 * deviation:.3f}"
    about = f"times 1000; over {SUBSETS} subsets of {size}, ± their standard deviation; not biased by few pictures"
    values = {"mean": mean, "deviation": deviation, "subsets": SUBSETS, "size": size, "seed": SEED}
    return Scores({"kid": values}, (Number("KID", shown, about),))


def mean_discrepancy(ours: Statistics, theirs: Statistics) -> Scores:
    """CMMD."""
    value = cmmd(ours.rows, theirs.rows)
    by = ours.by.name if ours.by is not None else ""
    return Scores({"cmmd": value}, (Number("CMMD", f"{value:.3f}", f"by {by}; lower is better"),))


def caption_score(
    ours: Statistics, captions: Mapping[str, str], clip: ClipFeatures, say: Say, batch: int = 64
) -> Scores:
    """The CLIP score of pictures, whose statistics are by the same CLIP, and the captions of their names."""
    means: list[Mean] = []
    values: list[float] = []
    names = ours.names
    for start in range(0, len(names), batch):
        some = names[start : start + batch]
        texts, rows = clip.texts([captions[name] for name in some]), ours.rows[start : start + batch]
        means.append(clip_score(texts, rows))
        values += [100 * max(0.0, float(c)) for c in torch.nn.functional.cosine_similarity(texts, rows)]
        say("reading the captions", min(start + batch, len(names)), len(names))
    total = means[0]
    for other in means[1:]:
        total = total + other
    low, high = total.interval if total.count > 1 else (total.value, total.value)
    about = f"by {clip.name}; 100 times the cosine of a picture and its caption; higher is better"
    number = Number("CLIP score", f"{total.value:.2f} ({low:.2f}-{high:.2f})", about)
    drawn = Plot("CLIP score of each picture", plots.histogram(values, "CLIP score"))
    return Scores(
        {"clip_score": {"mean": total.value, "interval": [low, high], "by": clip.fingerprint}}, (number,), (drawn,)
    )


def fidelity(rates: Rates) -> Scores:
    """What the oracle found right, attribute by attribute."""
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
    """All of them."""
    added = Scores()
    for part in parts:
        added = added + part
    return added
