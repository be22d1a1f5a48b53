"""Training inputs of the inpainting decoder: pictures with random holes.

The holes are those that people make: a rectangle, all but a rectangle (outpainting), a few brush strokes. They are
drawn on latent cells, which is the resolution of the mask that the pipeline passes to the U-Net.
"""

from itertools import pairwise

import torch
from torch import Tensor

from kandinsky22.engine.runs import InpaintCondition
from kandinsky22.training.decoder import Bucket

BOXES, SURROUNDINGS = 0.45, 0.25  # shares of rectangles and of their complements; the rest are strokes
SMALLEST, LARGEST = 0.2, 1.0  # side of a rectangle, relative to the picture's
STROKES = 4  # at most
BRUSH = 0.06, 0.2  # range of the radius, relative to the picture's shorter side


def masked_inputs(bucket: Bucket, rows: Tensor, x0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """`ExtraInputs` of the inpainting decoder, [B, 5, h, w]: latents set to zero in a hole, and a mask, 1 where they
    are known."""
    n, _, height, width = x0.shape
    return {"masked": InpaintCondition(x0, 1 - holes(n, height, width, generator)).channels}


def holes(n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Random masks, float [n, 1, height, width]: 1 where the picture is to be repainted."""
    y, x = torch.arange(height).view(1, -1, 1) + 0.5, torch.arange(width).view(1, 1, -1) + 0.5
    box = _intervals(y, height, n, generator) & _intervals(x, width, n, generator)
    kind = torch.rand(n, 1, 1, generator=generator)
    surroundings = kind < BOXES + SURROUNDINGS
    strokes = _strokes(y, x, height, width, n, generator)
    return torch.where(kind < BOXES, box, torch.where(surroundings, ~box, strokes))[:, None].float()


def _intervals(cells: Tensor, length: int, n: int, generator: torch.Generator) -> Tensor:
    """Whether the cells of a side of `length` are within a random interval, for each of n."""
    size = SMALLEST + (LARGEST - SMALLEST) * torch.rand(n, 1, 1, generator=generator)
    start = (1 - size) * torch.rand(n, 1, 1, generator=generator)
    return (cells > start * length) & (cells < (start + size) * length)


def _strokes(y: Tensor, x: Tensor, height: int, width: int, n: int, generator: torch.Generator) -> Tensor:
    """Whether cells are under a brush that moves along a random polyline of 1 to `STROKES` lines, for each of n."""
    sides = torch.tensor([height, width])
    points = torch.rand(STROKES + 1, n, 2, generator=generator) * sides
    low, high = (share * min(height, width) for share in BRUSH)
    radius = low + (high - low) * torch.rand(n, 1, 1, generator=generator)
    lines = torch.randint(1, STROKES + 1, (n, 1, 1), generator=generator)
    covered = torch.zeros(n, height, width, dtype=torch.bool)
    for number, (start, end) in enumerate(pairwise(points)):
        (y0, x0), (dy, dx) = start.T[..., None, None], (end - start).T[..., None, None]
        along = (((y - y0) * dy + (x - x0) * dx) / (dy.square() + dx.square()).clamp(min=1e-6)).clamp(0, 1)
        distance = ((y - y0 - along * dy).square() + (x - x0 - along * dx).square()).sqrt()
        covered |= (distance < radius) & (number < lines)
    return covered
