"""Training has the same losses as diffusers' example scripts for Kandinsky 2.2, step after step, from the same weights
and rows.

The scripts' recipe is written out here as a plain loop over diffusers' networks.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from diffusers.training_utils import compute_snr
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.checkpoints.network import Stored
from kandinsky22.checkpoints.tokenizer import load_tokenizer
from kandinsky22.compositions import EXAMPLES
from kandinsky22.diffusion import NoiseSchedule
from kandinsky22.models.clip import CLIPText, CLIPTextConfig
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.unet import UNet, UNetConfig
from kandinsky22.training import decoder, prior
from kandinsky22.training.loop import Batch, Objective, Recipe, Training
from tests.diffusion.toy import DECODER_CONFIG
from tests.models_on_disk import DIM, TEXT_LENGTH

STEPS, GAMMA, CPU = 50, 5.0, torch.device("cpu")
RECIPE = Recipe(
    batch=6,
    learning_rate=1e-4,
    warmup=0,
    decay=False,
    betas=(0.9, 0.999),
    weight_decay=0.1,
    max_grad_norm=1.0,
    bfloat16=False,
    cond_dropout=0.0,
    min_snr=None,
    seed=3,
)

Predict = Callable[[Batch], tuple[Tensor, Tensor]]
"""The rows of a step -> the prediction of diffusers' network, and its target."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def diffusers_loss(prediction: Tensor, target: Tensor, scheduler: Any, t: Tensor, gamma: float | None) -> Tensor:
    """The scripts' loss; `gamma` is their --snr_gamma (Hang et al. 2023, section 3.4)."""
    if gamma is None:
        return F.mse_loss(prediction.float(), target.float(), reduction="mean")
    snr = compute_snr(scheduler, t)
    weights = (
        snr.clamp(max=gamma)
        / {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}[scheduler.config.prediction_type]
    )
    return (F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(dim=1) * weights).mean()


def diffusers_losses(
    network: Any, predict: Predict, scheduler: Any, rows: Callable[[int], Batch], gamma: float | None
) -> list[float]:
    """The loss before each step of the scripts' loop."""
    network.train()
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=RECIPE.learning_rate, betas=RECIPE.betas, weight_decay=RECIPE.weight_decay, eps=1e-8
    )
    losses = []
    for step in range(STEPS):
        batch = rows(step)
        loss = diffusers_loss(*predict(batch), scheduler, batch["t"], gamma)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), RECIPE.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def our_losses(network: torch.nn.Module, objective: Objective, recipe: Recipe) -> list[float]:
    return [metrics.loss for metrics in Training(network, objective, recipe, STEPS)]


def assert_same_losses(ours: list[float], theirs: list[float]) -> None:
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert sum(ours[-10:]) < 0.97 * sum(ours[:10])  # the networks learn, so later losses compare trained weights


@pytest.mark.parametrize("gamma", [None, GAMMA])
def test_the_decoder_has_the_losses_of_diffusers_script(tiny_model: Path, gamma: float | None) -> None:
    folder = tiny_model / "decoder"
    ours = Stored(folder / "unet", UNet, UNetConfig).load(torch.float32, CPU).requires_grad_(True)
    schedule = NoiseSchedule.from_config(DECODER_CONFIG)
    recipe = replace(RECIPE, min_snr=gamma)
    bucket = decoder.Bucket(draw(40, 4, 8, 8), draw(40, DIM, seed=1))
    objective = decoder.objective(ours, schedule, [bucket], torch.zeros(1, DIM), recipe)

    theirs = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder / "scheduler")

    def predict(rows: Batch) -> tuple[Tensor, Tensor]:
        noisy = scheduler.add_noise(rows["x0"], rows["noise"], rows["t"])
        added = {"image_embeds": rows["embeds"]}
        return theirs(noisy, rows["t"], None, added_cond_kwargs=added).sample[:, :4], rows["noise"]

    reference = diffusers_losses(theirs, predict, scheduler, objective.draw, gamma)
    assert_same_losses(our_losses(ours, objective, recipe), reference)


@pytest.mark.parametrize("gamma", [None, GAMMA])
def test_the_prior_has_the_losses_of_diffusers_script(tiny_model: Path, gamma: float | None) -> None:
    """Diffusers pads every caption to the full length and masks the padding."""
    folder = tiny_model / "prior"
    ours = Stored(folder / "prior", PriorTransformer, PriorConfig).load(torch.float32, CPU).requires_grad_(True)
    for fixed in (ours.clip_mean, ours.clip_std):
        fixed.requires_grad_(False)
    text = Stored(folder / "text_encoder", CLIPText, CLIPTextConfig).load(torch.float32, CPU)
    tokenizer = load_tokenizer(folder / "tokenizer")
    schedule = NoiseSchedule.from_config(
        {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
    )
    recipe = replace(RECIPE, min_snr=gamma)
    pictures = prior.CaptionedEmbeds(draw(40, DIM), lambda indices, rng: [EXAMPLES[i % len(EXAMPLES)] for i in indices])
    objective = prior.objective(ours, text, tokenizer, schedule, [pictures], recipe)

    theirs = diffusers.PriorTransformer.from_pretrained(folder / "prior")
    encoder = transformers.CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder").requires_grad_(False)
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")
    mean, std = theirs.clip_mean.detach().clone(), theirs.clip_std.detach().clone()

    def predict(rows: Batch) -> tuple[Tensor, Tensor]:
        padding = TEXT_LENGTH - rows["ids"].shape[1]
        ids, mask = (
            F.pad(rows["ids"], (0, padding), value=tokenizer.end),
            F.pad(rows["mask"], (0, padding), value=False),
        )
        with torch.no_grad():
            encoded = encoder(ids)
            x0 = (rows["x0"] - mean) / std
            noisy = scheduler.add_noise(x0, rows["noise"], rows["t"])
        output = theirs(
            noisy,
            timestep=rows["t"],
            proj_embedding=encoded.text_embeds,
            encoder_hidden_states=encoded.last_hidden_state,
            attention_mask=mask,
        )
        return output.predicted_image_embedding, x0

    reference = diffusers_losses(theirs, predict, scheduler, objective.draw, gamma)
    assert_same_losses(our_losses(ours, objective, recipe), reference)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_timestep_weights_equal_those_of_diffusers_script(prediction: str) -> None:
    config = {**DECODER_CONFIG, "prediction_type": prediction}
    schedule, scheduler = NoiseSchedule.from_config(config), diffusers.DDPMScheduler.from_config(config)
    t = torch.arange(1000)
    ones, zeros = torch.ones(1, 4), torch.zeros(1, 4)  # a squared error of 1
    for gamma in (None, 1.0, GAMMA):
        ours = decoder.timestep_weights(schedule, t, gamma)
        theirs = [diffusers_loss(ones, zeros, scheduler, one[None], gamma) for one in t]
        assert torch.allclose(ours, torch.stack(theirs), rtol=1e-5)
