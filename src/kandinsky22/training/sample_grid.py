"""Sample grids: pictures of what the averaged weights do, drawn between steps, with metrics of a validation set."""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.training.metrics import Validation

N = TypeVar("N", bound=nn.Module)
SampleGrid = Callable[[dict[str, Tensor]], tuple[Image.Image, Validation]]
"""Averaged weights -> a picture, and metrics of a validation set."""


def image_grid(pictures: Sequence[Tensor], columns: int) -> Image.Image:
    """Pictures [3, H, W] in [-1, 1] in rows of `columns`; a shorter last row is filled with white."""
    columns = min(columns, len(pictures))
    blank = [torch.ones_like(pictures[0])] * (-len(pictures) % columns)
    cells = [*pictures, *blank]
    rows = [torch.cat([*cells[i : i + columns]], dim=2) for i in range(0, len(cells), columns)]
    pixels = (torch.cat(rows, dim=1).clamp(-1, 1) + 1) * 127.5
    return Image.fromarray(pixels.round().byte().movedim(0, -1).cpu().numpy())


def caption_cells(captions: Sequence[str], size: Sequence[int]) -> list[Tensor]:
    """Captions as black on white pictures [3, H, W] in [-1, 1] of `size`, (height, width); what does not fit is cut."""
    return [_caption_cell(text, *size) for text in captions]


def captioned_column(captions: Sequence[str], pictures: Tensor) -> Image.Image:
    """Pictures [N, 3, H, W] below each other, to the right of their captions."""
    cells = caption_cells(captions, pictures.shape[-2:])
    return image_grid([cell for pair in zip(cells, pictures, strict=True) for cell in pair], 2)


def _caption_cell(text: str, height: int, width: int) -> Tensor:
    cell = Image.new("L", (width, height), "white")
    letter = max(9, width // 10)
    lines = textwrap.wrap(text, max(4, round(1.8 * width / letter)))
    ImageDraw.Draw(cell).multiline_text((2, 2), "\n".join(lines), "black", ImageFont.load_default(letter))
    pixels = torch.from_numpy(np.array(cell)).float() / 127.5 - 1
    return pixels.expand(3, -1, -1)


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    """Two pictures of the same height next to each other."""
    joined = Image.new("RGB", (left.width + right.width, left.height))
    joined.paste(left, (0, 0))
    joined.paste(right, (left.width, 0))
    return joined


def nearest_images(queries: Tensor, embeds: Tensor, pictures: Tensor, columns: int = 8) -> Image.Image:
    """A row for each query embedding [N, D]: those of `pictures` [M, 3, H, W] whose `embeds` [M, D] are the most
    similar to it (cosine), the best first."""
    similarity = F.normalize(queries, dim=-1) @ F.normalize(embeds, dim=-1).T
    return image_grid([*pictures[similarity.topk(columns).indices.flatten()]], columns)


def network_with(make: Callable[[], N], weights: Mapping[str, Tensor], device: torch.device) -> N:
    """A frozen network with these weights on a device, to sample from. `make` runs on the meta device, so only the
    weights take memory."""
    with torch.device("meta"):
        network = make()
    network.load_state_dict(weights, assign=True)
    return network.to(device).eval().requires_grad_(False)


@contextmanager
def on_device(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Moves a network to a device, and back to the CPU afterwards."""
    network.to(device)
    try:
        yield
    finally:
        network.to("cpu")
