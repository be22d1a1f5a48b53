"""The training data of a run, and what is computed from it once: latents, CLIP embeddings and depth.

Computed values are stored under the fingerprint of the network that computed them: those of the picture world in the
run's folder, those of the user's pictures in the user's cache, by the content of each picture.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kandinsky22.compositions.things import Things
from kandinsky22.engine.device import computes_bfloat16
from kandinsky22.files import cache_dir
from kandinsky22.imaging.depth import Estimator, load
from kandinsky22.models.clip import CLIPImageProcessor
from kandinsky22.training import content_cache, image_index, photos, shards
from kandinsky22.training.data import Compositions, Pictures, Progress, no_progress
from kandinsky22.training.decoder import Bucket, Rows
from kandinsky22.training.mixture import Mixture
from kandinsky22.training.model_recipe import ModelRecipe
from kandinsky22.training.processes import ALONE, Processes
from kandinsky22.training.sources import Source

HELD_OUT_SEED, HELD_OUT = 1, 1000
CACHE = "training"  # folder of the user's cache
THINGS = "things"  # of the training folder: the drawings that `runs/fetch_things.py` downloads

Encode = Callable[[Tensor], Tensor]
"""Pictures [B, 3, H, W], or CLIP inputs [B, 3, S, S] -> what is computed from each, [B, ...] on the CPU."""


@dataclass(frozen=True)
class DatasetConfig:
    """The user's pictures and which of them are used.

    `depth_model` is the checkpoint that estimates depth for training on hints; without it, pictures have control
    pictures of their own. `world` is the share of steps on the picture world, so that a model forgets less of it.
    """

    sources: tuple[Source, ...]
    filter: photos.Filter = field(default_factory=photos.Filter)
    depth_model: str | None = None
    world: float = 0.0


@dataclass(frozen=True)
class TrainingData:
    """The pictures that a network learns from: of `dataset`, else of the picture world.

    `captioned`: pictures without a caption are skipped; `hinted`: those without a control picture, unless depth is
    estimated. `bfloat16`: latents, embeddings and depth are computed in
    bfloat16, on a device that can.
    """

    recipe: ModelRecipe
    folder: Path
    processor: CLIPImageProcessor
    dataset: DatasetConfig | None = None
    captioned: bool = True
    hinted: bool = False
    bfloat16: bool = True
    processes: Processes = ALONE
    progress: Progress = no_progress

    @cached_property
    def sets(self) -> list[Pictures]:
        """The pictures to learn from, a set for each shape; of the picture world, the squares are first.

        Raises `ValueError` if there are none.
        """
        if self._user_pictures is not None:
            assert self.dataset is not None
            return [*self._user_pictures[0], *([self._squares(self.dataset.world)] if self.dataset.world else [])]
        recipe = self.recipe
        share = (1 - recipe.square) / max(1, len(recipe.shapes))
        squares = self._squares(recipe.square)
        return [squares, *(squares.stretched(*shape, recipe.stretched, share) for shape in recipe.shapes)]

    @property
    def distinct_sets(self) -> list[Pictures]:
        """The sets with different contents: of the picture world the squares, whose scenes the other shapes repeat."""
        return self.sets if self.dataset is not None else self.sets[:1]

    @property
    def movq_sets(self) -> list[Pictures]:
        """The sets that MoVQ learns from: of the picture world, the recipe may limit the number of squares."""
        if self._has_things and self.recipe.movq_pictures:
            return [self._mixture(self.recipe.movq_pictures)]
        return self.distinct_sets

    @cached_property
    def things(self) -> Things:
        """The things in the training folder. Raises `FileNotFoundError` if there are none."""
        return Things.load(self.folder / THINGS)

    @property
    def num_things(self) -> int:
        """The number of things that the pictures may show; 0 for the user's pictures and the world of shapes."""
        return len(self.things) if self._has_things else 0

    @property
    def _has_things(self) -> bool:
        return self.dataset is None and self.recipe.things > 0

    def _squares(self, share: float) -> Compositions | Mixture:
        """The square pictures of the picture world."""
        draw = self._mixture if self.recipe.things else self._shapes
        return draw(self.recipe.pictures, share=share)

    def _shapes(self, count: int, seed: int = 0, share: float = 1.0) -> Compositions:
        return Compositions(
            self.folder,
            count,
            self.recipe.side,
            seed,
            processor=self.processor,
            share=share,
            progress=self.progress,
        )

    def _mixture(self, count: int, seed: int = 0, share: float = 1.0) -> Mixture:
        return Mixture(
            self.folder,
            self.things,
            count,
            self.recipe.side,
            seed,
            things_share=self.recipe.things,
            processor=self.processor,
            share=share,
            progress=self.progress,
        )

    @cached_property
    def held_out(self) -> Pictures:
        """The pictures for validation, all of one shape; of the user's those to learn from, if none are held out."""
        if self._user_pictures is not None:
            return max(self._user_pictures[1] or self._user_pictures[0], key=len)
        if self.recipe.things:
            return self._mixture(HELD_OUT, HELD_OUT_SEED)
        return self._shapes(HELD_OUT, HELD_OUT_SEED)

    @cached_property
    def held_out_things(self) -> Pictures:
        """Validation pictures that all show held-out things; without things, those of `held_out`."""
        if not self._has_things:
            return self.held_out
        return Mixture(
            self.folder,
            self.things,
            HELD_OUT,
            self.recipe.side,
            HELD_OUT_SEED,
            things_share=1.0,
            held_out=True,
            processor=self.processor,
        )

    @property
    def name(self) -> str:
        """Identifies the pictures, their captions and how often each set is drawn from."""
        if self.dataset is None:
            return "\n".join(pictures.name for pictures in self.distinct_sets)
        names = "\n".join(f"{pictures.name} {pictures.share:.6g}" for pictures in self.distinct_sets)
        return f"own-{hashlib.sha256(names.encode()).hexdigest()[:12]}"

    @cached_property
    def has_captions(self) -> bool:
        """Whether any of the pictures has a caption."""
        if self._user_pictures is None:
            return True
        return any(photo.captions for pictures in self._user_pictures[0] for photo in pictures.photos)

    @property
    def report(self) -> str:
        """How the user's pictures were used, and what was skipped; empty for the picture world."""
        return str(self._user_pictures[2]) if self._user_pictures is not None else ""

    @cached_property
    def _user_pictures(self) -> tuple[list[photos.Photos], list[photos.Photos], photos.Report] | None:
        """Checked by the first process, so that all processes have the same."""
        return self.processes.broadcast_from_rank0(self._check_pictures) if self.dataset is not None else None

    def _check_pictures(self) -> tuple[list[photos.Photos], list[photos.Photos], photos.Report]:
        assert self.dataset is not None
        with image_index.open_index(self.folder) as index:
            training, held_out, report = photos.read_sources(
                self.dataset.sources,
                self.recipe.side,
                filter=self.dataset.filter,
                captioned=self.captioned,
                hinted=self.hinted and self.dataset.depth_model is None,
                index=index,
                processor=self.processor,
                progress=lambda done, total: self.progress("checking the pictures", done, total),
            )
        if self.dataset.world:
            for pictures in training:
                pictures.share *= 1 - self.dataset.world
        return training, held_out, report

    def buckets(self, latents: tuple[str, Encode], embeds: tuple[str, Encode], *, hinted: bool) -> list[Bucket]:
        """All sets as the decoders learn from them; `latents` and `embeds` are encoders after their fingerprints."""
        return [self.bucket(pictures, latents, embeds, hinted=hinted) for pictures in self.sets]

    def bucket(
        self, pictures: Pictures, latents: tuple[str, Encode], embeds: tuple[str, Encode], *, hinted: bool
    ) -> Bucket:
        """One set as the decoders learn from it. Stretched pictures of the world have the embeddings of the squares."""
        is_stretched = self.dataset is None and any(pictures is other for other in self.sets[1:])
        encoded = self.latents(pictures, *latents)
        depths = self.depths(pictures) if hinted else None
        return Bucket(encoded, self.embeds(self.sets[0] if is_stretched else pictures, *embeds), depths, pictures.share)

    def latents(self, pictures: Pictures, fingerprint: str, encode: Encode) -> Rows:
        """MoVQ latents of all pictures, float16 [N, 4, h, w]."""
        return self._load_or_compute("latents", pictures, fingerprint, lambda rows: encode(pictures.pictures(rows)))

    def embeds(self, pictures: Pictures, fingerprint: str, encode: Encode) -> Rows:
        """CLIP image embeddings of all pictures, float16 [N, D]."""
        return self._load_or_compute("embeds", pictures, fingerprint, lambda rows: encode(pictures.clip_inputs(rows)))

    def depths(self, pictures: Pictures) -> Rows:
        """What a decoder that follows hints is given: the nearness of pixels, uint8 [N, H, W], 255 nearest, rendered
        for the picture world and estimated for the user's pictures; or their own control pictures, uint8 [N, 3, H, W].
        """
        if isinstance(pictures, Compositions | Mixture):
            rendered = pictures.stretched(pictures.height, pictures.width, self.recipe.hints)
            return torch.from_numpy(rendered.depths)
        assert self.dataset is not None
        if self.dataset.depth_model is None:
            assert isinstance(pictures, photos.Photos)
            return photos.Hints(pictures)
        estimator = load(self.dataset.depth_model, device=str(self.processes.device))
        return self._load_or_compute(
            "depths",
            pictures,
            estimator.fingerprint,
            lambda rows: estimate_depth(pictures.pictures(rows), estimator),
            torch.uint8,
        )

    def _load_or_compute(
        self,
        kind: str,
        pictures: Pictures,
        encoder: str,
        compute: Callable[[Sequence[int]], Tensor],
        dtype: torch.dtype = torch.float16,
    ) -> Rows:
        device = self.processes.device
        task, in_bfloat16 = f"{kind} of {len(pictures):,} pictures", self.bfloat16 and computes_bfloat16(device)

        def autocast(rows: Sequence[int]) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16):
                return compute(rows)

        def progress(done: int, total: int) -> None:
            self.progress(task, done, total)

        fingerprint = fingerprint_of(encoder, "bfloat16" if in_bfloat16 else "float32")
        folder = self.folder / f"{kind}-{fingerprint}-{pictures.pixels_name}"
        if isinstance(pictures, photos.Photos) and not folder.exists():  # earlier versions computed them there
            shared = cache_dir() / CACHE / f"{kind}-{fingerprint}-{pictures.size[1]}x{pictures.size[0]}"
            return content_cache.load_or_compute(
                shared,
                fingerprint,
                pictures.digests,
                autocast,
                dtype=dtype,
                processes=self.processes,
                progress=progress,
            )
        return shards.load_or_compute(
            folder, fingerprint, len(pictures), autocast, dtype=dtype, processes=self.processes, progress=progress
        )


def estimate_depth(pictures: Tensor, estimator: Estimator) -> Tensor:
    """The estimated depth of pictures [B, 3, H, W] in [-1, 1], uint8 [B, H, W], 255 nearest."""
    pixels = ((pictures + 1) * 127.5).round().byte().movedim(1, -1).numpy()
    depths = [np.array(estimator(Image.fromarray(picture)).image.convert("L")) for picture in pixels]
    return torch.from_numpy(np.stack(depths))


def fingerprint_of(*parts: object) -> str:
    """Twelve hexadecimal digits that identify the parts, given as JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
