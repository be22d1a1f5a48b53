"""The decoder's objective: what was mixed into a latent (eps, or v), given the embedding of its picture.

The inpainting and the depth decoder learn the same, with more to look at: what `Beside` gives them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.denoise import Denoiser, Guided
from kandinsky22.diffusion import SAMPLERS, Job, Noise, NoiseSchedule, sample_many, split_variance
from kandinsky22.models.movq import MoVQ
from kandinsky22.models.unet import Conditioned, UNet
from kandinsky22.training.loop import Objective, Recipe, generator
from kandinsky22.training.run import Sheet, grid

UNTOLD = 0.1  # the share of embeddings replaced by the zero image's, which the pipelines lead away from


class Bucket(NamedTuple):
    """Pictures of one shape: their latents [N, 4, h, w] and, for hints, how near their pixels are, uint8 [N, H, W].

    Row i belongs to embedding i, in every bucket. `share` is how often a step is taken with this shape.
    """

    latents: Tensor
    depths: np.ndarray | None = None
    share: float = 1.0


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


def objective(
    unet: UNet, schedule: NoiseSchedule, buckets: Sequence[Bucket], embeds: Tensor, zero: Tensor, recipe: Recipe,
    beside: Beside = nothing,
) -> Objective:  # fmt: skip
    """Mean squared error of the prediction, over pictures of one shape a step; embeddings are [N, D], `zero` is [1, D].

    A batch of another shape than the first bucket's has as many cells, and so fewer or more pictures. The learned-variance
    channels get no loss: the published schedule samples with a fixed variance and never looks.
    """
    shares = torch.tensor([bucket.share for bucket in buckets])
    cells = recipe.batch * buckets[0].latents[0, 0].numel()

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        draw = generator(recipe.seed, step)
        bucket = buckets[int(torch.multinomial(shares, 1, generator=draw))]
        batch = max(1, cells // bucket.latents[0, 0].numel())
        rows = torch.randint(len(bucket.latents), (batch,), generator=draw)
        x0 = bucket.latents[rows].float()
        told = torch.rand(batch, 1, generator=draw) >= UNTOLD
        seen = beside(bucket, rows, x0, draw)
        conditioned = unet.condition(torch.where(told, embeds[rows].float(), zero), **seen)
        t = torch.randint(schedule.num_train_timesteps, (batch,), generator=draw)
        noise = torch.randn(x0.shape, generator=draw)
        output = unet(schedule.add_noise(x0, noise, t), t, conditioned).float()
        prediction, _ = split_variance(output, x0)
        return F.mse_loss(prediction, target(schedule, x0, noise, t)), {}

    return loss


@torch.no_grad()
def paint(
    unet: UNet, schedule: NoiseSchedule, embeds: Tensor, zero: Tensor, size: tuple[int, int], beside: dict[str, Tensor],
    *, sampler: str = "ddim", steps: int = 20, guidance_scale: float = 3.0, seed: int = 0,
) -> Tensor:  # fmt: skip
    """Latents [N, 4, h, w] for embeddings [N, D], deterministic by seed."""
    n = len(embeds)
    noise = Noise(range(seed, seed + n), "decoder")
    cond, uncond = unet.condition(embeds, **beside), unet.condition(zero.expand(n, -1), **beside)
    guided = {0: Guided.by(cond, uncond, torch.full((n,), guidance_scale))}
    run = SAMPLERS[sampler](schedule, noise.draw((n, 4, *size)), schedule.timesteps(steps), noise)
    denoiser: Denoiser[Conditioned] = Denoiser(unet, schedule, guided, torch.float32)
    *_, (_, last) = sample_many({0: Job(run)}, denoiser)
    return last.x


def sheet(
    unet: UNet, movq: MoVQ, schedule: NoiseSchedule, held_out: Bucket, embeds: Tensor, zero: Tensor, recipe: Recipe,
    beside: Beside = nothing,
) -> Sheet:  # fmt: skip
    """Held-out pictures above what is painted from their embeddings, and the loss on fixed noise.

    Between them, where the network sees more: the hint, or what was left of the picture.
    """
    copy = UNet(unet.config)
    validation = objective(copy, schedule, [held_out], embeds, zero, recipe, beside)
    x0 = held_out.latents[:16].float()
    seen = beside(held_out, torch.arange(len(x0)), x0, generator(recipe.seed, -1))

    def draw(weights: dict[str, Tensor]) -> tuple[Image.Image, dict[str, float]]:
        copy.load_state_dict(weights)
        with torch.no_grad():
            losses = [float(validation(step)[0]) for step in range(4)]
            painted = paint(copy, schedule, embeds[: len(x0)], zero, (x0.shape[2], x0.shape[3]), seen)
            shown = [movq.decode(x0), *_shown(movq, seen), movq.decode(painted)]
        rows = [picture for start in (0, 8) for pictures in shown for picture in pictures[start : start + 8]]
        return grid(rows, 8), {"validation": sum(losses) / len(losses)}

    return draw


def _shown(movq: MoVQ, seen: dict[str, Tensor]) -> list[Tensor]:
    """What a network sees beside its state, as pictures: a hint, or a picture with grey where it is to be repainted."""
    if "masked" in seen:
        known = F.interpolate(seen["masked"][:, -1:], scale_factor=movq.config.factor)
        return [movq.decode(seen["masked"][:, :-1]) * known]
    return [seen["hint"] * 2 - 1] if "hint" in seen else []
