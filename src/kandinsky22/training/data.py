"""The picture world as training data: rendered once to a memory-mapped file, captioned anew at every look."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from PIL import Image
from torch import Tensor

from kandinsky22.compositions import Scene, render, sample
from kandinsky22.files import whole
from kandinsky22.models.clip import CLIPImageProcessor

WORLD = "v2"  # of the rendering: pictures of an older one must not be taken for these


class Compositions:
    """`count` scenes of the world, and their pictures of `side` pixels, kept in `folder`. Scene i depends on (seed, i) alone.

    `processor` prepares them for CLIP as it will when the model is used.
    """

    def __init__(
        self, folder: Path, count: int, side: int, seed: int = 0, *, processor: CLIPImageProcessor | None = None
    ) -> None:
        self.processor = processor
        self.path = folder / f"compositions-{WORLD}-{seed}-{side}-{count}.npy"
        self.count, self.side, self.seed = count, side, seed
        self._scenes: dict[int, Scene] = {}
        self._pixels: np.ndarray | None = None

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """Scene `index`."""
        if index not in self._scenes:
            self._scenes[index] = sample(np.random.default_rng([self.seed, index]))
        return self._scenes[index]

    @property
    def pixels(self) -> np.ndarray:
        """All pictures, uint8 [count, side, side, 3]; rendered on first use."""
        if self._pixels is None:
            if not self.path.exists():
                self._render()
            self._pixels = np.load(self.path, mmap_mode="r")
        return self._pixels

    def _render(self) -> None:
        with whole(self.path) as partial:
            pixels = open_memmap(partial, "w+", np.uint8, (self.count, self.side, self.side, 3))
            for index in range(self.count):
                pixels[index] = render(sample(np.random.default_rng([self.seed, index])), self.side)
            pixels.flush()

    def pictures(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Pictures as float [B, 3, side, side] in [-1, 1]."""
        chosen = torch.from_numpy(self.pixels[np.asarray(indices)])
        return chosen.movedim(-1, 1).to(torch.float32) / 127.5 - 1

    def seen(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """Pictures as CLIP sees them, float [B, 3, S, S]."""
        assert self.processor is not None
        return self.processor([Image.fromarray(self.pixels[i]) for i in indices])

    def crops(self, indices: Sequence[int] | np.ndarray, corners: np.ndarray, size: int) -> Tensor:
        """Squares of `size` pixels cut from pictures, as float [B, 3, size, size] in [-1, 1]; `corners` [B, 2] are their
        upper left ones, as (top, left)."""
        cut = [self.pixels[i, y : y + size, x : x + size] for i, (y, x) in zip(indices, corners, strict=True)]
        return torch.from_numpy(np.stack(cut)).movedim(-1, 1).to(torch.float32) / 127.5 - 1
