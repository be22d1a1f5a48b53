"""Paints one shape in each style: paper cut-out, watercolour, ink, pastel, clay.

Every style preserves the outline and the hue, so that the oracle recognises all of them in the same way.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kandinsky22.compositions.background import INK, Surface
from kandinsky22.compositions.canvas import Canvas, Window, cover
from kandinsky22.compositions.pieces import Piece
from kandinsky22.compositions.shapes import FloatArray, distance
from kandinsky22.compositions.world import COLORS

LIGHT = (-0.6, -0.8)  # the direction (x, y) from which the light comes: the upper left
SHADE = np.array((1.0, 0.95, 0.84), np.float32)  # shadows are slightly blue
SUN = np.array((1.0, 0.97, 0.9), np.float32)


@dataclass(frozen=True, slots=True)
class Spot:
    """The window of a picture in which one piece is painted, with the signed distances [h, w] to its outline.

    `facing` [h, w] is 1 at the outline's brightest point and -1 at its darkest; `tint` [3] in [-1, 1] varies its
    colour.
    """

    piece: Piece
    window: Window
    side: int
    distance: FloatArray
    facing: FloatArray
    texture: Surface
    tint: FloatArray

    @property
    def color(self) -> FloatArray:
        """The colour of the palette, [3] in [0, 1], varied slightly by the tint."""
        return np.asarray(np.array(COLORS[self.piece.color], np.float32) / 255 * (1 + 0.045 * self.tint))


def paint(picture: FloatArray, piece: Piece, canvas: Canvas, style: str, tint: FloatArray, texture: Surface) -> None:
    """Paint one piece into a picture, [H, W, 3] in [0, 1]."""
    if style in SHADOWS:
        _cast_shadow(picture, piece, canvas, *SHADOWS[style])
    window = canvas.around(piece.x, piece.y, piece.r + max(0.03, 2 / canvas.side))
    distances, x, y = _offsets(piece, canvas, window)
    facing = (x * LIGHT[0] + y * LIGHT[1]) / np.float32(piece.r)
    near = Surface(texture.clouds[window], texture.grain[window], texture.strokes[window])
    spot = Spot(piece, window, canvas.side, distances, facing, near, tint)
    covered, color = PAINTERS[style](spot)
    picture[window] += covered[..., None] * (color - picture[window])


def _offsets(
    piece: Piece, canvas: Canvas, window: Window, shift: float = 0.0
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Signed distance to the outline, and x and y from the centre; `shift` moves the piece towards its shadow."""
    x = canvas.x[:, window[1]] - np.float32(piece.x - shift * LIGHT[0])
    y = canvas.y[window[0]] - np.float32(piece.y - shift * LIGHT[1])
    return distance(piece.shape, x, y, piece.r, piece.angle), x, y


def _cast_shadow(picture: FloatArray, piece: Piece, canvas: Canvas, strength: float, softness: float) -> None:
    """Darken the picture by the shadow of a piece; nearer pieces have more distant and softer shadows."""
    shift, blur = 0.006 + 0.034 * piece.z, softness * (0.008 + 0.032 * piece.z)
    window = canvas.around(piece.x, piece.y, piece.r + shift + blur)
    edge = np.clip(0.5 - _offsets(piece, canvas, window, shift)[0] / np.float32(2 * blur), 0, 1)
    shade = edge * edge * (3 - 2 * edge) * np.float32(strength)
    picture[window] *= 1 - shade[..., None] * SHADE


Painted = tuple[FloatArray, FloatArray]  # the coverage of each pixel [h, w] in [0, 1], and its colour [h, w, 3]


def _paper(spot: Spot) -> Painted:
    """A paper cut-out: shaded across, with a rim that is bright or dark depending on the direction of the light."""
    rim = np.exp(np.minimum(spot.distance, 0) / np.float32(0.011))
    light = 1.0 + 0.11 * spot.facing + 0.16 * spot.facing * rim
    light += 0.02 * spot.texture.clouds + 0.016 * spot.texture.grain
    gloss = np.float32(0.035) * np.maximum(spot.facing, 0) * (1 + rim)  # makes light visible on black paper too
    return cover(spot.distance, spot.side), light[..., None] * spot.color + gloss[..., None] * SUN


