"""What a request is about, as image embeddings: words through the prior, pictures through CLIP, saved ones, and mixes.

What the prior made of a text is kept by all that decides it (the words, the seeds, how it was sampled), so that
painting the same embedding once more, at another size or with another seed for the decoder, does not run the prior.
With a large prior it is kept in the user's cache too, so that the next command does not even read the prior.
"""

from collections.abc import Generator, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from kandinsky22.checkpoints import catalog
from kandinsky22.diffusion import Noise
from kandinsky22.engine.embedding_cache import Kept
from kandinsky22.engine.stages import Embeds, PriorStage, begin
from kandinsky22.request import Condition, Embedding, Mix, Part, Picture, Request, Sampling, Text
from kandinsky22.request.events import Event, Progress
from kandinsky22.request.parts import LINEAR, parts

K = TypeVar("K", bound=Hashable)
LARGE = 100_000_000  # numbers of a prior whose results are worth a file


class Sampled(NamedTuple):
    """A text as the prior is to see it, and all that decides what comes of it."""

    text: Text
    away: str  # the prompt that guidance leads away from
    weight: float
    sampler: str
    steps: int
    seeds: tuple[int, ...]

    @property
    def linear(self) -> bool:
        """Whether the linear prior is to see it."""
        return self.sampler == LINEAR


