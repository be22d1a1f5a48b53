"""The plan of each network's training: what is trained, on rows of which shapes, without pictures or weights."""

from collections.abc import Callable
from dataclasses import replace
from math import ceil
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from kandinsky22.console import echo
from kandinsky22.diffusion import NoiseSchedule
from kandinsky22.models.clip import CLIPText, CLIPVision
from kandinsky22.models.movq import MAX_UNTILED_PIXELS, MoVQ
from kandinsky22.models.prior import PriorTransformer
from kandinsky22.models.unet import UNet
from kandinsky22.training import clip, decoder, movq, prior
from kandinsky22.training.loop import Batch, Loss
from kandinsky22.training.perceptual import Perceptual
from kandinsky22.training.plan import FLOAT32, Plan, plan_run
from kandinsky22.training.plan_table import expected_rate, table
from kandinsky22.training.precompute import HELD_OUT
from kandinsky22.training.preprocess_cost import InferenceCost, PrecomputedCost, PreprocessCost, inference_cost
from kandinsky22.training.recipes import UNETS, ModelRecipe
from kandinsky22.training.run import EVERY
from kandinsky22.training.shards import BATCH

GPU = "H100 SXM"
MILLION = 1_000_000  # pictures, where their number is unknown
FLOAT16 = 2  # bytes of a precomputed value


def print_plan(
    recipe: ModelRecipe,
    network: str,
    steps: int | None,
    processes: int,
    device: str,
    *,
    every: int = EVERY,
    pictures: int | None = None,
) -> None:
    """Print the memory and time that the training of a network takes, by default on `GPU`; see `plan_of`. Raises
    `ValueError` for an unknown device."""
    device = device or GPU
    run = recipe.runs.get(network)
    rate = expected_rate(device, bfloat16=run is None or run.bfloat16)
    float32_rate = expected_rate(device, bfloat16=False)
    plan = plan_of(recipe, network, steps, processes, every=every, pictures=pictures)
    for line in table(plan, rate, device, float32_rate):
        echo(line)


def plan_of(
    recipe: ModelRecipe,
    network: str,
    steps: int | None,
    processes: int,
    *,
    every: int = EVERY,
    pictures: int | None = None,
) -> Plan:
    """The plan of a network's training, with a sample grid every `every` steps.

    `pictures` is the number of a user's own pictures; without it, that of the world's, or a million for a recipe
    without a world. Raises `ValueError` for the linear prior, which is fitted in one pass.
    """
    if network == "linear-prior":
        raise ValueError(
            "the linear prior is fitted in closed form, in one pass with negligible memory: there is nothing to plan"
        )
    parts = PARTS["decoder" if network in UNETS else network.removesuffix("-decoder")](recipe, network)
    run, steps = recipe.runs[network], steps or recipe.steps[network]
    with FakeTensorMode(allow_non_fake_inputs=True):  # modules have constants that are real tensors
        sample_grid = parts.sample_grid()
        preprocess = preprocess_cost(recipe, network, pictures)
    return plan_run(
        parts.make,
        parts.loss,
        parts.rows,
        run,
        steps,
        processes=processes,
        frozen=parts.frozen,
        sample_grid=sample_grid,
        sample_grids=ceil(steps / every),
        preprocess=preprocess,
    )


class Parts(NamedTuple):
    """What a plan is counted from: a function that makes the trained network, its loss, rows of a number, bytes of
    frozen networks that the loss uses, and the cost of a sample grid."""

    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module], Loss]
    rows: Callable[[int], Batch]
    frozen: int
    sample_grid: Callable[[], InferenceCost]


