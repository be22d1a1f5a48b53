"""The plan of each network's training: what is trained, on rows of which shapes, without pictures or weights."""

from math import ceil

import torch
from torch._subclasses import FakeTensorMode

from kandinsky22.console import echo
from kandinsky22.models.clip import CLIPVision
from kandinsky22.models.movq import MoVQ
from kandinsky22.training.lora import LoRAConfig, adapt
from kandinsky22.training.model_recipe import ModelRecipe
from kandinsky22.training.plan import FLOAT32, Plan, plan_run
from kandinsky22.training.plan_parts import movq_batch
from kandinsky22.training.plan_table import expected_rate, table
from kandinsky22.training.precompute import HELD_OUT
from kandinsky22.training.preprocess_cost import PrecomputedCost, PreprocessCost, inference_cost
from kandinsky22.training.registry import ITERATIVE
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
    lora: LoRAConfig | None = None,
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
    plan = plan_of(recipe, network, steps, processes, lora, every=every, pictures=pictures)
    for line in table(plan, rate, device, float32_rate):
        echo(line)


def plan_of(
    recipe: ModelRecipe,
    network: str,
    steps: int | None,
    processes: int,
    lora: LoRAConfig | None = None,
    *,
    every: int = EVERY,
    pictures: int | None = None,
) -> Plan:
    """The plan of a network's training, with a sample grid every `every` steps.

    `pictures` is the number of a user's own pictures; without it, that of the world's, or a million for a recipe
    without a world. `lora`: of these adapters. Raises `ValueError` for a network that is fitted in one pass.
    """
    if network not in ITERATIVE:
        raise ValueError(f"{network} is fitted in one pass, with negligible memory: there is nothing to plan")
    parts = ITERATIVE[network].plan(recipe)
    run, steps = recipe.runs[network], steps or recipe.steps[network]
    with FakeTensorMode(allow_non_fake_inputs=True):  # modules have constants that are real tensors
        sample_grid = parts.sample_grid()
        preprocess = preprocess_cost(recipe, network, pictures)
    return plan_run(
        parts.make if lora is None else lambda: adapt(parts.make(), lora),
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


def preprocess_cost(recipe: ModelRecipe, network: str, pictures: int | None) -> PreprocessCost | None:
    """The cost of the latents and embeddings that a network is trained on instead of pictures; call it in a
    `FakeTensorMode`. Depth estimation is not included: its network is not known here."""
    precomputed = ITERATIVE[network].precomputed
    if not precomputed:
        return None
    squares, others = (pictures, 0) if pictures is not None else (MILLION, 0)
    if pictures is None and recipe.pictures:
        squares, others = recipe.pictures + HELD_OUT, len(recipe.shapes) * recipe.stretched
    bfloat16, side, clip_side = recipe.runs[network].bfloat16, recipe.side, recipe.vision.image_size
    tower = CLIPVision(recipe.vision).requires_grad_(False)
    embedding = inference_cost(lambda: tower(torch.zeros(BATCH, 3, clip_side, clip_side)), bfloat16=bfloat16)
    embeds = PrecomputedCost("embeddings", squares, embedding.operations // BATCH, FLOAT16 * recipe.prior.embedding_dim)
    if "latents" not in precomputed:
        return PreprocessCost(embedding.with_weights(tower).memory, (embeds,))
    autoencoder, cells = MoVQ(recipe.movq).requires_grad_(False), (side // recipe.movq.factor) ** 2
    batch = movq_batch(BATCH, side)
    encoding = inference_cost(lambda: autoencoder.encode(torch.zeros(batch, 3, side, side)), bfloat16=bfloat16)
    encoding = encoding._replace(memory=encoding.memory + (BATCH - batch) * 3 * side**2 * FLOAT32)
    latents = PrecomputedCost(
        "latents", squares + others, encoding.operations // batch, FLOAT16 * recipe.movq.latent_channels * cells
    )
    return PreprocessCost(encoding.then(embedding).with_weights(tower, autoencoder).memory, (latents, embeds))
