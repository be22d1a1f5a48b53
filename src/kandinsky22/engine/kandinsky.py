"""Kandinsky: the model whole. Four stages in order, each callable by itself: embed, begin, sample, decode.

`stream_many` carries out any number of requests together, one network call a step for all of them; `stream` is one
request of it, and calling the model is `stream` without the events.
"""

import sys
import time
import warnings
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import kandinsky22
from kandinsky22.checkpoints import catalog, hub, zero_image
from kandinsky22.checkpoints.model import StoredModel
from kandinsky22.diffusion import Noise
from kandinsky22.engine import memory
from kandinsky22.engine.device import device_of, dtype_of, fitting_dtype, fitting_placement, processor
from kandinsky22.engine.embedder import ImageEmbedder
from kandinsky22.engine.placement import Networks, Placement
from kandinsky22.engine.stages import (
    DecoderStage,
    Embeds,
    InpaintCondition,
    PriorStage,
    StartState,
    begin,
    finish,
    to_image,
    to_pixels,
)
from kandinsky22.imaging import masks
from kandinsky22.imaging.canvas import Frame
from kandinsky22.imaging.images import Painting
from kandinsky22.request import Defaults, Embedding, Picture, Request, Sampling, Text
from kandinsky22.request.events import Event, Notice, Progress, Result, Started
from kandinsky22.request.parts import EVERYWHERE, OPEN, parts
from kandinsky22.request.tasks import text2img
from kandinsky22.request.vocabulary import unknown_words

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
Stage = Generator[tuple[K, Event], None, dict[K, T]]
"""A stage for many requests: tells of its progress, returns what it made for each."""

