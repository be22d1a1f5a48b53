"""Hyperparameters as frozen values: of complete models, and of the published training schedule stage by stage.

`BOX` is the recipe of the shipped model, `PUBLISHED` that of the published networks, as far as their authors published
one, and `of_model` that of fine-tuning any model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from kandinsky22.checkpoints import catalog, full_size
from kandinsky22.checkpoints.model import default_side
from kandinsky22.checkpoints.network import read_config
from kandinsky22.checkpoints.schedulers import FILE as SCHEDULER_FILE
from kandinsky22.checkpoints.schedulers import read_scheduler
from kandinsky22.models.clip import CLIPImageProcessor, CLIPTextConfig, CLIPVisionConfig
from kandinsky22.models.config import Config
from kandinsky22.models.movq import MoVQConfig
from kandinsky22.models.prior import PriorConfig
from kandinsky22.models.unet import UNetConfig
from kandinsky22.training.loop import Recipe
from kandinsky22.training.model_recipe import ModelRecipe
from kandinsky22.training.movq import Terms
from kandinsky22.training.photos import Filter
from kandinsky22.training.registry import ITERATIVE

C = TypeVar("C", bound=Config)
# CLIP's text width, both its projections, the prior's embedding and the U-Net's condition: diffusers needs them to be
# equal.
_DIM = 256
_TEXT_LENGTH = 48
_SIDE_OF_CLIP = 128
_DDPM = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "thresholding": False,
}
_UNCLIP = {
    "_class_name": "UnCLIPScheduler",
    "clip_sample": True,
    "clip_sample_range": 5.0,
    "num_train_timesteps": 1000,
    "prediction_type": "sample",
    "variance_type": "fixed_small_log",
}

BOX = ModelRecipe(
    side=128,
    crop=64,
    pictures=98_304,
    movq_pictures=24_576,
    things=0.5,
    shapes=((1, 2), (2, 1), (1, 1.5), (1.5, 1)),
    stretched=8192,
    square=0.4,
    hints=20_000,
    hard_negatives=48,
    vocabulary=4096,
    text_length=_TEXT_LENGTH,
    image_processor=CLIPImageProcessor(
        size=_SIDE_OF_CLIP, crop_size=_SIDE_OF_CLIP, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5)
    ),
    vision=CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=6,
        image_size=_SIDE_OF_CLIP,
        patch_size=16,
        num_channels=3,
        projection_dim=_DIM,
        layer_norm_eps=1e-5,
        hidden_act="gelu",
    ),
    text={
        "hidden_size": _DIM,
        "projection_dim": _DIM,
        "intermediate_size": 768,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
    },
    movq=MoVQConfig(block_out_channels=(32, 32, 64, 96), layers_per_block=1, num_vq_embeddings=1024, sample_size=128),
    prior=PriorConfig(
        num_layers=4, num_attention_heads=4, attention_head_dim=64, embedding_dim=_DIM, num_embeddings=_TEXT_LENGTH
    ),
    unet=UNetConfig(
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        attention_head_dim=32,
        cross_attention_dim=64,
        encoder_hid_dim=_DIM,
        sample_size=16,
    ),
    prior_scheduler=_UNCLIP,
    decoder_scheduler={**_DDPM, "prediction_type": "v_prediction"},
    runs={name: entry.box.recipe for name, entry in ITERATIVE.items()},
    steps={name: entry.box.steps for name, entry in ITERATIVE.items()},
    defaults={
        "prior": {"sampler": "unclip", "steps": 25, "guidance_scale": 2.0},
        "decoder": {"sampler": "ddpm", "steps": 20, "guidance_scale": 3.0},
    },
)

PUBLISHED = ModelRecipe(
    side=768,
    crop=256,
    vocabulary=49_408,
    text_length=77,
    image_processor=CLIPImageProcessor(
        size=224,
        crop_size=224,
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
    ),
    vision=full_size.IMAGE_ENCODER,
    text={
        name: getattr(full_size.TEXT_ENCODER, name)
        for name in (
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "projection_dim",
            "layer_norm_eps",
            "hidden_act",
        )
    },
    movq=full_size.MOVQ,
    terms=Terms(quantised=True, perceptual=0.1, adversarial=0.1, adversarial_from=1, discriminator_layers=2),
    prior=full_size.PRIOR,
    unet=full_size.UNET,
    prior_scheduler=_UNCLIP,
    decoder_scheduler={**_DDPM, "prediction_type": "epsilon"},
    runs={name: entry.published.recipe for name, entry in ITERATIVE.items()},
    steps={name: entry.published.steps for name, entry in ITERATIVE.items()},
    defaults={
        "prior": {"steps": catalog.PUBLISHED_STEPS[catalog.PRIOR], "guidance_scale": catalog.PUBLISHED_GUIDANCE},
        "decoder": {"steps": catalog.PUBLISHED_STEPS[catalog.DECODER], "guidance_scale": catalog.PUBLISHED_GUIDANCE},
    },
)
"""The published networks. MoVQ's terms, learning rate and betas are those of ai-forever/MoVQGAN,
configs/movqgan_67M.yaml; all other batch sizes, learning rates and steps are ours: the authors published none."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the published schedule: the network that is trained, the data, the number of steps, and the weights it
    starts from.

    `card` names the fields that the model card states; all other values, including those of `PUBLISHED`, are ours.
    """

    network: str
    data: str
    begins: str
    filter: Filter = field(default_factory=Filter)
    steps: int = 100_000
    learning_rate: float = 1e-4
    card: tuple[str, ...] = ()

    @property
    def recipe(self) -> ModelRecipe:
        """`PUBLISHED` with this stage's learning rate and steps."""
        run = replace(PUBLISHED.runs[self.network], learning_rate=self.learning_rate)
        runs, steps = {**PUBLISHED.runs, self.network: run}, {**PUBLISHED.steps, self.network: self.steps}
        return replace(PUBLISHED, runs=runs, steps=steps)


