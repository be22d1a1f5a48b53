"""The networks that can be trained: `NETWORK_TRAINING` has one entry for each, from which all else follows.

The command's choices and options, the hyperparameters and steps of the recipes, the plan, resuming and the tests are
derived from the entries.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from kandinsky22.training import network_training as training
from kandinsky22.training.context import Prepared, TrainingContext
from kandinsky22.training.loop import Recipe
from kandinsky22.training.metrics import Metrics
from kandinsky22.training.model_folder import (
    CONTROLNET,
    DECODER,
    IMAGE_ENCODER,
    INPAINT,
    MOVQ,
    PRIOR,
    TEXT_ENCODER,
    Component,
)
from kandinsky22.training.model_recipe import ModelRecipe
from kandinsky22.training.plan_parts import Parts, clip_parts, movq_parts, prior_parts, unet_parts
from kandinsky22.training.precompute import TrainingData


def no_inputs(context: TrainingContext) -> dict[str, str]:
    """The `NetworkTraining.inputs` of a network that learns from pictures alone."""
    return {}


class Run(NamedTuple):
    """The hyperparameters and the number of steps of a network in a recipe."""

    recipe: Recipe
    steps: int


@dataclass(frozen=True, kw_only=True)
class NetworkTraining:
    """How a network is trained, step by step.

    `prepare` sets up its run; `add` writes the trained network to the model, in one process only; `plan` is what its
    plan is counted from. `component` is the component of the model that `add` replaces, `requires` those that must
    always be trained before; `inputs` are the fingerprints of what it learns from beside the pictures, as far as they
    are known before `prepare`. `box` and `published` are its run in the recipes of these names.

    `captioned`: pictures without captions are of no use. `coupled`: as in `loop.Objective`. `precomputed`: what it
    learns from instead of pictures, "latents" and "embeds". `options`: those of "from_scratch", "new_tokenizer",
    "cond_dropout", "min_snr", "predict" and "depth_model" that apply to it.
    """

    prepare: Callable[[TrainingContext, TrainingData], Prepared]
    add: Callable[[TrainingContext, TrainingData, Any], None]
    plan: Callable[[ModelRecipe], Parts]
    component: Component
    box: Run
    published: Run
    requires: tuple[Component, ...] = ()
    inputs: Callable[[TrainingContext], Mapping[str, str]] = no_inputs
    captioned: bool = False
    coupled: bool = False
    precomputed: tuple[str, ...] = ()
    options: tuple[str, ...] = ("from_scratch",)


@dataclass(frozen=True, kw_only=True)
class ClosedFormTraining:
    """How a network is fitted in one pass: `fit` adds it to the model and yields the metrics of its only step."""

    fit: Callable[[TrainingContext, TrainingData], Iterator[Metrics]]
    requires: tuple[Component, ...]
    captioned: bool


_LARGE = Recipe(batch=256, learning_rate=1e-4, warmup=1000, betas=(0.9, 0.98), ema_decay=0.9999)
_DIFFUSION = ("from_scratch", "cond_dropout", "min_snr")
_PUBLISHED_MOVQ = Run(replace(_LARGE, batch=64, betas=(0.5, 0.9), weight_decay=0.0), 100_000)
_PUBLISHED_UNET = Run(replace(_LARGE, checkpointing=True), 100_000)

NETWORK_TRAINING: Mapping[str, NetworkTraining | ClosedFormTraining] = {
    "movq": NetworkTraining(
        prepare=training.prepare_movq,
        add=training.add_movq,
        plan=partial(movq_parts, network="movq"),
        component=MOVQ,
        box=Run(Recipe(batch=16, learning_rate=1e-3, weight_decay=1e-4, ema_decay=0.998, seed=1), 3000),
        published=_PUBLISHED_MOVQ,
    ),
    "clip": NetworkTraining(
        prepare=training.prepare_clip,
        add=training.add_clip,
        plan=clip_parts,
        component=IMAGE_ENCODER,
        box=Run(
            Recipe(batch=128, learning_rate=1e-3, betas=(0.9, 0.98), weight_decay=0.05, ema_decay=0.998, seed=2), 3300
        ),
        published=Run(replace(_LARGE, batch=4096, learning_rate=5e-4, weight_decay=0.2, checkpointing=True), 100_000),
        captioned=True,
        coupled=True,
        options=("from_scratch", "new_tokenizer"),
    ),
    "prior": NetworkTraining(
        prepare=training.prepare_prior,
        add=training.add_prior,
        plan=prior_parts,
        component=PRIOR,
        box=Run(
            Recipe(batch=256, learning_rate=1e-3, betas=(0.9, 0.98), weight_decay=0.02, ema_decay=0.998, seed=3), 1200
        ),
        published=Run(replace(_LARGE, batch=1024), 100_000),
        requires=(IMAGE_ENCODER, TEXT_ENCODER),
        inputs=training.prior_inputs,
        captioned=True,
        precomputed=("embeds",),
        options=_DIFFUSION,
    ),
    "linear-prior": ClosedFormTraining(
        fit=training.fit_linear_prior, requires=(IMAGE_ENCODER, TEXT_ENCODER), captioned=True
    ),
    "decoder": NetworkTraining(
        prepare=training.prepare_decoder,
        add=partial(training.add_unet, DECODER),
        plan=partial(unet_parts, network="decoder"),
        component=DECODER,
        box=Run(Recipe(batch=64, learning_rate=1.2e-3, ema_decay=0.9995, seed=4), 16_000),
        published=_PUBLISHED_UNET,
        requires=(MOVQ, IMAGE_ENCODER),
        inputs=training.unet_inputs,
        precomputed=("latents", "embeds"),
        options=(*_DIFFUSION, "predict"),
    ),
    "inpaint": NetworkTraining(
        prepare=training.prepare_inpaint,
        add=partial(training.add_unet, INPAINT),
        plan=partial(unet_parts, network="inpaint"),
        component=INPAINT,
        box=Run(Recipe(batch=64, learning_rate=6e-4, ema_decay=0.999, seed=5), 1200),
        published=_PUBLISHED_UNET,
        requires=(MOVQ, IMAGE_ENCODER),
        inputs=training.unet_inputs,
        precomputed=("latents", "embeds"),
        options=(*_DIFFUSION, "predict"),
    ),
    "controlnet": NetworkTraining(
        prepare=training.prepare_controlnet,
        add=partial(training.add_unet, CONTROLNET),
        plan=partial(unet_parts, network="controlnet"),
        component=CONTROLNET,
        box=Run(Recipe(batch=64, learning_rate=6e-4, ema_decay=0.999, seed=6), 1200),
        published=_PUBLISHED_UNET,
        requires=(MOVQ, IMAGE_ENCODER),
        inputs=training.unet_inputs,
        precomputed=("latents", "embeds"),
        options=(*_DIFFUSION, "predict", "depth_model"),
    ),
    "movq-decoder": NetworkTraining(
        prepare=training.prepare_movq_decoder,
        add=training.add_movq_decoder,
        plan=partial(movq_parts, network="movq-decoder"),
        component=MOVQ,
        box=Run(Recipe(batch=16, learning_rate=8e-4, weight_decay=1e-4, ema_decay=0.998, seed=7), 1500),
        published=_PUBLISHED_MOVQ,
        requires=(MOVQ,),
        inputs=training.latent_inputs,
        options=(),
    ),
}
"""The networks that can be trained, in the order in which they are trained for a new model."""

ITERATIVE: Mapping[str, NetworkTraining] = {
    name: entry for name, entry in NETWORK_TRAINING.items() if isinstance(entry, NetworkTraining)
}
"""Those that are trained step by step."""
