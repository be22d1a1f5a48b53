"""Scenes as pictures, with their exact depth and instance maps.

Everything is drawn from signed distances in scene units, so a scene is the same picture at any resolution. Knows scenes
and numpy; nothing of captions or of reading pictures back.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kandinsky22.compositions.background import decorate, ground, surface
from kandinsky22.compositions.canvas import canvas
from kandinsky22.compositions.shapes import distance
from kandinsky22.compositions.styles import paint
from kandinsky22.compositions.world import Scene

FAR, NEAR = 0.05, 0.25  # depth of the ground at the top and the bottom


@dataclass(frozen=True, slots=True)
class Layers:
    """What a camera would not see: depth [H, W] float32 in [0, 1] (1 is nearest), ids [H, W] int16.

    An id is a piece's index in `Scene.pieces` plus one; the ground is 0.
    """

    depth: NDArray[np.float32]
    ids: NDArray[np.int16]


def render(scene: Scene, side: int = 128, *, grain: bool = True) -> NDArray[np.uint8]:
    """Paint a scene: uint8 [H, W, 3], where the shorter side has `side` pixels (at least 16).

    Without `grain` it lacks the finest unevenness of paper and paint, which says nothing and no autoencoder should keep.
    """
    points = canvas(scene.height, scene.width, side)
    uneven = surface(scene, points, grain=grain)
    picture = ground(scene, points, uneven)
    decorate(picture, scene, points, uneven)
    tints = np.random.default_rng((scene.seed, 3)).uniform(-1, 1, (len(scene.pieces), 3)).astype(np.float32)
    for piece, tint in zip(scene.pieces, tints, strict=True):
        paint(picture, piece, points, scene.style, tint, uneven)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def layers(scene: Scene, side: int = 128) -> Layers:
    """The exact depth and instance maps of `render(scene, side)`."""
    points = canvas(scene.height, scene.width, side)
    depth = np.repeat(FAR + (NEAR - FAR) / scene.height * points.y, points.x.size, axis=1).astype(np.float32)
    ids = np.zeros(depth.shape, np.int16)
    for number, piece in enumerate(scene.pieces, start=1):
        window = points.around(piece.x, piece.y, piece.r)
        x, y = points.x[:, window[1]] - np.float32(piece.x), points.y[window[0]] - np.float32(piece.y)
        inside = distance(piece.shape, x, y, piece.r, piece.angle) < 0
        depth[window][inside] = piece.z
        ids[window][inside] = number
    return Layers(depth, ids)
