"""The decoder's objective: what was mixed into a latent (eps, or v), given the embedding of its picture."""

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
    unet: UNet, schedule: NoiseSchedule, latents: Tensor, embeds: Tensor, zero: Tensor, recipe: Recipe
) -> Objective:
    """Mean squared error of the prediction over latents [N, 4, h, w] with embeddings [N, D]; `zero` is [1, D].

    The learned-variance channels get no loss: the published schedule samples with a fixed variance and never looks.
    """

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        draw = generator(recipe.seed, step)
        indices = torch.randint(len(latents), (recipe.batch,), generator=draw)
        x0 = latents[indices].float()
        told = torch.rand(recipe.batch, 1, generator=draw) >= UNTOLD
        conditioned = unet.condition(torch.where(told, embeds[indices].float(), zero))
        t = torch.randint(schedule.num_train_timesteps, (recipe.batch,), generator=draw)
        noise = torch.randn(x0.shape, generator=draw)
        output = unet(schedule.add_noise(x0, noise, t), t, conditioned).float()
        prediction, _ = split_variance(output, x0)
        return F.mse_loss(prediction, target(schedule, x0, noise, t)), {}

    return loss


@torch.no_grad()
def paint(
    unet: UNet, schedule: NoiseSchedule, embeds: Tensor, zero: Tensor, size: tuple[int, int],
    *, sampler: str = "ddim", steps: int = 20, guidance_scale: float = 3.0, seed: int = 0,
) -> Tensor:  # fmt: skip
    """Latents [N, 4, h, w] for embeddings [N, D], deterministic by seed."""
    n = len(embeds)
    noise = Noise(range(seed, seed + n), "decoder")
    guided = {
        0: Guided.by(unet.condition(embeds), unet.condition(zero.expand(n, -1)), torch.full((n,), guidance_scale))
    }
    run = SAMPLERS[sampler](schedule, noise.draw((n, 4, *size)), schedule.timesteps(steps), noise)
    denoiser: Denoiser[Conditioned] = Denoiser(unet, schedule, guided, torch.float32)
    *_, (_, last) = sample_many({0: Job(run)}, denoiser)
    return last.x


def sheet(
    unet: UNet, movq: MoVQ, schedule: NoiseSchedule, latents: Tensor, embeds: Tensor, zero: Tensor, recipe: Recipe
) -> Sheet:
    """Held-out pictures above what is painted from their embeddings, and the loss on fixed noise."""
    copy = UNet(unet.config)
    validation = objective(copy, schedule, latents, embeds, zero, recipe)

    def draw(weights: dict[str, Tensor]) -> tuple[Image.Image, dict[str, float]]:
        copy.load_state_dict(weights)
        with torch.no_grad():
            losses = [float(validation(step)[0]) for step in range(4)]
            painted = paint(copy, schedule, embeds[:16], zero, (latents.shape[2], latents.shape[3]))
            truth, pictures = movq.decode(latents[:16].float()), movq.decode(painted)
        rows = [*truth[:8], *pictures[:8], *truth[8:], *pictures[8:]]
        return grid(rows, 8), {"validation": sum(losses) / len(losses)}

    return draw
