"""The trained networks whose outputs other networks learn from, each loaded when it is first used."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kandinsky22.checkpoints import catalog
from kandinsky22.checkpoints.tokenizer import load_tokenizer
from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPVision
from kandinsky22.models.movq import MoVQ
from kandinsky22.models.tokenizer import Tokenizer
from kandinsky22.training import movq
from kandinsky22.training.model_folder import IMAGE_ENCODER, MOVQ, TEXT_ENCODER, ModelFolder
from kandinsky22.training.precompute import Encode, fingerprint_of
from kandinsky22.training.processes import CPU


@dataclass(frozen=True)
class FrozenNetworks:
    """The networks of `model`, in float32; `processor` is CLIP's preprocessing, encoding runs on `device`.

    Raises `CheckpointError` for a network that is not trained yet.
    """

    model: ModelFolder
    processor: CLIPImageProcessor
    device: torch.device

    @cached_property
    def movq(self) -> MoVQ:
        """The autoencoder."""
        network: MoVQ = self.model.stored(MOVQ).load(torch.float32, CPU)
        return network

    @cached_property
    def latent_space(self) -> str:
        """The fingerprint of MoVQ's encoder, which determines the latents; its decoder may be trained further."""
        return movq.encoder_fingerprint(self.movq)

    @property
    def latent_encoder(self) -> tuple[str, Encode]:
        """The fingerprint of MoVQ's encoder, and the encoder: pictures [B, 3, H, W] -> latents [B, 4, h, w]."""
        return self.latent_space, self._encode_latents

    def _encode_latents(self, pictures: Tensor) -> Tensor:
        return self.movq.to(self.device).encode(pictures.to(self.device)).cpu()

    @property
    def image_embedder(self) -> tuple[str, Encode]:
        """The fingerprint of CLIP's image encoder and preprocessing, and the encoder: [B, 3, S, S] -> [B, D].

        The weights are loaded by its first call.
        """
        stored = self.model.stored(IMAGE_ENCODER)
        loaded: list[CLIPVision] = []

        def encode(clip_inputs: Tensor) -> Tensor:
            if not loaded:
                loaded.append(stored.load(torch.float32, CPU).to(self.device))
            embeds: Tensor = loaded[0](clip_inputs.to(self.device)).cpu()
            return embeds

        return fingerprint_of(stored.fingerprint, self.processor.to_dict()), encode

    @property
    def image_encoder_fingerprints(self) -> dict[str, str]:
        """The fingerprints of CLIP's image encoder and preprocessing, as checkpoints store them."""
        preprocessing = fingerprint_of(self.processor.to_dict())
        return {"image_encoder": self.model.stored(IMAGE_ENCODER).fingerprint, "image_processor": preprocessing}

    @cached_property
    def text_encoder(self) -> CLIPText:
        """CLIP's text encoder."""
        network: CLIPText = self.model.stored(TEXT_ENCODER).load(torch.float32, CPU)
        return network

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """CLIP's tokenizer."""
        return load_tokenizer(self.model.part(catalog.PRIOR) / "tokenizer")