def _watercolour(spot: Spot) -> Painted:
    """A wash: pigment is thin in the middle and collects at the bottom and along the edge, which is soft and uneven."""
    distances = spot.distance + np.float32(0.0035) * spot.texture.grain + np.float32(0.003) * spot.texture.clouds
    edge = np.exp(-(((distances + np.float32(0.013)) / np.float32(0.011)) ** 2))
    pigment = 0.74 - 0.14 * spot.facing + 0.1 * spot.texture.clouds + 0.07 * spot.texture.grain + 0.42 * edge
    wash = spot.color ** np.clip(pigment, 0.6, 1.2)[..., None]  # Beer-Lambert law
    bleed = np.float32(0.1) * np.exp(-np.maximum(distances, 0) / np.float32(0.014))
    return np.maximum(cover(distances, spot.side, 0.013), bleed), wash


def _ink(spot: Spot) -> Painted:
    """Flat colour in a dark outline of uneven width, hatched on the dark side."""
    half_width = np.clip(0.0068 + 0.0016 * spot.texture.clouds, 0.005, 0.009)
    line = cover(np.abs(spot.distance - np.float32(0.002)) - half_width, spot.side)
    rows, columns = (
        np.arange(part.start, part.start + size) for part, size in zip(spot.window, spot.distance.shape, strict=True)
    )
    slant = ((rows[:, None] + columns) / (spot.side * 0.052)).astype(np.float32)
    hatch = np.clip(1.6 * (np.cos(2 * np.pi * slant) - 0.25), 0, 1) * np.clip(0.15 - 1.6 * spot.facing, 0, 1)
    fill = spot.color ** np.float32(0.86) * (1 + 0.012 * spot.texture.clouds[..., None])
    fill = fill + (np.float32(0.3) * hatch)[..., None] * (0.6 * spot.color + 0.4 * INK - fill)
    drawn = fill + line[..., None] * (0.8 * INK - fill)
    return np.maximum(cover(spot.distance, spot.side), line), drawn


def _pastel(spot: Spot) -> Painted:
    """Crayon: slanted strokes that leave some of the ground visible, and a dusty edge."""
    strokes = np.clip(spot.texture.strokes, -1.5, 1.5)
    distances = spot.distance + np.float32(0.0028) * strokes + np.float32(0.001) * spot.texture.grain
    full = np.clip(0.95 + 0.07 * strokes + 0.05 * spot.texture.grain, 0.86, 1)
    light = 1.05 + 0.09 * spot.facing + 0.08 * strokes
    chalk = light[..., None] * spot.color + np.float32(0.06)
    dust = np.float32(0.12) * np.exp(-np.maximum(distances, 0) / np.float32(0.012))
    return np.maximum(cover(distances, spot.side, 0.014) * full, dust), chalk


def _clay(spot: Spot) -> Painted:
    """A rounded body: shaded by the slope of its surface, with a soft highlight and light reflected from the ground."""
    bevel = np.float32(ROUNDING[spot.piece.shape] * spot.piece.r)
    height = np.sqrt(np.clip(1 - (1 - np.clip(-spot.distance / bevel, 0, 1)) ** 2, 0, 1)) * bevel
    down, right = np.gradient(height, np.float32(1 / spot.side))
    length = np.sqrt(1 + down**2 + right**2)
    lit = (-0.42 * -right - 0.56 * -down + 0.71) / length
    highlight = np.clip((-0.23 * -right - 0.3 * -down + 0.925) / length, 0, 1) ** 44
    reflected = np.clip((0.6 * -right + 0.8 * -down) / length, 0, 1) ** 2
    light = 0.56 + 0.6 * np.clip(lit, 0, 1) + 0.04 * spot.facing + 0.16 * reflected
    return cover(spot.distance, spot.side), light[..., None] * spot.color + (0.3 * highlight)[..., None] * SUN


# How far the rounding of clay extends from the outline inwards, over the radius: most of the way to the middle.
ROUNDING = {
    "circle": 1.0,
    "square": 0.38,
    "triangle": 0.32,
    "ring": 0.23,
    "cross": 0.26,
    "star": 0.28,
    "half moon": 0.32,
}
SHADOWS = {"paper": (0.36, 1.0), "clay": (0.42, 1.5)}  # strength and softness
PAINTERS: dict[str, Callable[[Spot], Painted]] = {
    "paper": _paper,
    "watercolour": _watercolour,
    "ink": _ink,
    "pastel": _pastel,
    "clay": _clay,
}
