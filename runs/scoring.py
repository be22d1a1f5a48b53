"""What the scores of the model in the box have in common: fresh scenes, their paintings, and rates with intervals."""

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image
from rich.progress import track

from kandinsky22 import Kandinsky, Request
from kandinsky22.compositions import Scene, judge, read, sample, wilson
from kandinsky22.events import Result

FRESH_SEED = 22  # training draws from 0, and looks at 1
BATCH = 25
MEANING = {
    "ground": "ground", "present": "asked colours present", "colors": "exactly the asked colours", "shape": "shape",
    "count": "count", "relation": "relation", "plain": "all of these", "style": "style", "whole": "whole caption",
}  # fmt: skip


def fresh(count: int, *stream: int, held_out: bool = False) -> list[Scene]:
    """Scenes that no training drew; another `stream` gives others."""
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


def rate(told: Iterable[bool]) -> str:
    """A rate in percent with its 95% interval."""
    told = list(told)
    low, high = wilson(sum(told), len(told))
    return f"{100 * sum(told) / len(told):.0f} ({100 * low:.0f}-{100 * high:.0f})"


def mean(values: Sequence[float], digits: int = 2) -> str:
    """A mean with its 95% interval."""
    half = 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5
    middle = float(np.mean(values))
    return f"{middle:.{digits}f} ({middle - half:.{digits}f}-{middle + half:.{digits}f})"


def verdicts(pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> list[dict[str, bool]]:
    """What the oracle says of each picture; `plain` is the whole of it but for the style."""
    said = [judge(read(np.asarray(picture)), scene) for picture, scene in zip(pictures, scenes, strict=True)]
    return [v | {"plain": all(v[name] for name in v.keys() - {"style", "whole"})} for v in said]


def row(name: str, pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> str:
    """A table row: each attribute's rate with its interval."""
    said = verdicts(pictures, scenes)
    cells = [rate(v[attribute] for v in said if attribute in v) for attribute in MEANING]
    return f"| {name} | " + " | ".join(cells) + " |"


def contact_sheet(pictures: Sequence[Image.Image], columns: int = 8) -> Image.Image:
    """Pictures of one size, side by side."""
    tiles = [np.asarray(picture) for picture in pictures]
    blank = np.full_like(tiles[0], 255)
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]
    return Image.fromarray(np.concatenate(rows))
