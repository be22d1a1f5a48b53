"""How one request is painted, as a task of a batch: embed, start state, sample, decode."""

import os
import time
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.checkpoints.lora_files import UNET
from kandinsky22.diffusion import Noise
from kandinsky22.engine.calls import Calls, Steps
from kandinsky22.engine.embedding_cache import EmbeddingCache
from kandinsky22.engine.requirements import decoder_kind
from kandinsky22.engine.runs import InpaintCondition, Run, StartState
from kandinsky22.engine.stages import Embeds
from kandinsky22.imaging.images import Painting
from kandinsky22.imaging.pixels import to_image, to_pixels
from kandinsky22.models.unet import UNetCondition
from kandinsky22.request import Request
from kandinsky22.request.events import Notice, Preview, Progress, Result, Started

if TYPE_CHECKING:
    from kandinsky22.engine.kandinsky import Kandinsky

T = TypeVar("T")


class Painter:
    """Paints a resolved request with a model, making its network calls through `calls`."""

    def __init__(self, model: "Kandinsky", request: Request, calls: Calls, preview: Preview | None = None) -> None:
        self.model, self.request, self.calls, self.preview = model, request, calls, preview
        self.decoder = model.decoder(decoder_kind(request))
        self.canvas = model.canvas(request)

    @cached_property
    def noise(self) -> Noise:
        """The decoder's stream of noise for each picture."""
        n, request = self.request.num_images, self.request
        seeds = [_set(request.seed) + k for k in range(n)]
        if request.variation_seed is None:
            return Noise(seeds, "decoder")
        towards = [request.variation_seed + k for k in range(n)]
        return Noise(seeds, "decoder", towards=towards, strength=request.variation_strength)

    def paint(self, cache: EmbeddingCache | None = None) -> Steps[Result]:
        """The whole task; yields its events beside its calls. cache: of the embeddings of texts."""
        started, request = time.perf_counter(), self.request
        yield Started(request, os.getpid())
        for text in self.model.notices(request, self.canvas):
            yield Notice(text)
        embeds = yield from self.model.embedder.embed(request, self.calls, cache)
        start = yield from self.start_state()
        latents = yield from self.sample(embeds, start)
        images = yield from self.decode(latents)
        made_by = self.model.describe(request)
        pictures = [  # the batch is recorded because its size changes how sums are rounded
            Painting(image, request.for_image(k), {**made_by, "batch": {"index": k, "of": len(images)}})
            for k, image in enumerate(images)
        ]
        return Result(pictures, request, time.perf_counter() - started)

    def start_state(self) -> Steps[StartState]:
        """The latents [n, 4, h, w], float32, that sampling starts from."""
        decoder, request = self.decoder, self.request
        n, steps, picture = request.num_images, _set(request.decoder.steps), request.start
        if picture is None:
            x = self.noise.draw(decoder.shape(n, *self.canvas.size), device=self.model.device)
            return StartState.from_noise(decoder.schedule, steps, x)
        pixels = to_pixels(self.canvas.place_start(picture.image.rgb))
        z = yield from self.calls.autoencode(decoder, lambda: decoder.encode(pixels), self._cells)
        return StartState.from_clean(decoder.schedule, steps, z.expand(n, -1, -1, -1), picture.strength, self.noise)

    def sample(self, embeds: Embeds, start: StartState) -> Steps[Tensor]:
        """Finished latents [n, 4, h, w]."""
        decoder, sampling, hint = self.decoder, self.request.decoder, self.request.hint
        inpaint = yield from self._inpaint_condition()
        if self.preview is not None:
            yield from self.calls.autoencode(decoder, decoder.load_latent_preview, self._cells)

        def prepare() -> Run[UNetCondition]:
            return decoder.prepare_run(
                embeds,
                sampling.weight,
                _set(sampling.sampler),
                start,
                self.noise,
                hint=None if hint is None else to_pixels(self.canvas.place(hint.rgb)) * 0.5 + 0.5,
                inpaint=inpaint,
                interval=_set(sampling.guidance_interval),
                reuse=_set(sampling.reuse),
                adapters=self.model.loras.stack(self.request.loras, UNET, decoder.stored.unet),
            )

        run = yield from self.calls.run(decoder, decoder.stored.unet, prepare)

        def on_step(i: int, x: Tensor, x0: Tensor) -> Iterator[Progress]:
            yield Progress("decoder", i, run.steps, self._preview_of(x if i == run.steps else x0, i, run.steps))

        return (yield from self.calls.sample(decoder, run, on_step))

    def decode(self, latents: Tensor) -> Steps[list[Image.Image]]:
        """The pictures of latents [n, 4, h, w]."""
        pixels = yield from self.calls.decode(self.decoder, latents)
        return [self.canvas.cut(to_image(picture)) for picture in pixels]

    @property
    def _cells(self) -> int:
        """The cells of one picture's latents."""
        _, _, height, width = self.decoder.shape(1, *self.canvas.size)
        return height * width

    def _inpaint_condition(self) -> Steps[InpaintCondition | None]:
        if self.canvas.inpaint_input is None:
            return None
        whole, area = self.canvas.inpaint_input
        decoder = self.decoder
        factor = decoder.stored.movq.config.factor  # a latent cell is repainted if any of its pixels is
        cells = F.interpolate(F.max_pool2d(torch.from_numpy(area)[None, None], factor), scale_factor=factor)
        condition = lambda: decoder.inpaint_condition(to_pixels(whole), cells)  # noqa: E731
        return (yield from self.calls.autoencode(decoder, condition, self._cells))

    def _preview_of(self, latents: Tensor, i: int, n: int) -> bytes | None:
        """The small picture after step i of n, if one is wanted."""
        if self.preview is None or (i % self.preview.every and i < n):
            return None
        return self.decoder.load_latent_preview().png(latents[0], self.preview.side)


def _set(value: T | None) -> T:
    """A field of a resolved request, which is never None."""
    assert value is not None
    return value
