"""The background of a picture, in each style: its ground with light and texture, and the decoration on it.

Independent of the shapes of a scene.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kandinsky22.compositions.canvas import Canvas
from kandinsky22.compositions.shapes import FloatArray
from kandinsky22.compositions.world import GROUNDS

INK = np.array((0.13, 0.12, 0.15), np.float32)
MIN_WIDTH = 1.0  # pixels: a line of the decoration must remain visible in a picture of 64 pixels
WARM, COOL = np.array((0.014, 0.0, -0.022), np.float32), np.array((-0.016, -0.002, 0.012), np.float32)
# In units of the shorter side: over 1.7 pixels in a picture of 128.
LINE_WIDTHS = {"thin black lines": 0.0165, "a grid": 0.0135, "arcs": 0.0165}
LINE_STRENGTHS = {"thin black lines": 0.72, "a grid": 0.4, "arcs": 0.6}
LINE_SHARES = {"paper": 1.0, "watercolour": 0.8, "ink": 0.9, "pastel": 0.85, "clay": 0.9}  # factors of those strengths


class BackgroundScene(Protocol):
    """The part of a scene that its background is drawn from."""

    @property
    def ground(self) -> str:
        """A key of `GROUNDS`."""

    @property
    def decoration(self) -> str:
        """One of `DECORATIONS`."""

    @property
    def style(self) -> str:
        """One of `STYLES`."""

    @property
    def seed(self) -> int:
        """Seed of the textures and of the lines' positions."""

    @property
    def height(self) -> float:
        """In units of the shorter side."""

    @property
    def width(self) -> float:
        """In units of the shorter side."""


@dataclass(frozen=True, slots=True)
class Surface:
    """Noise textures that the ground and the shapes of one picture share, each [H, W] with a deviation of about 1."""

    clouds: FloatArray  # coarse
    grain: FloatArray  # fine; a small model could not learn anything finer
    strokes: FloatArray  # elongated along one direction, as wide as a crayon


def surface(scene: BackgroundScene, canvas: Canvas, *, grain: bool = True) -> Surface:
    """The textures of a scene's picture; without `grain` the finest is 0, and strokes are computed for pastel only."""
    rng = np.random.default_rng((scene.seed, 1))
    clouds, fine = canvas.noise(5, rng), canvas.noise(36, rng) * np.float32(grain)
    slant = -math.pi / 4 + rng.uniform(-0.25, 0.25)
    return Surface(clouds, fine, canvas.strokes(slant, 7, 38, rng) if scene.style == "pastel" else fine)


def ground(scene: BackgroundScene, canvas: Canvas, texture: Surface) -> FloatArray:
    """The empty ground [H, W, 3] in [0, 1]: lit from the upper left, warmer on one side and cooler on the other."""
    rng = np.random.default_rng((scene.seed, 4))
    turn = rng.uniform(0, 2 * math.pi)
    slope = (canvas.x / scene.width - 0.5) * math.cos(turn) + (canvas.y / scene.height - 0.5) * math.sin(turn)
    falloff = (canvas.x / scene.width - 0.3) ** 2 + (canvas.y / scene.height - 0.25) ** 2
    color = np.array(GROUNDS[scene.ground], np.float32) / 255
    match scene.style:
        case "watercolour":  # a wash: pigment settles in clouds and dries unevenly
            light = 0.99 - 0.03 * falloff + 0.018 * texture.clouds + 0.01 * texture.grain
            color = color ** (1 + 0.2 * texture.clouds + 0.08 * texture.grain)[..., None]
        case "ink":
            light = 1.0 - 0.03 * falloff + 0.008 * texture.clouds + 0.006 * texture.grain
        case "pastel":
            light = 0.985 - 0.05 * falloff + 0.014 * texture.clouds + 0.02 * texture.strokes + 0.008 * texture.grain
        case "clay":
            light = 1.03 - 0.2 * falloff
        case _:
            light = 1.015 - 0.11 * falloff + 0.01 * texture.clouds + 0.008 * texture.grain
    hue = 1 + np.maximum(slope, 0)[..., None] * (2 * WARM) + np.maximum(-slope, 0)[..., None] * (2 * COOL)
    return np.asarray(light[..., None] * hue * color)


def decorate(picture: FloatArray, scene: BackgroundScene, canvas: Canvas, texture: Surface) -> None:
    """Draw the scene's decoration into the picture."""
    rng = np.random.default_rng((scene.seed, 2))
    match scene.decoration:
        case "thin black lines":
            distances = _lines(canvas, rng)
        case "a grid":
            distances = _grid(canvas, rng)
        case "arcs":
            distances = _arcs(canvas, rng)
        case _:
            return
    strength: FloatArray | np.float32 = np.float32(LINE_STRENGTHS[scene.decoration] * LINE_SHARES[scene.style])
    if scene.style in ("watercolour", "pastel"):  # a brush or a crayon draws an uneven line
        strength = strength * np.clip(1 + 0.14 * texture.strokes + 0.08 * texture.clouds, 0.7, 1.2)
    half_width = max(LINE_WIDTHS[scene.decoration] * canvas.side, MIN_WIDTH) / 2
    ink = np.clip(half_width + 0.5 - distances * canvas.side, 0, min(1.0, 2 * half_width)) * strength
    picture += ink[..., None] * (INK - picture)


def _lines(canvas: Canvas, rng: np.random.Generator) -> FloatArray:
    """The distance [H, W] to three straight lines near the middle of the picture, in clearly different directions."""
    first = rng.uniform(0, math.pi)
    distances = []
    for number in range(3):
        turn = first + number * math.pi / 3 + rng.uniform(-0.35, 0.35)
        x, y = rng.uniform(0.25, 0.75) * canvas.width, rng.uniform(0.25, 0.75) * canvas.height
        distances.append(np.abs((canvas.x - x) * math.sin(turn) - (canvas.y - y) * math.cos(turn)))
    return np.minimum(np.minimum(distances[0], distances[1]), distances[2])


def _grid(canvas: Canvas, rng: np.random.Generator) -> FloatArray:
    """The distance [H, W] to the lines of a square grid, slightly rotated."""
    turn, cell = rng.uniform(-0.25, 0.25), rng.uniform(0.16, 0.2)
    along = (canvas.x * math.cos(turn) + canvas.y * math.sin(turn)) / cell
    down = (canvas.y * math.cos(turn) - canvas.x * math.sin(turn)) / cell
    return np.asarray(np.minimum(np.abs(along - np.round(along)), np.abs(down - np.round(down))) * np.float32(cell))


def _arcs(canvas: Canvas, rng: np.random.Generator) -> FloatArray:
    """The distance [H, W] to two concentric arcs about a point near one corner, and one about the opposite corner."""
    right, bottom = rng.integers(2, size=2)
    inset_x, inset_y = rng.uniform(-0.05, 0.25, 2)
    x = canvas.width - inset_x if right else inset_x
    y = canvas.height - inset_y if bottom else inset_y
    middle, step = rng.uniform(0.42, 0.6), rng.uniform(0.085, 0.115)
    from_middle = np.abs(np.hypot(canvas.x - x, canvas.y - y) - np.float32(middle))
    pair = np.minimum(from_middle, np.abs(from_middle - np.float32(step)))
    opposite = np.hypot(canvas.x - (canvas.width - x), canvas.y - (canvas.height - y)) - np.float32(
        rng.uniform(0.4, 0.6)
    )
    return np.asarray(np.minimum(pair, np.abs(opposite)))
