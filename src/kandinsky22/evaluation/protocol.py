"""What a number follows from, beside the pictures: kept with it in `protocol.json`. Files are named, not where they lie."""

import hashlib
import os
import platform
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

import kandinsky22
from kandinsky22.engine.device import processor
from kandinsky22.evaluation import inception, reference
from kandinsky22.evaluation.features import Features
from kandinsky22.evaluation.generate import failed, is_whole
from kandinsky22.evaluation.manifest import Run
from kandinsky22.evaluation.reference import Statistics
from kandinsky22.imaging.images import read_recipe

PAINTER = ("device", "processor", "dtype", "threads", "torch")  # what of a picture's `made_by` says who painted it


def of_run(run: Run, features: Mapping[str, Features], command: str, **more: Any) -> dict[str, Any]:
    """The protocol of a painted run: how it was begun, who painted, which networks looked at it, and on what it was scored.

    command: the one that scores. The one that painted is told first, where they are two: options that need no saying again,
    once all is painted, may be missing in the other.
    """
    painted_by = run.about.get("command", command)
    return {
        "command": painted_by,
        **({"scored_by": command} if command != painted_by else {}),
        "run": run.about,
        **more,
        "features": networks(features),
        "failed": sorted(failed(run)),
        "painted_on": painters(run),
        "scored_on": hardware(),
        "versions": versions(),
    }


def painters(run: Run) -> list[dict[str, Any]]:
    """On what pictures were painted, and how many: every machine and setting that took part, as the pictures say."""
    told: Counter[tuple[tuple[str, Any], ...]] = Counter()
    for item in run.items:
        if is_whole(run.picture(item)):
            made_by = read_recipe(run.picture(item)).made_by
            told[tuple((name, made_by[name]) for name in PAINTER if name in made_by)] += 1
    return [{**dict(painter), "pictures": count} for painter, count in told.most_common()]


def networks(features: Mapping[str, Features]) -> dict[str, Any]:
    """What saw the pictures: its weights, and how pictures were resized for it; of Inception, whether it is the published one."""
    return {
        name: reference.by(of)._asdict() | ({"published": published(of)} if of.name == inception.NAME else {})
        for name, of in features.items()
    }


def published(features: Features) -> bool:
    """Whether a network's weights are the file of 2015 that published numbers were measured with."""
    return features.fingerprint == inception.SHA256


def of_reference(place: Path, statistics: Statistics) -> dict[str, Any]:
    """What the reference is: its name, and what tells its contents from others'."""
    counted = statistics.count if statistics.names else None
    digest = hashlib.sha256(statistics.moments.mean.numpy().tobytes()).hexdigest()
    sizes = [list(size) for size in statistics.sizes[:20]]
    return {"name": place.resolve().name, "pictures": counted, "sizes": sizes, "mean_sha256": digest}


def versions() -> dict[str, str]:
    """Of what scores; what painted is told by the run."""
    return {
        "kandinsky22": kandinsky22.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }


def hardware() -> dict[str, Any]:
    """On what it is scored."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"processor": processor(), "cores": os.cpu_count(), "gpus": gpus, "system": platform.system()}


def command() -> str:
    """The command that is running."""

    def shown(word: str) -> str:
        option, sign, value = word.rpartition("=")
        return f"{option}{sign}{Path(value).name}" if Path(value).exists() and os.sep in value else word

    return shlex.join(["kandinsky22", *map(shown, sys.argv[1:])])
