"""Whole evaluations: the model card's, over captions of COCO, and that of the picture world, where an oracle reads along.

Both take a run that is painted (`generate`) and make a `Report` of it. What was measured of pictures is kept in the run's
folder, so that scoring again is quick.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kandinsky22.compositions import Scene, caption, render, sample
from kandinsky22.engine.kandinsky import Kandinsky
from kandinsky22.evaluation import fidelity, plots, protocol, published, reference, scores
from kandinsky22.evaluation.captions import Captioned, Captions
from kandinsky22.evaluation.features import ClipFeatures, Features
from kandinsky22.evaluation.generate import failed, is_whole
from kandinsky22.evaluation.inception import SHA256 as INCEPTION
from kandinsky22.evaluation.manifest import NOTED, Run, Shard, unfilled
from kandinsky22.evaluation.reference import Statistics
from kandinsky22.evaluation.report import SHOWN, Plot, Report, Shown, Table
from kandinsky22.evaluation.scores import Say, Scores, measured
from kandinsky22.files import atomic_write
from kandinsky22.request import Defaults, Request

WORLD_SEED = 22  # the training of the box draws scenes from 0, and looks at those of 1
TRUE_STREAM = 1  # of scenes
TRUE = "true"  # the folder of true pictures that those of the world are compared with


def painted(run: Run) -> dict[str, Path]:
    """The pictures of a run by id. Raises `ValueError` where some are neither painted nor given up."""
    given_up = failed(run)
    missing = [item.id for item in run.items if item.id not in given_up and not is_whole(run.picture(item))]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(run.items)} pictures of {run.folder} are not painted yet; paint the other shards, then "
            "give the same command without --shard"
        )
    found = {item.id: run.picture(item) for item in run.items if item.id not in given_up}
    if not found:
        raise ValueError(f"none of the captions of {run.folder} could be painted; see failed-*.jsonl there")
    return found


def complete(
    folder: Path,
    captions: Captions,
    request: Request,
    *,
    seed: int | None = None,
    batch: int | None = None,
    dtype: str | None = None,
    model: Kandinsky | None = None,
    retry: bool = False,
) -> Run | None:
    """The run of a folder that needs no more painting, so that it can be scored where its model is not. None where there is none,
    or it has to be gone on with: to `retry` captions that failed, too.

    What the request, seed, batch and dtype leave open (None) is as it was painted. model: the one that is asked for, if it is at
    hand; its weights are compared. Raises `ValueError` naming the first difference of what is asked for from what was painted.
    """
    try:
        run = Run.opened(folder)
        painted(run)
    except ValueError:
        return None
    if retry and failed(run):
        return None
    t = run.template
    request = (
        request.expand_speed(model.defaults) if model else replace(request, speed=None)
    )  # a speed's steps are a model's
    assert t.height is not None and t.width is not None
    asked = unfilled(request.resolved(Defaults(height=t.height, width=t.width, prior=t.prior, decoder=t.decoder)))
    name = Path(request.model).expanduser().resolve().name if model is None else model.name
    told = {"seed": seed, "batch": batch, "dtype": dtype}
    now = {name: value for name, value in run.about.items() if name not in NOTED}
    now |= {name: value for name, value in told.items() if value is not None}
    now["request"] = json.loads(replace(asked, model=name).to_json())
    now["captions"] = {"sha256": captions.sha256, "count": len(captions.items)}
    if model is not None:
        now["weights"] = model.made_by(t)["weights"]
    run.check_same(now)
    return run


def statistics_of(place: Path, features: Features, folder: Path, name: str, say: Say) -> Statistics:
    """The reference: a folder of pictures, measured once and kept in `folder`, or a file of statistics. Raises `ValueError` for
    one that cannot be compared with what `features` measures."""
    if place.is_dir():
        return measured(reference.pictures_in(place), features, folder, name, say)
    found = reference.load(place)
    found.check(reference.by(features))
    if len(found.moments.mean) != features.dim:
        raise ValueError(
            f"{place} has {len(found.moments.mean)} features and {features.name} makes {features.dim}; measure it again with "
            "`kandinsky22 evaluate stats`"
        )
    return found


@dataclass(frozen=True, slots=True)
class Real:
    """Real pictures, as far as they were looked at: how many, of which sizes, and their statistics, if they were measured."""

    count: float
    sizes: Sequence[tuple[int, int]]
    statistics: Statistics | None = None


def real_pictures(place: Path, features: Features, folder: Path, name: str, say: Say, *, whole: bool) -> Real:
    """What `statistics_of` tells; of a folder, if not the `whole` is to be measured, what its pictures' first bytes say."""
    if whole or not place.is_dir():
        found = statistics_of(place, features, folder, name, say)
        return Real(found.count, found.sizes, found)
    pictures = reference.pictures_in(place)
    return Real(len(pictures), reference.sizes_of(pictures, whole=False))


