"""Scenes as pictures: coloured paper cut-outs over a lit sheet, with their exact depth and instance maps.

Everything is drawn from signed distances in scene units, so a scene is the same picture at any resolution. Knows scenes
and numpy; nothing of captions or of reading pictures back.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .shapes import FloatArray, distance
from .world import COLORS, GROUNDS, Piece, Scene

INK = np.array((0.13, 0.12, 0.15), np.float32)
LIGHT = (-0.6, -0.8)  # the direction the light comes from: over the left shoulder
THINNEST = 0.8  # pixels: a line of the decoration must survive at 64
CLOUDS, GRAIN = 5, 36  # lattice cells per unit of the two paper textures; finer would be noise to a small model
FAR, NEAR = 0.05, 0.25  # depth of the ground at the top and the bottom


@dataclass(frozen=True, slots=True)
class Layers:
    """What a camera would not see: depth [H, W] float32 in [0, 1] (1 is nearest), ids [H, W] int16.

    An id is a piece's index in `Scene.pieces` plus one; the ground is 0.
    """

    depth: NDArray[np.float32]
    ids: NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class _Canvas:
    """Pixel centres in scene units, as a column y [H, 1] and a row x [1, W]; `side` pixels make one unit."""

    y: FloatArray
    x: FloatArray
    side: int

    def around(self, x: float, y: float, reach: float) -> tuple[slice, slice]:
        """The rows and columns within `reach` of a point."""
        top, left = max(0, int((y - reach) * self.side)), max(0, int((x - reach) * self.side))
        bottom, right = math.ceil((y + reach) * self.side) + 1, math.ceil((x + reach) * self.side) + 1
        return slice(top, bottom), slice(left, right)


def render(scene: Scene, side: int = 128) -> NDArray[np.uint8]:
    """Paint a scene: uint8 [H, W, 3], where the shorter side has `side` pixels (at least 16)."""
    canvas = _canvas(scene.height, scene.width, _checked(side))
    texture = _texture(scene, canvas)
    picture = _ground(scene, canvas, texture)
    _decorate(picture, scene, canvas)
    tints = np.random.default_rng((scene.seed, 3)).uniform(-1, 1, (len(scene.pieces), 3)).astype(np.float32)
    for piece, tint in zip(scene.pieces, tints, strict=True):
        _cast_shadow(picture, piece, canvas)
        _lay(picture, piece, canvas, tint, texture)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def layers(scene: Scene, side: int = 128) -> Layers:
    """The exact depth and instance maps of `render(scene, side)`."""
    canvas = _canvas(scene.height, scene.width, _checked(side))
    depth = np.repeat(FAR + (NEAR - FAR) / scene.height * canvas.y, canvas.x.size, axis=1).astype(np.float32)
    ids = np.zeros(depth.shape, np.int16)
    for number, piece in enumerate(scene.pieces, start=1):
        window = canvas.around(piece.x, piece.y, piece.r)
        inside = _distance(piece, canvas, window) < 0
        depth[window][inside] = piece.z
        ids[window][inside] = number
    return Layers(depth, ids)


def _checked(side: int) -> int:
    if side < 16:
        raise ValueError(f"side must be at least 16 pixels, got {side}; try 64 or 128")
    return side


@lru_cache(maxsize=16)
def _canvas(height: float, width: float, side: int) -> _Canvas:
    y, x = ((np.arange(round(extent * side), dtype=np.float32) + 0.5) / side for extent in (height, width))
    return _Canvas(y[:, None], x[None, :], side)


@lru_cache(maxsize=64)
def _weights(extent: float, side: int, cells: int) -> FloatArray:
    """The matrix [pixels, lattice points] that interpolates a lattice along one axis, smoothly."""
    place = (np.arange(round(extent * side)) + 0.5) / side * cells
    cell = place.astype(int)
    part = place - cell
    part = part * part * (3 - 2 * part)
    weights = np.zeros((place.size, math.ceil(extent * cells) + 2), np.float32)
    rows = np.arange(place.size)
    weights[rows, cell], weights[rows, cell + 1] = 1 - part, part
    return weights


def _texture(scene: Scene, canvas: _Canvas) -> FloatArray:
    """Unevenness of the paper, [H, W], of the order of one: broad clouds and a fine, faint grain."""
    rng = np.random.default_rng((scene.seed, 1))
    clouds, grain = (_noise(scene, canvas, cells, rng) for cells in (CLOUDS, GRAIN))
    return np.float32(0.8) * clouds + np.float32(0.45) * grain


def _noise(scene: Scene, canvas: _Canvas, cells: int, rng: np.random.Generator) -> FloatArray:
    down, across = _weights(scene.height, canvas.side, cells), _weights(scene.width, canvas.side, cells)
    lattice = rng.standard_normal((down.shape[1], across.shape[1]), dtype=np.float32)
    return np.asarray(down @ lattice @ across.T)


def _ground(scene: Scene, canvas: _Canvas, texture: FloatArray) -> FloatArray:
    """The sheet, [H, W, 3] in [0, 1]: brightest at the upper left, a little darker towards the far corner."""
    away = (canvas.x / scene.width - 0.3) ** 2 + (canvas.y / scene.height - 0.25) ** 2
    light = 1.012 - 0.1 * away + 0.012 * texture
    return light[..., None] * (np.array(GROUNDS[scene.ground], np.float32) / 255)


def _decorate(picture: FloatArray, scene: Scene, canvas: _Canvas) -> None:
    rng = np.random.default_rng((scene.seed, 2))
    match scene.decoration:
        case "thin black lines":
            _stroke(picture, _lines(scene, canvas, rng), canvas, width=0.009, strength=0.68)
        case "a grid":
            _stroke(picture, _grid(canvas, rng), canvas, width=0.006, strength=0.34)
        case "arcs":
            _stroke(picture, _arcs(scene, canvas, rng), canvas, width=0.008, strength=0.55)


def _stroke(picture: FloatArray, away: FloatArray, canvas: _Canvas, width: float, strength: float) -> None:
    """Ink every point whose distance from the drawing's centre line is under half the width."""
    half = max(width * canvas.side, THINNEST) / 2
    cover = np.clip(half + 0.5 - away * canvas.side, 0, min(1.0, 2 * half)) * np.float32(strength)
    picture += cover[..., None] * (INK - picture)


