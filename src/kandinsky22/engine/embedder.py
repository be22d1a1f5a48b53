"""The image embeddings that requests ask for: of texts by the prior, of pictures by CLIP, saved ones, and their mixes.

What the prior computes for a text is cached under everything that decides it (words, seeds, sampling), so painting the
same embedding again, at another size or with another decoder seed, does not run the prior. For a large prior the cache
is also on disk, so the next command does not even load the prior.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from kandinsky22.checkpoints.lora_files import PRIOR, TEXT_ENCODER
from kandinsky22.diffusion import Noise
from kandinsky22.engine.calls import Calls, Steps
from kandinsky22.engine.embedding_cache import EmbeddingCache
from kandinsky22.engine.loras import LoadedLoRAs
from kandinsky22.engine.runs import Run, StartState, weighted_sum
from kandinsky22.engine.scheduler import Shared
from kandinsky22.engine.stages import Embeds, PriorAdapters, PriorStage
from kandinsky22.files import cache_dir
from kandinsky22.models.prior import Prefix
from kandinsky22.request import Condition, Embedding, Mix, Part, Picture, Request, Text
from kandinsky22.request.events import Progress
from kandinsky22.request.lora import LoRA
from kandinsky22.request.parts import LINEAR, parts

LARGE = 100_000_000  # parameters of a prior from which embeddings are also cached on disk


class TextJob(NamedTuple):
    """A text for the prior and everything that decides its embeddings; the key of the cache."""

    text: Text
    negative: str
    weight: float
    sampler: str
    steps: int
    seeds: tuple[int, ...]
    loras: tuple[LoRA, ...] = ()  # those that change embeddings

    @property
    def linear(self) -> bool:
        """Whether the linear prior computes it."""
        return self.sampler == LINEAR


class ImageEmbedder:
    """Computes the image embeddings of requests with one prior."""

    def __init__(self, prior: PriorStage, loras: LoadedLoRAs) -> None:
        self.prior, self.loras = prior, loras
        self.cache = EmbeddingCache(self._folder() if prior.stored.prior.elements > LARGE else None)

    def check(self, request: Request) -> None:
        """Raises `ValueError` if a resolved request's conditions cannot be computed; computes nothing."""
        stored = self.prior.stored
        if request.prior.linear and (loras := self._loras(request)):
            name = next(lora.name for lora in request.loras if lora.sha256 == loras[0].sha256)
            raise ValueError(f"the linear prior takes no adapters, and {name} has some; leave out prior='linear'")
        for condition in (request.condition, request.negative):
            for part in parts(condition) if condition is not None else ():
                if isinstance(part, Embedding) and part.encoder != stored.space:
                    raise ValueError(
                        f"the embedding was made with another CLIP ({part.encoder}) than this model's "
                        f"({stored.space}); make it again with this model"
                    )
                if isinstance(part, Embedding) and len(part.vector) != self.prior.dim:
                    raise ValueError(
                        f"the embedding has {len(part.vector)} numbers, and this model's have {self.prior.dim}"
                    )
                if isinstance(part, Picture) or (isinstance(part, Text) and part.image is not None):
                    _ = stored.image_encoder  # raises if the folder has none
                if isinstance(part, Text) and request.prior.linear:
                    _ = stored.linear_prior  # raises if the folder has none for this CLIP
                elif isinstance(part, Text):
                    assert request.prior.steps is not None
                    self.prior.schedule.timesteps(request.prior.steps, part.strength)  # raises if no step is left

    def embed(self, request: Request, calls: Calls, cache: EmbeddingCache | None = None) -> Steps[Embeds]:
        """The embeddings of a resolved request, as part of a task. cache: of texts; None: the embedder's own."""
        cache = self.cache if cache is None else cache
        known: dict[TextJob, Tensor] = {}
        missing: dict[Hashable, Callable[[], Steps[Tensor]]] = {}
        loras = self._loras(request)
        for job in _text_jobs(request, loras):
            if (embeds := None if job.linear else cache.get(job)) is not None:
                known[job] = embeds.to(self.prior.networks.device)
            else:
                missing[self, job] = partial(self._text, job, calls, cache)
        computed = yield Shared(missing)
        known |= {job: embeds for (_, job), embeds in computed.items()}
        image = yield from self._vectors(request, request.condition, known, calls, negative=False)
        if request.decoder.weight == 1:
            return Embeds(image, None)
        if request.negative is None:  # the zero-image embedding is only looked up if guidance needs it
            return Embeds(image, self.prior.zero_image_embed.expand_as(image))
        return Embeds(image, (yield from self._vectors(request, request.negative, known, calls, negative=True)))

    def _loras(self, request: Request) -> tuple[LoRA, ...]:
        """The LoRAs that change the request's embeddings."""
        return tuple(lora.for_prior() for lora in request.loras if self.loras.changes_embeddings(lora))

    def _folder(self) -> Path:
        """The cache folder for this model, device, and the dtypes of weights and computation."""
        networks, stored = self.prior.networks, self.prior.stored
        dtypes = [str(dtype).removeprefix("torch.") for dtype in dict.fromkeys((networks.weight_dtype, networks.dtype))]
        weights = "-".join([stored.prior.fingerprint, stored.space, networks.device.type, *dtypes])
        return cache_dir() / "embeddings" / weights

    def _text(self, job: TextJob, calls: Calls, cache: EmbeddingCache) -> Steps[Tensor]:
        """The embeddings of a text, [n, D]: one for each seed."""
        prior, n = self.prior, len(job.seeds)
        if job.linear:
            return (yield from calls.map_prompt(prior, job.text.prompt))
        picture = job.text.image
        clean = None if picture is None else (yield from calls.encode_image(prior, picture.rgb))
        prompts = list(dict.fromkeys((job.text.prompt, job.negative)))
        text_encoder = self.loras.stack(job.loras, TEXT_ENCODER, prior.stored.text_encoder)
        adapters = PriorAdapters(text_encoder, self.loras.stack(job.loras, PRIOR, prior.stored.prior))
        encoded = yield from calls.encode_prompts(prior, prompts, adapters)

        def prepare() -> Run[Prefix]:
            texts, negative = ([prompts.index(words)] * n for words in (job.text.prompt, job.negative))
            noise = Noise(job.seeds, "prior")
            if clean is not None and job.text.strength is not None:
                normalised = prior.network.normalised(clean).expand(n, -1)
                start = StartState.from_clean(prior.schedule, job.steps, normalised, job.text.strength, noise)
            else:
                x = noise.draw((n, prior.dim), device=prior.networks.device)
                start = StartState.from_noise(prior.schedule, job.steps, x)
            return prior.prepare_run(encoded, texts, negative, job.weight, job.sampler, start, noise)

        run = yield from calls.run(prior, prior.stored.prior, prepare)

        def on_step(i: int, x: Tensor, x0: Tensor) -> Iterator[Progress]:
            yield Progress("prior", i, run.steps)

        x = yield from calls.sample(prior, run, on_step)
        embeds = yield from calls.run(prior, prior.stored.prior, lambda: prior.network.denormalised(x))
        cache.put(job, embeds)
        return embeds

    def _vectors(
        self, request: Request, condition: Condition, known: Mapping[TextJob, Tensor], calls: Calls, *, negative: bool
    ) -> Steps[Tensor]:
        """float32 [n, D] of one condition."""
        if not isinstance(condition, Mix):
            vector = yield from self._part(request, condition, known, calls, negative=negative)
            return vector.expand(request.num_images, -1)
        vectors = []
        for part in condition.parts:
            vectors.append((yield from self._vectors(request, part, known, calls, negative=False)))
        return weighted_sum(vectors, condition.weights)

    def _part(
        self, request: Request, part: Part, known: Mapping[TextJob, Tensor], calls: Calls, *, negative: bool
    ) -> Steps[Tensor]:
        if isinstance(part, Text):
            return known[_text_job(request, part, self._loras(request), negative=negative)]
        if isinstance(part, Picture):
            return (yield from calls.encode_image(self.prior, part.rgb))
        return torch.tensor(part.vector, device=self.prior.networks.device)[None]


