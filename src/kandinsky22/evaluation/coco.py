"""The model card's evaluation: FID, KID, CLIP score and CMMD of pictures for COCO captions, against real pictures.

It scores a painted run (see `generate`). Statistics of pictures are cached in the run's folder, so that scoring again
is fast.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kandinsky22.evaluation import painted_run, plots, protocol, published, reference, scores
from kandinsky22.evaluation.features import ClipFeatures, Features
from kandinsky22.evaluation.inception import SHA256 as INCEPTION
from kandinsky22.evaluation.manifest import Run
from kandinsky22.evaluation.reference import Statistics
from kandinsky22.evaluation.report import Plot, Report, Table
from kandinsky22.evaluation.scores import Scores, ShowProgress, cached_statistics


def reference_statistics(
    place: Path, features: Features, folder: Path, name: str, show_progress: ShowProgress
) -> Statistics:
    """The statistics of a reference: a folder of pictures, measured and cached in `folder`, or a file of statistics.

    Raises `ValueError` for statistics that cannot be compared with those of `features`.
    """
    if place.is_dir():
        return cached_statistics(reference.find_pictures(place), features, folder, name, show_progress)
    statistics = reference.load(place)
    statistics.check(reference.source_of(features))
    if len(statistics.moments.mean) != features.dim:
        raise ValueError(
            f"{place} has {len(statistics.moments.mean)} features and {features.name} has {features.dim}; measure it "
            "again with `kandinsky22 evaluate stats`"
        )
    return statistics


@dataclass(frozen=True, slots=True)
class RealPictures:
    """The number of real pictures, their distinct (height, width), and their statistics if they were measured."""

    count: float
    sizes: Sequence[tuple[int, int]]
    statistics: Statistics | None = None


def real_pictures(
    place: Path, features: Features, folder: Path, name: str, show_progress: ShowProgress, *, measure: bool
) -> RealPictures:
    """The real pictures of a reference. measure: with statistics; False reads only the headers of picture files."""
    if measure or not place.is_dir():
        statistics = reference_statistics(place, features, folder, name, show_progress)
        return RealPictures(statistics.count, statistics.sizes, statistics)
    pictures = reference.find_pictures(place)
    return RealPictures(len(pictures), reference.sizes_of(pictures, decode=False))


def report(
    run: Run,
    place: Path,
    theirs: Statistics,
    inception: Features,
    *,
    clip: ClipFeatures | None = None,
    cmmd: tuple[ClipFeatures, Statistics] | None = None,
    kid_size: int,
    any_size: bool,
    show_progress: ShowProgress,
    command: str,
    remarks: Sequence[str] = (),
) -> Report:
    """The report on a painted run.

    place, theirs: the reference and its statistics by Inception. clip: for the CLIP score. cmmd: a CLIP, and its
    statistics of the reference. kid_size: pictures of a subset for KID. any_size: compare pictures of one size with
    real ones of another. remarks: sentences that the report shows first.

    The run's statistics are cached as "pictures" (Inception), "pictures-by-clip" and "pictures-for-cmmd". Raises
    `ValueError` for a run that is not complete, and for sets that cannot be compared.
    """
    pictures, folder, notes = painted_run.pictures_of(run), run.folder, [*remarks]
    ours = cached_statistics(pictures, inception, folder, "pictures", show_progress)
    theirs.check(ours, any_size=any_size)
    parts = [scores.frechet_distance("FID", ours, theirs)]
    networks: dict[str, Features] = {"inception": inception}
    comparison: dict[str, Any] = {"any_size": any_size}
    if not protocol.is_published(inception):
        notes.append(
            f"Inception's weights are not the published file (SHA-256 {INCEPTION[:12]}...), so FID and KID can only be "
            "compared with numbers by these weights."
        )
    if theirs.features is not None:
        parts.append(scores.kid(ours, theirs, kid_size))
        comparison["kid"] = {name: parts[-1].values["kid"][name] for name in ("subsets", "size", "seed")}
    else:
        notes.append("KID is left out: the reference holds a mean and a covariance only.")
    if clip is not None:
        by_clip = cached_statistics(pictures, clip, folder, "pictures-by-clip", show_progress)
        parts.append(scores.caption_score(by_clip, painted_run.captions_of(run), clip, show_progress))
        networks["clip"] = clip
    else:
        notes.append("The CLIP score is left out: no CLIP was given.")
    if cmmd is not None:
        for_cmmd = cached_statistics(pictures, cmmd[0], folder, "pictures-for-cmmd", show_progress)
        parts.append(scores.cmmd_score(for_cmmd, cmmd[1]))
        networks["cmmd"] = cmmd[0]
    else:
        notes.append("CMMD is left out: no CLIP was given for it.")
    total = scores.total(parts)
    return painted_run.report_of(
        run,
        f"{run.template.model} on {len(pictures)} captions",
        "Zero-shot, after the model card's COCO_30k.",
        total + _beside_the_card(run.template.model, total.values["fid"], len(pictures)),
        networks,
        {"reference": protocol.reference_protocol(place, theirs), "comparison": comparison},
        command,
        notes,
    )


def _beside_the_card(model: str, fid: float, count: int) -> Scores:
    """The card's table, with this FID in its place among the rows."""
    name = f"{model}, {count} pictures, this protocol"
    ours = published.PublishedFID(name, fid, "this report")
    ranked = sorted([*published.CARD_TABLE, ours], key=lambda figure: figure.fid)
    header = ("model", "FID", "source", "protocol, as far as it is stated")
    card, family = (
        [(figure.model, f"{figure.fid:.2f}", figure.source, figure.protocol) for figure in figures]
        for figures in (ranked, published.FAMILY)
    )
    bars = plots.bars({figure.model: figure.fid for figure in ranked}, "FID", ours=name)
    return Scores(
        plots=(Plot("Beside the model card's table", bars),),
        tables=(
            Table("The model card's table", header, card, published.PROTOCOLS_DIFFER, ranked.index(ours)),
            Table("The family's paper", header, family),
        ),
    )
