"""The seven outlines, as signed distance functions of a unit shape.

Every shape fits into the disc of radius 1 around the origin, and its centre of mass is (almost) the origin, so that
shapes do not overlap if their discs do not. Independent of colours, scenes and pixels.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating[Any]]

RING_MIDDLE, RING_HALF_WIDTH = 0.77, 0.23
SQUARE_HALF_SIDE = math.sqrt(0.5)
CROSS_HALF_WIDTH, CROSS_REACH = 0.3, 0.953
STAR_WAIST = 0.46  # radius of the inner corners: small enough for a star, large enough to be visible in 64 pixels
MOON_RADIUS, MOON_SHIFT = 0.92, 0.37  # half a disc, shifted so that its centre of mass is the origin


def _circle(x: FloatArray, y: FloatArray) -> FloatArray:
    return np.hypot(x, y) - 1


def _ring(x: FloatArray, y: FloatArray) -> FloatArray:
    return np.abs(np.hypot(x, y) - RING_MIDDLE) - RING_HALF_WIDTH


def _square(x: FloatArray, y: FloatArray) -> FloatArray:
    return np.maximum(np.abs(x), np.abs(y)) - SQUARE_HALF_SIDE


def _triangle(x: FloatArray, y: FloatArray) -> FloatArray:
    slope = math.sqrt(0.75)
    return np.asarray(np.maximum(y - 0.5, slope * np.abs(x) - 0.5 * y - 0.5))


def _cross(x: FloatArray, y: FloatArray) -> FloatArray:
    across, along = np.abs(x), np.abs(y)
    beam = np.maximum(across - CROSS_REACH, along - CROSS_HALF_WIDTH)
    post = np.maximum(across - CROSS_HALF_WIDTH, along - CROSS_REACH)
    return np.minimum(beam, post)


def _star(x: FloatArray, y: FloatArray) -> FloatArray:
    # Fold the plane into one tenth of the star: from the tip at (1, 0) to the inner corner at 36 degrees.
    fifth = 2 * math.pi / 5
    turn = np.arctan2(x, -y)
    turn = np.abs((turn + fifth / 2) % fifth - fifth / 2)
    distance = np.hypot(x, y)
    corner_x, corner_y = STAR_WAIST * math.cos(fifth / 2), STAR_WAIST * math.sin(fifth / 2)
    length = math.hypot(1 - corner_x, corner_y)
    return ((distance * np.cos(turn) - 1) * corner_y + distance * np.sin(turn) * (1 - corner_x)) / np.float32(length)


def _half_moon(x: FloatArray, y: FloatArray) -> FloatArray:
    shifted = y + MOON_SHIFT
    return np.asarray(np.maximum(np.hypot(x, shifted) - MOON_RADIUS, -shifted))


OUTLINES: dict[str, Callable[[FloatArray, FloatArray], FloatArray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "ring": _ring,
    "cross": _cross,
    "star": _star,
    "half moon": _half_moon,
}


def distance(shape: str, x: FloatArray, y: FloatArray, radius: float = 1.0, angle: float = 0.0) -> FloatArray:
    """Signed distance from the points (x, y) to the outline: negative inside, in the units of `radius`.

    x and y are offsets from the shape's centre (y down), of shapes that broadcast together; `angle` rotates the shape
    clockwise, in radians. Exact inside and near the outline; outside a corner it is a lower bound.
    """
    cosine, sine = math.cos(angle) / radius, math.sin(angle) / radius
    return OUTLINES[shape](cosine * x + sine * y, cosine * y - sine * x) * np.float32(radius)
