"""Networks, schedules and hyperparameters of a complete model, as one frozen value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kandinsky22.models.clip import CLIPImageProcessor, CLIPTextConfig, CLIPVisionConfig
from kandinsky22.models.movq import MoVQConfig
from kandinsky22.models.prior import PriorConfig
from kandinsky22.models.unet import UNetConfig
from kandinsky22.training.loop import Recipe
from kandinsky22.training.movq import Terms


@dataclass(frozen=True, kw_only=True)
class ModelRecipe:
    """Networks, schedules and hyperparameters of a complete model.

    `side` is the side of the U-Nets' square training pictures; pictures of other shapes have about as many pixels.
    Fields marked "world" apply to pictures of the synthetic world alone, and not to a user's own pictures.
    """

    side: int  # pixels
    crop: int  # pixels, the side of MoVQ's random crops
    pictures: int = 0  # world: number of square pictures
    movq_pictures: int = 0  # world: number of them that MoVQ learns from; 0 means all
    things: float = 0.0  # world: the share of scenes with things, which are in `things` in the training folder
    shapes: tuple[tuple[float, float], ...] = ()  # world: (height, width) of the other shapes, the shorter side is 1
    stretched: int = 0  # world: number of pictures of each other shape
    square: float = 1.0  # world: the share of a U-Net's steps on square pictures
    hints: int = 0  # world: pictures of each shape with a depth picture
    hard_negatives: int = 0  # world: captions with one change in each of CLIP's batches
    vocabulary: int  # tokens at most
    text_length: int
    image_processor: CLIPImageProcessor
    vision: CLIPVisionConfig
    text: Mapping[str, Any]  # fields of CLIPTextConfig, without those that the tokenizer decides
    movq: MoVQConfig
    terms: Terms = field(default_factory=Terms)
    prior: PriorConfig
    unet: UNetConfig
    prior_scheduler: Mapping[str, Any]
    decoder_scheduler: Mapping[str, Any]
    runs: Mapping[str, Recipe]  # by network
    steps: Mapping[str, int]  # by network
    defaults: Mapping[str, Mapping[str, Any]]

    def text_config(self, vocab_size: int) -> CLIPTextConfig:
        """The text tower's configuration for a vocabulary of `vocab_size` tokens."""
        return CLIPTextConfig(vocab_size=vocab_size, max_position_embeddings=self.text_length, **self.text)
