"""The picture world as training data: rendered once to a memory-mapped file, captioned anew at every look."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.lib.format import open_memmap
from PIL import Image
from torch import Tensor

from kandinsky22.compositions import Scene, caption, layers, render, sample
from kandinsky22.files import atomic_write
from kandinsky22.models.clip import CLIPImageProcessor

WORLD = "v2"  # of the rendering: pictures of an older one must not be taken for these


Indices = Sequence[int] | np.ndarray


class Pictures(Protocol):
    """Pictures of one shape and what is said of them: the world's (`Compositions`), or a person's own (`photos.Photos`)."""

    @property
    def name(self) -> str:
        """What tells these pictures from others."""

    @property
    def look(self) -> str:
        """What tells their pixels from others'."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""

    @property
    def share(self) -> float:
        """How often a step is taken with these."""

    def __len__(self) -> int: ...

    def pictures(self, indices: Indices) -> Tensor:
        """Float [B, 3, H, W] in [-1, 1]."""

    def seen(self, indices: Indices) -> Tensor:
        """As CLIP sees them, float [B, 3, S, S]."""

    def crops(self, indices: Indices, corners: np.ndarray, size: int) -> Tensor:
        """Squares of `size` pixels, float [B, 3, size, size] in [-1, 1]; `corners` [B, 2] are their (top, left)."""

    def captions(self, indices: Indices, rng: np.random.Generator) -> list[str]:
        """A caption for each."""


class Compositions:
    """`count` scenes of the world, and their pictures, kept in `folder`. Scene i depends on (seed, i) alone; pictures that
    are not square show the square's scene, stretched. `side` is the shorter side in pixels, `size` is (height, width).

    `processor` prepares them for CLIP as it will when the model is used.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        side: int,
        seed: int = 0,
        *,
        height: float = 1.0,
        width: float = 1.0,
        processor: CLIPImageProcessor | None = None,
        share: float = 1.0,
    ) -> None:
        self.folder, self.processor, self.share = folder, processor, share
        self.count, self.side, self.seed = count, side, seed
        self.height, self.width = height, width
        self.size = round(side * height), round(side * width)
        self._scenes: dict[int, Scene] = {}

    def stretched(self, height: float, width: float, count: int, share: float = 1.0) -> "Compositions":
        """The first `count` of these scenes on pictures of another shape; the shorter of the two is 1."""
        return Compositions(
            self.folder, min(count, self.count), self.side, self.seed, height=height, width=width, share=share
        )

    @property
    def name(self) -> str:
        """What tells these pictures from others."""
        shape = str(self.side) if self.size == (self.side, self.side) else "{}x{}".format(*self.size)
        return f"{WORLD}-{self.seed}-{shape}-{self.count}"

    @property
    def look(self) -> str:
        """What tells their pixels from others': captions are worded anew anyway."""
        return self.name

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """Scene `index`."""
        if index not in self._scenes:
            self._scenes[index] = self._drawn(index)
        return self._scenes[index]

    @cached_property
    def pixels(self) -> np.ndarray:
        """All pictures, uint8 [count, H, W, 3]; rendered on first use."""
        return self._rendered("compositions", (*self.size, 3), lambda scene: render(scene, self.side))

    @cached_property
    def depths(self) -> np.ndarray:
        """How near each pixel is, uint8 [count, H, W], 255 nearest; rendered on first use."""
        return self._rendered("depths", self.size, lambda scene: to_bytes(layers(scene, self.side).depth))

    def _drawn(self, index: int) -> Scene:
        scene = sample(np.random.default_rng([self.seed, index]))
        return scene.stretched(self.height, self.width) if self.size != (self.side, self.side) else scene

    def _rendered(self, kind: str, shape: tuple[int, ...], draw: Callable[[Scene], np.ndarray]) -> np.ndarray:
        path = self.folder / f"{kind}-{self.name}.npy"
        if not path.exists():
            with atomic_write(path) as partial:
                pictures = open_memmap(partial, "w+", np.uint8, (self.count, *shape))
                for index in range(self.count):
                    pictures[index] = draw(self._drawn(index))
                pictures.flush()
        found: np.ndarray = np.load(path, mmap_mode="c")
        return found

    def captions(self, indices: Indices, rng: np.random.Generator) -> list[str]:
        """A caption for each, worded anew."""
        return [caption(self.scene(int(i)), rng) for i in indices]

    def pictures(self, indices: Indices) -> Tensor:
        """Pictures as float [B, 3, H, W] in [-1, 1]."""
        chosen = torch.from_numpy(self.pixels[np.asarray(indices)])
        return chosen.movedim(-1, 1).to(torch.float32) / 127.5 - 1

    def seen(self, indices: Indices) -> Tensor:
        """Pictures as CLIP sees them, float [B, 3, S, S]."""
        assert self.processor is not None
        return self.processor([Image.fromarray(self.pixels[i]) for i in indices])

    def crops(self, indices: Indices, corners: np.ndarray, size: int) -> Tensor:
        """Squares of `size` pixels cut from pictures, as float [B, 3, size, size] in [-1, 1]; `corners` [B, 2] are their
        upper left ones, as (top, left)."""
        cut = [self.pixels[i, y : y + size, x : x + size] for i, (y, x) in zip(indices, corners, strict=True)]
        return torch.from_numpy(np.stack(cut)).movedim(-1, 1).to(torch.float32) / 127.5 - 1


def to_bytes(depth: np.ndarray) -> np.ndarray:
    """Nearness in [0, 1] as the greys of a depth picture."""
    return (depth * 255).round().astype(np.uint8)
