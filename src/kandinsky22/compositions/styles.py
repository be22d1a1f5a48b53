"""How one shape is made in each style: cut from paper, washed in watercolour, inked, drawn in pastel, moulded in clay.

Every style keeps the outline and the hue, so that all of them are read alike. Knows pieces and canvases.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kandinsky22.compositions.background import INK, Surface
from kandinsky22.compositions.canvas import Canvas, Window, cover
from kandinsky22.compositions.pieces import Piece
from kandinsky22.compositions.shapes import FloatArray, distance
from kandinsky22.compositions.world import COLORS

LIGHT = (-0.6, -0.8)  # the direction the light comes from: over the left shoulder
SHADE = np.array((1.0, 0.95, 0.84), np.float32)  # shadows are a little blue
SUN = np.array((1.0, 0.97, 0.9), np.float32)


@dataclass(frozen=True, slots=True)
class Spot:
    """The part of a picture where one piece goes: signed distances to its outline [h, w] and where in it each point is.

    `facing` is 1 at the outline's brightest point and -1 at its darkest; `tint` [3] in [-1, 1] is the piece's own.
    """

    piece: Piece
    window: Window
    side: int
    away: FloatArray
    facing: FloatArray
    uneven: Surface
    tint: FloatArray

    @property
    def color(self) -> FloatArray:
        """The palette's colour, [3] in [0, 1], a little off."""
        return np.asarray(np.array(COLORS[self.piece.color], np.float32) / 255 * (1 + 0.045 * self.tint))


def paint(picture: FloatArray, piece: Piece, canvas: Canvas, style: str, tint: FloatArray, uneven: Surface) -> None:
    """Paint one piece into a picture, [H, W, 3] in [0, 1]."""
    if style in CASTS:
        _cast_shadow(picture, piece, canvas, *CASTS[style])
    window = canvas.around(piece.x, piece.y, piece.r + max(0.03, 2 / canvas.side))
    away, x, y = _from(piece, canvas, window)
    facing = (x * LIGHT[0] + y * LIGHT[1]) / np.float32(piece.r)
    near = Surface(uneven.clouds[window], uneven.grain[window], uneven.strokes[window])
    spot = Spot(piece, window, canvas.side, away, facing, near, tint)
    covered, color = STYLISTS[style](spot)
    picture[window] += covered[..., None] * (color - picture[window])