SAMPLER_OF = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim", "UnCLIPScheduler": "unclip"}


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class Kandinsky:
    """A model, loaded from folders in the published layout: a prior, and a decoder for each kind of task.

    Every file is checked before anything runs; a network is read when it is first needed, and `placement` says whether
    it stays. Text-to-image never reads the image encoder: the one constant it is needed for is kept (see
    `checkpoints/zero_image.py`).
    """

    def __init__(
        self,
        folders: Mapping[str, Path],
        *,
        name: str,
        device: torch.device,
        dtype: torch.dtype | None = None,
        placement: Placement | None = None,
        accelerated: bool | None = None,
        compiled: bool = False,
    ) -> None:
        self.stored = StoredModel(folders)
        self.name = name
        first = self.stored.first
        all_of_it = [*self.stored.prior.networks.values(), *first.networks.values()]
        dtype = dtype or fitting_dtype(first.unet.elements, device)
        self.networks = Networks(
            device,
            dtype,
            placement or fitting_placement(first.unet.elements, sum(n.elements for n in all_of_it), device, dtype),
            accelerated=accelerated,
            compiled=compiled,
        )
        self._compiled: set[tuple[int, ...]] = set()  # the shapes that have been painted in
        self.prior = PriorStage(self.stored.prior, self.networks)
        self.embedder = ImageEmbedder(self.prior)
        self._decoders: dict[str, DecoderStage] = {}
        self.decoder(self.stored.first.kind)  # what cannot be loaded is told of now
        self.defaults = self._defaults()

    @classmethod
    def load(
        cls,
        model: str | Path = catalog.BOX,
        *,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        placement: Placement | None = None,
        accelerated: bool | None = None,
        compiled: bool = False,
        request: Request | None = None,
        say: Callable[[str], None] = _to_stderr,
    ) -> Self:
        """The model in the box, a published one, or the one in a folder.

        Of a published model, what is not on this machine is fetched, with no more than `request` needs (None: text to
        image), and `say` is told first what that is, how much, and how much room there is.

        device: "auto" (as None) is cuda where there is one, else mps, else cpu. dtype: "auto" (as None) is float16 on
        cuda and mps; on a CPU it is bfloat16 for large models where the processor has instructions for it, else
        float32, in which a seed's picture is most exact. Half precision on a CPU without instructions for it is what
        weights are held in alone: everything is computed in float32, at half the memory. placement: "keep" networks,
        "offload" each when its stage is done, or move them "sequential"ly, weight by weight; None offloads a large
        model on a CPU, where reading it again costs little beside painting, and where an accelerator has no room for
        all of it. accelerated: False computes by plain torch alone; the same numbers but for rounding, on a CPU at less
        than half the speed. compiled: on cuda, has torch compile each step too; the first picture of a size then takes
        minutes, and what was compiled is kept in the user's cache. Raises `ValueError` where the folder, the device or
        the dtype will not do.
        """
        said, place = str(model), device_of(device)
        if catalog.is_remote(said):
            folders = hub.fetch(said, parts_of(said, request or text2img("")), say=say)
        else:
            folders = catalog.parts(said)
        name = said if said in (catalog.BOX, *catalog.published()) else Path(said).expanduser().resolve().name
        return cls(
            folders,
            name=name,
            device=place,
            dtype=dtype_of(dtype),
            placement=placement,
            accelerated=accelerated,
            compiled=compiled,
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.networks.device

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are held in. It computes in `networks.dtype`, and states between steps are float32."""
        return self.networks.weight_dtype

    def decoder(self, kind: str) -> DecoderStage:
        """The decoder of a kind of task (see `catalog`). Raises `CheckpointError` where the model has none."""
        if kind not in self._decoders:
            self._decoders[kind] = DecoderStage(self.stored.decoder(kind), self.networks)
        return self._decoders[kind]

    def made_by(self, request: Request) -> dict[str, Any]:
        """What decides a request's pixels besides the request."""
        cuda = self.device.type == "cuda"
        linear = {"linear_prior": self.stored.prior.linear_prior.fingerprint} if request.prior.linear else {}
        return {
            "weights": self.stored.fingerprints(kind_of(request)) | linear,
            "kandinsky22": kandinsky22.__version__,
            "torch": torch.__version__,
            "device": self.device.type,
            "processor": torch.cuda.get_device_name(self.device) if cuda else processor(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            **({"acceleration": self.networks.described()} if self.networks.accelerated else {}),
        }

    def __call__(self, what: str | Request, **options: Any) -> list[Painting]:
        """Paint a request, or a prompt with the options of `tasks.text2img`. Notices become warnings."""
        if not isinstance(what, Request):
            what = text2img(what, **options)
        elif options:
            raise ValueError(f"options belong in the request: replace(request, {next(iter(options))}=...)")
        for event in self.stream(what):
            if isinstance(event, Notice):
                warnings.warn(event.text, stacklevel=2)
            if isinstance(event, Result):
                return event.pictures
        raise AssertionError("a stream ends with its result")

    def stream(self, request: Request) -> Iterator[Event]:
        """Carry out one request; see `stream_many`."""
        for _, event in self.stream_many({0: request}):
            yield event

    @torch.inference_mode()
    def stream_many(self, requests: Mapping[K, Request]) -> Iterator[tuple[K, Event]]:
        """Carry out many requests together, one network call a step for all; yields (key, event).

        Everything is checked before anything runs. Each gets what it would get alone, to rounding.
        """
        began = time.perf_counter()
        requests = {key: self.resolved(request) for key, request in requests.items()}
        frames = {key: self.frame(request) for key, request in requests.items()}
        self._check_memory(requests, frames)
        for key, request in requests.items():
            yield key, Started(request)
            for text in self._notices(request, frames[key]):
                yield key, Notice(text)
        embeds = yield from self.embedder.stage(requests)
        noises = {key: _noise(r) for key, r in requests.items()}
        begun = {key: self._begin(request, frames[key], noises[key]) for key, request in requests.items()}
        latents: dict[K, Tensor] = {}
        for kind in dict.fromkeys(map(kind_of, requests.values())):
            company = {key: request for key, request in requests.items() if kind_of(request) == kind}
            latents |= yield from self._sample(kind, company, frames, embeds, begun, noises)
        for key, request in requests.items():
            images = self._decode(request, latents[key], frames[key])
            made_by = self.made_by(request)
            pictures = [  # the batch is told because company changes how sums are rounded
                Painting(image, request.single(k), {**made_by, "batch": {"index": k, "of": len(images)}})
                for k, image in enumerate(images)
            ]
            yield key, Result(pictures, request, time.perf_counter() - began)

    def resolved(self, request: Request) -> Request:
        """The request with nothing left open. Raises `ValueError` for what this model cannot do."""
        if Path(request.model).expanduser().resolve().name not in (catalog.BOX, self.name):
            raise ValueError(f"the request is for {request.model!r}, and this model is {self.name!r}; load that one")
        request = replace(request.resolved(self.defaults), model=self.name)  # a name: paths are nobody's business
        decoder = self.decoder(kind_of(request))
        begin_check = request.start.strength if request.start else None
        self.embedder.check(request)
        _check_steps(decoder, request.decoder, begin_check)
        return request

    def frame(self, request: Request) -> Frame:
        """How a resolved request's picture lies on what is computed. Raises `ValueError` for a mask that repaints
        nothing."""
        for picture in request.pictures.values():
            _ = picture.image  # raises where only the reference is known
        return Frame.of(request, (self.defaults.height, self.defaults.width))

    @torch.inference_mode()
    def embed(self, request: Request) -> Embeds:
        """Stage 1: the embeddings that a request asks for. Each stage by itself needs the request's seed: resolve an
        open one first."""
        return finish(self.embedder.stage({0: self._seeded(request)}))[0]

    def embedding(self, request: Request) -> Embedding:
        """What the request's first picture is painted from, as a value to keep."""
        request = self._seeded(request)
        vector = self.embed(request).image[0].cpu().numpy()
        made_by = {"weights": {"prior": self.stored.prior.prior.fingerprint, "clip": self.stored.prior.space}}
        return Embedding.of(vector, self.stored.prior.space, {"request": request.to_json(), **made_by})

    @torch.inference_mode()
    def begin(self, request: Request) -> StartState:
        """Stage 2: the latents [n, 4, h, w], float32, that a request starts from."""
        request = self._seeded(request)
        return self._begin(request, self.frame(request), _noise(request))

    @torch.inference_mode()
    def sample(self, request: Request, embeds: Embeds, begun: StartState) -> Tensor:
        """Stage 3: finished latents [n, 4, h, w] from what `begin` gave, led by `embeds`."""
        request = self._seeded(request)
        noise = _noise(request)
        noise(begun.x)  # the draw that `begin` made
        kind, frame = kind_of(request), {0: self.frame(request)}
        return finish(self._sample(kind, {0: request}, frame, {0: embeds}, {0: begun}, {0: noise}))[0]

    @torch.inference_mode()
    def decode(self, request: Request, latents: Tensor) -> list[Image.Image]:
        """Stage 4: the pictures of latents [n, 4, h, w]."""
        request = self._seeded(request)
        return self._decode(request, latents, self.frame(request))

    def _begin(self, request: Request, frame: Frame, noise: Noise) -> StartState:
        decoder, n, steps = self.decoder(kind_of(request)), request.num_images, _set(request.decoder.steps)
        if request.start is None:
            x = noise.draw(decoder.shape(n, *frame.canvas), device=self.device)
            return begin(decoder.schedule, steps, noise, x=x)
        z = decoder.encode(to_pixels(frame.started(request.start.image.rgb)))
        return begin(decoder.schedule, steps, noise, start=(z.expand(n, -1, -1, -1), request.start.strength))

    def _sample(
        self,
        kind: str,
        requests: Mapping[K, Request],
        frames: Mapping[K, Frame],
        embeds: Mapping[K, Embeds],
        begun: Mapping[K, StartState],
        noises: Mapping[K, Noise],
    ) -> Stage[K, Tensor]:
        """The decoder of one kind for many requests."""
        decoder = self.decoder(kind)
        runs = {}
        for key, request in requests.items():
            hint = None if request.hint is None else _hint(frames[key], request.hint.rgb)
            chosen = request.decoder
            runs[key] = decoder.prepare_run(
                embeds[key],
                chosen.weight,
                _set(chosen.sampler),
                begun[key],
                noises[key],
                hint=hint,
                known=self._known(decoder, frames[key]),
                interval=_set(chosen.guidance_interval),
                reuse=_set(chosen.reuse),
            )
        stage = decoder.sample(runs)
        while True:
            try:
                key, (i, n, x) = next(stage)
            except StopIteration as end:
                latents: dict[K, Tensor] = end.value
                return latents
            yield key, Progress("decoder", i, n, partial(_preview, decoder, x))

    def _known(self, decoder: DecoderStage, frame: Frame) -> InpaintCondition | None:
        if frame.known is None:
            return None
        whole, area = frame.known
        factor = decoder.stored.movq.config.factor  # a cell of the latents is repainted if any of its pixels is
        cells = F.max_pool2d(torch.from_numpy(area)[None, None], factor)
        return decoder.inpaint_condition(to_pixels(whole), F.interpolate(cells, scale_factor=factor))

    def _decode(self, request: Request, latents: Tensor, frame: Frame) -> list[Image.Image]:
        pixels = self.decoder(kind_of(request)).decode(latents)
        return [frame.finished(to_image(picture)) for picture in pixels]

    def _defaults(self) -> Defaults:
        """What the folder says, else what the published pipelines do."""
        first = self.stored.first
        side = first.unet.config.sample_size * first.movq.config.factor
        stages = {}
        for part, scheduler in ((catalog.PRIOR, self.stored.prior.scheduler), (catalog.DECODER, first.scheduler)):
            published = Sampling(
                sampler=SAMPLER_OF[scheduler["_class_name"]],
                steps=catalog.PUBLISHED_STEPS[part],
                guidance_scale=catalog.PUBLISHED_GUIDANCE,
            )
            if part == catalog.DECODER:
                published = replace(published, guidance_interval=EVERYWHERE, reuse=1)
            stages[part] = self.stored.about.defaults.get(part, OPEN).filled(published)
        return Defaults(height=side, width=side, **stages)

    def _seeded(self, request: Request) -> Request:
        """The request resolved, for a stage by itself."""
        if request.seed is None:
            raise ValueError("each stage would draw its own seed; start with request = kandinsky.resolved(request)")
        return self.resolved(request)

    def _check_memory(self, requests: Mapping[K, Request], frames: Mapping[K, Frame]) -> None:
        """Raises `ValueError` for requests that, together and with the weights still to be read, memory cannot hold."""
        first = self.stored.first
        needed = [*self.stored.prior.networks.values(), *first.networks.values()]
        unread = self.networks.bytes_to_load(needed)
        sizes = [(request.num_images, *frames[key].canvas) for key, request in requests.items()]
        memory.check(first.unet.config, first.movq.config, sizes, unread, self.networks.dtype.itemsize, self.device)

    def _notices(self, request: Request, frame: Frame) -> Iterator[str]:
        """What the asker should know before it starts."""
        for dropped in self.prior.tokenizer(list(request.texts)).dropped if request.texts else ():
            if dropped:
                yield f"the prompt is too long for this model; it does not see: {dropped}"
        if unknown := unknown_words(request.texts, self.stored.about.words):
            yield unknown
        if frame.inpainting is not None and request.mask is not None and not any(request.mask.pad):
            reminder = masks.reminder(masks.share(frame.inpainting.area), request.mask.repaint)
            if reminder:
                yield reminder
        if not request.decoder.exact and self.name != catalog.BOX:
            yield (
                "guidance_interval and reuse were judged by what they do to the model in the box; on this one they are untried"
            )
        shape = (request.num_images, *frame.canvas)
        if self.networks.compiled and shape not in self._compiled:
            self._compiled.add(shape)
            height, width = frame.canvas
            yield f"compiling for {request.num_images} of {height}x{width}, once; it may take minutes"
        if self.networks.dtype == torch.float16 and self.device.type == "cpu":
            yield "float16 is slow and coarse on a CPU without acceleration; use float32 there"


def parts_of(model: str, request: Request) -> list[str]:
    """The parts of a published model that a request needs (see `catalog`); the image encoder only where a picture is
    looked at, or for the constant that guidance without a negative prompt leads away from, if that is not kept yet.

    Raises `ValueError` for a linear prior: none is published.
    """
    if request.prior.linear:
        raise ValueError(f"no linear prior of {model} is published; fit one with: kandinsky22 train linear-prior")
    conditions = [condition for condition in (request.condition, request.negative) if condition is not None]
    embedded = [part for condition in conditions for part in parts(condition)]
    looks = any(isinstance(part, Picture) or (isinstance(part, Text) and part.image) for part in embedded)
    scale = request.decoder.guidance_scale
    led_from_nothing = request.negative is None and (scale is None or scale > 1)
    needed = looks or (led_from_nothing and not zero_image.is_kept(catalog.encoder_of(model)))
    return [catalog.PRIOR, kind_of(request), *([catalog.IMAGE_ENCODER] if needed else [])]


def kind_of(request: Request) -> str:
    """Which decoder a request needs (see `catalog`)."""
    if request.mask is not None:
        return catalog.INPAINT
    return catalog.DECODER if request.hint is None else catalog.DEPTH


@torch.inference_mode()
def _preview(decoder: DecoderStage, x: Tensor) -> Image.Image:
    """The first picture as it is."""
    return to_image(decoder.decode(x[:1])[0])


def _hint(frame: Frame, hint: Image.Image) -> Tensor:
    """A hint on the canvas, [1, 3, H, W] in [0, 1]."""
    return to_pixels(frame.laid(hint)) * 0.5 + 0.5


def _noise(request: Request) -> Noise:
    """The decoder's stream for each picture."""
    seeds = [_set(request.seed) + k for k in range(request.num_images)]
    if request.variation_seed is None:
        return Noise(seeds, "decoder")
    varied: Sequence[int] = [request.variation_seed + k for k in range(request.num_images)]
    return Noise(seeds, "decoder", towards=varied, strength=request.variation_strength)


def _check_steps(decoder: DecoderStage, sampling: Sampling, strength: float | None) -> None:
    """Raises `ValueError` for steps that the schedule has not, or a strength that leaves none."""
    start = None if strength is None else (torch.zeros(1, 1), strength)
    begin(decoder.schedule, _set(sampling.steps), torch.zeros_like, shape=(1, 1), start=start)


def _set(value: T | None) -> T:
    """A field of a resolved request."""
    assert value is not None
    return value
