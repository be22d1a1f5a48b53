"""The folders of a model: the prior, and the decoders of its tasks. Checks that their parts belong to one model."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from kandinsky22.checkpoints import catalog, linear_prior
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.metadata import ModelMetadata, read_metadata
from kandinsky22.checkpoints.network import NetworkSource, Stored, read_config
from kandinsky22.checkpoints.schedulers import read_scheduler
from kandinsky22.checkpoints.tokenizer import load_tokenizer
from kandinsky22.checkpoints.verify import sha256
from kandinsky22.checkpoints.weight_files import weight_files
from kandinsky22.checkpoints.zero_image import zero_image_embed
from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from kandinsky22.models.linear_prior import LinearPrior, LinearPriorConfig
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.tokenizer import Tokenizer
from kandinsky22.models.unet import UNet, UNetConfig
from kandinsky22.request.sizes import MIN_SIDE

SCHEDULER = "scheduler"
MAX_DEFAULT_SIDE = 4096  # pixels: eight times the published one
TASK_OF = {
    catalog.DECODER: "painting from words, pictures and mixes",
    catalog.INPAINT: "inpainting",
    catalog.DEPTH: "following a depth picture",
}


class PriorSource(Protocol):
    """What the prior's stage is made of: a folder (`StoredPrior`), or parts of a pipeline (`PriorParts`)."""

    @property
    def prior(self) -> NetworkSource[PriorTransformer, PriorConfig]:
        """The prior network."""
        ...

    @property
    def text_encoder(self) -> NetworkSource[CLIPText, CLIPTextConfig]:
        """CLIP's text tower."""
        ...

    @property
    def image_encoder(self) -> NetworkSource[CLIPVision, CLIPVisionConfig]:
        """CLIP's vision tower. Raises `CheckpointError` where there is none."""
        ...

    @property
    def linear_prior(self) -> NetworkSource[LinearPrior, LinearPriorConfig]:
        """The linear map that can replace the prior. Raises `CheckpointError` where there is none for this CLIP."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The text encoder's tokenizer."""
        ...

    @property
    def scheduler(self) -> Mapping[str, Any]:
        """The published configuration of the noise schedule."""
        ...

    @property
    def space(self) -> str:
        """What identifies the space of its embeddings."""
        ...

    def image_processor(self) -> CLIPImageProcessor:
        """How pictures are prepared for CLIP's vision tower."""
        ...

    def zero_image_embed(self) -> Tensor:
        """The embedding of the all-zero picture, float32 [1, D]."""
        ...


class DecoderSource(Protocol):
    """What a decoder's stage is made of: a folder (`StoredDecoder`), or parts of a pipeline (`DecoderParts`)."""

    @property
    def kind(self) -> str:
        """Which decoder it is: a key of `TASK_OF`."""
        ...

    @property
    def unet(self) -> NetworkSource[UNet, UNetConfig]:
        """The U-Net."""
        ...

    @property
    def movq(self) -> NetworkSource[MoVQ, MoVQConfig]:
        """The autoencoder."""
        ...

    @property
    def scheduler(self) -> Mapping[str, Any]:
        """The published configuration of the noise schedule."""
        ...


def default_side(folder: Path, unet: UNetConfig, movq: MoVQConfig) -> int:
    """The sides of a decoder's pictures where a request states none, in pixels. Raises `CheckpointError` out of range.

    No tensor has this size, so that nothing else would limit it.
    """
    side = unet.sample_size * movq.factor
    if not MIN_SIDE <= side <= MAX_DEFAULT_SIDE:
        raise CheckpointError(
            f"{folder / 'unet' / 'config.json'}: its sample_size asks for pictures of {side!s:.20} pixels a side, and "
            f"they have from {MIN_SIDE} to {MAX_DEFAULT_SIDE}; fetch it again"
        )
    return side


