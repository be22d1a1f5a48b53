"""What each kind of network's plan is counted from: the network, its loss on rows of the right shapes, and its sample
grid."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from kandinsky22.diffusion import NoiseSchedule
from kandinsky22.models.clip import CLIPText, CLIPVision
from kandinsky22.models.movq import MAX_UNTILED_PIXELS, MoVQ
from kandinsky22.models.prior import PriorTransformer
from kandinsky22.models.unet import UNet
from kandinsky22.training import clip, decoder, movq, prior
from kandinsky22.training.loop import Batch, Loss
from kandinsky22.training.model_recipe import ModelRecipe
from kandinsky22.training.perceptual import Perceptual
from kandinsky22.training.preprocess_cost import NO_COST, InferenceCost, inference_cost


class Parts(NamedTuple):
    """What a plan is counted from: a function that makes the trained network, its loss, rows of a number, bytes of
    frozen networks that the loss uses, and the cost of a sample grid."""

    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module], Loss]
    rows: Callable[[int], Batch]
    frozen: int = 0
    sample_grid: Callable[[], InferenceCost] = lambda: NO_COST


def movq_batch(pictures: int, side: int) -> int:
    """The number of pictures that MoVQ computes together; it computes large ones one at a time, at the same cost
    each."""
    return pictures if side**2 <= MAX_UNTILED_PIXELS else 1


def unet_parts(recipe: ModelRecipe, network: str) -> Parts:
    """Of a U-Net: "decoder", "inpaint" or "controlnet"."""
    latent, cells = recipe.movq.latent_channels, recipe.side // recipe.movq.factor
    config = recipe.unet
    if network == "inpaint":
        config = replace(config, in_channels=2 * latent + 1)
    elif network == "controlnet":
        config = replace(config, in_channels=2 * latent, addition_embed_type="image_hint")
    schedule, run = NoiseSchedule.from_config(recipe.decoder_scheduler), recipe.runs[network]

    def loss(unet: nn.Module) -> Loss:
        assert isinstance(unet, UNet)
        bucket = decoder.Bucket(torch.zeros(1, latent, cells, cells), torch.zeros(1, config.encoder_hid_dim))
        return decoder.objective(unet, schedule, [bucket], torch.zeros(1, config.encoder_hid_dim), run).loss

    def rows(n: int) -> Batch:
        x = torch.zeros(n, latent, cells, cells)
        batch = {
            "x0": x,
            "embeds": torch.zeros(n, config.encoder_hid_dim),
            "t": torch.zeros(n, dtype=torch.long),
            "noise": x.clone(),
        }
        if network == "inpaint":
            batch["masked"] = torch.zeros(n, latent + 1, cells, cells)
        elif network == "controlnet":
            batch["hint"] = torch.zeros(n, 3, recipe.side, recipe.side)
        return batch

    def sample_grid() -> InferenceCost:
        unet, autoencoder = UNet(config).requires_grad_(False), MoVQ(recipe.movq).requires_grad_(False)
        # With guidance the U-Net has two rows for each picture: with the embedding and with the zero embedding.
        batch, guided_rows = rows(2 * decoder.SAMPLING_BATCH), torch.arange(decoder.SAMPLING_BATCH)
        condition_of = partial(unet.condition, batch["embeds"], hint=batch.get("hint"), masked=batch.get("masked"))
        condition = inference_cost(condition_of)
        step = inference_cost(lambda: unet(batch["x0"][guided_rows], batch["t"], condition_of(), guided_rows))
        step_operations = step.operations - condition.operations
        sampling = InferenceCost(step.memory, step.operations + (decoder.SAMPLING_STEPS - 1) * step_operations)
        decoding = inference_cost(lambda: autoencoder.decode(batch["x0"][:1]))
        validation_rows = decoder.validation_recipe(run).batch
        validation = inference_cost(lambda: loss(unet)(rows(validation_rows)))
        decoded = 3 if network == "inpaint" else 2  # pictures decoded for each sample
        return (
            validation.times(decoder.VALIDATION_BATCHES)
            .then(
                sampling.times(decoder.NUM_SAMPLES / decoder.SAMPLING_BATCH),
                decoding.times(decoded * decoder.NUM_SAMPLES),
            )
            .with_weights(unet, autoencoder)
        )

    return Parts(lambda: UNet(config), loss, rows, 0, sample_grid)


def prior_parts(recipe: ModelRecipe) -> Parts:
    """Of the prior."""
    text = recipe.text_config(recipe.vocabulary)
    schedule, run = NoiseSchedule.from_config(recipe.prior_scheduler), recipe.runs["prior"]
    dim, length = recipe.prior.embedding_dim, recipe.text_length

    def loss(network: nn.Module) -> Loss:
        assert isinstance(network, PriorTransformer)
        tower = CLIPText(text).requires_grad_(False)
        embeds = prior.CaptionedEmbeds(torch.zeros(1, dim), lambda indices, rng: [""])
        tokenizer = None  # only `draw` uses it
        return prior.objective(network, tower, tokenizer, schedule, [embeds], run).loss  # type: ignore[arg-type]

    def rows(n: int) -> Batch:
        ids, mask = torch.zeros(n, length, dtype=torch.long), torch.ones(n, length, dtype=torch.bool)
        x = torch.zeros(n, dim)
        return {"x0": x, "ids": ids, "mask": mask, "t": torch.zeros(n, dtype=torch.long), "noise": x.clone()}

    def sample_grid() -> InferenceCost:
        network, batch = PriorTransformer(recipe.prior).requires_grad_(False), rows(prior.NUM_SAMPLES)
        tower = CLIPText(text).requires_grad_(False)
        prefill = inference_cost(lambda: prior.prefill(network, tower, batch["ids"], batch["mask"]))
        step = inference_cost(
            lambda: network(batch["x0"], batch["t"], prior.prefill(network, tower, batch["ids"], batch["mask"]))
        )
        step_operations = step.operations - prefill.operations
        sampling = InferenceCost(step.memory, step.operations + (prior.SAMPLING_STEPS - 1) * step_operations)
        validation = inference_cost(lambda: loss(network)(rows(decoder.validation_recipe(run).batch)))
        return validation.times(decoder.VALIDATION_BATCHES).then(sampling).with_weights(network)

    return Parts(lambda: PriorTransformer(recipe.prior), loss, rows, float32_bytes(lambda: CLIPText(text)), sample_grid)


def movq_parts(recipe: ModelRecipe, network: str) -> Parts:
    """Of MoVQ, or as "movq-decoder" of its decoder."""
    run, terms, side = recipe.runs[network], recipe.terms, recipe.side
    latent = recipe.movq.vq_embed_dim

    def make() -> movq.Autoencoder:
        autoencoder = movq.Autoencoder(MoVQ(recipe.movq), terms)
        if network == "movq-decoder":
            autoencoder.movq.encoder.requires_grad_(False)
            autoencoder.movq.quant_conv.requires_grad_(False)
        return autoencoder

    def loss(autoencoder: nn.Module) -> Loss:
        assert isinstance(autoencoder, movq.Autoencoder)
        distance = Perceptual(CLIPVision(recipe.vision), recipe.image_processor) if terms.perceptual else None
        return movq.objective(autoencoder, [], run, recipe.crop, lambda: run.batch, distance).loss

    def rows(n: int) -> Batch:
        cells = recipe.crop // recipe.movq.factor
        return {
            "picture": torch.zeros(n, 3, recipe.crop, recipe.crop),
            "noise": torch.zeros(n, latent, cells, cells),
            # One number for all rows: the loss reads it, and of a single number torch keeps the value.
            "step": torch.tensor([terms.adversarial_from]),
        }

    def sample_grid() -> InferenceCost:
        autoencoder = make().requires_grad_(False)
        network, cells = autoencoder.movq, side // recipe.movq.factor
        batch = movq_batch(movq.ENCODING_BATCH, side)
        encode = inference_cost(lambda: network.encode(torch.zeros(batch, 3, side, side)))
        quantize = inference_cost(lambda: network.quantize(torch.zeros(movq.ENCODING_BATCH, latent, cells, cells)))
        decode = inference_cost(lambda: network.decode(torch.zeros(batch, latent, cells, cells)))
        coded = encode.then(decode).times(movq.NUM_RECONSTRUCTIONS / batch)
        quantized = quantize.times(movq.NUM_RECONSTRUCTIONS / movq.ENCODING_BATCH)
        return coded.then(quantized).with_weights(autoencoder)

    frozen = float32_bytes(lambda: CLIPVision(recipe.vision)) if terms.perceptual else 0
    return Parts(make, loss, rows, frozen, sample_grid)


def clip_parts(recipe: ModelRecipe) -> Parts:
    """Of both encoders of CLIP."""
    text, side = recipe.text_config(recipe.vocabulary), recipe.vision.image_size

    def make() -> clip.CLIP:
        return clip.CLIP(recipe.vision, text, probed=False)

    def loss(towers: nn.Module) -> Loss:
        assert isinstance(towers, clip.CLIP)
        tokenizer = None  # only `draw` uses it
        return clip.objective(towers, tokenizer, [], recipe.runs["clip"]).loss  # type: ignore[arg-type]

    def rows(n: int) -> Batch:
        return {
            "pixels": torch.zeros(n, 3, side, side),
            "row": torch.arange(n),
            "picture": torch.arange(n),
            "ids": torch.zeros(n, recipe.text_length, dtype=torch.long),
            "caption": torch.arange(n),
        }

    def sample_grid() -> InferenceCost:
        towers, n = make().requires_grad_(False), clip.ENCODING_BATCH
        ids = torch.zeros(n, recipe.text_length, dtype=torch.long)
        encode = inference_cost(lambda: (towers.vision(torch.zeros(n, 3, side, side)), towers.text(ids)))
        validation_rows = min(recipe.runs["clip"].batch, clip.VALIDATION_PAIRS)
        validation = inference_cost(lambda: loss(towers)(rows(validation_rows)))
        return validation.then(encode.times(clip.RETRIEVAL_PAIRS / n)).with_weights(towers)

    return Parts(make, loss, rows, 0, sample_grid)


def float32_bytes(network: Callable[[], nn.Module]) -> int:
    """Bytes of a network's weights in float32."""
    with torch.device("meta"):
        return sum(value.numel() * value.itemsize for value in network().state_dict().values())
