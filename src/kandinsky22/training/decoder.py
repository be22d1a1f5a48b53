"""The decoder's objective: predict the noise in a latent (epsilon, or v), given the CLIP embedding of its picture.

The inpainting and the depth decoder have the same objective with further inputs to the U-Net: see `ExtraInputs`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.diffusion import SAMPLERS, Noise, NoiseSchedule, sample, split_variance
from kandinsky22.diffusion.denoiser import Denoiser, Guidance
from kandinsky22.models.movq import MoVQ
from kandinsky22.models.unet import UNet, UNetCondition
from kandinsky22.training.loop import Batch, Objective, Recipe, move_batch, step_generator
from kandinsky22.training.metrics import Validation
from kandinsky22.training.sample_grid import SampleGrid, caption_cells, image_grid, network_with, on_device

VALIDATION_BATCHES, VALIDATION_ROWS = 16, 16  # batches of the validation loss, and their rows at most
# pictures of a sample grid, its columns, and steps of each picture
NUM_SAMPLES, GRID_COLUMNS, SAMPLING_STEPS = (16, 8, 20)
SAMPLING_BATCH = (
    4  # pictures sampled together: these need less memory than a training step's gradients, which are freed
)


class Rows(Protocol):
    """A precomputed value of each picture, one per row: a tensor, or a file on disk (`shards.Shards`)."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """These rows, [B, ...]."""

    @property
    def shape(self) -> Sequence[int]:
        """Ends with the shape of a row."""


class Bucket(NamedTuple):
    """Pictures of one shape: latents [N, 4, h, w], CLIP embeddings [N, D] of the same pictures in the same order, and
    for the depth decoder their nearness, uint8 [N, H, W], or control pictures, uint8 [N, 3, H, W].

    If one has more rows than another, its last rows are not used. `share` is the relative frequency of steps with this
    bucket.
    """

    latents: Rows
    embeds: Rows
    depths: Rows | None = None
    share: float = 1.0

    @property
    def rows(self) -> int:
        """The number of pictures."""
        return min(len(rows) for rows in (self.latents, self.embeds, self.depths) if rows is not None)


ExtraInputs = Callable[[Bucket, Tensor, Tensor, torch.Generator], dict[str, Tensor]]
"""(bucket, rows [B], their latents [B, 4, h, w], random generator) -> further arguments of `UNet.condition`, by
name."""


def no_extra_inputs(bucket: Bucket, rows: Tensor, x0: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The `ExtraInputs` of the plain decoder: none."""
    return {}


