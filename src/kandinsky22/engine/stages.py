"""The stages of a model on tensors: the prior (words to embeddings) and a decoder (embeddings to latents to pixels).

Two front doors stand on them: `kandinsky` for requests, where every picture has its own stream of noise, and
`pipelines` for code written against diffusers, where one generator draws for all rows. Knows no request and no file of
a picture.
"""

from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.checkpoints.model import StoredDecoder, StoredPrior
from kandinsky22.diffusion import (
    SAMPLERS,
    Draw,
    Job,
    NoiseSchedule,
    Prediction,
    keep,
    sample,
    sample_many,
    start_at,
)
from kandinsky22.diffusion.denoiser import Denoiser, Guided
from kandinsky22.engine.placement import Networks
from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPVision
from kandinsky22.models.movq import MoVQ
from kandinsky22.models.prior import Prefix, PriorTransformer
from kandinsky22.models.unet import Conditioned, UNet

K = TypeVar("K", bound=Hashable)
R = TypeVar("R", Prefix, Conditioned)
Constrain = Callable[[Tensor, int], Tensor]
# The cells of a 3x3 neighbourhood that the published inpainting weights were taught to grow the repainted region by:
# all but the two corners of one diagonal (spec 1.6).
GROWTH = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]])


class Embeds(NamedTuple):
    """CLIP image embeddings, [n, D]: of the pictures to paint, and of what to keep away from (None: of nothing, which
    is painting without guidance)."""

    image: Tensor
    negative: Tensor | None


class StartState(NamedTuple):
    """What a run starts from: the state x [n, ...], the timesteps it goes through, and the noise in it."""

    x: Tensor
    timesteps: tuple[int, ...]
    noise: Tensor


class InpaintCondition(NamedTuple):
    """What inpainting keeps: latents z [1 or n, 4, h, w] of the whole picture, and where they are known, [1 or n, 1, h,
    w] (1 is known)."""

    z: Tensor
    where: Tensor

    @property
    def masked(self) -> Tensor:
        """The channels an inpainting U-Net is given beside its state, [.., 5, h, w]."""
        return torch.cat([self.z * self.where, self.where], dim=1)

    def constraint(self, begun: StartState, schedule: NoiseSchedule) -> Constrain:
        """The constraint that what is known stays: at timestep t it is the known latents with the run's first noise, at
        the end the latents themselves."""

        def constrain(x: Tensor, t: int) -> Tensor:
            z = self.z.expand_as(x)
            reference = z if t < 0 else schedule.add_noise(z, begun.noise, t)
            return self.where * reference + (1 - self.where) * x

        return constrain


@dataclass(frozen=True, slots=True)
class Run(Generic[R]):
    """A sampler ready to go, its number of steps, what its rows are guided by, and at every how many calls the
    network's deeper levels are computed."""

    job: Job
    steps: int
    guided: Guided[R]
    reuse: int = 1


class Step(NamedTuple):
    """Step i of n is done, and the state is x."""

    i: int
    n: int
    x: Tensor


def begin(
    schedule: NoiseSchedule,
    steps: int,
    noise: Draw,
    *,
    shape: Sequence[int] | None = None,
    x: Tensor | None = None,
    start: tuple[Tensor, float] | None = None,
) -> StartState:
    """A run's start: noise of a `shape`, or the noise `x` that is given, or a clean state noised to a strength
    (`start`), from where the run then goes on. Raises `ValueError` for steps and strengths that leave nothing to do."""
    timesteps = schedule.timesteps(steps)
    if start is not None:
        clean, strength = start
        timesteps = start_at(timesteps, strength)
        drawn = noise(clean)
        return StartState(schedule.add_noise(clean, drawn, timesteps[0]), timesteps, drawn)
    if x is None:
        assert shape is not None
        x = noise(torch.empty(tuple(shape)))
    return StartState(x, timesteps, x)


