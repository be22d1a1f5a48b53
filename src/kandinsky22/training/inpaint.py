"""What the inpainting decoder learns beside painting: to go on from what is left of a picture.

Its holes are those that people make: a rectangle, all but a rectangle (a picture that is to be extended), a few strokes of a
brush. They are drawn on the latents' cells, as the pipeline hands them on (spec 1.6).
"""

from itertools import pairwise

import torch
from torch import Tensor

from kandinsky22.engine.runs import InpaintCondition
from kandinsky22.training.decoder import Bucket

BOXES, SURROUNDINGS = 0.45, 0.25  # shares of the holes; the rest are strokes
SMALLEST, LARGEST = 0.2, 1.0  # of a rectangle's side over the picture's
STROKES = 4  # at most
BRUSH = 0.06, 0.2  # radius over the picture's shorter side


def masked(bucket: Bucket, rows: Tensor, x0: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
    """`Beside` of the inpainting decoder: latents [B, 4, h, w] without those in a hole, and where they are known."""
    n, _, height, width = x0.shape
    return {"masked": InpaintCondition(x0, 1 - holes(n, height, width, draw)).channels}


def holes(n: int, height: int, width: int, draw: torch.Generator) -> Tensor:
    """Random holes, float [n, 1, height, width]: 1 is to be repainted."""
    y, x = torch.arange(height).view(1, -1, 1) + 0.5, torch.arange(width).view(1, 1, -1) + 0.5
    box = _within(y, height, n, draw) & _within(x, width, n, draw)
    kind = torch.rand(n, 1, 1, generator=draw)
    surroundings = kind < BOXES + SURROUNDINGS
    hole = torch.where(kind < BOXES, box, torch.where(surroundings, ~box, _strokes(y, x, height, width, n, draw)))
    return hole[:, None].float()


def _within(cells: Tensor, length: int, n: int, draw: torch.Generator) -> Tensor:
    """Whether cells lie in a random stretch of the side, a stretch for each of n."""
    long = SMALLEST + (LARGEST - SMALLEST) * torch.rand(n, 1, 1, generator=draw)
    start = (1 - long) * torch.rand(n, 1, 1, generator=draw)
    return (cells > start * length) & (cells < (start + long) * length)


def _strokes(y: Tensor, x: Tensor, height: int, width: int, n: int, draw: torch.Generator) -> Tensor:
    """Whether cells are under a brush that went straight from place to place: one line more or less for each of n."""
    sides = torch.tensor([height, width])
    places = torch.rand(STROKES + 1, n, 2, generator=draw) * sides
    low, high = (share * min(height, width) for share in BRUSH)
    radius = low + (high - low) * torch.rand(n, 1, 1, generator=draw)
    lines = torch.randint(1, STROKES + 1, (n, 1, 1), generator=draw)
    under = torch.zeros(n, height, width, dtype=torch.bool)
    for number, (one, other) in enumerate(pairwise(places)):
        (y0, x0), (dy, dx) = one.T[..., None, None], (other - one).T[..., None, None]
        along = (((y - y0) * dy + (x - x0) * dx) / (dy.square() + dx.square()).clamp(min=1e-6)).clamp(0, 1)
        distance = ((y - y0 - along * dy).square() + (x - x0 - along * dx).square()).sqrt()
        under |= (distance < radius) & (number < lines)
    return under
