"""The world of shapes as training data: rendered once to a memory-mapped file, with a new caption at each draw."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kandinsky22.arrays import map_rows, write_rows
from kandinsky22.compositions import Scene, caption, layers, render, sample
from kandinsky22.models.clip import CLIPImageProcessor

WORLD = "v2"  # version of the rendering: pictures of another version must not be taken for these

Indices = Sequence[int] | np.ndarray
Progress = Callable[[str, int, int], None]
"""(task, amount done, amount in all)"""


def no_progress(task: str, done: int, total: int) -> None:
    """A `Progress` that reports nothing."""


class Pictures(Protocol):
    """Captioned pictures of one shape: of the picture world (`Compositions`, `mixture.Mixture`) or the user's
    (`photos.Photos`)."""

    @property
    def name(self) -> str:
        """Identifies the pictures and their captions."""

    @property
    def pixels_name(self) -> str:
        """Identifies the pixels alone: names what is computed from them."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""

    @property
    def share(self) -> float:
        """The probability that a training step draws from this set."""

    def __len__(self) -> int: ...

    def pictures(self, indices: Indices) -> Tensor:
        """Pictures, float [B, 3, H, W] in [-1, 1]."""

    def clip_inputs(self, indices: Indices) -> Tensor:
        """Pictures preprocessed for CLIP's image encoder, float [B, 3, S, S]."""

    def crops(self, indices: Indices, corners: np.ndarray, size: int) -> Tensor:
        """Squares of `size` pixels, float [B, 3, size, size] in [-1, 1]; `corners` [B, 2] are their (top, left)."""

    def captions(self, indices: Indices, rng: np.random.Generator) -> list[str]:
        """A caption for each picture."""


class Compositions:
    """`count` scenes of shapes and their pictures, stored in `folder`.

    Scene i depends on (seed, i) alone; pictures that are not square show the square's scene, stretched. `side` is the
    shorter side in pixels, `size` is (height, width). `processor` is CLIP's preprocessing, the same as in inference.
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
        progress: Progress = no_progress,
    ) -> None:
        self.folder, self.processor, self.share = folder, processor, share
        self._progress = progress
        self.count, self.side, self.seed = count, side, seed
        self.height, self.width = height, width
        self.size = round(side * height), round(side * width)
        self._scenes: dict[int, Scene] = {}

    def stretched(self, height: float, width: float, count: int, share: float = 1.0) -> "Compositions":
        """The first `count` scenes on pictures of another shape; the shorter of `height` and `width` is 1."""
        return Compositions(
            self.folder,
            min(count, self.count),
            self.side,
            self.seed,
            height=height,
            width=width,
            share=share,
            progress=self._progress,
        )

    @property
    def name(self) -> str:
        """Identifies the pictures and their captions."""
        shape = str(self.side) if self.size == (self.side, self.side) else "{}x{}".format(*self.size)
        return f"{WORLD}-{self.seed}-{shape}-{self.count}"

    @property
    def pixels_name(self) -> str:
        """The same as `name`: captions are not stored but drawn."""
        return self.name

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """Scene `index`."""
        if index not in self._scenes:
            self._scenes[index] = self._sample(index)
        return self._scenes[index]

    @cached_property
    def pixels(self) -> np.ndarray:
        """All pictures, uint8 [count, H, W, 3]; rendered on first use."""
        return self._load_or_render("compositions", (*self.size, 3), lambda scene: render(scene, self.side))

    @cached_property
    def depths(self) -> np.ndarray:
        """The nearness of each pixel, uint8 [count, H, W], 255 nearest; rendered on first use."""
        return self._load_or_render("depths", self.size, lambda scene: to_bytes(layers(scene, self.side).depth))

    def _sample(self, index: int) -> Scene:
        scene = sample(np.random.default_rng([self.seed, index]))
        return scene.stretched(self.height, self.width) if self.size != (self.side, self.side) else scene

    def _load_or_render(self, kind: str, shape: tuple[int, ...], draw: Callable[[Scene], np.ndarray]) -> np.ndarray:
        path = self.folder / f"{kind}-{self.name}.npy"
        if not path.exists():
            write_rows(path, (self.count, *shape), self._rendered(draw))
        return map_rows(path, (self.count, *shape))

    def _rendered(self, draw: Callable[[Scene], np.ndarray]) -> Iterator[np.ndarray]:
        for index in range(self.count):
            yield draw(self._sample(index))
            self._progress(f"rendering {self.size[1]} x {self.size[0]}", index + 1, self.count)

    def captions(self, indices: Indices, rng: np.random.Generator) -> list[str]:
        """A caption for each picture, with wording drawn from `rng`."""
        return [caption(self.scene(int(i)), rng) for i in indices]

    def pictures(self, indices: Indices) -> Tensor:
        """Pictures as float [B, 3, H, W] in [-1, 1]."""
        chosen = torch.from_numpy(self.pixels[np.asarray(indices)])
        return chosen.movedim(-1, 1).to(torch.float32) / 127.5 - 1

    def clip_inputs(self, indices: Indices) -> Tensor:
        """Pictures preprocessed for CLIP's image encoder, float [B, 3, S, S]."""
        assert self.processor is not None
        return self.processor([Image.fromarray(self.pixels[i]) for i in indices])

    def crops(self, indices: Indices, corners: np.ndarray, size: int) -> Tensor:
        """Squares of `size` pixels, float [B, 3, size, size] in [-1, 1]; `corners` [B, 2] are their (top, left)."""
        cut = [self.pixels[i, y : y + size, x : x + size] for i, (y, x) in zip(indices, corners, strict=True)]
        return torch.from_numpy(np.stack(cut)).movedim(-1, 1).to(torch.float32) / 127.5 - 1


def to_bytes(depth: np.ndarray) -> np.ndarray:
    """Nearness in [0, 1] as the grey values of a depth picture, uint8."""
    return (depth * 255).round().astype(np.uint8)
