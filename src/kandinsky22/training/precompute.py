"""What networks learn from: pictures, the world's or a person's own, and what frozen networks say of them, computed once.

Everything computed is kept in `folder`, under the name of the pictures and the fingerprint of the network it came from.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kandinsky22.engine.device import computes_bfloat16
from kandinsky22.imaging.depth import Estimator, load
from kandinsky22.models.clip import CLIPImageProcessor
from kandinsky22.training import image_index, photos, shards
from kandinsky22.training.data import Compositions, Pictures
from kandinsky22.training.decoder import Bucket, Rows
from kandinsky22.training.processes import ALONE, Processes
from kandinsky22.training.recipes import ModelRecipe
from kandinsky22.training.sources import Source

HELD_OUT_SEED, HELD_OUT = 1, 1000

Encode = Callable[[Tensor], Tensor]
Say = Callable[[str, int, int], None]
"""(what is being done, how much of it is done, of how much)"""


def silent(what: str, done: int, of: int) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Own:
    """A person's own pictures, and which of them; `depth_model` is what estimates their depth, where hints are learnt from."""

    sources: tuple[Source, ...]
    filter: photos.Filter = field(default_factory=photos.Filter)
    depth_model: str | None = None


@dataclass(frozen=True)
class Material:
    """The pictures of one run. `captioned`: those without a caption are of no use to it. `bfloat16` is the dtype of what is
    computed from them, on a device that computes in it."""

    recipe: ModelRecipe
    folder: Path
    processor: CLIPImageProcessor
    own: Own | None = None
    captioned: bool = True
    bfloat16: bool = True
    processes: Processes = ALONE
    say: Say = silent

    @cached_property
    def sets(self) -> list[Pictures]:
        """Pictures to learn from, a set for each shape; of the world, the squares are first. Raises `ValueError` where
        there are none."""
        if self._read is not None:
            return [*self._read[0]]
        recipe = self.recipe
        rare = (1 - recipe.square) / max(1, len(recipe.shapes))
        squares = Compositions(self.folder, recipe.pictures, recipe.side, processor=self.processor, share=recipe.square)
        return [squares, *(squares.stretched(*shape, recipe.stretched, rare) for shape in recipe.shapes)]

    @property
    def seen(self) -> list[Pictures]:
        """Those that CLIP sees: of the world the squares, whose scenes the other shapes show again."""
        return self.sets if self.own is not None else self.sets[:1]

    @cached_property
    def held_out(self) -> Pictures:
        """Pictures to measure progress on, all of one shape; a person's own may be too few to hold any out."""
        if self._read is not None:
            return max(self._read[1] or self._read[0], key=len)
        return Compositions(self.folder, HELD_OUT, self.recipe.side, HELD_OUT_SEED, processor=self.processor)

    @property
    def name(self) -> str:
        """What tells these pictures, what is said of them and how often each is seen, from others."""
        if self.own is None:
            return "\n".join(pictures.name for pictures in self.seen)
        names = "\n".join(f"{pictures.name} {pictures.share:.6g}" for pictures in self.seen)
        return f"own-{hashlib.sha256(names.encode()).hexdigest()[:12]}"

    @property
    def report(self) -> str:
        """What was used of a person's own pictures, and what was not."""
        return str(self._read[2]) if self._read is not None else ""

    @cached_property
    def _read(self) -> tuple[list[photos.Photos], list[photos.Photos], photos.Report] | None:
        return self.processes.broadcast_from_rank0(self._looked_at) if self.own is not None else None

    def _looked_at(self) -> tuple[list[photos.Photos], list[photos.Photos], photos.Report]:
        """A person's own pictures: by one process, so that all have the same."""
        assert self.own is not None
        with image_index.kept_in(self.folder) as known:
            return photos.read(
                self.own.sources,
                self.recipe.side,
                filter=self.own.filter,
                captioned=self.captioned,
                judged=known,
                processor=self.processor,
                progress=lambda done, of: self.say("looking at the pictures", done, of),
            )

    def buckets(self, latents: tuple[str, Encode], embeds: tuple[str, Encode], *, hinted: bool) -> list[Bucket]:
        """All sets as the decoders learn from them; both encoders go by a fingerprint."""
        return [self.bucket(pictures, latents, embeds, hinted=hinted) for pictures in self.sets]

    def bucket(
        self, pictures: Pictures, latents: tuple[str, Encode], embeds: tuple[str, Encode], *, hinted: bool
    ) -> Bucket:
        """One set as the decoders learn from it."""
        same = self.sets[0] if any(pictures is other for other in self.sets[1:]) and self.own is None else pictures
        encoded, share = self.latents(pictures, *latents), pictures.share
        if not hinted:
            return Bucket(encoded, self.embeds(same, *embeds), None, share)
        depths = self.depths(pictures)
        return Bucket(encoded, self.embeds(same, *embeds), depths, share)

    def latents(self, pictures: Pictures, fingerprint: str, encode: Encode) -> Rows:
        """MoVQ's latents of all pictures, float16 [N, 4, h, w]."""
        return self._computed("latents", pictures, fingerprint, lambda rows: encode(pictures.pictures(rows)))

    def embeds(self, pictures: Pictures, fingerprint: str, encode: Encode) -> Rows:
        """CLIP's embeddings of all pictures, float16 [N, D]."""
        return self._computed("embeds", pictures, fingerprint, lambda rows: encode(pictures.seen(rows)))

    def depths(self, pictures: Pictures) -> Rows:
        """How near pixels are, uint8 [N, H, W], 255 nearest: known in the world, else estimated. Raises `ValueError` where
        there is nothing to estimate it with."""
        if isinstance(pictures, Compositions):
            known = pictures.stretched(pictures.height, pictures.width, self.recipe.hints)
            return torch.from_numpy(known.depths)
        if self.own is None or self.own.depth_model is None:
            raise ValueError(
                "a decoder that follows hints learns from depth pictures; name what estimates them: --depth-model"
            )
        estimator = load(self.own.depth_model, device=str(self.processes.device))
        return self._computed(
            "depths",
            pictures,
            estimator.fingerprint,
            lambda rows: estimated(pictures.pictures(rows), estimator),
            torch.uint8,
        )

    def _computed(
        self,
        kind: str,
        pictures: Pictures,
        encoder: str,
        compute: Callable[[range], Tensor],
        dtype: torch.dtype = torch.float16,
    ) -> shards.Shards:
        device = self.processes.device
        shown, quick = f"{kind} of {len(pictures):,} pictures", self.bfloat16 and computes_bfloat16(device)

        def quickly(rows: range) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=quick):
                return compute(rows)

        fingerprint = fingerprint_of(encoder, "bfloat16" if quick else "float32")
        return shards.computed(
            self.folder / f"{kind}-{fingerprint}-{pictures.look}",
            fingerprint,
            len(pictures),
            quickly,
            dtype=dtype,
            processes=self.processes,
            progress=lambda done, of: self.say(shown, done, of),
        )


def estimated(pictures: Tensor, estimator: Estimator) -> Tensor:
    """The depth of pictures [B, 3, H, W] in [-1, 1], uint8 [B, H, W], 255 nearest."""
    shown = ((pictures + 1) * 127.5).round().byte().movedim(1, -1).numpy()
    found = [np.array(estimator(Image.fromarray(pixels)).image.convert("L")) for pixels in shown]
    return torch.from_numpy(np.stack(found))


def fingerprint_of(*parts: object) -> str:
    """Twelve letters that tell what something follows from; parts as JSON takes them."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