def target(schedule: NoiseSchedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What a network of the schedule's prediction type is trained to predict."""
    match schedule.prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            return schedule.velocity(x0, noise, t)
        case "sample":
            return x0


def validation_recipe(recipe: Recipe) -> Recipe:
    """A run's recipe for the validation loss: small batches, and no weighting of timesteps."""
    return replace(recipe, batch=min(recipe.batch, VALIDATION_ROWS), min_snr=None)


def timestep_weights(schedule: NoiseSchedule, t: Tensor, gamma: float | None) -> Tensor:
    """Weights [B] of squared errors at timesteps [B]: all 1, or min-SNR's (Hang et al. 2023, section 3.4), by which
    the error of x0 has weight min(SNR, `gamma`) whatever the prediction type."""
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
    zero_embed: Tensor,
    recipe: Recipe,
    extra_inputs: ExtraInputs = no_extra_inputs,
) -> Objective:
    """Mean squared error of the prediction; each step takes rows of one bucket.

    `zero_embed` [1, D] is the embedding of rows whose condition is dropped. All buckets' batches have the same number
    of latent cells as one of the first bucket has, so another shape has fewer or more rows. The learned-variance
    channels have no loss: the published schedule samples with a fixed variance and ignores them.
    """
    shares = torch.tensor([bucket.share for bucket in buckets])
    cells = recipe.batch * math.prod(buckets[0].latents.shape[-2:])

    def draw(step: int) -> Batch:
        generator = step_generator(recipe.seed, step)
        bucket = buckets[int(torch.multinomial(shares, 1, generator=generator))]
        batch = max(1, cells // math.prod(bucket.latents.shape[-2:]))
        rows = torch.randint(bucket.rows, (batch,), generator=generator)
        x0 = bucket.latents[rows].float()
        conditional = torch.rand(batch, 1, generator=generator) >= recipe.cond_dropout
        return {
            "x0": x0,
            "embeds": torch.where(conditional, bucket.embeds[rows].float(), zero_embed),
            **extra_inputs(bucket, rows, x0, generator),
            "t": torch.randint(schedule.num_train_timesteps, (batch,), generator=generator),
            "noise": torch.randn(x0.shape, generator=generator),
        }

    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x0, t, noise = rows["x0"], rows["t"], rows["noise"]
        conditioned = unet.condition(rows["embeds"], hint=rows.get("hint"), masked=rows.get("masked"))
        output = unet(schedule.add_noise(x0, noise, t), t, conditioned).float()
        prediction, _ = split_variance(output, x0)
        errors = (prediction - target(schedule, x0, noise, t)).square().mean(dim=(1, 2, 3))
        return errors * timestep_weights(schedule, t, recipe.min_snr), {}

    return Objective(draw, loss, timesteps=schedule.num_train_timesteps)


@torch.no_grad()
def sample_latents(
    unet: UNet,
    schedule: NoiseSchedule,
    embeds: Tensor,
    zero_embed: Tensor,
    size: tuple[int, int],
    extra_inputs: dict[str, Tensor],
    *,
    sampler: str = "ddim",
    steps: int = SAMPLING_STEPS,
    guidance_scale: float = 3.0,
    seed: int = 0,
) -> Tensor:
    """Latents [N, 4, h, w] sampled for embeddings [N, D]; `size` is (h, w). The same seed gives the same latents."""
    n = len(embeds)
    noise = Noise(range(seed, seed + n), "decoder")
    hint, masked = extra_inputs.get("hint"), extra_inputs.get("masked")
    cond, uncond = (unet.condition(e, hint=hint, masked=masked) for e in (embeds, zero_embed.expand(n, -1)))
    guided = {0: Guidance.of(cond, uncond, torch.full((n,), guidance_scale, device=embeds.device))}
    run = SAMPLERS[sampler](schedule, noise.draw((n, 4, *size), device=embeds.device), schedule.timesteps(steps), noise)
    denoiser: Denoiser[UNetCondition] = Denoiser(unet, schedule, guided, torch.float32)
    *_, last = sample(run, denoiser.alone(0))
    return last.x


def sample_grid(
    unet: UNet,
    movq: MoVQ,
    schedule: NoiseSchedule,
    held_out: Bucket,
    zero_embed: Tensor,
    recipe: Recipe,
    extra_inputs: ExtraInputs = no_extra_inputs,
    captions: Sequence[str] = (),
) -> SampleGrid:
    """Validation pictures, below their captions if there are any, above pictures sampled from their embeddings, and
    the loss on fixed noise. A network with further inputs has a row between them: the hint, or the masked picture.
    """
    device, config = next(unet.parameters()).device, unet.config
    columns = min(GRID_COLUMNS, held_out.rows)
    rows = torch.arange(min(NUM_SAMPLES // GRID_COLUMNS, held_out.rows // columns) * columns)
    x0, embeds = held_out.latents[rows].float(), held_out.embeds[rows].float()
    extra = extra_inputs(held_out, rows, x0, step_generator(recipe.seed, -1))

    def draw(weights: dict[str, Tensor]) -> tuple[Image.Image, Validation]:
        averaged = network_with(lambda: UNet(config), weights, device)
        validation = objective(
            averaged, schedule, [held_out], zero_embed, validation_recipe(recipe), extra_inputs=extra_inputs
        )
        with torch.no_grad(), on_device(movq, device):
            batches = (move_batch(validation.draw(i), device) for i in range(VALIDATION_BATCHES))
            losses = [float(validation.loss(batch)[0].mean()) for batch in batches]
            sampled = []
            for part in torch.arange(len(rows)).split(SAMPLING_BATCH):
                inputs = move_batch({name: value[part] for name, value in extra.items()}, device)
                size, seed = (x0.shape[2], x0.shape[3]), int(part[0])
                zero = zero_embed.to(device)
                sampled.append(
                    sample_latents(averaged, schedule, embeds[part].to(device), zero, size, inputs, seed=seed)
                )
            kinds = [_decode(movq, x0), *_extra_pictures(movq, extra), _decode(movq, torch.cat(sampled))]
        if any(captions):
            kinds.insert(0, torch.stack(caption_cells(captions[: len(rows)], kinds[0].shape[-2:])))
        starts = range(0, len(rows), columns)
        cells = [picture for start in starts for pictures in kinds for picture in pictures[start : start + columns]]
        return image_grid(cells, columns), Validation(sum(losses) / len(losses))

    return draw


def _extra_pictures(movq: MoVQ, extra: dict[str, Tensor]) -> list[Tensor]:
    """Further inputs as pictures: a hint, or a picture whose area to repaint is grey."""
    if "masked" in extra:
        known = F.interpolate(extra["masked"][:, -1:], scale_factor=movq.config.factor)
        return [_decode(movq, extra["masked"][:, :-1]) * known]
    return [extra["hint"] * 2 - 1] if "hint" in extra else []


def _decode(movq: MoVQ, latents: Tensor) -> Tensor:
    """Pictures on the CPU, decoded one at a time on MoVQ's device."""
    device = next(movq.parameters()).device
    return torch.cat([movq.decode(latent.to(device)).cpu() for latent in latents.split(1)])
