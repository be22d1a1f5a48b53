"""Frozen values of training runs. `BOX` is the recipe of the shipped model: its networks, its data, how each is taught."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kandinsky22.checkpoints import catalog
from kandinsky22.models.clip import CLIPImageProcessor, CLIPTextConfig, CLIPVisionConfig
from kandinsky22.models.movq import MoVQConfig
from kandinsky22.models.prior import PriorConfig
from kandinsky22.models.unet import UNetConfig
from kandinsky22.training.loop import Recipe

PAINTERS = {"decoder": catalog.DECODER, "inpaint": catalog.INPAINT, "controlnet": catalog.DEPTH}
"""The U-Nets, and the part of a model that each is."""
NETWORKS = ("movq", "clip", "prior", *PAINTERS, "movq-decoder")


@dataclass(frozen=True, kw_only=True)
class BoxRecipe:
    """A whole small model: one number, `dim`, is CLIP's text width, both its projections, the prior's embedding and what
    the U-Net is told, so that the folder loads in diffusers."""

    side: int  # pixels of the pictures it learns
    crop: int  # pixels of the squares that MoVQ learns most of the time
    pictures: int
    shapes: tuple[
        tuple[float, float], ...
    ]  # height and width of the other pictures that the U-Nets learn, the shorter is 1
    stretched: int  # how many pictures of each
    square: float  # the share of a U-Net's steps on square pictures
    hints: int  # square pictures whose depth is known
    dim: int
    vocabulary: int  # tokens at most
    text_length: int
    vision: CLIPVisionConfig
    text: Mapping[str, Any]  # of CLIPTextConfig, but for what the tokenizer decides
    movq: MoVQConfig
    prior: PriorConfig
    unet: UNetConfig
    prior_scheduler: Mapping[str, Any]
    decoder_scheduler: Mapping[str, Any]
    runs: Mapping[str, Recipe]
    steps: Mapping[str, int]
    hard_negatives: int
    defaults: Mapping[str, Mapping[str, Any]]

    def text_config(self, vocab_size: int) -> CLIPTextConfig:
        """The text tower's configuration for a vocabulary."""
        return CLIPTextConfig(
            vocab_size=vocab_size, hidden_size=self.dim, projection_dim=self.dim, max_position_embeddings=self.text_length,
            **self.text,
        )  # fmt: skip

    @property
    def image_processor(self) -> CLIPImageProcessor:
        """Pictures reach CLIP as [-1, 1]."""
        side = self.vision.image_size
        return CLIPImageProcessor(size=side, crop_size=side, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))


_DIM = 256
_TEXT_LENGTH = 32
BOX = BoxRecipe(
    side=128,
    crop=64,
    pictures=60_000,
    shapes=((1, 2), (2, 1), (1, 1.5), (1.5, 1)),
    stretched=4000,
    square=0.6,
    hints=20_000,
    dim=_DIM,
    vocabulary=1024,
    text_length=_TEXT_LENGTH,
    vision=CLIPVisionConfig(
        hidden_size=160, intermediate_size=640, num_hidden_layers=4, num_attention_heads=5, image_size=64, patch_size=8,
        num_channels=3, projection_dim=_DIM, layer_norm_eps=1e-5, hidden_act="gelu",
    ),
    text={
        "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 4, "layer_norm_eps": 1e-5,
        "hidden_act": "gelu",
    },
    movq=MoVQConfig(block_out_channels=(32, 32, 64, 96), layers_per_block=1, num_vq_embeddings=1024, sample_size=128),
    prior=PriorConfig(
        num_layers=4, num_attention_heads=4, attention_head_dim=64, embedding_dim=_DIM, num_embeddings=_TEXT_LENGTH
    ),
    unet=UNetConfig(
        block_out_channels=(64, 96, 128), layers_per_block=1, attention_head_dim=32, cross_attention_dim=64,
        encoder_hid_dim=_DIM, sample_size=16,
    ),
    prior_scheduler={
            "_class_name": "UnCLIPScheduler", "clip_sample": True, "clip_sample_range": 5.0, "num_train_timesteps": 1000,
            "prediction_type": "sample", "variance_type": "fixed_small_log",
        },
    decoder_scheduler={
            "_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 0.00085,
            "beta_end": 0.012, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
            "prediction_type": "v_prediction", "thresholding": False,
        },
    runs={
            "movq": Recipe(batch=16, learning_rate=1.2e-3, weight_decay=1e-4, ema_decay=0.998, seed=1),
            "movq-decoder": Recipe(batch=16, learning_rate=8e-4, weight_decay=1e-4, ema_decay=0.998, seed=7),
            "clip": Recipe(batch=128, learning_rate=1e-3, betas=(0.9, 0.98), weight_decay=0.05, ema_decay=0.998, seed=2),
            "prior": Recipe(batch=256, learning_rate=1e-3, betas=(0.9, 0.98), weight_decay=0.02, ema_decay=0.998, seed=3),
            "decoder": Recipe(batch=64, learning_rate=1.2e-3, ema_decay=0.9995, seed=4),
            "inpaint": Recipe(batch=64, learning_rate=6e-4, ema_decay=0.999, seed=5),
            "controlnet": Recipe(batch=64, learning_rate=6e-4, ema_decay=0.999, seed=6),
        },
    steps={"movq": 4500, "clip": 1800, "prior": 700, "decoder": 14000, "inpaint": 1200, "controlnet": 1200, "movq-decoder": 1500},
    hard_negatives=48,
    defaults={
            "prior": {"sampler": "unclip", "steps": 25, "guidance_scale": 2.0},
            "decoder": {"sampler": "ddpm", "steps": 50, "guidance_scale": 3.0},
        },
)  # fmt: skip