STAGES: Mapping[str, Stage] = {
    "prior-aesthetics": Stage(
        network="prior",
        data="LAION Improved Aesthetics 6.5+",
        begins="nothing",
        filter=Filter(aesthetic=6.5),
        steps=500_000,
        card=("data", "filter"),
    ),
    "prior-high-resolution": Stage(
        network="prior",
        data="LAION HighRes",
        begins="prior-aesthetics",
        filter=Filter(side=1024),
        steps=100_000,
        learning_rate=5e-5,
        card=("data", "begins"),
    ),
    "decoder-high-resolution": Stage(
        network="decoder",
        data="LAION HighRes",
        begins="nothing",
        filter=Filter(side=1024),
        steps=500_000,
        card=("data",),
    ),
    "decoder-curated": Stage(
        network="decoder",
        data="2 million pictures of curated sets, each with a weight: COYO, anime, landmarks, others",
        begins="decoder-high-resolution",
        filter=Filter(side=512),
        learning_rate=5e-5,
        card=("data", "begins"),
    ),
    "clip-switch-prior": Stage(
        network="prior",
        data="as before",
        begins="nothing: another image encoder is another space of embeddings",
        filter=Filter(aesthetic=6.5),
        steps=500_000,
        card=("begins",),
    ),
    "clip-switch-decoder": Stage(
        network="decoder",
        data="as before",
        begins="the decoder of the image encoder before",
        filter=Filter(side=512),
        steps=2000,
        learning_rate=5e-5,
        card=("steps", "begins"),
    ),
}
"""The model card's schedule. The last two stages are the change of the image encoder, the main change of version
2.2: the prior is trained from scratch, and the decoder for 2,000 more iterations."""


def of_model(parts: Mapping[str, Path]) -> ModelRecipe:
    """The recipe of fine-tuning a model: its networks and noise schedules, few steps at a low learning rate. Values are
    ours.

    `parts` are the folders of the model's parts; parts it does not have are as in `PUBLISHED`. Raises `CheckpointError`
    for a configuration that cannot be read.
    """
    found: dict[str, Any] = {}

    def config(kind: type[C], part: str, folder: str, file: str = "config.json") -> C | None:
        path = parts[part] / folder / file if part in parts else None
        return read_config(path, kind) if path is not None and path.is_file() else None

    text: Mapping[str, Any] = PUBLISHED.text
    if tower := config(CLIPTextConfig, catalog.PRIOR, "text_encoder"):
        text = {name: getattr(tower, name) for name in PUBLISHED.text}
        found |= {"vocabulary": tower.vocab_size, "text_length": tower.max_position_embeddings}
    for name, config_class, part, folder in (
        ("prior", PriorConfig, catalog.PRIOR, "prior"),
        ("vision", CLIPVisionConfig, catalog.PRIOR, "image_encoder"),
        ("unet", UNetConfig, catalog.DECODER, "unet"),
        ("movq", MoVQConfig, catalog.DECODER, "movq"),
    ):
        if values := config(config_class, part, folder):
            found[name] = values
    if processor := config(CLIPImageProcessor, catalog.PRIOR, "image_processor", "preprocessor_config.json"):
        found["image_processor"] = processor
    for part in (catalog.PRIOR, catalog.DECODER):
        if part in parts and (parts[part] / "scheduler" / SCHEDULER_FILE).is_file():
            found[f"{part}_scheduler"] = read_scheduler(parts[part] / "scheduler")
    run = Recipe(batch=16, learning_rate=5e-5, warmup=50, ema_decay=0.99)
    unet, movq = found.get("unet", PUBLISHED.unet), found.get("movq", PUBLISHED.movq)
    small = unet.sample_size < PUBLISHED.unet.sample_size
    return replace(
        PUBLISHED,
        **found,
        text=text,
        side=default_side(parts.get(catalog.DECODER, Path()), unet, movq),
        crop=64 if small else PUBLISHED.crop,
        terms=Terms(),
        runs=dict.fromkeys(ITERATIVE, replace(run, checkpointing=not small)),
        steps=dict.fromkeys(ITERATIVE, 1000),
    )
