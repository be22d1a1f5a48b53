"""The picture world's evaluation: the box's model paints captions of fresh scenes, and an oracle reads its pictures.

It scores a painted run (see `generate`). Statistics of pictures are cached in the run's folder, so that scoring again
is fast.
"""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from kandinsky22.compositions import Scene, caption, render, sample
from kandinsky22.evaluation import fidelity, painted_run, scores
from kandinsky22.evaluation.captions import Captioned, Captions
from kandinsky22.evaluation.features import ClipFeatures
from kandinsky22.evaluation.manifest import Run
from kandinsky22.evaluation.report import Report
from kandinsky22.evaluation.scores import ShowProgress, cached_statistics
from kandinsky22.files import atomic_write
from kandinsky22.request import Request
from kandinsky22.request.picture_file import read_picture

SEED = 22  # training draws its scenes with the seed 0, and its validation scenes with 1
TRUE_STREAM = 1  # the stream of scenes for true pictures
TRUE = "true"  # the folder of true pictures, within the run's folder


def scenes(count: int, *stream: int) -> list[Scene]:
    """Random scenes that training did not use; each `stream` has other scenes."""
    return [sample(np.random.default_rng([SEED, *stream, i])) for i in range(count)]


def captions(count: int) -> Captions:
    """The captions of `scenes(count)`, one plain sentence each; the seed of each is its index."""
    return unfiled_captions(
        [Captioned(f"{i:05}", caption(scene, whole=True), seed=i) for i, scene in enumerate(scenes(count))]
    )


def unfiled_captions(items: list[Captioned]) -> Captions:
    """Captions that come from no file; the hash is of their texts."""
    digest = hashlib.sha256("\n".join(item.caption for item in items).encode())
    return Captions(tuple(items), digest.hexdigest())


def report(run: Run, clip: ClipFeatures, *, show_progress: ShowProgress, command: str) -> Report:
    """The report on a painted run of `captions`.

    The oracle reads every picture. The model's own CLIP gives the CLIP score, and the distances to true pictures of as
    many other scenes. Raises `ValueError` for a run that is not complete.
    """
    pictures, folder = painted_run.pictures_of(run), run.folder
    run_scenes = scenes(len(run.items))
    verdicts = []
    for i, item in enumerate(run.items):
        if item.id in pictures:
            verdicts.append(fidelity.verdict(read_picture(pictures[item.id]), run_scenes[i]))
        show_progress("reading pictures", i + 1, len(run.items))
    true = true_pictures(folder / TRUE, len(run.items), run.template, show_progress)
    theirs = cached_statistics(true, clip, folder, "true-pictures", show_progress)
    ours = cached_statistics(pictures, clip, folder, "pictures", show_progress)
    parts = [
        scores.fidelity(fidelity.rates(verdicts)),
        scores.caption_score(ours, painted_run.captions_of(run), clip, show_progress),
    ]
    if min(ours.count, theirs.count) > clip.dim:
        parts.append(scores.frechet_distance("Frechet distance", ours, theirs))
    size = min(1000, int(min(ours.count, theirs.count)) // 2)
    if size > 1:
        parts.append(scores.kid(ours, theirs, size))
    parts.append(scores.cmmd_score(ours, theirs))
    return painted_run.report_of(
        run,
        f"{run.template.model} in the picture world, {len(pictures)} captions",
        "Fresh scenes that training did not use. Distances by the model's own CLIP only compare with each other.",
        scores.total(parts),
        {"clip": clip},
        {"reference": f"{theirs.count:.0f} true pictures of other fresh scenes"},
        command,
    )


def true_pictures(folder: Path, count: int, template: Request, show_progress: ShowProgress) -> dict[str, Path]:
    """Rendered pictures of other scenes than the captions', in the template's size; rendered once and stored."""
    height, width = template.height or 0, template.width or 0
    side, paths = min(height, width), {}
    for i, scene in enumerate(scenes(count, TRUE_STREAM)):
        path = paths[f"{i:05}.png"] = folder / f"{height}x{width}" / f"{i:05}.png"
        if not path.exists():
            stretched = scene if height == width else scene.stretched(height / side, width / side)
            with atomic_write(path) as partial:
                Image.fromarray(render(stretched, side)).save(partial, "PNG")
        show_progress("rendering true pictures", i + 1, count)
    return paths
