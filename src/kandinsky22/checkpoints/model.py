"""A model's folder as one thing: its parts, whether they are of one model, and what tells it from others."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from kandinsky22.checkpoints import catalog
from kandinsky22.checkpoints.about import CheckpointError, read_about, read_json
from kandinsky22.checkpoints.store import Stored
from kandinsky22.checkpoints.tokenizer import load_tokenizer
from kandinsky22.checkpoints.zero_image import zero_image_embed
from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.unet import UNet, UNetConfig


class StoredModel:
    """A folder with `decoder/` and `prior/` in the published layout: checked whole, its networks not yet read.

    Raises `CheckpointError` where a part is missing, is not what it should be, or does not fit the others. The image
    encoder is looked at only when it is asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        decoder, self._prior = folder / catalog.DECODER, folder / catalog.PRIOR
        for part in (decoder, self._prior):
            if not part.is_dir():
                raise CheckpointError(
                    f"{folder} has no {part.name}/ folder; a model is a folder with both pipelines in it"
                )
        self.unet = Stored(decoder / "unet", UNet, UNetConfig)
        self.movq = Stored(decoder / "movq", MoVQ, MoVQConfig)
        self.prior = Stored(self._prior / "prior", PriorTransformer, PriorConfig)
        self.text_encoder = Stored(self._prior / "text_encoder", CLIPText, CLIPTextConfig)
        self.tokenizer = load_tokenizer(self._prior / "tokenizer")
        self.schedulers = {
            part.name: read_json(part / "scheduler" / "scheduler_config.json") for part in (decoder, self._prior)
        }
        self.about = read_about(folder)
        self._check_together()

    @property
    def networks(self) -> dict[str, Stored[Any, Any]]:
        """The networks that text-to-image needs, by name."""
        return {"unet": self.unet, "movq": self.movq, "prior": self.prior, "text_encoder": self.text_encoder}

    @property
    def image_encoder(self) -> Stored[CLIPVision, CLIPVisionConfig]:
        """CLIP's vision tower."""
        return Stored(self._prior / "image_encoder", CLIPVision, CLIPVisionConfig)

    def image_processor(self) -> CLIPImageProcessor:
        """How pictures are prepared for CLIP's vision tower."""
        return CLIPImageProcessor.from_dict(read_json(self._prior / "image_processor" / "preprocessor_config.json"))

    def zero_image_embed(self) -> Tensor:
        """float32 [1, D]: see `checkpoints/zero_image.py`."""
        return zero_image_embed(self._prior)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What tells this model from others: its networks, and "settings", which are both schedules and the tokenizer."""
        settings = repr((self.schedulers, sorted(self.tokenizer.vocab.items()), self.tokenizer.merges))
        digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
        return {**{name: stored.fingerprint for name, stored in self.networks.items()}, "settings": digest}

    def _check_together(self) -> None:
        """Raises `CheckpointError` where parts that are each whole are not of one model."""
        unet, prior, text = self.unet.config, self.prior.config, self.text_encoder.config
        if unet.in_channels != self.movq.config.latent_channels or unet.hinted:
            raise CheckpointError(
                f"{self.unet.folder} holds the U-Net of another task ({unet.in_channels} channels in, "
                f"{unet.addition_embed_type}); text to image needs the plain decoder"
            )
        widths = {
            "the text encoder's hidden_size": text.hidden_size,
            "the text encoder's projection_dim": text.projection_dim,
            "the prior's embedding_dim": prior.embedding_dim,
            "the U-Net's encoder_hid_dim": unet.encoder_hid_dim,
        }
        lengths = {
            "the tokenizer's model_max_length": self.tokenizer.max_length,
            "the prior's num_embeddings": prior.num_embeddings,
            "the text encoder's max_position_embeddings": text.max_position_embeddings,
        }
        vocabularies = {
            "the tokenizer's vocabulary": len(self.tokenizer.vocab),
            "the text encoder's vocab_size": text.vocab_size,
        }
        for sizes in (widths, lengths, vocabularies):
            if len(set(sizes.values())) > 1:
                said = ", ".join(f"{name} is {size}" for name, size in sizes.items())
                raise CheckpointError(f"the parts of {self.folder} are not of one model: {said}")