def measure_part(run: Run, shard: Shard, networks: Mapping[str, Features], say: Say) -> None:
    """Measure a shard's pictures, for whoever scores the whole. networks: by the names that `coco` keeps statistics under."""
    items = [item for pack in run.packs(shard) for item in pack]
    pictures = {item.id: run.picture(item) for item in items if is_whole(run.picture(item))}
    for name, features in networks.items():
        if pictures:
            measured(pictures, features, run.folder, name, say, part=True)


def coco(
    run: Run,
    place: Path,
    theirs: Statistics,
    inception: Features,
    *,
    clip: ClipFeatures | None = None,
    cmmd: tuple[ClipFeatures, Statistics] | None = None,
    kid_size: int,
    any_size: bool,
    say: Say,
    command: str,
    remarks: Sequence[str] = (),
) -> Report:
    """The card's evaluation of a painted run against the statistics `theirs`, of what is at `place`. clip: for the CLIP score.
    cmmd: a CLIP, and the statistics of the same real pictures by it. remarks: what else is to be said.

    Raises `ValueError` for a run that is not complete, and for what cannot be compared.
    """
    pictures, folder, said = painted(run), run.folder, [*remarks]
    ours = measured(pictures, inception, folder, "pictures", say)
    theirs.check(ours, any_size=any_size)
    parts = [scores.frechet_distance("FID", ours, theirs)]
    networks: dict[str, Features] = {"inception": inception}
    how: dict[str, Any] = {"any_size": any_size}
    if not protocol.published(inception):
        said.append(
            f"Inception's weights are not the published file (SHA-256 {INCEPTION[:12]}...), so FID and KID compare with numbers "
            "by these weights alone."
        )
    if theirs.features is not None:
        parts.append(scores.kernel(ours, theirs, kid_size))
        how["kid"] = {name: parts[-1].values["kid"][name] for name in ("subsets", "size", "seed")}
    else:
        said.append("KID is left out: the reference holds a mean and a covariance only.")
    if clip is not None:
        seen = measured(pictures, clip, folder, "pictures-by-clip", say)
        parts.append(scores.caption_score(seen, _captions(run), clip, say))
        networks["clip"] = clip
    else:
        said.append("The CLIP score is left out: no CLIP was named.")
    if cmmd is not None:
        seen = measured(pictures, cmmd[0], folder, "pictures-for-cmmd", say)
        parts.append(scores.mean_discrepancy(seen, cmmd[1]))
        networks["cmmd"] = cmmd[0]
    else:
        said.append("CMMD is left out: no CLIP for it was named.")
    total = scores.total(parts)
    return _report(
        run,
        f"{run.template.model} on {len(pictures)} captions",
        "Zero-shot, after the model card's COCO_30k.",
        total + _beside_the_card(run.template.model, total.values["fid"], len(pictures)),
        networks,
        {"reference": protocol.of_reference(place, theirs), "comparison": how},
        command,
        said,
    )


def world_scenes(count: int, *stream: int) -> list[Scene]:
    """Scenes that no training drew; another `stream` gives others."""
    return [sample(np.random.default_rng([WORLD_SEED, *stream, i])) for i in range(count)]


def world_captions(count: int) -> Captions:
    """What they are said to be, in one plain sentence each; the seed of each is its number."""
    return captions_of(
        [Captioned(f"{i:05}", caption(scene, whole=True), seed=i) for i, scene in enumerate(world_scenes(count))]
    )


def captions_of(items: list[Captioned]) -> Captions:
    """Captions that stand in no file."""
    digest = hashlib.sha256("\n".join(item.caption for item in items).encode())
    return Captions(tuple(items), digest.hexdigest())