def check_processor(folder: Path, processor: CLIPImageProcessor, vision: CLIPVisionConfig) -> CLIPImageProcessor:
    """The processor of a vision tower's pictures. Raises `CheckpointError` where it prepares those of another tower."""
    sizes = {
        "the image processor's crop_size": processor.crop_size,
        "the image encoder's image_size": vision.image_size,
    }
    _check_equal(folder, sizes)
    return processor


class StoredPrior:
    """The prior pipeline's folder: checked as a whole, its networks not yet read.

    Raises `CheckpointError` where a part is missing or invalid, or does not fit the others. The image encoder is
    checked only when it is used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prior = Stored(folder / "prior", PriorTransformer, PriorConfig)
        self.text_encoder = Stored(folder / "text_encoder", CLIPText, CLIPTextConfig)
        self.tokenizer = load_tokenizer(folder / "tokenizer")
        self.scheduler = read_scheduler(folder / SCHEDULER)
        prior, text = self.prior.config, self.text_encoder.config
        widths = {
            "the text encoder's hidden_size": text.hidden_size,
            "the text encoder's projection_dim": text.projection_dim,
            "the prior's embedding_dim": prior.embedding_dim,
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
            _check_equal(folder, sizes)

    @cached_property
    def image_encoder(self) -> Stored[CLIPVision, CLIPVisionConfig]:
        """CLIP's vision tower. Raises `CheckpointError` where there is none."""
        return Stored(self.folder / catalog.IMAGE_ENCODER, CLIPVision, CLIPVisionConfig)

    @cached_property
    def linear_prior(self) -> Stored[LinearPrior, LinearPriorConfig]:
        """The linear map that can replace the prior. Raises `CheckpointError` where there is none for this CLIP."""
        towers = [self.text_encoder.fingerprint]
        if (self.folder / catalog.IMAGE_ENCODER).is_dir():
            towers.append(self.image_encoder.fingerprint)
        stored = linear_prior.stored_linear_prior(self.folder / linear_prior.FOLDER, *towers)
        text, prior = self.text_encoder.config, self.prior.config
        _check_equal(
            stored.folder, {"its text_dim": stored.config.text_dim, "CLIP's projection_dim": text.projection_dim}
        )
        _check_equal(
            stored.folder, {"its embedding_dim": stored.config.embedding_dim, "the prior's": prior.embedding_dim}
        )
        return stored

    def image_processor(self) -> CLIPImageProcessor:
        """How pictures are prepared for CLIP's vision tower."""
        path = self.folder / "image_processor" / "preprocessor_config.json"
        return check_processor(self.folder, read_config(path, CLIPImageProcessor), self.image_encoder.config)

    def zero_image_embed(self) -> Tensor:
        """The embedding of the all-zero picture, float32 [1, D]: see `zero_image.py`."""
        embed = zero_image_embed(self.folder)
        if embed.shape != (1, self.prior.config.embedding_dim):
            raise CheckpointError(
                f"the zero image's embedding in {self.folder} is {[*embed.shape]}, not of this prior; fetch it again"
            )
        return embed

    @property
    def space(self) -> str:
        """What identifies the space of its embeddings: the text tower, since the vision tower may be missing."""
        return self.text_encoder.fingerprint

    @property
    def networks(self) -> dict[str, Stored[Any, Any]]:
        """The networks that encode a text, by name."""
        return {"prior": self.prior, "text_encoder": self.text_encoder}


