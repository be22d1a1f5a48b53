"""The protocol of an evaluation, for `protocol.json`: everything that its numbers depend on.

Files are named without folders.
"""

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
from kandinsky22.backends.run_state import failed, is_complete_png
from kandinsky22.engine.device import processor
from kandinsky22.evaluation import inception, reference
from kandinsky22.evaluation.features import Features
from kandinsky22.evaluation.manifest import Run
from kandinsky22.evaluation.reference import Statistics
from kandinsky22.imaging.images import read_recipe

MACHINE = ("device", "processor", "dtype", "threads", "torch")  # entries of a picture's `made_by` about the machine


def run_protocol(run: Run, features: Mapping[str, Features], command: str, **more: Any) -> dict[str, Any]:
    """The protocol of a run: its settings, the machines that painted it, the feature networks, and what scored it.

    command: the command that scores. If another one painted, both are stored: options of painting may be left out of a
    command that only scores.
    """
    painted_by = run.settings.get("command", command)
    return {
        "command": painted_by,
        **({"scored_by": command} if command != painted_by else {}),
        "run": run.settings,
        **more,
        "features": networks(features),
        "failed": sorted(failed(run)),
        "painted_on": painting_machines(run),
        "scored_on": hardware(),
        "versions": versions(),
    }


def painting_machines(run: Run) -> list[dict[str, Any]]:
    """The machines and settings that painted a run, and how many pictures each, from the pictures' metadata."""
    machines: Counter[tuple[tuple[str, Any], ...]] = Counter()
    for item in run.items:
        if is_complete_png(run.picture(item)):
            made_by = read_recipe(run.picture(item)).made_by
            machines[tuple((name, made_by[name]) for name in MACHINE if name in made_by)] += 1
    return [{**dict(machine), "pictures": count} for machine, count in machines.most_common()]


def networks(features: Mapping[str, Features]) -> dict[str, Any]:
    """The name, weights and resizing of each feature network, and whether Inception has the published weights."""
    return {
        name: reference.source_of(network)._asdict()
        | ({"published": is_published(network)} if network.name == inception.NAME else {})
        for name, network in features.items()
    }


def is_published(features: Features) -> bool:
    """Whether a network's weights are the 2015 file of Inception with which published numbers were measured."""
    return features.fingerprint == inception.SHA256


def reference_protocol(place: Path, statistics: Statistics) -> dict[str, Any]:
    """The name of a reference, and what identifies its contents."""
    count = statistics.count if statistics.names else None
    digest = hashlib.sha256(statistics.moments.mean.numpy().tobytes()).hexdigest()
    sizes = [list(size) for size in statistics.sizes[:20]]
    return {"name": place.resolve().name, "pictures": count, "sizes": sizes, "mean_sha256": digest}


def versions() -> dict[str, str]:
    """The versions of the software that scores; the run has those of what painted."""
    return {
        "kandinsky22": kandinsky22.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "python": platform.python_version(),
    }


def hardware() -> dict[str, Any]:
    """The machine that scores."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"processor": processor(), "cores": os.cpu_count(), "gpus": gpus, "system": platform.system()}


def command() -> str:
    """The running command, with files and folders by their names alone."""

    def without_folder(word: str) -> str:
        option, sign, value = word.rpartition("=")
        return f"{option}{sign}{Path(value).name}" if Path(value).exists() and os.sep in value else word

    return shlex.join(["kandinsky22", *map(without_folder, sys.argv[1:])])