def _lines(scene: Scene, canvas: _Canvas, rng: np.random.Generator) -> FloatArray:
    """Three straight lines through the middle part of the sheet, well apart in direction."""
    first = rng.uniform(0, math.pi)
    away = []
    for number in range(3):
        turn = first + number * math.pi / 3 + rng.uniform(-0.35, 0.35)
        x, y = rng.uniform(0.25, 0.75) * scene.width, rng.uniform(0.25, 0.75) * scene.height
        away.append(np.abs((canvas.x - x) * math.sin(turn) - (canvas.y - y) * math.cos(turn)))
    return np.minimum(np.minimum(away[0], away[1]), away[2])


def _grid(canvas: _Canvas, rng: np.random.Generator) -> FloatArray:
    turn, cell = rng.uniform(-0.25, 0.25), rng.uniform(0.15, 0.19)
    along = (canvas.x * math.cos(turn) + canvas.y * math.sin(turn)) / cell
    down = (canvas.y * math.cos(turn) - canvas.x * math.sin(turn)) / cell
    return np.asarray(np.minimum(np.abs(along - np.round(along)), np.abs(down - np.round(down))) * np.float32(cell))


def _arcs(scene: Scene, canvas: _Canvas, rng: np.random.Generator) -> FloatArray:
    """Three arcs about a point near one corner, and a wider one that answers from the opposite corner."""
    right, bottom = rng.integers(2, size=2)
    inset_x, inset_y = rng.uniform(-0.05, 0.25, 2)
    x = scene.width - inset_x if right else inset_x
    y = scene.height - inset_y if bottom else inset_y
    middle, step = rng.uniform(0.42, 0.6), rng.uniform(0.075, 0.11)
    from_middle = np.abs(np.hypot(canvas.x - x, canvas.y - y) - np.float32(middle))
    three = np.minimum(from_middle, np.abs(from_middle - np.float32(step)))
    answer = np.hypot(canvas.x - (scene.width - x), canvas.y - (scene.height - y)) - np.float32(rng.uniform(0.4, 0.6))
    return np.asarray(np.minimum(three, np.abs(answer)))


def _distance(piece: Piece, canvas: _Canvas, window: tuple[slice, slice], shift: float = 0.0) -> FloatArray:
    """Signed distance to the piece within a window; `shift` moves the piece away from the light."""
    x = canvas.x[:, window[1]] - np.float32(piece.x - shift * LIGHT[0])
    y = canvas.y[window[0]] - np.float32(piece.y - shift * LIGHT[1])
    return distance(piece.shape, x, y, piece.r, piece.angle)


def _cast_shadow(picture: FloatArray, piece: Piece, canvas: _Canvas) -> None:
    """Nearer pieces float higher: their shadow falls further and softer."""
    shift, blur = 0.006 + 0.034 * piece.z, 0.008 + 0.032 * piece.z
    window = canvas.around(piece.x, piece.y, piece.r + shift + blur)
    edge = np.clip(0.5 - _distance(piece, canvas, window, shift) / np.float32(2 * blur), 0, 1)
    shade = edge * edge * (3 - 2 * edge) * np.float32(0.36)
    picture[window] *= 1 - shade[..., None] * np.array((1.0, 0.96, 0.86), np.float32)  # shadows are a little blue


def _lay(picture: FloatArray, piece: Piece, canvas: _Canvas, tint: FloatArray, texture: FloatArray) -> None:
    """Lay one cut-out: its own tint, light falling across it, a rim that is bright or dark as it faces the light."""
    window = canvas.around(piece.x, piece.y, piece.r + 1 / canvas.side)
    away = _distance(piece, canvas, window)
    x, y = canvas.x[:, window[1]] - np.float32(piece.x), canvas.y[window[0]] - np.float32(piece.y)
    facing = (x * LIGHT[0] + y * LIGHT[1]) / np.float32(piece.r)  # 1 at the brightest point of the outline
    rim = np.exp(np.minimum(away, 0) / np.float32(0.011))
    light = 1.0 + 0.09 * facing + 0.16 * facing * rim + 0.03 * texture[window]
    color = np.array(COLORS[piece.color], np.float32) / 255 * (1 + 0.045 * tint)
    gleam = np.float32(0.035) * np.maximum(facing, 0) * (1 + rim)  # lets black paper show the light, too
    cover = np.clip(0.5 - away * canvas.side, 0, 1)[..., None]
    picture[window] += cover * (light[..., None] * color + gleam[..., None] - picture[window])