class StoredDecoder:
    """The folder of a decoder's pipeline, for any task: checked as a whole, its networks not yet read.

    Where it has no MoVQ of its own it uses `movq`: the published folders all contain the same one. Raises
    `CheckpointError`.
    """

    def __init__(self, folder: Path, movq: Stored[MoVQ, MoVQConfig] | None = None) -> None:
        self.folder = folder
        self.unet = Stored(folder / "unet", UNet, UNetConfig)
        self.movq = movq if movq and not (folder / "movq").is_dir() else Stored(folder / "movq", MoVQ, MoVQConfig)
        self.scheduler = read_scheduler(folder / SCHEDULER)
        latent_channels, in_channels = self.movq.config.latent_channels, self.unet.config.in_channels
        kinds = {latent_channels: catalog.DECODER, 2 * latent_channels + 1: catalog.INPAINT}
        is_hinted = self.unet.config.hinted and in_channels == 2 * latent_channels
        kind = catalog.DEPTH if is_hinted else kinds.get(in_channels)
        if kind is None:
            raise CheckpointError(
                f"{self.unet.folder} takes {in_channels} channels, which no task of Kandinsky 2.2 gives it"
            )
        self.kind = kind
        self.side = default_side(folder, self.unet.config, self.movq.config)

    @property
    def networks(self) -> dict[str, Stored[Any, Any]]:
        """Its networks by name."""
        return {"unet": self.unet, "movq": self.movq}


class StoredModel:
    """A prior and one to three decoders, given the folder of each part (see `catalog.PARTS`).

    The prior and the first decoder are checked at once, the others when they are used. Raises `CheckpointError`.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)
        self._decoders: dict[str, StoredDecoder] = {}
        kinds = [kind for kind in TASK_OF if kind in self.folders]
        if catalog.PRIOR not in self.folders or not kinds:
            raise CheckpointError(f"a model is a {catalog.PRIOR}/ folder and a {catalog.DECODER}/ folder beside it")
        self.prior = StoredPrior(self.folders[catalog.PRIOR])
        self.first = self.decoder(kinds[0])
        self.metadata: ModelMetadata = read_metadata(self.folders[kinds[0]])

    def decoder(self, kind: str) -> StoredDecoder:
        """The decoder for a kind of task. Raises `CheckpointError` where this model has none."""
        if kind not in self._decoders:
            if kind not in self.folders:
                raise CheckpointError(f"this model has no weights for {TASK_OF[kind]}: it lacks the folder {kind}/")
            first = next(iter(self._decoders.values()), None)
            stored = StoredDecoder(self.folders[kind], first.movq if first else None)
            if stored.kind != kind:
                raise CheckpointError(
                    f"{stored.folder} contains weights for {TASK_OF[stored.kind]}, not for {TASK_OF[kind]}"
                )
            dims = {
                "the prior's embedding_dim": self.prior.prior.config.embedding_dim,
                "the U-Net's encoder_hid_dim": stored.unet.config.encoder_hid_dim,
            }
            _check_equal(stored.folder, dims)
            self._decoders[kind] = stored
        return self._decoders[kind]

    def fingerprints(self, kind: str) -> dict[str, str]:
        """What identifies the weights that a kind of task uses: by network, and "settings".

        The settings are both schedulers' and the tokenizer.
        """
        decoder, prior = self.decoder(kind), self.prior
        tokenizer = prior.tokenizer
        schedulers = {catalog.DECODER: decoder.scheduler, catalog.PRIOR: prior.scheduler}
        settings = repr((schedulers, sorted(tokenizer.vocab.items()), tokenizer.merges))
        digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
        networks = decoder.networks | prior.networks
        return {**{name: stored.fingerprint for name, stored in networks.items()}, "settings": digest}

    def sha256(self, kind: str, *, linear: bool = False) -> dict[str, str]:
        """The SHA-256 of the whole weight files that a kind of task uses, by network; of several files, joined by "+".

        Reads all of them. linear: also of the linear prior.
        """
        networks = self.decoder(kind).networks | self.prior.networks
        if linear:
            networks["linear_prior"] = self.prior.linear_prior
        return {name: "+".join(map(sha256, weight_files(stored.path))) for name, stored in networks.items()}


def _check_equal(folder: Path, sizes: Mapping[str, int]) -> None:
    """Raises `CheckpointError` where the sizes differ: the parts are each complete, but not of one model."""
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} is {size}" for name, size in sizes.items())
        raise CheckpointError(f"the parts of {folder} are not of one model: {listed}")
