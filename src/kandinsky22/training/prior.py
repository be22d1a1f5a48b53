"""The prior's objective: the picture's embedding, clean, from its noisy self and a caption (Ramesh et al. 2022, equation 2)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kandinsky22.diffusion import SAMPLERS, Job, Noise, NoiseSchedule, sample_many
from kandinsky22.diffusion.denoiser import Denoiser, Guidance
from kandinsky22.models.clip import CLIPText
from kandinsky22.models.prior import Prefix, PriorTransformer
from kandinsky22.models.tokenizer import Tokenizer
from kandinsky22.training.data import Pictures
from kandinsky22.training.decoder import VALIDATION, Rows, looked_at, timestep_weights
from kandinsky22.training.loop import Batch, Objective, Recipe, generator, on
from kandinsky22.training.run import Sheet, beside, grid, nearest, stand_in

SAMPLED, STEPS = 256, 10  # embeddings that a sheet is made of, and steps of each


class Told(NamedTuple):
    """Pictures' embeddings [N, D] and what is said of them: (indices, random numbers) -> a caption for each index.
    `share` is how often a step is taken with these."""

    embeds: Rows
    captions: Callable[[np.ndarray, np.random.Generator], list[str]]
    share: float = 1.0


def statistics(told: Sequence[Told], at_once: int = 8192) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of all embeddings, float32 [1, D] each; read in pieces."""
    count, total, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for pictures in told:
        for rows in torch.arange(len(pictures.embeds)).split(at_once):
            embeds = pictures.embeds[rows].double()
            count, total, squares = count + len(rows), total + embeds.sum(0), squares + embeds.square().sum(0)
    mean = total / count
    spread = (squares / count - mean.square()).clamp(min=0) * count / max(1, count - 1)
    return mean.float(), spread.sqrt().clamp(min=1e-6).float()


def prefill(prior: PriorTransformer, text: CLIPText, tokenizer: Tokenizer, captions: list[str]) -> Prefix:
    """The prior's prefix for captions; CLIP's part holds no gradients."""
    tokens, device = tokenizer(captions).trimmed(), next(prior.parameters()).device
    return prefix(prior, text, tokens.ids.to(device), tokens.mask.to(device))


def prefix(prior: PriorTransformer, text: CLIPText, ids: Tensor, mask: Tensor) -> Prefix:
    """Of tokens, int64 [B, L], and which of them count, bool [B, L]."""
    with torch.no_grad():
        features = text(ids)
    return prior.prefill(features.hidden, features.embed, mask)


def objective(
    prior: PriorTransformer,
    text: CLIPText,
    tokenizer: Tokenizer,
    schedule: NoiseSchedule,
    told: Sequence[Told],
    recipe: Recipe,
) -> Objective:
    """Mean squared error of the clean normalised embedding, over pictures of one of the sets a step."""
    shares = torch.tensor([pictures.share for pictures in told])

    def draw(step: int) -> Batch:
        numbers, rng = generator(recipe.seed, step), np.random.default_rng([recipe.seed, step])
        embeds, captions, _ = told[int(torch.multinomial(shares, 1, generator=numbers))]
        indices = rng.integers(len(embeds), size=recipe.batch)
        said = [words if rng.random() >= recipe.untold else "" for words in captions(indices, rng)]
        tokens = tokenizer(said).trimmed()
        x0 = embeds[torch.from_numpy(indices)].float()
        return {
            "x0": x0,
            "ids": tokens.ids,
            "mask": tokens.mask,
            "t": torch.randint(schedule.num_train_timesteps, (recipe.batch,), generator=numbers),
            "noise": torch.randn(x0.shape, generator=numbers),
        }

    def loss(rows: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x0, t = prior.normalised(rows["x0"]), rows["t"]
        x = schedule.add_noise(x0, rows["noise"], t)
        predicted = prior(x, t, prefix(prior, text, rows["ids"], rows["mask"])).float()
        errors = (predicted - x0).square().mean(dim=1)
        return errors * timestep_weights(schedule, t, recipe.min_snr), {}

    return Objective(draw, loss, timesteps=schedule.num_train_timesteps)


@torch.no_grad()
def embed(
    prior: PriorTransformer,
    text: CLIPText,
    tokenizer: Tokenizer,
    schedule: NoiseSchedule,
    captions: list[str],
    *,
    steps: int = STEPS,
    guidance_scale: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """CLIP image embeddings [N, D] that the prior gives for captions, deterministic by seed."""
    n, device = len(captions), next(prior.parameters()).device
    noise = Noise(range(seed, seed + n), "prior")
    cond = prefill(prior, text, tokenizer, captions)
    uncond = prefill(prior, text, tokenizer, [""])[torch.zeros(n, dtype=torch.long, device=device)]
    guided = {0: Guidance.of(cond, uncond, torch.full((n,), guidance_scale, device=device))}
    x = noise.draw((n, prior.config.embedding_dim), device=device)
    sampler = SAMPLERS["unclip"](schedule, x, schedule.timesteps(steps), noise)
    denoiser: Denoiser[Prefix] = Denoiser(prior, schedule, guided, torch.float32)
    *_, (_, last) = sample_many({0: Job(sampler)}, denoiser)
    return prior.denormalised(last.x)


def sheet(
    prior: PriorTransformer,
    text: CLIPText,
    tokenizer: Tokenizer,
    schedule: NoiseSchedule,
    held_out: Told,
    pictures: Pictures,
    recipe: Recipe,
    read: Callable[[Tensor, list[str]], dict[str, float]] | None = None,
    count: int = SAMPLED,
) -> Sheet:
    """The loss on fixed noise, the cosine of sampled embeddings to the pictures' own, and what `read` says of samples and
    captions.

    The picture has a row for each of eight captions: the true picture, then those most like the sampled embedding.
    """
    device, config = next(prior.parameters()).device, prior.config
    indices = np.arange(min(count, len(held_out.embeds)))
    captions = held_out.captions(indices, np.random.default_rng(0))
    embeds, known = held_out.embeds[torch.from_numpy(indices)].float(), pictures.pictures(indices)

    def draw(weights: dict[str, Tensor]) -> tuple[Image.Image, dict[str, float]]:
        copy = stand_in(lambda: PriorTransformer(config), weights, device)
        validation = objective(copy, text, tokenizer, schedule, [held_out], looked_at(recipe))
        with torch.no_grad():
            losses = [float(validation.loss(on(device, validation.draw(i)))[0].mean()) for i in range(VALIDATION)]
        sampled = embed(copy, text, tokenizer, schedule, captions).cpu()
        cosine = torch.nn.functional.cosine_similarity(sampled, embeds).mean()
        readings = {f"sampled_{name}": rate for name, rate in (read(sampled, captions) if read else {}).items()}
        found = nearest(sampled[:8], embeds, known, columns=min(7, len(known)))
        measured = {"validation": sum(losses) / len(losses), "cosine": float(cosine), **readings}
        return beside(grid([*known[:8]], 1), found), measured

    return draw