def drive(
    name: str,
    runs: Mapping[K, Run[R]],
    network: Callable[[Tensor, Tensor, R, Tensor], Tensor],
    schedule: NoiseSchedule,
    dtype: torch.dtype,
) -> Generator[tuple[K, Step], None, dict[K, Tensor]]:
    """Run many samplers to their ends, with one network call a round; returns the final states. Raises
    `FloatingPointError` where one is not finite."""
    guided, reuse = ({key: getattr(run, name) for key, run in runs.items()} for name in ("guided", "reuse"))
    denoiser: Denoiser[R] = Denoiser(network, schedule, guided, dtype, reuse)
    done = dict.fromkeys(runs, 0)
    finished = {}
    for key, now in sample_many({key: run.job for key, run in runs.items()}, denoiser):
        done[key] += 1
        finished[key] = now.x
        yield key, Step(done[key], runs[key].steps, now.x)
    for x in finished.values():
        if not bool(x.isfinite().all()):
            raise FloatingPointError(
                f"the {name}'s result is not finite in {str(dtype).removeprefix('torch.')}; nothing was saved. "
                "Use --dtype float32, or a lower guidance scale"
            )
    return finished


def only_draw(run: Run[R]) -> None:
    """Run a sampler without its network, for the noise that it draws: a generator then stands where the run leaves
    it."""

    def nothing(x: Tensor, t: int) -> Prediction:
        return Prediction(*(torch.zeros_like(x) for _ in range(3)))

    for _ in sample(run.job.sampler, nothing):
        pass


def rows(values: Tensor | Sequence[Tensor], each: int = 1) -> Tensor:
    """The rows of a tensor [B, ...], or of several joined, each one `each` times in a row."""
    return (values if isinstance(values, Tensor) else torch.cat(list(values))).repeat_interleave(each, dim=0)


