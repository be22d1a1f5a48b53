"""Kandinsky: the model whole. Four stages in order, each callable by itself: embed, begin, sample, decode.

`stream_many` carries out any number of requests together, one network call a step for all of them; `stream` is one
request of it, and calling the model is `stream` without the events.
"""

import platform
import time
import warnings
from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import torch
from PIL import Image
from torch import Tensor

import kandinsky22
from kandinsky22 import memory
from kandinsky22.checkpoints import catalog
from kandinsky22.checkpoints.model import StoredModel
from kandinsky22.denoise import Denoiser, Guided
from kandinsky22.diffusion import SAMPLERS, Job, Noise, NoiseSchedule, SharedNoise, sample_many
from kandinsky22.events import Event, Notice, Progress, Result, Started
from kandinsky22.images import Picture
from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPVision
from kandinsky22.models.movq import MoVQ
from kandinsky22.models.prior import Prefix, PriorTransformer
from kandinsky22.models.unet import Conditioned, UNet
from kandinsky22.request import SMALLEST, Defaults, Request, Sampling
from kandinsky22.tasks import text2img
from kandinsky22.words import unknown_words

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
AnyNoise = Noise | SharedNoise
Stage = Generator[tuple[K, Event], None, dict[K, T]]
"""A stage for many requests: tells of its progress, returns what it made for each."""

SAMPLER_OF = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim", "UnCLIPScheduler": "unclip"}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Embeds(NamedTuple):
    """CLIP image embeddings, [n, D]: of the pictures to paint, and of what to keep away from (None: of nothing, which is
    painting without guidance)."""

    image: Tensor
    negative: Tensor | None


