"""Heights and widths of pictures that follow from an aspect ratio."""

import math

MIN_SIDE = 64  # pixels: the shortest side; the computed canvas is a multiple of it
MULTIPLE = 8  # pixels: sides that follow from a ratio are multiples of this
AREA_WEIGHT = 0.1  # of the squared logarithm of the relative area, against the share of a canvas that is cropped
MAX_RATIO = 8.0  # of the longer side over the shorter one


def parse_aspect(aspect: str) -> float:
    """Width over height of a ratio such as "16:9". Raises `ValueError` for anything else."""
    try:
        width, _, height = str(aspect).partition(":")
        ratio = float(width) / float(height or 1) if float(width) > 0 else 0.0
    except (ValueError, ZeroDivisionError):
        ratio = 0.0
    if not 1 / MAX_RATIO <= ratio <= MAX_RATIO:
        raise ValueError(
            f"aspect must be width:height, such as 16:9, and at most {MAX_RATIO:g}:1 either way; got {aspect!r}"
        )
    return ratio


def clamped_ratio(height: int, width: int) -> float:
    """Width over height, at most `MAX_RATIO` and at least its inverse."""
    return min(MAX_RATIO, max(1 / MAX_RATIO, width / height))


def canvas_side(side: int) -> int:
    """The side of the canvas that a picture with this side is painted on: rounded up to a multiple of `MIN_SIDE`."""
    return -(-side // MIN_SIDE) * MIN_SIDE


def fit_canvas(area: int, ratio: float) -> tuple[int, int]:
    """Height and width of `ratio`, about `area` pixels, of which little has to be cropped from the computed canvas.

    What a network composes on a canvas is cut where the picture is smaller. So the canvas comes first: the one whose
    crop to the ratio loses least while its area stays near.
    """
    longest = max(math.isqrt(round(2 * area * MAX_RATIO)), round(MIN_SIDE * MAX_RATIO))
    best = (math.inf, MIN_SIDE, MIN_SIDE)
    for height in range(MIN_SIDE, canvas_side(longest) + 1, MIN_SIDE):
        wider = canvas_side(math.ceil(height * ratio))
        for width in (max(MIN_SIDE, wider - MIN_SIDE), wider):
            cut_height, cut_width = min(height, width / ratio), min(width, height * ratio)
            if min(cut_height, cut_width) >= MIN_SIDE:
                cropped = 1 - cut_height * cut_width / (height * width)
                score = cropped + AREA_WEIGHT * math.log2(height * width / area) ** 2
                best = min(best, (score, round_side(cut_height), round_side(cut_width)))
    return best[1:]


def size_from_area(area: int, ratio: float) -> tuple[int, int]:
    """Height and width of about `area` pixels and `ratio`, enlarged if the shorter side would be below `MIN_SIDE`."""
    height = max((area / ratio) ** 0.5, MIN_SIDE, MIN_SIDE / ratio)
    return round_side(height), round_side(height * ratio)


def round_side(side: float) -> int:
    """A computed side rounded to a multiple of `MULTIPLE`, at least `MIN_SIDE`."""
    return max(MIN_SIDE, round(side / MULTIPLE) * MULTIPLE)
