"""Heights and widths of pictures that follow from an aspect ratio. Imports nothing."""

MIN_SIDE = 64  # pixels: the shortest side; the computed canvas is a multiple of it
MULTIPLE = 8  # pixels: sides that follow from a ratio are multiples of this
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


def size_from_area(area: int, ratio: float) -> tuple[int, int]:
    """Height and width of about `area` pixels and `ratio`, enlarged if the shorter side would be below `MIN_SIDE`."""
    height = max((area / ratio) ** 0.5, MIN_SIDE, MIN_SIDE / ratio)
    return round_side(height), round_side(height * ratio)


def round_side(side: float) -> int:
    """A computed side rounded to a multiple of `MULTIPLE`, at least `MIN_SIDE`."""
    return max(MIN_SIDE, round(side / MULTIPLE) * MULTIPLE)