def _text_jobs(request: Request, loras: tuple[LoRA, ...]) -> list[TextJob]:
    """The prior's jobs for a resolved request. loras: those that change its embeddings."""
    jobs = [_text_job(request, part, loras) for part in parts(request.condition) if isinstance(part, Text)]
    if request.negative is not None and request.decoder.weight != 1:
        alone = isinstance(request.negative, Text)
        negatives = [part for part in parts(request.negative) if isinstance(part, Text)]
        jobs += [_text_job(request, part, loras, negative=alone) for part in negatives]
    return jobs


def _text_job(request: Request, text: Text, loras: tuple[LoRA, ...], *, negative: bool = False) -> TextJob:
    """How the prior samples a text: guided away from the negative prompt; a negative prompt itself is not guided."""
    sampling = request.prior
    if sampling.linear:  # nothing random in it
        return TextJob(text, "", 1.0, LINEAR, 1, (0,))
    assert sampling.sampler is not None and sampling.steps is not None and request.seed is not None
    seeds = (
        tuple(request.seed + k for k in range(request.num_images))
        if request.prior_seed is None
        else (request.prior_seed,)
    )
    prompt = request.negative.prompt if isinstance(request.negative, Text) else ""
    weight = 1.0 if negative else sampling.weight
    return TextJob(text, prompt if weight != 1 else "", weight, sampling.sampler, sampling.steps, seeds, loras)
