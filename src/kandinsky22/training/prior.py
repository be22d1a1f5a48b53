"""The prior's objective: predict the clean CLIP image embedding from a noisy one and a caption (Ramesh et al. 2022,
equation 2)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.diffusion import SAMPLERS, Noise, NoiseSchedule, sample
from kandinsky22.diffusion.denoiser import Denoiser, Guidance
from kandinsky22.models.clip import CLIPText
from kandinsky22.models.prior import Prefix, PriorTransformer
from kandinsky22.models.tokenizer import Tokenizer
from kandinsky22.training.data import Pictures
from kandinsky22.training.decoder import VALIDATION_BATCHES, Rows, timestep_weights, validation_recipe
from kandinsky22.training.loop import Batch, Objective, Recipe, move_batch, step_generator
from kandinsky22.training.metrics import Validation
from kandinsky22.training.sample_grid import SampleGrid, captioned_column, nearest_images, network_with, side_by_side

NUM_SAMPLES, SAMPLING_STEPS = 256, 10  # embeddings sampled for a sample grid, and steps of each


class CaptionedEmbeds(NamedTuple):
    """CLIP image embeddings [N, D] and their captions: (indices, random generator) -> a caption for each index.
    `share` is the relative frequency of steps with this set."""

    embeds: Rows
    captions: Callable[[np.ndarray, np.random.Generator], list[str]]
    share: float = 1.0


def statistics(sets: Sequence[CaptionedEmbeds], batch: int = 8192) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of all embeddings, float32 [1, D] each; `batch` rows are read at once."""
    count, total, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for pictures in sets:
        for rows in torch.arange(len(pictures.embeds)).split(batch):
            embeds = pictures.embeds[rows].double()
            count, total, squares = count + len(rows), total + embeds.sum(0), squares + embeds.square().sum(0)
    mean = total / count
    variance = (squares / count - mean.square()).clamp(min=0) * count / max(1, count - 1)
    return mean.float(), variance.sqrt().clamp(min=1e-6).float()


def prefill_captions(prior: PriorTransformer, text: CLIPText, tokenizer: Tokenizer, captions: list[str]) -> Prefix:
    """The prior's prefix for captions. No gradients flow into CLIP."""
    tokens, device = tokenizer(captions).trimmed(), next(prior.parameters()).device
    return prefill(prior, text, tokens.ids.to(device), tokens.mask.to(device))


def prefill(prior: PriorTransformer, text: CLIPText, ids: Tensor, mask: Tensor) -> Prefix:
    """The prior's prefix for tokens, int64 [B, L], and their mask, bool [B, L]. No gradients flow into CLIP."""
    with torch.no_grad():
        features = text(ids)
    return prior.prefill(features.hidden, features.embed, mask)


def objective(
    prior: PriorTransformer,
    text: CLIPText,
    tokenizer: Tokenizer,
    schedule: NoiseSchedule,
    sets: Sequence[CaptionedEmbeds],
    recipe: Recipe,
) -> Objective:
    """Mean squared error of the clean normalised embedding; each step takes rows of one set. A dropped condition is
    the empty caption."""
    shares = torch.tensor([pictures.share for pictures in sets])

    def draw(step: int) -> Batch:
        generator, rng = step_generator(recipe.seed, step), np.random.default_rng([recipe.seed, step])
        embeds, captions, _ = sets[int(torch.multinomial(shares, 1, generator=generator))]
        indices = rng.integers(len(embeds), size=recipe.batch)
        prompts = [caption if rng.random() >= recipe.cond_dropout else "" for caption in captions(indices, rng)]
        tokens = tokenizer(prompts).trimmed()
        x0 = embeds[torch.from_numpy(indices)].float()
        return {
            "x0": x0,
            "ids": tokens.ids,
            "mask": tokens.mask,
            "t": torch.randint(schedule.num_train_timesteps, (recipe.batch,), generator=generator),
            "noise": torch.randn(x0.shape, generator=generator),
        }

    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x0, t = prior.normalised(rows["x0"]), rows["t"]
        x = schedule.add_noise(x0, rows["noise"], t)
        predicted = prior(x, t, prefill(prior, text, rows["ids"], rows["mask"])).float()
        errors = (predicted - x0).square().mean(dim=1)
        return errors * timestep_weights(schedule, t, recipe.min_snr), {}

    return Objective(draw, loss, timesteps=schedule.num_train_timesteps)


@torch.no_grad()
def sample_embeds(
    prior: PriorTransformer,
    text: CLIPText,
    tokenizer: Tokenizer,
    schedule: NoiseSchedule,
    captions: list[str],
    *,
    steps: int = SAMPLING_STEPS,
    guidance_scale: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """CLIP image embeddings [N, D] sampled for captions. The same seed gives the same embeddings."""
    n, device = len(captions), next(prior.parameters()).device
    noise = Noise(range(seed, seed + n), "prior")
    cond = prefill_captions(prior, text, tokenizer, captions)
    uncond = prefill_captions(prior, text, tokenizer, [""])[torch.zeros(n, dtype=torch.long, device=device)]
    guided = {0: Guidance.of(cond, uncond, torch.full((n,), guidance_scale, device=device))}
    x = noise.draw((n, prior.config.embedding_dim), device=device)
    sampler = SAMPLERS["unclip"](schedule, x, schedule.timesteps(steps), noise)
    denoiser: Denoiser[Prefix] = Denoiser(prior, schedule, guided, torch.float32)
    *_, last = sample(sampler, denoiser.alone(0))
    return prior.denormalised(last.x)


def sample_grid(
    prior: PriorTransformer,
    text: CLIPText,
    tokenizer: Tokenizer,
    schedule: NoiseSchedule,
    held_out: CaptionedEmbeds,
    pictures: Pictures,
    recipe: Recipe,
    accuracy: Callable[[Tensor, list[str]], dict[str, float]] | None = None,
    count: int = NUM_SAMPLES,
) -> SampleGrid:
    """Metrics: the loss on fixed noise, the cosine similarity of sampled embeddings to the pictures' own, and
    `accuracy` of sampled embeddings and their captions, by name.

    The picture has a row for each of eight captions: the caption, the true picture, then those most similar to the
    sampled embedding.
    """
    device, config = next(prior.parameters()).device, prior.config
    indices = np.arange(min(count, len(held_out.embeds)))
    captions = held_out.captions(indices, np.random.default_rng(0))
    embeds, images = held_out.embeds[torch.from_numpy(indices)].float(), pictures.pictures(indices)

    def draw(weights: dict[str, Tensor]) -> tuple[Image.Image, Validation]:
        averaged = network_with(lambda: PriorTransformer(config), weights, device)
        validation = objective(averaged, text, tokenizer, schedule, [held_out], validation_recipe(recipe))
        with torch.no_grad():
            batches = (move_batch(validation.draw(i), device) for i in range(VALIDATION_BATCHES))
            losses = [float(validation.loss(batch)[0].mean()) for batch in batches]
        sampled = sample_embeds(averaged, text, tokenizer, schedule, captions).cpu()
        cosine = F.cosine_similarity(sampled, embeds).mean()
        accuracies = accuracy(sampled, captions) if accuracy else {}
        further = {"cosine": float(cosine), **{f"sampled_{name}": rate for name, rate in accuracies.items()}}
        nearest = nearest_images(sampled[:8], embeds, images, columns=min(7, len(images)))
        return side_by_side(captioned_column(captions[:8], images[:8]), nearest), Validation(
            sum(losses) / len(losses), further
        )

    return draw
