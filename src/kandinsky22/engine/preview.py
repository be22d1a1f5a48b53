"""Small previews of latents: a linear map from a latent cell to a colour.

To a good approximation a cell of MoVQ's latents is a linear map of the average colour of its pixels. Fitted by least
squares on the autoencoder's own reconstructions, its inverse shows in a millisecond what a picture is becoming.
"""

import contextlib
import io
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.checkpoints.safetensors_file import open_tensors
from kandinsky22.files import atomic_write
from kandinsky22.models.movq import MoVQ

SHIPPED = "latent_preview.safetensors"  # beside MoVQ's weights
WEIGHT, MOVQ_KEY = "weight", "movq"  # in the file, and in its metadata
PICTURES, SIDE = 8, 256  # that a map is fitted on
SCALES = (2, 4, 8, 16, 32, 64)  # cells a side of the random colours that pictures are made of


class LatentPreview:
    """The map of one MoVQ. weight: float32 [4 + 1, 3], the last row is a constant; colours are in [-1, 1]."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    @classmethod
    def fit(cls, movq: MoVQ) -> Self:
        """The map for an autoencoder, by least squares over pictures of random colours at many scales."""
        parameter = next(movq.parameters())
        generator = torch.Generator("cpu").manual_seed(0)
        cells, colours = [], []
        for _ in range(PICTURES):
            noise = [torch.randn(1, 3, n, n, generator=generator) for n in SCALES]
            smooth = [F.interpolate(x, size=(SIDE, SIDE), mode="bicubic", align_corners=False) for x in noise]
            picture = torch.tanh(sum(x / (k + 1) for k, x in enumerate(smooth)))  # type: ignore[arg-type]
            z = movq.encode(picture.to(parameter))
            decoded = movq.decode(z).float().cpu()
            cells.append(z.float().cpu()[0].flatten(1).T)
            colours.append(F.avg_pool2d(decoded, movq.config.factor)[0].flatten(1).T)
        z, rgb = torch.cat(cells), torch.cat(colours)
        return cls(torch.linalg.lstsq(torch.cat([z, torch.ones(len(z), 1)], dim=1), rgb).solution)

    @classmethod
    def read(cls, path: Path, fingerprint: str, channels: int) -> Self | None:
        """The map in a file, if it is that of the MoVQ with this fingerprint, whose latents have so many channels."""
        with contextlib.suppress(OSError, SafetensorError, ValueError), open_tensors(path) as file:
            if (file.metadata() or {}).get(MOVQ_KEY) == fingerprint:
                weight = file.get_tensor(WEIGHT)
                if weight.dtype == torch.float32 and weight.shape == (channels + 1, 3) and weight.isfinite().all():
                    return cls(weight)
        return None

    def write(self, path: Path, fingerprint: str) -> None:
        """Write the map, with the fingerprint of its MoVQ."""
        with atomic_write(path) as partial:
            save_file({WEIGHT: self.weight.contiguous()}, partial, metadata={MOVQ_KEY: fingerprint})

    def pixels(self, z: Tensor) -> Tensor:
        """Colours [3, h, w] in about [-1, 1] of latents [4, h, w]."""
        z = z.float().cpu()
        return torch.einsum("chw,cd->dhw", z, self.weight[:-1]) + self.weight[-1][:, None, None]

    def png(self, z: Tensor, side: int) -> bytes:
        """A PNG file of latents [4, h, w]: a pixel per cell, and smaller if a side has more than `side` cells."""
        colours = ((self.pixels(z) * 0.5 + 0.5).clamp(0, 1) * 255).round().byte()
        image = Image.fromarray(colours.movedim(0, -1).numpy())
        image.thumbnail((side, side))
        file = io.BytesIO()
        image.save(file, "PNG", compress_level=1)
        return file.getvalue()
