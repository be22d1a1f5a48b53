"""Scenes as pictures, with their exact depth and instance maps.

Everything is drawn from signed distances in scene units, so a scene has the same picture at any resolution. Independent
of captions and of the oracle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kandinsky22.compositions.background import BackgroundScene, Surface, decorate, ground, surface
from kandinsky22.compositions.canvas import Canvas, canvas
from kandinsky22.compositions.pieces import Piece
from kandinsky22.compositions.shapes import FloatArray, distance
from kandinsky22.compositions.styles import paint
from kandinsky22.compositions.world import Scene

FAR, NEAR = 0.05, 0.25  # depth of the ground at the top and the bottom


@dataclass(frozen=True, slots=True)
class Layers:
    """Ground-truth maps of a picture: depth [H, W] float32 in [0, 1] (1 is nearest), ids [H, W] int16.

    An id is a piece's index in `Scene.pieces` plus one; the ground is 0.
    """

    depth: NDArray[np.float32]
    ids: NDArray[np.int16]


class PieceScene(BackgroundScene, Protocol):
    """A scene of any kind: a background and pieces on it."""

    @property
    def pieces(self) -> Sequence[object]:
        """What is painted on the background, from far to near."""


def render(scene: Scene, side: int = 128, *, grain: bool = True) -> NDArray[np.uint8]:
    """Paint a scene: uint8 [H, W, 3], where the shorter side has `side` pixels (at least 16).

    `grain=False` omits the finest texture of paper and paint, which no caption mentions and no autoencoder needs to
    reproduce.
    """
    points = canvas(scene.height, scene.width, side)
    picture, texture, tints = draw_background(scene, points, grain=grain)
    for piece, tint in zip(scene.pieces, tints, strict=True):
        paint(picture, piece, points, scene.style, tint, texture)
    return to_uint8(picture)


def layers(scene: Scene, side: int = 128) -> Layers:
    """The exact depth and instance maps of `render(scene, side)`."""
    points = canvas(scene.height, scene.width, side)
    maps = background_layers(scene.height, points)
    for number, piece in enumerate(scene.pieces, start=1):
        add_to_layers(maps, piece, number, points)
    return maps


def draw_background(scene: PieceScene, points: Canvas, *, grain: bool) -> tuple[FloatArray, Surface, FloatArray]:
    """A scene's picture [H, W, 3] without its pieces, the textures that they share with it, and their tints [N, 3]."""
    texture = surface(scene, points, grain=grain)
    picture = ground(scene, points, texture)
    decorate(picture, scene, points, texture)
    tints = np.random.default_rng((scene.seed, 3)).uniform(-1, 1, (len(scene.pieces), 3)).astype(np.float32)
    return picture, texture, tints


def to_uint8(picture: FloatArray) -> NDArray[np.uint8]:
    """A picture [H, W, 3] in [0, 1] as uint8; other values are clipped."""
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def background_layers(height: float, points: Canvas) -> Layers:
    """The layers of a picture without pieces; `height` is the scene's."""
    depth = np.repeat(FAR + (NEAR - FAR) / height * points.y, points.x.size, axis=1).astype(np.float32)
    return Layers(depth, np.zeros(depth.shape, np.int16))


def add_to_layers(maps: Layers, piece: Piece, number: int, points: Canvas) -> None:
    """Write a shape into the layers, with `number` as its id."""
    window = points.around(piece.x, piece.y, piece.r)
    x, y = points.x[:, window[1]] - np.float32(piece.x), points.y[window[0]] - np.float32(piece.y)
    inside = distance(piece.shape, x, y, piece.r, piece.angle) < 0
    maps.depth[window][inside] = piece.z
    maps.ids[window][inside] = number
