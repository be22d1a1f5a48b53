"""The image embeddings that requests ask for: of texts by the prior, of pictures by CLIP, saved ones, and their mixes.

What the prior computes for a text is cached under everything that decides it (words, seeds, sampling), so painting the
same embedding again, at another size or with another decoder seed, does not run the prior. For a large prior the cache
is also on disk, so the next command does not even load the prior.
"""

from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from kandinsky22.diffusion import Noise
from kandinsky22.engine.embedding_cache import EmbeddingCache
from kandinsky22.engine.runs import StartState, weighted_sum
from kandinsky22.engine.stages import Embeds, PriorStage
from kandinsky22.files import cache_dir
from kandinsky22.generators import Returning
from kandinsky22.request import Condition, Embedding, Mix, Part, Picture, Request, Text
from kandinsky22.request.events import Event, Progress
from kandinsky22.request.parts import LINEAR, parts

K = TypeVar("K", bound=Hashable)
LARGE = 100_000_000  # parameters of a prior from which embeddings are also cached on disk


class TextJob(NamedTuple):
    """A text for the prior and everything that decides its embeddings; the key of the cache."""

    text: Text
    negative: str
    weight: float
    sampler: str
    steps: int
    seeds: tuple[int, ...]

    @property
    def linear(self) -> bool:
        """Whether the linear prior computes it."""
        return self.sampler == LINEAR