def _from(
    piece: Piece, canvas: Canvas, window: Window, shift: float = 0.0
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Signed distance to the piece, x and y from its centre; `shift` moves the piece away from the light."""
    x = canvas.x[:, window[1]] - np.float32(piece.x - shift * LIGHT[0])
    y = canvas.y[window[0]] - np.float32(piece.y - shift * LIGHT[1])
    return distance(piece.shape, x, y, piece.r, piece.angle), x, y


def _cast_shadow(picture: FloatArray, piece: Piece, canvas: Canvas, strength: float, softness: float) -> None:
    """Nearer pieces float higher: their shadow falls further and softer."""
    shift, blur = 0.006 + 0.034 * piece.z, softness * (0.008 + 0.032 * piece.z)
    window = canvas.around(piece.x, piece.y, piece.r + shift + blur)
    edge = np.clip(0.5 - _from(piece, canvas, window, shift)[0] / np.float32(2 * blur), 0, 1)
    shade = edge * edge * (3 - 2 * edge) * np.float32(strength)
    picture[window] *= 1 - shade[..., None] * SHADE


Painted = tuple[FloatArray, FloatArray]  # how much of each pixel is covered [h, w], and with what [h, w, 3]


def _paper(spot: Spot) -> Painted:
    """A cut-out: light falls across it, and its rim is bright or dark as it faces the light."""
    rim = np.exp(np.minimum(spot.away, 0) / np.float32(0.011))
    light = 1.0 + 0.11 * spot.facing + 0.16 * spot.facing * rim
    light += 0.02 * spot.uneven.clouds + 0.016 * spot.uneven.grain
    gleam = np.float32(0.035) * np.maximum(spot.facing, 0) * (1 + rim)  # lets black paper show the light, too
    return cover(spot.away, spot.side), light[..., None] * spot.color + gleam[..., None] * SUN


def _watercolour(spot: Spot) -> Painted:
    """A wash: pigment is thin in the middle, runs down and gathers along the edge, which is soft and uneven."""
    away = spot.away + np.float32(0.0035) * spot.uneven.grain + np.float32(0.003) * spot.uneven.clouds
    edge = np.exp(-(((away + np.float32(0.013)) / np.float32(0.011)) ** 2))
    pigment = 0.74 - 0.14 * spot.facing + 0.1 * spot.uneven.clouds + 0.07 * spot.uneven.grain + 0.42 * edge
    wash = spot.color ** np.clip(pigment, 0.6, 1.2)[..., None]  # Beer and Lambert: light passes through each layer
    bled = np.float32(0.1) * np.exp(-np.maximum(away, 0) / np.float32(0.014))
    return np.maximum(cover(away, spot.side, 0.013), bled), wash


def _ink(spot: Spot) -> Painted:
    """Flat colour in a dark outline of uneven width, hatched where it turns from the light."""
    half = np.clip(0.0068 + 0.0016 * spot.uneven.clouds, 0.005, 0.009)
    line = cover(np.abs(spot.away - np.float32(0.002)) - half, spot.side)
    rows, columns = (
        np.arange(part.start, part.start + size) for part, size in zip(spot.window, spot.away.shape, strict=True)
    )
    slant = ((rows[:, None] + columns) / (spot.side * 0.052)).astype(np.float32)
    hatch = np.clip(1.6 * (np.cos(2 * np.pi * slant) - 0.25), 0, 1) * np.clip(0.15 - 1.6 * spot.facing, 0, 1)
    fill = spot.color ** np.float32(0.86) * (1 + 0.012 * spot.uneven.clouds[..., None])
    fill = fill + (np.float32(0.3) * hatch)[..., None] * (0.6 * spot.color + 0.4 * INK - fill)
    drawn = fill + line[..., None] * (0.8 * INK - fill)
    return np.maximum(cover(spot.away, spot.side), line), drawn


def _pastel(spot: Spot) -> Painted:
    """Crayon: slanted strokes that leave a little of the sheet bare, a dusty edge."""
    strokes = np.clip(spot.uneven.strokes, -1.5, 1.5)
    away = spot.away + np.float32(0.0028) * strokes + np.float32(0.001) * spot.uneven.grain
    full = np.clip(0.95 + 0.07 * strokes + 0.05 * spot.uneven.grain, 0.86, 1)
    light = 1.05 + 0.09 * spot.facing + 0.08 * strokes
    chalk = light[..., None] * spot.color + np.float32(0.06)
    dust = np.float32(0.12) * np.exp(-np.maximum(away, 0) / np.float32(0.012))
    return np.maximum(cover(away, spot.side, 0.014) * full, dust), chalk


def _clay(spot: Spot) -> Painted:
    """A rounded body: light by the slope of its surface, a soft gleam, light thrown back from the sheet."""
    bevel = np.float32(ROUNDING[spot.piece.shape] * spot.piece.r)
    height = np.sqrt(np.clip(1 - (1 - np.clip(-spot.away / bevel, 0, 1)) ** 2, 0, 1)) * bevel
    down, right = np.gradient(height, np.float32(1 / spot.side))
    length = np.sqrt(1 + down**2 + right**2)
    lit = (-0.42 * -right - 0.56 * -down + 0.71) / length
    gleam = np.clip((-0.23 * -right - 0.3 * -down + 0.925) / length, 0, 1) ** 44
    thrown = np.clip((0.6 * -right + 0.8 * -down) / length, 0, 1) ** 2
    light = 0.56 + 0.6 * np.clip(lit, 0, 1) + 0.04 * spot.facing + 0.16 * thrown
    return cover(spot.away, spot.side), light[..., None] * spot.color + (0.3 * gleam)[..., None] * SUN


# How far the roundness of clay reaches inwards: most of the way to the middle of each shape.
ROUNDING = {
    "circle": 1.0,
    "square": 0.38,
    "triangle": 0.32,
    "ring": 0.23,
    "cross": 0.26,
    "star": 0.28,
    "half moon": 0.32,
}
CASTS = {"paper": (0.36, 1.0), "clay": (0.42, 1.5)}  # a shadow's strength and softness
STYLISTS: dict[str, Callable[[Spot], Painted]] = {
    "paper": _paper,
    "watercolour": _watercolour,
    "ink": _ink,
    "pastel": _pastel,
    "clay": _clay,
}