class ImageEmbedder:
    """The embeddings that requests ask for, by one prior."""

    def __init__(self, prior: PriorStage) -> None:
        self.prior = prior
        self._kept = Kept(self._folder() if prior.stored.prior.elements > LARGE else None)

    @contextmanager
    def uncached(self) -> Iterator[None]:
        """For a while nothing is known and nothing kept: in which company an embedding was made shows in its last
        bits."""
        remembered, self._kept = self._kept, Kept()
        try:
            yield
        finally:
            self._kept = remembered

    def check(self, request: Request) -> None:
        """Raises `ValueError` for what a resolved request's conditions ask and cannot get; nothing is computed."""
        for condition in (request.condition, request.negative):
            for part in parts(condition) if condition is not None else ():
                if isinstance(part, Embedding) and part.encoder != self.prior.stored.space:
                    raise ValueError(
                        f"the embedding was made with another CLIP ({part.encoder}) than this model's "
                        f"({self.prior.stored.space}); make it again with this model"
                    )
                if isinstance(part, Embedding) and len(part.vector) != self.prior.dim:
                    raise ValueError(
                        f"the embedding has {len(part.vector)} numbers, and this model's have {self.prior.dim}"
                    )
                if isinstance(part, Picture) or (isinstance(part, Text) and part.image is not None):
                    _ = self.prior.stored.image_encoder  # raises where the folder has none
                if isinstance(part, Text) and request.prior.linear:
                    _ = self.prior.stored.linear_prior  # raises where the folder has none for this CLIP
                elif isinstance(part, Text):
                    strength = part.strength
                    start = None if strength is None else (torch.zeros(1, 1), strength)
                    assert request.prior.steps is not None
                    begin(self.prior.schedule, request.prior.steps, torch.zeros_like, shape=(1, 1), start=start)

    def stage(self, requests: Mapping[K, Request]) -> Generator[tuple[K, Event], None, dict[K, Embeds]]:
        """The embeddings of many resolved requests; texts that are not known yet go through the prior together."""
        wanted = {key: list(dict.fromkeys(_texts(request))) for key, request in requests.items()}
        kept = {text: self._kept.get(text) for texts in wanted.values() for text in texts}
        known = {text: embeds.to(self.prior.networks.device) for text, embeds in kept.items() if embeds is not None}
        missing = {key: [text for text in texts if text not in known] for key, texts in wanted.items()}
        known |= self._map(dict.fromkeys(text for texts in missing.values() for text in texts if text.linear))
        missing = {key: [text for text in texts if not text.linear] for key, texts in missing.items()}
        made = yield from self._sample({key: texts for key, texts in missing.items() if texts})
        for text, embeds in made.items():
            self._kept.put(text, embeds)
        return {key: self._embeds(request, known | made) for key, request in requests.items()}

    def _folder(self) -> Path:
        """In the user's cache, for this model, device, and dtypes of weights and of what is computed."""
        networks, stored = self.prior.networks, self.prior.stored
        dtypes = [str(dtype).removeprefix("torch.") for dtype in dict.fromkeys((networks.weight_dtype, networks.dtype))]
        weights = "-".join([stored.prior.fingerprint, stored.space, networks.device.type, *dtypes])
        return catalog.cache() / "embeddings" / weights

    def _map(self, texts: Iterable[Sampled]) -> dict[Sampled, Tensor]:
        """What the linear prior makes of texts, [1, D] each."""
        texts = list(texts)
        mapped = self.prior.map_prompts([text.text.prompt for text in texts]).split(1) if texts else ()
        return dict(zip(texts, mapped, strict=True))

    def _sample(self, texts: Mapping[K, list[Sampled]]) -> Generator[tuple[K, Event], None, dict[Sampled, Tensor]]:
        """Run the prior for texts, each named once; its progress is told for every request that waits for one."""
        waiting: dict[Sampled, list[K]] = {}
        for key, its in texts.items():
            for text in its:
                waiting.setdefault(text, []).append(key)
        if not waiting:
            return {}
        looked = {
            text: self.prior.encode_images([text.text.image.rgb]) for text in waiting if text.text.image is not None
        }
        # every way to see the same words is read once
        prompts = list(dict.fromkeys(prompt for text in waiting for prompt in (text.text.prompt, text.away)))
        read = self.prior.encode_prompts(prompts)
        runs = {}
        for text in waiting:
            rows, away = ([prompts.index(words)] * len(text.seeds) for words in (text.text.prompt, text.away))
            noise = Noise(text.seeds, "prior")
            if text.text.strength is not None:
                clean = self.prior.network.normalised(looked[text])
                start = (clean.expand(len(text.seeds), -1), text.text.strength)
                begun = begin(self.prior.schedule, text.steps, noise, start=start)
            else:
                x = noise.draw((len(text.seeds), self.prior.dim), device=self.prior.networks.device)
                begun = begin(self.prior.schedule, text.steps, noise, x=x)
            runs[text] = self.prior.prepare_run(read, rows, away, text.weight, text.sampler, begun, noise)
        stage = self.prior.sample(runs)
        told: dict[K, int] = {}
        done = dict.fromkeys(waiting, 0)
        while True:
            try:
                text, step = next(stage)
            except StopIteration as end:
                embeds: dict[Sampled, Tensor] = end.value
                return embeds
            done[text] = step.i
            for key in waiting[text]:
                i = min(done[other] for other in texts[key])
                if i > told.get(key, 0):
                    told[key] = i
                    yield key, Progress("prior", i, step.n)

    def _embeds(self, request: Request, known: Mapping[Sampled, Tensor]) -> Embeds:
        image = self._vectors(request, request.condition, known, negative=False)
        if request.decoder.weight == 1:
            return Embeds(image, None)
        if request.negative is None:  # the constant is looked for only where it leads
            return Embeds(image, self.prior.zero_image_embed.expand_as(image))
        return Embeds(image, self._vectors(request, request.negative, known, negative=True))

    def _vectors(
        self, request: Request, condition: Condition, known: Mapping[Sampled, Tensor], *, negative: bool
    ) -> Tensor:
        """float32 [n, D] of one condition."""
        if isinstance(condition, Mix):
            weighted = [
                weight * self._vectors(request, part, known, negative=False)
                for part, weight in zip(condition.parts, condition.weights, strict=True)
            ]
            return torch.stack(weighted).sum(dim=0)
        vectors = self._part(request, condition, known, negative=negative)
        return vectors.expand(request.num_images, -1)

    def _part(self, request: Request, part: Part, known: Mapping[Sampled, Tensor], *, negative: bool) -> Tensor:
        if isinstance(part, Text):
            return known[_sampled(request, part, negative=negative)]
        if isinstance(part, Picture):
            return self.prior.encode_images([part.rgb])
        return torch.tensor(part.vector, device=self.prior.networks.device)[None]


def _texts(request: Request) -> list[Sampled]:
    """The texts of a resolved request that have to go through the prior."""
    texts = [_sampled(request, part) for part in parts(request.condition) if isinstance(part, Text)]
    if request.negative is not None and request.decoder.weight != 1:
        alone = isinstance(request.negative, Text)
        negatives = [part for part in parts(request.negative) if isinstance(part, Text)]
        texts += [_sampled(request, part, negative=alone) for part in negatives]
    return texts


def _sampled(request: Request, text: Text, *, negative: bool = False) -> Sampled:
    """How the prior samples a text of a request: away from the negative prompt; a negative prompt by itself,
    unguided."""
    chosen: Sampling = request.prior
    if chosen.linear:  # there is no chance in it
        return Sampled(text, "", 1.0, LINEAR, 1, (0,))
    assert chosen.sampler is not None and chosen.steps is not None and request.seed is not None
    seeds = (
        tuple(request.seed + k for k in range(request.num_images))
        if request.prior_seed is None
        else (request.prior_seed,)
    )
    away = request.negative.prompt if isinstance(request.negative, Text) else ""
    weight = 1.0 if negative else chosen.weight
    return Sampled(text, away if weight != 1 else "", weight, chosen.sampler, chosen.steps, seeds)
