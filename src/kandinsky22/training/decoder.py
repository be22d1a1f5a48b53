"""The decoder's objective: what was mixed into a latent (eps, or v), given the embedding of its picture.

The inpainting and the depth decoder learn the same, with more to look at: what `Beside` gives them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.diffusion import SAMPLERS, Job, Noise, NoiseSchedule, sample_many, split_variance
from kandinsky22.diffusion.denoiser import Denoiser, Guidance
from kandinsky22.models.movq import MoVQ
from kandinsky22.models.unet import Conditioned, UNet
from kandinsky22.training.loop import Batch, Objective, Recipe, generator, on
from kandinsky22.training.run import Sheet, grid, stand_in, visiting

VALIDATION, AT_ONCE = 16, 16  # batches whose loss is looked at, and their rows at most
SHOWN, COLUMNS, STEPS = 16, 8, 20  # pictures that a sheet paints, side by side, and steps of each
PAINTED = 4  # pictures of a sheet at once: so few need less than the gradients, which are not there then
BESIDE = ("masked", "hint")  # what `Beside` may give


class Rows(Protocol):
    """What was computed once of pictures, a row of each: a tensor, or one that stays on disk (`shards.Shards`)."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """These rows, [B, ...]."""

    @property
    def shape(self) -> Sequence[int]:
        """Ends with that of a row."""


class Bucket(NamedTuple):
    """Pictures of one shape: their latents [N, 4, h, w], the embeddings [N, D] of the same pictures in the same order, and,
    for hints, how near their pixels are, uint8 [N, H, W]. Where one has more rows than another, its last are not used.
    `share` is how often a step is taken with this shape.
    """

    latents: Rows
    embeds: Rows
    depths: Rows | None = None
    share: float = 1.0

    @property
    def rows(self) -> int:
        """How many pictures."""
        return min(len(rows) for rows in (self.latents, self.embeds, self.depths) if rows is not None)


Beside = Callable[[Bucket, Tensor, Tensor, torch.Generator], dict[str, Tensor]]
"""(bucket, rows [B], their latents [B, 4, h, w], random numbers) -> what else `UNet.condition` is given."""


def nothing(bucket: Bucket, rows: Tensor, x0: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
    """What the plain decoder sees beside its state."""
    return {}


def target(schedule: NoiseSchedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What a network of the schedule's prediction type is asked for."""
    match schedule.prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            return schedule.velocity(x0, noise, t)
        case "sample":
            return x0


def looked_at(recipe: Recipe) -> Recipe:
    """A run's recipe for a look at held-out pictures: few rows at a time, in one process, and all timesteps alike."""
    return replace(recipe, batch=min(recipe.batch, AT_ONCE), min_snr=None)


def timestep_weights(schedule: NoiseSchedule, t: Tensor, gamma: float | None) -> Tensor:
    """What squared errors at timesteps [B] count, [B]: all alike, or min-SNR (Hang et al. 2023, section 3.4): the error of x0
    counts SNR, at most `gamma` of it, whatever the network is asked for."""
    if gamma is None:
        return torch.ones_like(t, dtype=torch.float32)
    snr = schedule.snr(t)
    match schedule.prediction_type:
        case "epsilon":
            return snr.clamp(max=gamma) / snr
        case "v_prediction":
            return snr.clamp(max=gamma) / (snr + 1)
        case "sample":
            return snr.clamp(max=gamma)