def world(run: Run, clip: ClipFeatures, *, say: Say, command: str) -> Report:
    """The picture world's evaluation of a painted run of `world_captions`: the oracle reads every picture, and the model's own
    CLIP compares all of them with true pictures of as many other scenes."""
    pictures, folder = painted(run), run.folder
    scenes = world_scenes(len(run.items))
    told = {}
    for i, item in enumerate(run.items):
        if item.id in pictures:
            with Image.open(pictures[item.id]) as picture:
                told[item.id] = fidelity.verdict(picture, scenes[i])
        say("reading the pictures", i + 1, len(run.items))
    theirs = measured(draw_true(folder / TRUE, len(run.items), run.template, say), clip, folder, "true-pictures", say)
    ours = measured(pictures, clip, folder, "pictures", say)
    parts = [scores.fidelity(fidelity.rates(told.values())), scores.caption_score(ours, _captions(run), clip, say)]
    if min(ours.count, theirs.count) > clip.dim:
        parts.append(scores.frechet_distance("Frechet distance", ours, theirs))
    size = min(1000, int(min(ours.count, theirs.count)) // 2)
    if size > 1:
        parts.append(scores.kernel(ours, theirs, size))
    parts.append(scores.mean_discrepancy(ours, theirs))
    return _report(
        run,
        f"{run.template.model} in the picture world, {len(pictures)} captions",
        "Fresh scenes that no training saw; distances are over the model's own CLIP, so they compare with each other alone.",
        scores.total(parts),
        {"clip": clip},
        {"reference": f"{theirs.count:.0f} true pictures of other fresh scenes"},
        command,
    )


def _report(
    run: Run,
    title: str,
    summary: str,
    total: Scores,
    features: Mapping[str, Features],
    more: Mapping[str, Any],
    command: str,
    remarks: Sequence[str] = (),
) -> Report:
    lost = failed(run)
    if lost:
        remarks = [f"{len(lost)} of {len(run.items)} captions could not be painted and are left out.", *remarks]
    shown = [Shown(run.picture(item), item.caption) for item in run.items if item.id not in lost][:SHOWN]
    values = {"pictures": len(run.items) - len(lost), "features": protocol.networks(features)}
    return Report(
        title=title,
        summary=summary,
        values=total.values | values,
        protocol=protocol.of_run(run, features, command, **more),
        numbers=total.numbers,
        remarks=remarks,
        plots=total.plots,
        tables=total.tables,
        shown=shown,
    )


def _beside_the_card(model: str, fid: float, count: int) -> Scores:
    """The card's table with this number in it."""
    name = f"{model}, {count} pictures, this protocol"
    ranked = sorted([*published.CARD_TABLE, published.Figure(name, fid, "this report")], key=lambda figure: figure.fid)
    rows = [(figure.model, f"{figure.fid:.2f}", figure.source, figure.protocol) for figure in ranked]
    ours = next(i for i, figure in enumerate(ranked) if figure.model == name)
    header = ("model", "FID", "source", "protocol, as far as it is said")
    family = [(figure.model, f"{figure.fid:.2f}", figure.source, figure.protocol) for figure in published.FAMILY]
    drawn = plots.bars({figure.model: figure.fid for figure in ranked}, "FID", ours=name)
    card = Table("The model card's table", header, rows, published.PROTOCOLS_DIFFER, ours)
    return Scores(
        plots=(Plot("Beside the model card's table", drawn),),
        tables=(card, Table("The family's paper", header, family)),
    )


def draw_true(folder: Path, count: int, template: Request, say: Say) -> dict[str, Path]:
    """True pictures, of the template's size, of scenes that nothing is painted after; each is written once."""
    height, width = template.height or 0, template.width or 0
    side, found = min(height, width), {}
    for i, scene in enumerate(world_scenes(count, TRUE_STREAM)):
        path = found[f"{i:05}.png"] = folder / f"{height}x{width}" / f"{i:05}.png"
        if not path.exists():
            shown = scene if height == width else scene.stretched(height / side, width / side)
            with atomic_write(path) as partial:
                Image.fromarray(render(shown, side)).save(partial, "PNG")
        say("drawing true pictures", i + 1, count)
    return found


def _captions(run: Run) -> dict[str, str]:
    return {item.id: item.caption for item in run.items}
