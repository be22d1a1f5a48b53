"""Heights and widths that follow from a ratio. Imports nothing."""

SMALLEST = 64  # pixels of a side; also what computed sides are multiples of
GRAIN = 8  # pixels: what sides that follow from a ratio are multiples of
LONGEST = 8.0  # of a ratio's longer side over the shorter one


def ratio(aspect: str) -> float:
    """Width over height of "16:9". Raises `ValueError`."""
    try:
        across, _, down = str(aspect).partition(":")
        found = float(across) / float(down or 1) if float(across) > 0 else 0.0
    except (ValueError, ZeroDivisionError):
        found = 0.0
    if not 1 / LONGEST <= found <= LONGEST:
        raise ValueError(f"aspect is width:height, such as 16:9, and at most {LONGEST:g}:1 either way; got {aspect!r}")
    return found


def ratio_of(height: int, width: int) -> float:
    """Width over height of a picture, kept within what is painted."""
    return min(LONGEST, max(1 / LONGEST, width / height))


def of_area(area: int, ratio: float) -> tuple[int, int]:
    """Height and width of about an area and a ratio; a small area grows until the shorter side is the smallest allowed."""
    height = max((area / ratio) ** 0.5, SMALLEST, SMALLEST / ratio)
    return grained(height), grained(height * ratio)


def grained(side: float) -> int:
    """The side that is painted for one that was computed."""
    return max(SMALLEST, round(side / GRAIN) * GRAIN)
