"""Shared by the scores of the model in the box: new scenes, their paintings, and rates with intervals."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image
from rich.progress import track

from kandinsky22 import Kandinsky, Request
from kandinsky22.compositions import Scene, sample
from kandinsky22.evaluation.fidelity import ATTRIBUTES, Rate, rates, verdict
from kandinsky22.request.events import Result

FRESH_SEED = 22  # training uses 0, and 1 for validation
BATCH = 25


def fresh(count: int, *stream: int, held_out: bool = False) -> list[Scene]:
    """Scenes that no training used; another `stream` gives others."""
    return [sample(np.random.default_rng([FRESH_SEED, *stream, i]), held_out=held_out) for i in range(count)]


def painted(kandinsky: Kandinsky, requests: Sequence[Request], name: str) -> list[Image.Image]:
    """The first painting of each request."""
    pictures: dict[int, Image.Image] = {}
    for start in track(range(0, len(requests), BATCH), name):
        part = range(start, min(start + BATCH, len(requests)))
        for i, event in kandinsky.stream_many({i: requests[i] for i in part}):
            if isinstance(event, Result):
                pictures[i] = event.pictures[0].image
    return [pictures[i] for i in range(len(requests))]


def rate(outcomes: Iterable[bool]) -> str:
    """A rate in percent with its 95% interval."""
    outcomes = list(outcomes)
    return str(Rate(sum(outcomes), len(outcomes)))


def mean(values: Sequence[float], digits: int = 2) -> str:
    """A mean with its 95% interval."""
    half = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    middle = float(np.mean(values))
    return f"{middle:.{digits}f} ({middle - half:.{digits}f}-{middle + half:.{digits}f})"


def verdicts(pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> list[dict[str, bool]]:
    """The oracle's verdict on each picture."""
    return [verdict(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]


def row(name: str, pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> str:
    """A table row: each attribute's rate with its interval."""
    by_attribute = rates(verdicts(pictures, scenes))
    return f"| {name} | " + " | ".join(str(by_attribute.get(attribute, "")) for attribute in ATTRIBUTES) + " |"


def image_grid(pictures: Sequence[Image.Image], columns: int = 8) -> Image.Image:
    """Pictures of one size, side by side."""
    tiles = [np.asarray(picture) for picture in pictures]
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return Image.fromarray(np.concatenate(rows))
