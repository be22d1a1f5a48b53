"""The prior's objective: the picture's embedding, clean, from its noisy self and a caption (Ramesh et al. 2022, equation 2)."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kandinsky22.compositions import caption
from kandinsky22.denoise import Denoiser, Guided
from kandinsky22.diffusion import SAMPLERS, Job, Noise, NoiseSchedule, sample_many
from kandinsky22.models.clip import CLIPText
from kandinsky22.models.prior import Prefix, PriorTransformer
from kandinsky22.models.tokenizer import Tokenizer
from kandinsky22.training.data import Compositions
from kandinsky22.training.loop import Objective, Recipe, generator
from kandinsky22.training.probes import Probes, labels
from kandinsky22.training.run import Sheet, beside, grid, nearest

UNTOLD = 0.1  # the share of captions left out, for guidance


def prefill(prior: PriorTransformer, text: CLIPText, tokenizer: Tokenizer, captions: list[str]) -> Prefix:
    """The prior's prefix for captions; CLIP's part holds no gradients."""
    tokens = tokenizer(captions).trimmed()
    with torch.no_grad():
        features = text(tokens.ids)
    return prior.prefill(features.hidden, features.embed, tokens.mask)


def objective(
    prior: PriorTransformer, text: CLIPText, tokenizer: Tokenizer, schedule: NoiseSchedule, data: Compositions,
    embeds: Tensor, recipe: Recipe,
) -> Objective:  # fmt: skip
    """Mean squared error of the clean normalised embedding; `embeds` [N, D] are those of the pictures in `data`."""
    normalised = prior.normalised(embeds).detach()

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        draw, rng = generator(recipe.seed, step), np.random.default_rng([recipe.seed, step])
        indices = rng.integers(len(data), size=recipe.batch)
        captions = [caption(data.scene(int(i)), rng) if rng.random() >= UNTOLD else "" for i in indices]
        x0 = normalised[indices]
        t = torch.randint(schedule.num_train_timesteps, (recipe.batch,), generator=draw)
        x = schedule.add_noise(x0, torch.randn(x0.shape, generator=draw), t)
        predicted = prior(x, t, prefill(prior, text, tokenizer, captions)).float()
        return (predicted - x0).square().mean(), {}

    return loss


@torch.no_grad()
def embed(
    prior: PriorTransformer, text: CLIPText, tokenizer: Tokenizer, schedule: NoiseSchedule, captions: list[str],
    *, steps: int = 10, guidance_scale: float = 1.0, seed: int = 0,
) -> Tensor:  # fmt: skip
    """CLIP image embeddings [N, D] that the prior gives for captions, deterministic by seed."""
    n = len(captions)
    noise = Noise(range(seed, seed + n), "prior")
    cond = prefill(prior, text, tokenizer, captions)
    uncond = prefill(prior, text, tokenizer, [""])[torch.zeros(n, dtype=torch.long)]
    guided = {0: Guided.by(cond, uncond, torch.full((n,), guidance_scale))}
    x = noise.draw((n, prior.config.embedding_dim))
    sampler = SAMPLERS["unclip"](schedule, x, schedule.timesteps(steps), noise)
    denoiser: Denoiser[Prefix] = Denoiser(prior, schedule, guided, torch.float32)
    *_, (_, last) = sample_many({0: Job(sampler)}, denoiser)
    return prior.denormalised(last.x)


def sheet(
    prior: PriorTransformer, text: CLIPText, tokenizer: Tokenizer, schedule: NoiseSchedule, held_out: Compositions,
    embeds: Tensor, probes: Probes, count: int = 256,
) -> Sheet:  # fmt: skip
    """What CLIP's probes read from sampled embeddings, and their cosine to the pictures' own.

    The picture has a row for each of eight captions: the true picture, then those most like the sampled embedding.
    """
    copy = PriorTransformer(prior.config)
    scenes = [held_out.scene(i) for i in range(min(count, len(held_out)))]
    pictures = held_out.pictures(range(len(scenes)))
    captions, targets = [caption(scene) for scene in scenes], labels(scenes)

    def draw(weights: dict[str, Tensor]) -> tuple[Image.Image, dict[str, float]]:
        copy.load_state_dict(weights)
        sampled = embed(copy, text, tokenizer, schedule, captions)
        cosine = torch.nn.functional.cosine_similarity(sampled, embeds[: len(scenes)]).mean()
        rates = {f"sampled_{name}": rate for name, rate in probes.accuracy(sampled, targets).items()}
        found = nearest(sampled[:8], embeds[: len(scenes)], pictures, columns=min(7, len(scenes)))
        return beside(grid([*pictures[:8]], 1), found), {"cosine": float(cosine), **rates}

    return draw