def weighted(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The sum of vectors of one shape, each times its weight; the weights are taken as they are."""
    return torch.stack([vector * weight for vector, weight in zip(vectors, weights, strict=True)]).sum(dim=0)


class PromptFeatures(NamedTuple):
    """What CLIP makes of prompts: embeddings [B, D], states [B, L, D] at full length, and which of them are real, bool
    [B, L]."""

    embed: Tensor
    hidden: Tensor
    mask: Tensor


class PriorStage:
    """Words and pictures to CLIP image embeddings, by the networks of a prior's folder."""

    def __init__(self, stored: StoredPrior, networks: Networks) -> None:
        self.stored, self.networks = stored, networks
        self.schedule = NoiseSchedule.from_config(stored.scheduler)
        self.tokenizer = stored.tokenizer
        self._zero: Tensor | None = None
        self._processor: CLIPImageProcessor | None = None

    @property
    def network(self) -> PriorTransformer:
        """The prior itself."""
        return self.networks.get(self.stored.prior)

    @property
    def text_encoder(self) -> CLIPText:
        """CLIP's text tower."""
        return self.networks.get(self.stored.text_encoder)

    @property
    def image_encoder(self) -> CLIPVision:
        """CLIP's vision tower."""
        return self.networks.get(self.stored.image_encoder)

    @property
    def dim(self) -> int:
        """Numbers of an embedding."""
        return self.stored.prior.config.embedding_dim

    @property
    def zero_image_embed(self) -> Tensor:
        """The embedding [1, D] of the all-zero (grey) picture: what pictures keep away from unless told otherwise."""
        if self._zero is None:
            self._zero = self.stored.zero_image_embed().to(self.networks.device)
        return self._zero

    def encode_prompts(self, prompts: Sequence[str]) -> Prefix:
        """The prior's prefix for prompts, a row each."""
        tokens = self.tokenizer(list(prompts)).trimmed()
        features = self.text_encoder(tokens.ids.to(self.networks.device))
        self.networks.release(self.stored.text_encoder)
        return self.network.prefill(features.hidden, features.embed, tokens.mask.to(self.networks.device))

    def map_prompts(self, prompts: Sequence[str]) -> Tensor:
        """The embeddings [n, D] that the linear prior gives prompts."""
        embeds = self.encode_text(prompts).embed
        mapped = self.networks.get(self.stored.linear_prior)(embeds.to(self.networks.dtype)).float()
        self.networks.release(self.stored.linear_prior)
        return mapped

    def encode_text(self, prompts: Sequence[str]) -> PromptFeatures:
        """What the prior is told of prompts, a row each, for those who want to look at it."""
        tokens = self.tokenizer(list(prompts))
        features = self.text_encoder(tokens.ids.to(self.networks.device))
        self.networks.release(self.stored.text_encoder)
        return PromptFeatures(features.embed, features.hidden, tokens.mask.to(self.networks.device))

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """The embeddings of pictures themselves, float32 [n, D]."""
        if self._processor is None:
            self._processor = self.stored.image_processor()
        return self.encode_pixels(self._processor(list(images)))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """The embeddings [n, D] of pixels [n, 3, S, S] as CLIP's processor gives them."""
        embeds = self.image_encoder(pixels.to(self.networks.device, self.networks.dtype)).float()
        self.networks.release(self.stored.image_encoder)
        return embeds

    def prepare_run(
        self,
        read: Prefix,
        texts: Sequence[int],
        away: Sequence[int],
        weight: float | Tensor,
        sampler: str,
        begun: StartState,
        noise: Draw,
        constrain: Constrain = keep,
    ) -> Run[Prefix]:
        """A run from `begun` towards `texts`, a row each, away from `away` as far as `weight` says (1: not). Both are
        indices of what was `read`, so that whatever is said twice is computed once."""
        device = begun.x.device
        weights = torch.as_tensor(weight, dtype=torch.float32, device=device).expand(len(texts))
        led = [row for row, much in zip(away, weights.tolist(), strict=True) if much != 1]
        said = list(dict.fromkeys([*texts, *led]))
        ahead = self.network.precompute_timesteps(read[torch.tensor(said, device=device)], begun.timesteps)

        def at(rows: Sequence[int]) -> Prefix:
            return ahead[torch.tensor([said.index(row) for row in rows], device=device)]

        guided = Guided(at(texts), at(led) if led else None, weights)
        job = Job(SAMPLERS[sampler](self.schedule, begun.x, begun.timesteps, noise), constrain)
        return Run(job, len(begun.timesteps), guided)

    def sample(self, runs: Mapping[K, Run[Prefix]]) -> Generator[tuple[K, Step], None, dict[K, Tensor]]:
        """Run the prior; returns image embeddings [n, D] in CLIP's space."""
        network = self.network
        try:
            finished = yield from drive("prior", runs, network, self.schedule, self.networks.dtype)
            return {key: network.denormalised(x) for key, x in finished.items()}
        finally:
            self.networks.release(self.stored.prior)


class DecoderStage:
    """Image embeddings to latents to pixels, by the networks of one decoder's folder."""

    def __init__(self, stored: StoredDecoder, networks: Networks) -> None:
        self.stored, self.networks = stored, networks
        self.schedule = NoiseSchedule.from_config(stored.scheduler)

    @property
    def unet(self) -> UNet:
        """The U-Net."""
        return self.networks.get(self.stored.unet)

    @property
    def movq(self) -> MoVQ:
        """The autoencoder."""
        return self.networks.get(self.stored.movq)

    def shape(self, n: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Of the latents of n pictures."""
        config = self.stored.movq.config
        return n, config.latent_channels, height // config.factor, width // config.factor

    def encode(self, pixels: Tensor | np.ndarray) -> Tensor:
        """Latents [n, 4, h, w] of pixels [n, 3, H, W] in [-1, 1]."""
        z = self.movq.encode(torch.as_tensor(pixels).to(self.networks.device, self.networks.dtype)).float()
        self.networks.release(self.stored.movq)
        return z

    def inpaint_condition(self, pixels: Tensor, repaint: Tensor) -> InpaintCondition:
        """What inpainting keeps of pixels [n, 3, H, W] in [-1, 1], where `repaint` [n, 1, H, W] is 0; what is repainted
        grows by a cell of the latents (spec 1.6)."""
        z = self.encode(pixels)
        unknown = F.interpolate(repaint.to(z), size=z.shape[-2:], mode="nearest")
        grown = F.conv2d(unknown, GROWTH.to(z)[None, None], padding=1) > 0
        return InpaintCondition(z, 1 - grown.to(z))

    def prepare_run(
        self,
        embeds: Embeds,
        weight: float | Tensor,
        sampler: str,
        begun: StartState,
        noise: Draw,
        *,
        hint: Tensor | None = None,
        known: InpaintCondition | None = None,
        constrain: Constrain = keep,
        interval: tuple[float, float] = (0, 1),
        reuse: int = 1,
    ) -> Run[Conditioned]:
        """A run from `begun` led by `embeds`, a row each. hint: [1 or n, 3, H, W] in [0, 1], on the canvas. known: what
        inpainting keeps; it is held before `constrain` has its say. interval, reuse: as `columns.Sampling` has them."""
        n = len(embeds.image)
        dtype, device = self.networks.dtype, self.networks.device
        weights = torch.as_tensor(weight, dtype=torch.float32, device=device).expand(n)
        away = embeds.negative if bool((weights != 1).any()) else None
        told = embeds.image if away is None else torch.cat([embeds.image, away])

        def spread(maps: Tensor) -> Tensor:
            return maps.expand(n, -1, -1, -1).repeat(len(told) // n, 1, 1, 1).to(device, dtype)

        hint, masked = (None if maps is None else spread(maps) for maps in (hint, known and known.masked))
        both = self.unet.precompute_timesteps(
            self.unet.condition(told.to(device, dtype), hint=hint, masked=masked), begun.timesteps
        )
        cond, uncond = both[:n], both[-n:]
        if away is None:
            weights = torch.ones_like(weights)
        if known is not None:
            constrain = _first_then(known.constraint(begun, self.schedule), constrain)
        job = Job(SAMPLERS[sampler](self.schedule, begun.x, begun.timesteps, noise), constrain)
        guided = Guided.by(cond, uncond, weights, self.schedule.stretch(*interval))
        return Run(job, len(begun.timesteps), guided, reuse)

    def sample(self, runs: Mapping[K, Run[Conditioned]]) -> Generator[tuple[K, Step], None, dict[K, Tensor]]:
        """Run the U-Net; returns finished latents [n, 4, h, w]."""
        try:
            return (yield from drive("decoder", runs, self.unet, self.schedule, self.networks.dtype))
        finally:
            self.networks.release(self.stored.unet)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of latents [n, 4, h, w], float32 [n, 3, H, W], about [-1, 1]; one by one, to save memory."""
        decoded = torch.cat(
            [self.movq.decode(z.to(self.networks.device, self.networks.dtype)).float() for z in latents.split(1)]
        )
        self.networks.release(self.stored.movq)
        if not bool(decoded.isfinite().all()):
            raise FloatingPointError("the decoded picture is not finite; nothing was saved. Use --dtype float32")
        return decoded


def to_pixels(values: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """An array [H, W, 3] in [0, 1] as pixels [1, 3, H, W] in [-1, 1]."""
    # contiguous: another layout would reach other convolution kernels, which round differently
    return (torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None] * 2 - 1).to(device)


def to_image(pixels: Tensor) -> Image.Image:
    """Pixels [3, H, W] in about [-1, 1] as PIL."""
    return Image.fromarray(((pixels.float() * 0.5 + 0.5).clamp(0, 1) * 255).round().byte().movedim(0, -1).cpu().numpy())


def finish(stage: Generator[Any, None, dict[K, Any]]) -> dict[K, Any]:
    """Run a stage to its end, without its steps."""
    while True:
        try:
            next(stage)
        except StopIteration as end:
            results: dict[K, Any] = end.value
            return results


def _first_then(first: Constrain, second: Constrain) -> Constrain:
    return first if second is keep else (lambda x, t: second(first(x, t), t))
