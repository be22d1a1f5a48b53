"""The coordinates of a picture's pixels, and smooth noise over them, which is the same at any resolution.

Independent of scenes and colours.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from kandinsky22.compositions.shapes import FloatArray

Window = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class Canvas:
    """Pixel centres in scene units, as a column y [H, 1] and a row x [1, W]; `side` pixels make one unit."""

    y: FloatArray
    x: FloatArray
    side: int
    height: float
    width: float

    def around(self, x: float, y: float, reach: float) -> Window:
        """The rows and columns of the pixels within `reach` of a point."""
        top, left = max(0, int((y - reach) * self.side)), max(0, int((x - reach) * self.side))
        bottom, right = math.ceil((y + reach) * self.side) + 1, math.ceil((x + reach) * self.side) + 1
        return slice(top, bottom), slice(left, right)

    def noise(self, cells: int, rng: np.random.Generator) -> FloatArray:
        """Smooth noise [H, W] of deviation about 1: an interpolated lattice of `cells` normal numbers per unit."""
        down, across = _weights(self.height, self.side, cells), _weights(self.width, self.side, cells)
        lattice = rng.standard_normal((down.shape[1], across.shape[1]), dtype=np.float32)
        return np.asarray(down @ lattice @ across.T)

    def strokes(self, turn: float, along: float, across: float, rng: np.random.Generator) -> FloatArray:
        """Noise [H, W] stretched into strokes at the angle `turn` (radians), with `along` and `across` cells per unit
        along the strokes and across them."""
        cosine, sine = np.float32(math.cos(turn)), np.float32(math.sin(turn))
        u = (self.x * cosine + self.y * sine + 4) * np.float32(along)  # + 4: no point has a negative lattice index
        v = (self.y * cosine - self.x * sine + 4) * np.float32(across)
        lattice = rng.standard_normal((int(v.max()) + 2, int(u.max()) + 2), dtype=np.float32)
        row, column = v.astype(np.intp), u.astype(np.intp)
        down, right = _ease(v - row), _ease(u - column)
        upper = lattice[row, column] * (1 - right) + lattice[row, column + 1] * right
        lower = lattice[row + 1, column] * (1 - right) + lattice[row + 1, column + 1] * right
        return np.asarray(upper + down * (lower - upper))


def cover(distances: FloatArray, side: int, soft: float = 0.0) -> FloatArray:
    """The share of each pixel inside an outline, in [0, 1], from signed distances; `soft`: its edge, in units."""
    return np.clip(0.5 - distances / np.float32(max(1 / side, soft)), 0, 1)


@lru_cache(maxsize=16)
def canvas(height: float, width: float, side: int) -> Canvas:
    """The canvas of a picture with `side` pixels per unit. Raises ValueError for fewer than 16."""
    if side < 16:
        raise ValueError(f"side must be at least 16 pixels, got {side}; try 64 or 128")
    y, x = ((np.arange(round(extent * side), dtype=np.float32) + 0.5) / side for extent in (height, width))
    return Canvas(y[:, None], x[None, :], side, height, width)


@lru_cache(maxsize=64)
def _weights(extent: float, side: int, cells: int) -> FloatArray:
    """The matrix [pixels, lattice points] of smooth interpolation along one axis of a lattice."""
    position = (np.arange(round(extent * side)) + 0.5) / side * cells
    cell = position.astype(int)
    part = _ease(position - cell)
    weights = np.zeros((position.size, math.ceil(extent * cells) + 2), np.float32)
    rows = np.arange(position.size)
    weights[rows, cell], weights[rows, cell + 1] = 1 - part, part
    return weights


def _ease(part: FloatArray) -> FloatArray:
    """Smoothstep of values in [0, 1]."""
    return np.asarray(part * part * (3 - 2 * part))
