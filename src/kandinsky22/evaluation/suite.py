"""Whole evaluations: the model card's, over captions of COCO, and that of the picture world, where an oracle reads along.

Both take a run that is painted (`generate`) and make a `Report` of it. What was measured of pictures is kept in the run's
folder, so that scoring again is quick.
"""

import hashlib
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import kandinsky22
from kandinsky22.compositions import Scene, caption, render, sample
from kandinsky22.evaluation import fidelity, plots, published, reference, scores
from kandinsky22.evaluation.captions import Captioned, Captions
from kandinsky22.evaluation.features import ClipFeatures, Features
from kandinsky22.evaluation.generate import failed, is_whole
from kandinsky22.evaluation.manifest import Run, unfilled
from kandinsky22.evaluation.reference import Statistics
from kandinsky22.evaluation.report import SHOWN, Plot, Report, Shown, Table
from kandinsky22.evaluation.scores import Say, Scores, measured
from kandinsky22.files import whole
from kandinsky22.images import read_recipe
from kandinsky22.machine import processor
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


def complete(folder: Path, captions: Captions, request: Request) -> Run | None:
    """The run of a folder that needs no more painting, and so no model: its captions are these, and what the request says is how
    they were painted. None where there is none, or it has to be gone on with."""
    try:
        run = Run.opened(folder)
        t = run.template
        assert t.height is not None and t.width is not None
        asked = request.resolved(Defaults(height=t.height, width=t.width, prior=t.prior, decoder=t.decoder))
        painted(run)
    except ValueError:
        return None
    same = replace(unfilled(asked), model=t.model) == t and run.about["captions"]["sha256"] == captions.sha256
    return run if same and Path(request.model).name == t.model else None


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


def coco(
    run: Run, place: Path, theirs: Statistics, inception: Features, *, clip: ClipFeatures | None = None,
    cmmd: tuple[ClipFeatures, Statistics] | None = None, kid_size: int, any_size: bool, say: Say, command: str,
) -> Report:  # fmt: skip
    """The card's evaluation of a painted run against the statistics `theirs`, of what is at `place`. clip: for the CLIP score.
    cmmd: a CLIP, and the statistics of the same real pictures by it.

    Raises `ValueError` for a run that is not complete, and for what cannot be compared.
    """
    pictures, folder, remarks = painted(run), run.folder, []
    ours = measured(pictures, inception, folder, "pictures", say)
    theirs.check(ours, any_size=any_size)
    parts = [scores.frechet_distance("FID", ours, theirs)]
    networks: dict[str, Features] = {"inception": inception}
    if theirs.features is not None:
        parts.append(scores.kernel(ours, theirs, kid_size))
    else:
        remarks.append("KID is left out: the reference holds a mean and a covariance only.")
    if clip is not None:
        seen = measured(pictures, clip, folder, "pictures-by-clip", say)
        parts.append(scores.caption_score(seen, _captions(run), clip, say))
        networks["clip"] = clip
    else:
        remarks.append("The CLIP score is left out: no CLIP was named.")
    if cmmd is not None:
        seen = measured(pictures, cmmd[0], folder, "pictures-for-cmmd", say)
        parts.append(scores.mean_discrepancy(seen, cmmd[1]))
        networks["cmmd"] = cmmd[0]
    else:
        remarks.append("CMMD is left out: no CLIP for it was named.")
    total = scores.total(parts)
    return _report(
        run, f"{run.template.model} on {len(pictures)} captions", "Zero-shot, after the model card's COCO_30k.",
        total + _beside_the_card(run.template.model, total.values["fid"], len(pictures)),
        {"reference": _about(place, theirs), "features": _networks(networks), "command": command}, remarks,
    )  # fmt: skip


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
        run, f"{run.template.model} in the picture world, {len(pictures)} captions",
        "Fresh scenes that no training saw; distances are over the model's own CLIP, so they compare with each other alone.",
        scores.total(parts),
        {"reference": f"{theirs.count:.0f} true pictures of other fresh scenes", "command": command,
         "features": _networks({"clip": clip})},
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Of what computes."""
    return {
        "kandinsky22": kandinsky22.__version__, "torch": torch.__version__, "numpy": np.__version__,
        "python": platform.python_version(),
    }  # fmt: skip


def hardware() -> dict[str, Any]:
    """On what it is scored; what painted is told by the pictures themselves."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"processor": processor(), "cores": os.cpu_count(), "gpus": gpus, "system": platform.system()}


def painted_on(run: Run) -> dict[str, Any]:
    """On what the first picture of a run was painted."""
    for item in run.items:
        if is_whole(run.picture(item)):
            made_by = read_recipe(run.picture(item)).made_by
            return {
                name: made_by[name] for name in ("device", "processor", "dtype", "threads", "torch") if name in made_by
            }
    return {}


def _report(
    run: Run, title: str, summary: str, total: Scores, protocol: Mapping[str, Any], remarks: Sequence[str] = ()
) -> Report:
    lost = failed(run)
    if lost:
        remarks = [f"{len(lost)} of {len(run.items)} captions could not be painted and are left out.", *remarks]
    shown = [Shown(run.picture(item), item.caption) for item in run.items if item.id not in lost][:SHOWN]
    whole_protocol = {
        "run": run.about, **protocol, "failed": sorted(lost), "painted_on": painted_on(run),
        "scored_on": hardware(), "versions": versions(),
    }  # fmt: skip
    return Report(
        title=title, summary=summary, values=total.values | {"pictures": len(run.items) - len(lost)},
        protocol=whole_protocol, numbers=total.numbers, remarks=remarks, plots=total.plots, tables=total.tables, shown=shown,
    )  # fmt: skip


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
            with whole(path) as partial:
                Image.fromarray(render(shown, side)).save(partial, "PNG")
        say("drawing true pictures", i + 1, count)
    return found


def _captions(run: Run) -> dict[str, str]:
    return {item.id: item.caption for item in run.items}


def _about(place: Path, statistics: Statistics) -> dict[str, Any]:
    """What the reference is: its name, not where it lies, and what tells its contents from others'."""
    counted = statistics.count if statistics.names else None
    digest = hashlib.sha256(statistics.moments.mean.numpy().tobytes()).hexdigest()
    sizes = [list(size) for size in statistics.sizes[:20]]
    return {"name": place.resolve().name, "pictures": counted, "sizes": sizes, "mean_sha256": digest}


def _networks(features: Mapping[str, Features]) -> dict[str, Any]:
    """What saw the pictures, and how they were resized for it."""
    return {name: reference.by(of)._asdict() for name, of in features.items()}


def command() -> str:
    """The command that is running; of its files, only their names."""

    def shown(word: str) -> str:
        option, sign, value = word.rpartition("=")
        return f"{option}{sign}{Path(value).name}" if Path(value).exists() and os.sep in value else word

    return shlex.join(["kandinsky22", *map(shown, sys.argv[1:])])