class ImageEmbedder:
    """Computes the image embeddings of requests with one prior."""

    def __init__(self, prior: PriorStage) -> None:
        self.prior = prior
        self._cache = EmbeddingCache(self._folder() if prior.stored.prior.elements > LARGE else None)

    @contextmanager
    def uncached(self) -> Iterator[None]:
        """Compute every embedding again in this block: its last bits depend on what it was batched with."""
        cache, self._cache = self._cache, EmbeddingCache()
        try:
            yield
        finally:
            self._cache = cache

    def check(self, request: Request) -> None:
        """Raises `ValueError` if a resolved request's conditions cannot be computed; computes nothing."""
        stored = self.prior.stored
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

    def embed(self, requests: Mapping[K, Request]) -> Generator[tuple[K, Event], None, dict[K, Embeds]]:
        """The embeddings of resolved requests; texts that are not cached go through the prior together."""
        jobs = {key: list(dict.fromkeys(_text_jobs(request))) for key, request in requests.items()}
        cached = {job: self._cache.get(job) for its_jobs in jobs.values() for job in its_jobs}
        known = {job: embeds.to(self.prior.networks.device) for job, embeds in cached.items() if embeds is not None}
        missing = {key: [job for job in its_jobs if job not in known] for key, its_jobs in jobs.items()}
        known |= self._map(dict.fromkeys(job for its_jobs in missing.values() for job in its_jobs if job.linear))
        missing = {key: [job for job in its_jobs if not job.linear] for key, its_jobs in missing.items()}
        sampled = yield from self._sample({key: its_jobs for key, its_jobs in missing.items() if its_jobs})
        for job, embeds in sampled.items():
            self._cache.put(job, embeds)
        return {key: self._embeds(request, known | sampled) for key, request in requests.items()}

    def _folder(self) -> Path:
        """The cache folder for this model, device, and the dtypes of weights and computation."""
        networks, stored = self.prior.networks, self.prior.stored
        dtypes = [str(dtype).removeprefix("torch.") for dtype in dict.fromkeys((networks.weight_dtype, networks.dtype))]
        weights = "-".join([stored.prior.fingerprint, stored.space, networks.device.type, *dtypes])
        return cache_dir() / "embeddings" / weights

    def _map(self, jobs: Iterable[TextJob]) -> dict[TextJob, Tensor]:
        """The linear prior's embeddings of texts, [1, D] each."""
        jobs = list(jobs)
        mapped = self.prior.map_prompts([job.text.prompt for job in jobs]).split(1) if jobs else ()
        return dict(zip(jobs, mapped, strict=True))

    def _sample(self, jobs: Mapping[K, list[TextJob]]) -> Generator[tuple[K, Event], None, dict[TextJob, Tensor]]:
        """Run the prior for texts, each once; progress goes to every request that waits for one."""
        waiting: dict[TextJob, list[K]] = {}
        for key, its_jobs in jobs.items():
            for job in its_jobs:
                waiting.setdefault(job, []).append(key)
        if not waiting:
            return {}
        clean = {job: self.prior.encode_images([job.text.image.rgb]) for job in waiting if job.text.image is not None}
        prompts = list(dict.fromkeys(prompt for job in waiting for prompt in (job.text.prompt, job.negative)))
        encoded = self.prior.encode_prompts(prompts)
        runs = {}
        for job in waiting:
            texts, negative = ([prompts.index(words)] * len(job.seeds) for words in (job.text.prompt, job.negative))
            noise = Noise(job.seeds, "prior")
            if job.text.strength is not None:
                normalised = self.prior.network.normalised(clean[job]).expand(len(job.seeds), -1)
                start = StartState.from_clean(self.prior.schedule, job.steps, normalised, job.text.strength, noise)
            else:
                x = noise.draw((len(job.seeds), self.prior.dim), device=self.prior.networks.device)
                start = StartState.from_noise(self.prior.schedule, job.steps, x)
            runs[job] = self.prior.prepare_run(encoded, texts, negative, job.weight, job.sampler, start, noise)
        reported: dict[K, int] = {}
        done = dict.fromkeys(waiting, 0)
        steps = Returning(self.prior.sample(runs))
        for job, step in steps:
            done[job] = step.i
            for key in waiting[job]:
                i = min(done[other] for other in jobs[key])
                if i > reported.get(key, 0):
                    reported[key] = i
                    yield key, Progress("prior", i, step.n)
        return steps.value

    def _embeds(self, request: Request, known: Mapping[TextJob, Tensor]) -> Embeds:
        image = self._vectors(request, request.condition, known, negative=False)
        if request.decoder.weight == 1:
            return Embeds(image, None)
        if request.negative is None:  # the zero-image embedding is only looked up if guidance needs it
            return Embeds(image, self.prior.zero_image_embed.expand_as(image))
        return Embeds(image, self._vectors(request, request.negative, known, negative=True))

    def _vectors(
        self, request: Request, condition: Condition, known: Mapping[TextJob, Tensor], *, negative: bool
    ) -> Tensor:
        """float32 [n, D] of one condition."""
        if isinstance(condition, Mix):
            vectors = [self._vectors(request, part, known, negative=False) for part in condition.parts]
            return weighted_sum(vectors, condition.weights)
        return self._part(request, condition, known, negative=negative).expand(request.num_images, -1)

    def _part(self, request: Request, part: Part, known: Mapping[TextJob, Tensor], *, negative: bool) -> Tensor:
        if isinstance(part, Text):
            return known[_text_job(request, part, negative=negative)]
        if isinstance(part, Picture):
            return self.prior.encode_images([part.rgb])
        return torch.tensor(part.vector, device=self.prior.networks.device)[None]


def _text_jobs(request: Request) -> list[TextJob]:
    """The prior's jobs for a resolved request."""
    jobs = [_text_job(request, part) for part in parts(request.condition) if isinstance(part, Text)]
    if request.negative is not None and request.decoder.weight != 1:
        alone = isinstance(request.negative, Text)
        negatives = [part for part in parts(request.negative) if isinstance(part, Text)]
        jobs += [_text_job(request, part, negative=alone) for part in negatives]
    return jobs


def _text_job(request: Request, text: Text, *, negative: bool = False) -> TextJob:
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
    return TextJob(text, prompt if weight != 1 else "", weight, sampling.sampler, sampling.steps, seeds)
