"""Scenes of shapes and scenes with things as training data: rendered once to memory-mapped files, with a new caption in
English or Russian at each draw."""

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kandinsky22.arrays import map_rows, write_rows
from kandinsky22.compositions import Scene, layers, render, sample
from kandinsky22.compositions.thing_scenes import ThingScene, render_things, sample_things, thing_layers
from kandinsky22.compositions.things import Things
from kandinsky22.compositions.wording import Caption, describe
from kandinsky22.models.clip import CLIPImageProcessor
from kandinsky22.training.data import Indices, Progress, no_progress, to_bytes

WORLD = "v3"  # version of the scenes and the rendering: pictures of another version must not be taken for these
CHUNK = 4096  # pictures in one file, the most that an interruption loses
THINGS = 0.5  # share of the scenes
RUSSIAN = 0.35  # share of the captions

AnyScene = Scene | ThingScene


class Mixture:
    """`count` scenes and their pictures, stored in `folder`; a share of `things_share` of the scenes has things.

    Scene i depends on (seed, i) and the things alone; pictures that are not square show the square's scene, stretched.
    `side` is the shorter side in pixels, `size` is (height, width). With `held_out`, every scene with things has a
    held-out one. `processor` is CLIP's preprocessing, the same as in inference.
    """

    def __init__(
        self,
        folder: Path,
        things: Things,
        count: int,
        side: int,
        seed: int = 0,
        *,
        height: float = 1.0,
        width: float = 1.0,
        things_share: float = THINGS,
        held_out: bool = False,
        processor: CLIPImageProcessor | None = None,
        share: float = 1.0,
        progress: Progress = no_progress,
    ) -> None:
        self.folder, self.things, self.processor, self.share = folder, things, processor, share
        self.count, self.side, self.seed = count, side, seed
        self.height, self.width = height, width
        self.things_share, self.held_out = things_share, held_out
        self.size = round(side * height), round(side * width)
        self._progress = progress
        self._scenes: dict[int, AnyScene] = {}

    def stretched(self, height: float, width: float, count: int, share: float = 1.0) -> "Mixture":
        """The first `count` scenes on pictures of another shape; the shorter of `height` and `width` is 1."""
        return Mixture(
            self.folder,
            self.things,
            min(count, self.count),
            self.side,
            self.seed,
            height=height,
            width=width,
            things_share=self.things_share,
            held_out=self.held_out,
            share=share,
            progress=self._progress,
        )

    @property
    def series(self) -> str:
        """Identifies the pictures regardless of their number: the name of their files."""
        kind = f"{self.things_share:g}{'-unseen' if self.held_out else ''}"
        return f"{WORLD}-{fingerprint(self.things)}-{kind}-{self.seed}-{self.size[0]}x{self.size[1]}"

    @property
    def name(self) -> str:
        """Identifies the pictures and their captions."""
        return f"{self.series}-{self.count}"

    @property
    def pixels_name(self) -> str:
        """The same as `name`: captions are not stored but drawn."""
        return self.name

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> AnyScene:
        """Scene `index`."""
        if index not in self._scenes:
            self._scenes[index] = self._sample(index)
        return self._scenes[index]

    @cached_property
    def pixels(self) -> list[np.ndarray]:
        """All pictures in chunks of uint8 [4096, H, W, 3]; rendered on first use."""
        return self._load_or_render("pictures", (*self.size, 3), self._render)

    @cached_property
    def depths(self) -> np.ndarray:
        """The nearness of each pixel, uint8 [count, H, W], 255 nearest; rendered on first use."""
        return np.concatenate(self._load_or_render("depths", self.size, self._depth))[: self.count]

    def _render(self, scene: AnyScene) -> np.ndarray:
        return render(scene, self.side) if isinstance(scene, Scene) else render_things(scene, self.things, self.side)

    def _depth(self, scene: AnyScene) -> np.ndarray:
        maps = layers(scene, self.side) if isinstance(scene, Scene) else thing_layers(scene, self.things, self.side)
        return to_bytes(maps.depth)

    def _sample(self, index: int) -> AnyScene:
        rng = np.random.default_rng([self.seed, index])
        has_things = rng.random() < self.things_share
        scene = sample_things(rng, self.things, held_out=self.held_out) if has_things else sample(rng)
        return scene.stretched(self.height, self.width) if (self.height, self.width) != (1.0, 1.0) else scene

    def _load_or_render(
        self, kind: str, shape: tuple[int, ...], draw: Callable[[AnyScene], np.ndarray]
    ) -> list[np.ndarray]:
        chunks: list[np.ndarray] = []
        for start in range(0, self.count, CHUNK):
            path = self.folder / f"{kind}-{self.series}" / f"{start // CHUNK:04}.npy"
            if not path.exists():
                scenes = (self._sample(index) for index in range(start, start + CHUNK))
                write_rows(path, (CHUNK, *shape), map(draw, scenes))
            chunks.append(map_rows(path, (CHUNK, *shape)))
            self._progress(f"rendering {self.size[1]} x {self.size[0]}", min(start + CHUNK, self.count), self.count)
        return chunks

    def stated_captions(self, indices: Indices, rng: np.random.Generator) -> list[Caption]:
        """A caption for each picture, in English or Russian, with the facts that it states."""
        return [describe(self.scene(int(i)), rng, russian=rng.random() < RUSSIAN) for i in indices]

    def captions(self, indices: Indices, rng: np.random.Generator) -> list[str]:
        """The texts of `stated_captions`."""
        return [caption.text for caption in self.stated_captions(indices, rng)]

    def pictures(self, indices: Indices) -> Tensor:
        """Pictures as float [B, 3, H, W] in [-1, 1]."""
        return _tensor([self._picture(int(i)) for i in indices])

    def clip_inputs(self, indices: Indices) -> Tensor:
        """Pictures preprocessed for CLIP's image encoder, float [B, 3, S, S]."""
        assert self.processor is not None
        side = self.processor.crop_size
        if self.size == (side, side) and self.processor.size == side:  # faster than the processor, without resizing
            pixels = np.stack([self._picture(int(i)) for i in indices]).astype(np.float32) / 255
            mean, std = (np.array(v, np.float32) for v in (self.processor.image_mean, self.processor.image_std))
            return torch.from_numpy(np.ascontiguousarray(((pixels - mean) / std).transpose(0, 3, 1, 2)))
        return self.processor([Image.fromarray(self._picture(int(i))) for i in indices])

    def crops(self, indices: Indices, corners: np.ndarray, size: int) -> Tensor:
        """Squares of `size` pixels, float [B, 3, size, size] in [-1, 1]; `corners` [B, 2] are their (top, left)."""
        cut = [self._picture(int(i))[y : y + size, x : x + size] for i, (y, x) in zip(indices, corners, strict=True)]
        return _tensor(cut)

    def _picture(self, index: int) -> np.ndarray:
        if not 0 <= index < self.count:
            raise IndexError(f"picture {index} does not exist: there are {self.count}, from 0")
        picture: np.ndarray = self.pixels[index // CHUNK][index % CHUNK]
        return picture


def fingerprint(things: Things) -> str:
    """Eight hexadecimal digits that identify a collection of things by what its scenes depend on."""
    facts = [
        (thing.hexcode, thing.subgroup, dict(thing.rows), thing.counted, thing.held_out, thing.weight)
        for thing in things.things
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def _tensor(pictures: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1).to(torch.float32) / 127.5 - 1