def objective(
    unet: UNet,
    schedule: NoiseSchedule,
    buckets: Sequence[Bucket],
    zero: Tensor,
    recipe: Recipe,
    beside: Beside = nothing,
) -> Objective:
    """Mean squared error of the prediction, over pictures of one shape a step; `zero` [1, D] is what the untold learn from.

    A batch of another shape than the first bucket's has as many cells, and so fewer or more pictures. The learned-variance
    channels get no loss: the published schedule samples with a fixed variance and never looks.
    """
    shares = torch.tensor([bucket.share for bucket in buckets])
    cells = recipe.batch * math.prod(buckets[0].latents.shape[-2:])

    def draw(step: int) -> Batch:
        numbers = generator(recipe.seed, step)
        bucket = buckets[int(torch.multinomial(shares, 1, generator=numbers))]
        batch = max(1, cells // math.prod(bucket.latents.shape[-2:]))
        rows = torch.randint(bucket.rows, (batch,), generator=numbers)
        x0 = bucket.latents[rows].float()
        told = torch.rand(batch, 1, generator=numbers) >= recipe.untold
        return {
            "x0": x0,
            "embeds": torch.where(told, bucket.embeds[rows].float(), zero),
            **beside(bucket, rows, x0, numbers),
            "t": torch.randint(schedule.num_train_timesteps, (batch,), generator=numbers),
            "noise": torch.randn(x0.shape, generator=numbers),
        }

    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x0, t, noise = rows["x0"], rows["t"], rows["noise"]
        conditioned = unet.condition(rows["embeds"], **{name: rows[name] for name in BESIDE if name in rows})
        output = unet(schedule.add_noise(x0, noise, t), t, conditioned).float()
        prediction, _ = split_variance(output, x0)
        errors = (prediction - target(schedule, x0, noise, t)).square().mean(dim=(1, 2, 3))
        return errors * timestep_weights(schedule, t, recipe.min_snr), {}

    return Objective(draw, loss, timesteps=schedule.num_train_timesteps)


@torch.no_grad()
def paint(
    unet: UNet,
    schedule: NoiseSchedule,
    embeds: Tensor,
    zero: Tensor,
    size: tuple[int, int],
    beside: dict[str, Tensor],
    *,
    sampler: str = "ddim",
    steps: int = STEPS,
    guidance_scale: float = 3.0,
    seed: int = 0,
) -> Tensor:
    """Latents [N, 4, h, w] for embeddings [N, D], deterministic by seed."""
    n = len(embeds)
    noise = Noise(range(seed, seed + n), "decoder")
    cond, uncond = unet.condition(embeds, **beside), unet.condition(zero.expand(n, -1), **beside)
    guided = {0: Guidance.of(cond, uncond, torch.full((n,), guidance_scale, device=embeds.device))}
    run = SAMPLERS[sampler](schedule, noise.draw((n, 4, *size), device=embeds.device), schedule.timesteps(steps), noise)
    denoiser: Denoiser[Conditioned] = Denoiser(unet, schedule, guided, torch.float32)
    *_, (_, last) = sample_many({0: Job(run)}, denoiser)
    return last.x


def sheet(
    unet: UNet,
    movq: MoVQ,
    schedule: NoiseSchedule,
    held_out: Bucket,
    zero: Tensor,
    recipe: Recipe,
    beside: Beside = nothing,
) -> Sheet:
    """Held-out pictures above what is painted from their embeddings, and the loss on fixed noise.

    Between them, where the network sees more: the hint, or what was left of the picture.
    """
    device, config = next(unet.parameters()).device, unet.config
    columns = min(COLUMNS, held_out.rows)
    first = torch.arange(min(SHOWN // COLUMNS, held_out.rows // columns) * columns)
    x0, embeds = held_out.latents[first].float(), held_out.embeds[first].float()
    seen = beside(held_out, first, x0, generator(recipe.seed, -1))

    def draw(weights: dict[str, Tensor]) -> tuple[Image.Image, dict[str, float]]:
        copy = stand_in(lambda: UNet(config), weights, device)
        validation = objective(copy, schedule, [held_out], zero, looked_at(recipe), beside)
        with torch.no_grad(), visiting(movq, device):
            losses = [float(validation.loss(on(device, validation.draw(i)))[0].mean()) for i in range(VALIDATION)]
            parts = []
            for some in torch.arange(len(first)).split(PAINTED):
                told = on(device, {name: value[some] for name, value in seen.items()})
                size, seed = (x0.shape[2], x0.shape[3]), int(some[0])
                parts.append(paint(copy, schedule, embeds[some].to(device), zero.to(device), size, told, seed=seed))
            painted = torch.cat(parts)
            shown = [_decoded(movq, x0), *_shown(movq, seen), _decoded(movq, painted)]
        starts = range(0, len(first), columns)
        rows = [picture for start in starts for pictures in shown for picture in pictures[start : start + columns]]
        return grid(rows, columns), {"validation": sum(losses) / len(losses)}

    return draw


def _shown(movq: MoVQ, seen: dict[str, Tensor]) -> list[Tensor]:
    """What a network sees beside its state, as pictures: a hint, or a picture with grey where it is to be repainted."""
    if "masked" in seen:
        known = F.interpolate(seen["masked"][:, -1:], scale_factor=movq.config.factor)
        return [_decoded(movq, seen["masked"][:, :-1]) * known]
    return [seen["hint"] * 2 - 1] if "hint" in seen else []


def _decoded(movq: MoVQ, latents: Tensor) -> Tensor:
    """Pictures on the CPU, decoded where MoVQ is, one at a time."""
    device = next(movq.parameters()).device
    return torch.cat([movq.decode(one.to(device)).cpu() for one in latents.split(1)])