class Kandinsky:
    """A model, loaded from a folder with `decoder/` and `prior/` in the published layout.

    Every file is checked before anything runs; a network is read when it is first needed. Text-to-image never reads the
    image encoder: the one constant it is needed for is kept (see `checkpoints/zero_image.py`).
    """

    def __init__(self, folder: Path, *, name: str, device: torch.device, dtype: torch.dtype) -> None:
        self.stored = StoredModel(folder)
        self.name, self.device, self.dtype = name, device, dtype
        self.tokenizer = self.stored.tokenizer
        self.decoder_schedule = NoiseSchedule.from_config(self.stored.schedulers[catalog.DECODER])
        self.prior_schedule = NoiseSchedule.from_config(self.stored.schedulers[catalog.PRIOR])
        self.defaults = self._defaults()

    @classmethod
    def load(
        cls, model: str | Path = catalog.BOX, *, device: str | None = None, dtype: str | torch.dtype | None = None
    ) -> Self:
        """The model in the box, or the one in a folder.

        device: "cuda" where there is one, else "cpu". dtype: float16 on cuda, else float32, in which a seed's picture is
        most exact. Raises `ValueError` where the folder, the device or the dtype will not do.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            place = torch.device(device)
            torch.empty(0, device=place)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"the device {device!r} cannot be used here; try cpu") from error
        if dtype is None:
            dtype = torch.float16 if place.type == "cuda" else torch.float32
        if isinstance(dtype, str):
            if dtype not in DTYPES:
                raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
            dtype = DTYPES[dtype]
        folder = catalog.locate(str(model))
        return cls(
            folder, name=catalog.BOX if model == catalog.BOX else folder.resolve().name, device=place, dtype=dtype
        )

    @cached_property
    def unet(self) -> UNet:
        """The decoder's U-Net."""
        return self.stored.unet.load(self.dtype, self.device)

    @cached_property
    def movq(self) -> MoVQ:
        """The autoencoder."""
        return self.stored.movq.load(self.dtype, self.device)

    @cached_property
    def prior(self) -> PriorTransformer:
        """The prior."""
        return self.stored.prior.load(self.dtype, self.device)

    @cached_property
    def text_encoder(self) -> CLIPText:
        """CLIP's text tower."""
        return self.stored.text_encoder.load(self.dtype, self.device)

    @cached_property
    def image_encoder(self) -> CLIPVision:
        """CLIP's vision tower."""
        return self.stored.image_encoder.load(self.dtype, self.device)

    @cached_property
    def image_processor(self) -> CLIPImageProcessor:
        """How pictures are prepared for CLIP's vision tower."""
        return self.stored.image_processor()

    @cached_property
    def zero_image_embed(self) -> Tensor:
        """The embedding [1, D] of the all-zero (grey) picture: what pictures keep away from unless told otherwise."""
        return self.stored.zero_image_embed().to(self.device)

    @property
    def made_by(self) -> dict[str, Any]:
        """What decides a request's pixels besides the request."""
        cuda = self.device.type == "cuda"
        return {
            "weights": self.stored.fingerprints,
            "kandinsky22": kandinsky22.__version__,
            "torch": torch.__version__,
            "device": self.device.type,
            "processor": torch.cuda.get_device_name(self.device) if cuda else _processor(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }

    def __call__(self, what: str | Request, **options: Any) -> list[Picture]:
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
        """Paint a request, telling what happens. Closing the iterator stops."""
        return (event for _, event in self.stream_many({0: request}))

    @torch.inference_mode()
    def stream_many(self, requests: Mapping[K, Request]) -> Iterator[tuple[K, Event]]:
        """Paint many requests together: other prompts, seeds, samplers, steps and guidance share network calls.

        Everything is checked before anything runs. Each gets what it would get alone, to rounding.
        """
        began = time.perf_counter()
        requests = {key: self.resolved(request) for key, request in requests.items()}
        self._check_memory(requests.values())
        for key, request in requests.items():
            yield key, Started(request)
            for text in self._notices(request):
                yield key, Notice(text)
        embeds = yield from self._embed(requests, {key: _noise(r, "prior") for key, r in requests.items()})
        noises: dict[K, AnyNoise] = {key: _noise(r, "decoder") for key, r in requests.items()}
        begun = {key: self.begin(request, noises[key]) for key, request in requests.items()}
        latents = yield from self._sample(requests, embeds, begun, noises)
        for key, request in requests.items():
            images = self.decode(latents[key], height=request.height, width=request.width)
            made_by = self.made_by
            pictures = [  # the batch is told because company changes how sums are rounded
                Picture(image, request.single(k), {**made_by, "batch": {"index": k, "of": len(images)}})
                for k, image in enumerate(images)
            ]
            yield key, Result(pictures, request, time.perf_counter() - began)

    def resolved(self, request: Request) -> Request:
        """The request with nothing left open. Raises `ValueError` for what this model cannot do."""
        if Path(request.model).expanduser().resolve().name not in (catalog.BOX, self.name):
            raise ValueError(f"the request is for {request.model!r}, and this model is {self.name!r}; load that one")
        request = replace(request.resolved(self.defaults), model=self.name)  # a name: paths are nobody's business
        for stage, schedule in ((request.prior, self.prior_schedule), (request.decoder, self.decoder_schedule)):
            schedule.timesteps(_set(stage.steps))
        return request

    @torch.inference_mode()
    def embed(self, request: Request, noise: AnyNoise | None = None) -> Embeds:
        """Stage 1: the embeddings that a request asks for, by the prior.

        Each stage by itself needs the request's seed, unless it is given `noise`: resolve an open one first.
        """
        request = self._seeded(request, noise)
        return _finish(self._embed({0: request}, {0: noise or _noise(request, "prior")}))[0]

    @torch.inference_mode()
    def begin(self, request: Request, noise: AnyNoise | None = None) -> Tensor:
        """Stage 2: the latents a request starts from, float32 [n, 4, h, w]."""
        request = self._seeded(request, noise)
        height, width = _canvas(request)
        factor = self.stored.movq.config.factor
        shape = (request.num_images, self.stored.movq.config.latent_channels, height // factor, width // factor)
        return (noise or _noise(request, "decoder")).draw(shape, device=self.device)

    @torch.inference_mode()
    def sample(self, request: Request, embeds: Embeds, latents: Tensor, noise: AnyNoise | None = None) -> Tensor:
        """Stage 3: finished latents [n, 4, h, w] from the ones `begin` gave, led by `embeds`.

        `noise` goes on where `begin` left it; without one, a fresh stream is moved past the first draw.
        """
        request = self._seeded(request, noise)
        if noise is None:
            noise = _noise(request, "decoder")
            noise.draw(latents.shape)
        return _finish(self._sample({0: request}, {0: embeds}, {0: latents}, {0: noise}))[0]

    @torch.inference_mode()
    def decode(self, latents: Tensor, *, height: int | None = None, width: int | None = None) -> list[Image.Image]:
        """Stage 4: pictures of latents [n, 4, h, w], one by one to save memory, cropped centrally to height x width."""
        return [_to_image(self.movq.decode(row.to(self.dtype))[0], height, width) for row in latents.split(1)]

    @torch.inference_mode()
    def encode_text(self, prompts: list[str]) -> Prefix:
        """The prior's prefix for prompts, a row each."""
        tokens = self.tokenizer(prompts).trimmed()
        features = self.text_encoder(tokens.ids.to(self.device))
        return self.prior.prefill(features.hidden, features.embed, tokens.mask.to(self.device))

    def _embed(self, requests: Mapping[K, Request], noises: Mapping[K, AnyNoise]) -> Stage[K, Embeds]:
        """The prior for many requests. A negative prompt's embedding is sampled beside the positive's, unguided."""
        jobs, guided = {}, {}
        for key, request in requests.items():
            n, scale = request.num_images, _set(request.prior.guidance_scale)
            avoided = request.negative.prompt if request.negative else ""
            texts = self.encode_text([request.condition.prompt, avoided])
            rows = torch.tensor([0] * n + [1] * n if request.negative else [0] * n, device=self.device)
            weight = torch.where(rows == 0, float(scale), 1.0)
            guided[key] = Guided.by(texts[rows], texts[torch.ones_like(rows)], weight)
            x = noises[key].draw((len(rows), self.stored.prior.config.embedding_dim), device=self.device)
            jobs[key] = _job(request.prior, self.prior_schedule, x, noises[key])
        denoiser: Denoiser[Prefix] = Denoiser(self.prior, self.prior_schedule, guided, self.dtype)
        finished = yield from self._run("prior", jobs, denoiser)

        embeds = {}
        for key, request in requests.items():
            image, away = self.prior.denormalised(finished[key]).tensor_split([request.num_images])
            if request.negative is not None:
                embeds[key] = Embeds(image, away)
            else:  # the constant is looked for only where it leads
                led = request.decoder.guidance_scale != 1
                embeds[key] = Embeds(image, self.zero_image_embed.expand_as(image) if led else None)
        return embeds

    def _sample(
        self, requests: Mapping[K, Request], embeds: Mapping[K, Embeds], latents: Mapping[K, Tensor],
        noises: Mapping[K, AnyNoise],
    ) -> Stage[K, Tensor]:  # fmt: skip
        """The decoder for many requests."""
        jobs, guided = {}, {}
        for key, request in requests.items():
            image, negative = embeds[key]
            cond = self.unet.condition(image.to(self.dtype))
            uncond = cond if negative is None else self.unet.condition(negative.to(self.dtype))
            scale = 1.0 if negative is None else float(_set(request.decoder.guidance_scale))
            guided[key] = Guided.by(cond, uncond, torch.full((len(cond),), scale, device=self.device))
            jobs[key] = _job(request.decoder, self.decoder_schedule, latents[key], noises[key])
        denoiser: Denoiser[Conditioned] = Denoiser(self.unet, self.decoder_schedule, guided, self.dtype)
        return (yield from self._run("decoder", jobs, denoiser, previews=True))

    def _run(
        self, stage: str, jobs: dict[K, tuple[Job, int]], denoiser: Denoiser[Any], *, previews: bool = False
    ) -> Stage[K, Tensor]:
        """Drive one stage's samplers to their ends."""
        done = dict.fromkeys(jobs, 0)
        finished = {}
        for key, now in sample_many({key: job for key, (job, _) in jobs.items()}, denoiser):
            done[key] += 1
            finished[key] = now.x
            preview = (lambda x=now.x: self.decode(x[:1])[0]) if previews else None
            yield key, Progress(stage, done[key], jobs[key][1], preview)
        for x in finished.values():
            if not bool(x.isfinite().all()):
                raise FloatingPointError(
                    f"the {stage}'s result is not finite in {str(self.dtype).removeprefix('torch.')}; nothing was saved. "
                    "Use --dtype float32, or a lower guidance scale"
                )
        return finished

    def _defaults(self) -> Defaults:
        """What the folder says, else what the published pipelines do."""
        side = self.stored.unet.config.sample_size * self.stored.movq.config.factor
        stages = {}
        for part in (catalog.PRIOR, catalog.DECODER):
            published = Sampling(
                sampler=SAMPLER_OF[self.stored.schedulers[part]["_class_name"]],
                steps=catalog.PUBLISHED_STEPS[part],
                guidance_scale=catalog.PUBLISHED_GUIDANCE,
            )
            stages[part] = self.stored.about.defaults.get(part, Sampling()).filled(published)
        return Defaults(height=side, width=side, **stages)

    def _seeded(self, request: Request, noise: AnyNoise | None) -> Request:
        """The request resolved, for a stage by itself."""
        if request.seed is None and noise is None:
            raise ValueError("each stage would draw its own seed; start with request = kandinsky.resolved(request)")
        return self.resolved(request)

    def _check_memory(self, requests: Iterable[Request]) -> None:
        """Raises `ValueError` for requests that, together and with the weights still to be read, memory cannot hold."""
        unread = sum(stored.elements for name, stored in self.stored.networks.items() if name not in vars(self))
        sizes = [(request.num_images, *_canvas(request)) for request in requests]
        memory.check(self.stored.unet.config, self.stored.movq.config, sizes, unread, self.dtype.itemsize, self.device)

    def _notices(self, request: Request) -> Iterator[str]:
        """What the asker should know before it starts."""
        prompts = [text.prompt for text in (request.condition, request.negative) if text is not None]
        for dropped in self.tokenizer(prompts).dropped:
            if dropped:
                yield f"the prompt is too long for this model; it does not see: {dropped}"
        if unknown := unknown_words(prompts, self.stored.about.words):
            yield unknown
        if self.dtype == torch.float16 and self.device.type == "cpu":
            yield "float16 is slow and coarse on a CPU; use float32 or bfloat16 there"


def _job(sampling: Sampling, schedule: NoiseSchedule, x: Tensor, noise: AnyNoise) -> tuple[Job, int]:
    """A sampler ready to run from `x`, and its number of steps."""
    timesteps = schedule.timesteps(_set(sampling.steps))
    return Job(SAMPLERS[_set(sampling.sampler)](schedule, x, timesteps, noise)), len(timesteps)


def _noise(request: Request, stage: str) -> Noise:
    """One stream for each picture; a negative prompt's rows, which only the prior has, repeat the pictures' seeds."""
    seeds = [_set(request.seed) + k for k in range(request.num_images)]
    return Noise(seeds * 2 if stage == "prior" and request.negative is not None else seeds, stage)


def _canvas(request: Request) -> tuple[int, int]:
    """The sides that are computed: the next multiples of 64."""
    height, width = _set(request.height), _set(request.width)
    return -(-height // SMALLEST) * SMALLEST, -(-width // SMALLEST) * SMALLEST


def _to_image(decoded: Tensor, height: int | None, width: int | None) -> Image.Image:
    """A decoded picture [3, H, W], about [-1, 1], cropped centrally, as PIL."""
    if not bool(decoded.isfinite().all()):
        raise FloatingPointError("the decoded picture is not finite; nothing was saved. Use --dtype float32")
    height, width = height or decoded.shape[1], width or decoded.shape[2]
    top, left = (decoded.shape[1] - height) // 2, (decoded.shape[2] - width) // 2
    cropped = decoded[:, top : top + height, left : left + width].float()
    return Image.fromarray(((cropped * 0.5 + 0.5).clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy())


def _set(value: T | None) -> T:
    """A field of a resolved request."""
    assert value is not None
    return value


def _processor() -> str:
    """What this processor rounds like: its architecture, and the vector instructions torch uses on it."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def _finish(stage: Stage[K, T]) -> dict[K, T]:
    """Run a stage to its end, without its events."""
    while True:
        try:
            next(stage)
        except StopIteration as end:
            results: dict[K, T] = end.value
            return results
