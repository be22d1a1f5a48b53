"""A model's folders as things: the prior, and the decoders of its tasks; whether their parts are of one model, and what tells
them from others."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from kandinsky22.checkpoints import catalog, linear_prior
from kandinsky22.checkpoints.about import About, CheckpointError, read_about, read_json
from kandinsky22.checkpoints.checked import sha256
from kandinsky22.checkpoints.store import Stored, weights_files
from kandinsky22.checkpoints.tokenizer import load_tokenizer
from kandinsky22.checkpoints.zero_image import zero_image_embed
from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from kandinsky22.models.linear_prior import LinearPrior, LinearPriorConfig
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.unet import UNet, UNetConfig

SCHEDULER = Path("scheduler") / "scheduler_config.json"
TASK_OF = {
    catalog.DECODER: "painting from words, pictures and mixes",
    catalog.INPAINT: "inpainting",
    catalog.DEPTH: "following a depth picture",
}


class StoredPrior:
    """The prior pipeline's folder: checked whole, its networks not yet read.

    Raises `CheckpointError` where a part is missing, is not what it should be, or does not fit the others. The image
    encoder is looked at only when it is asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prior = Stored(folder / "prior", PriorTransformer, PriorConfig)
        self.text_encoder = Stored(folder / "text_encoder", CLIPText, CLIPTextConfig)
        self.tokenizer = load_tokenizer(folder / "tokenizer")
        self.scheduler = read_json(folder / SCHEDULER)
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
        """CLIP's vision tower."""
        return Stored(self.folder / "image_encoder", CLIPVision, CLIPVisionConfig)

    @cached_property
    def linear_prior(self) -> Stored[LinearPrior, LinearPriorConfig]:
        """The one matrix that can take the prior's place. Raises `CheckpointError` where there is none for this CLIP."""
        towers = [self.text_encoder.fingerprint]
        if (self.folder / "image_encoder").is_dir():
            towers.append(self.image_encoder.fingerprint)
        stored = linear_prior.stored(self.folder / linear_prior.FOLDER, *towers)
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
        return CLIPImageProcessor.from_dict(read_json(self.folder / "image_processor" / "preprocessor_config.json"))

    def zero_image_embed(self) -> Tensor:
        """float32 [1, D]: see `checkpoints/zero_image.py`."""
        return zero_image_embed(self.folder)

    @property
    def space(self) -> str:
        """What names the space of its embeddings. CLIP's towers are a pair; the text tower, always here, stands for it."""
        return self.text_encoder.fingerprint

    @property
    def networks(self) -> dict[str, Stored[Any, Any]]:
        """Those that text needs, by name."""
        return {"prior": self.prior, "text_encoder": self.text_encoder}


class StoredDecoder:
    """A decoder pipeline's folder, of any task: checked whole, its networks not yet read.

    Where it has no MoVQ of its own it uses `movq`: the published folders hold the same one each. Raises `CheckpointError`.
    """

    def __init__(self, folder: Path, movq: Stored[MoVQ, MoVQConfig] | None = None) -> None:
        self.folder = folder
        self.unet = Stored(folder / "unet", UNet, UNetConfig)
        self.movq = movq if movq and not (folder / "movq").is_dir() else Stored(folder / "movq", MoVQ, MoVQConfig)
        self.scheduler = read_json(folder / SCHEDULER)
        latent, entering = self.movq.config.latent_channels, self.unet.config.in_channels
        kinds = {latent: catalog.DECODER, 2 * latent + 1: catalog.INPAINT}
        kind = catalog.DEPTH if self.unet.config.hinted and entering == 2 * latent else kinds.get(entering)
        if kind is None:
            raise CheckpointError(
                f"{self.unet.folder} takes {entering} channels, which no task of Kandinsky 2.2 gives it"
            )
        self.kind = kind

    @property
    def networks(self) -> dict[str, Stored[Any, Any]]:
        """Its networks by name."""
        return {"unet": self.unet, "movq": self.movq}


class StoredModel:
    """A prior and one to three decoders, from the folder of each part (see `catalog`).

    The prior and the first decoder there is are checked at once, the others when they are asked for. Raises
    `CheckpointError`.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)
        self._decoders: dict[str, StoredDecoder] = {}
        kinds = [kind for kind in TASK_OF if kind in self.folders]
        if catalog.PRIOR not in self.folders or not kinds:
            raise CheckpointError(f"a model is a {catalog.PRIOR}/ folder and a {catalog.DECODER}/ folder beside it")
        self.prior = StoredPrior(self.folders[catalog.PRIOR])
        self.first = self.decoder(kinds[0])
        self.about: About = read_about(self.folders[kinds[0]])

    def decoder(self, kind: str) -> StoredDecoder:
        """The decoder of a kind of task. Raises `CheckpointError` where this model has none."""
        if kind not in self._decoders:
            if kind not in self.folders:
                raise CheckpointError(f"this model has no weights for {TASK_OF[kind]}: it lacks the folder {kind}/")
            first = next(iter(self._decoders.values()), None)
            stored = StoredDecoder(self.folders[kind], first.movq if first else None)
            if stored.kind != kind:
                raise CheckpointError(
                    f"{stored.folder} holds weights for {TASK_OF[stored.kind]}, not for {TASK_OF[kind]}"
                )
            dims = {
                "the prior's embedding_dim": self.prior.prior.config.embedding_dim,
                "the U-Net's encoder_hid_dim": stored.unet.config.encoder_hid_dim,
            }
            _check_equal(stored.folder, dims)
            self._decoders[kind] = stored
        return self._decoders[kind]

    def fingerprints(self, kind: str) -> dict[str, str]:
        """What tells this model's painting of a kind from others': its networks, and "settings", which are both schedules
        and the tokenizer."""
        decoder, prior = self.decoder(kind), self.prior
        tokenizer = prior.tokenizer
        schedulers = {catalog.DECODER: decoder.scheduler, catalog.PRIOR: prior.scheduler}
        settings = repr((schedulers, sorted(tokenizer.vocab.items()), tokenizer.merges))
        digest = hashlib.sha256(settings.encode()).hexdigest()[:12]
        networks = decoder.networks | prior.networks
        return {**{name: stored.fingerprint for name, stored in networks.items()}, "settings": digest}

    def sha256(self, kind: str, *, linear: bool = False) -> dict[str, str]:
        """The SHA-256 of the files that a kind is painted with, whole, by network; of several, joined by a plus. Reads them all.
        linear: with the linear prior beside the other."""
        networks = self.decoder(kind).networks | self.prior.networks
        if linear:
            networks["linear_prior"] = self.prior.linear_prior
        return {name: "+".join(map(sha256, weights_files(stored.path))) for name, stored in networks.items()}


def _check_equal(folder: Path, sizes: Mapping[str, int]) -> None:
    """Raises `CheckpointError` where parts that are each whole are not of one model."""
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name} is {size}" for name, size in sizes.items())
        raise CheckpointError(f"the parts of {folder} are not of one model: {said}")