def preprocess_cost(recipe: ModelRecipe, network: str, pictures: int | None) -> PreprocessCost | None:
    """The cost of the latents and embeddings that a network is trained on instead of pictures; call it in a
    `FakeTensorMode`. Depth estimation is not included: its network is not known here."""
    if network not in (*UNETS, "prior"):
        return None
    squares, others = (pictures, 0) if pictures is not None else (MILLION, 0)
    if pictures is None and recipe.pictures:
        squares, others = recipe.pictures + HELD_OUT, len(recipe.shapes) * recipe.stretched
    bfloat16, side, clip_side = recipe.runs[network].bfloat16, recipe.side, recipe.vision.image_size
    tower = CLIPVision(recipe.vision).requires_grad_(False)
    embedding = inference_cost(lambda: tower(torch.zeros(BATCH, 3, clip_side, clip_side)), bfloat16=bfloat16)
    embeds = PrecomputedCost("embeddings", squares, embedding.operations // BATCH, FLOAT16 * recipe.prior.embedding_dim)
    if network == "prior":
        return PreprocessCost(embedding.with_weights(tower).memory, (embeds,))
    autoencoder, cells = MoVQ(recipe.movq).requires_grad_(False), (side // recipe.movq.factor) ** 2
    batch = _movq_batch(BATCH, side)
    encoding = inference_cost(lambda: autoencoder.encode(torch.zeros(batch, 3, side, side)), bfloat16=bfloat16)
    encoding = encoding._replace(memory=encoding.memory + (BATCH - batch) * 3 * side**2 * FLOAT32)
    latents = PrecomputedCost(
        "latents", squares + others, encoding.operations // batch, FLOAT16 * recipe.movq.latent_channels * cells
    )
    return PreprocessCost(encoding.then(embedding).with_weights(tower, autoencoder).memory, (latents, embeds))


def _movq_batch(pictures: int, side: int) -> int:
    """The number of pictures that MoVQ computes together; it computes large ones one at a time, at the same cost
    each."""
    return pictures if side**2 <= MAX_UNTILED_PIXELS else 1


def _unet(recipe: ModelRecipe, network: str) -> Parts:
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
        extra = {name: batch[name] for name in decoder.EXTRA_INPUTS if name in batch}
        condition = inference_cost(lambda: unet.condition(batch["embeds"], **extra))
        step = inference_cost(
            lambda: unet(batch["x0"][guided_rows], batch["t"], unet.condition(batch["embeds"], **extra), guided_rows)
        )
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


def _prior(recipe: ModelRecipe, network: str) -> Parts:
    text = recipe.text_config(recipe.vocabulary)
    schedule, run = NoiseSchedule.from_config(recipe.prior_scheduler), recipe.runs[network]
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

    return Parts(
        lambda: PriorTransformer(recipe.prior), loss, rows, _float32_bytes(lambda: CLIPText(text)), sample_grid
    )


def _movq(recipe: ModelRecipe, network: str) -> Parts:
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
        batch = _movq_batch(movq.ENCODING_BATCH, side)
        encode = inference_cost(lambda: network.encode(torch.zeros(batch, 3, side, side)))
        quantize = inference_cost(lambda: network.quantize(torch.zeros(movq.ENCODING_BATCH, latent, cells, cells)))
        decode = inference_cost(lambda: network.decode(torch.zeros(batch, latent, cells, cells)))
        coded = encode.then(decode).times(movq.NUM_RECONSTRUCTIONS / batch)
        quantized = quantize.times(movq.NUM_RECONSTRUCTIONS / movq.ENCODING_BATCH)
        return coded.then(quantized).with_weights(autoencoder)

    frozen = _float32_bytes(lambda: CLIPVision(recipe.vision)) if terms.perceptual else 0
    return Parts(make, loss, rows, frozen, sample_grid)


def _clip(recipe: ModelRecipe, network: str) -> Parts:
    text, side = recipe.text_config(recipe.vocabulary), recipe.vision.image_size

    def make() -> clip.CLIP:
        return clip.CLIP(recipe.vision, text, probed=False)

    def loss(towers: nn.Module) -> Loss:
        assert isinstance(towers, clip.CLIP)
        tokenizer = None  # only `draw` uses it
        return clip.objective(towers, tokenizer, [], recipe.runs[network]).loss  # type: ignore[arg-type]

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
        validation_rows = min(recipe.runs[network].batch, clip.VALIDATION_PAIRS)
        validation = inference_cost(lambda: loss(towers)(rows(validation_rows)))
        return validation.then(encode.times(clip.RETRIEVAL_PAIRS / n)).with_weights(towers)

    return Parts(make, loss, rows, 0, sample_grid)


PARTS: dict[str, Callable[[ModelRecipe, str], Parts]] = {
    "decoder": _unet,
    "prior": _prior,
    "movq": _movq,
    "clip": _clip,
}


def _float32_bytes(network: Callable[[], nn.Module]) -> int:
    """Bytes of a network's weights in float32."""
    with torch.device("meta"):
        return sum(value.numel() * value.itemsize for value in network().state_dict().values())
