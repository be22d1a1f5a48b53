"""Feature networks: Inception for FID and KID, a CLIP for CMMD and the CLIP score.

Weights are those of a model's own CLIP, or come from a file or folder that the user names; nothing is downloaded. A
network's `name`, `fingerprint` and `resize` identify everything that its features depend on besides the pictures.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from kandinsky22.acceleration import request_huge_pages
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.model import StoredPrior
from kandinsky22.checkpoints.network import Stored, read_config
from kandinsky22.checkpoints.tokenizer import load_tokenizer
from kandinsky22.checkpoints.verify import sha256
from kandinsky22.checkpoints.weight_files import weight_files
from kandinsky22.evaluation import inception
from kandinsky22.evaluation.resize import RESIZINGS, centre_crop
from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from kandinsky22.models.config import Config
from kandinsky22.models.tokenizer import Tokenizer

C = TypeVar("C", bound=Config)


class Features(Protocol):
    """A feature network, with the way pictures are prepared for it."""

    @property
    def name(self) -> str:
        """Its name, such as "inception-2015"."""

    @property
    def fingerprint(self) -> str:
        """Identifies its weights, usually by the SHA-256 of their file."""

    @property
    def resize(self) -> str:
        """The preprocessing of pictures, in words; only features with the same preprocessing are comparable."""

    @property
    def dim(self) -> int:
        """The length of a feature vector."""

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures of any sizes, at least one -> float32 [n, dim] on the CPU, in one call of the network."""


@contextmanager
def without_tf32() -> Iterator[None]:
    """Switch off TF32, which has a mantissa of ten bits, on CUDA for the length of a `with` block."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


class InceptionFeatures:
    """The features of the 2015 Inception network's last pool, [n, 2048].

    path: see `inception.load`. resize: one of `resize.RESIZINGS`. crop: take the central square first, as is done for
    COCO's 30,000 pictures; clean-fid resizes whole pictures, which distorts them. Raises `CheckpointError`, and
    `ValueError` for another resizing.
    """

    name, dim = inception.NAME, inception.DIM

    def __init__(
        self, path: Path, resize: str = "clean", device: torch.device | str = "cpu", *, crop: bool = True
    ) -> None:
        if resize not in RESIZINGS:
            raise ValueError(f"resize must be one of {', '.join(RESIZINGS)}, got {resize!r}")
        request_huge_pages()
        self._network, self.fingerprint = inception.load(path)
        self._network.to(device)
        self._resizing, self._device, self._crop = RESIZINGS[resize], device, crop
        self.resize = f"{'centre crop, ' if crop else ''}{resize} to {inception.SIDE}"

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """See `Features`."""
        squares = map(centre_crop, pictures) if self._crop else pictures
        pixels = torch.stack([self._resizing.resize(picture, inception.SIDE) for picture in squares]).to(self._device)
        with without_tf32():
            return self._network((pixels - self._resizing.centre) / self._resizing.centre).cpu()


class ClipFeatures:
    """A CLIP's projected embeddings, [n, D], not normalised: of pictures when it is called, of captions by `texts`.

    Pictures are cropped to the central square, as for CMMD, and then prepared as the CLIP's own configuration says.
    """

    def __init__(
        self,
        vision: CLIPVision,
        text: CLIPText,
        processor: CLIPImageProcessor,
        tokenizer: Tokenizer,
        *,
        name: str,
        fingerprint: str,
    ) -> None:
        self.name, self.fingerprint = name, fingerprint
        self.dim = vision.config.projection_dim
        self.resize = f"centre crop, CLIP's bicubic to {processor.size}"
        self._vision, self._text, self._processor, self._tokenizer = vision, text, processor, tokenizer
        parameter = next(vision.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    @classmethod
    def of_model(
        cls, stored: StoredPrior, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Self:
        """The CLIP of a Kandinsky model. Raises `CheckpointError`."""
        device = torch.device(device)
        return cls(
            stored.image_encoder.load(dtype, device),
            stored.text_encoder.load(dtype, device),
            stored.image_processor(),
            stored.tokenizer,
            name="the model's own CLIP",
            fingerprint=f"{stored.image_encoder.fingerprint}+{stored.text_encoder.fingerprint}",
        )

    @classmethod
    def of_folder(cls, folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Self:
        """The CLIP of a folder in transformers' format.

        For example openai/clip-vit-large-patch14-336 for CMMD and openai/clip-vit-base-patch32 for the CLIP score. The
        folder has config.json, the weights, preprocessor_config.json, vocab.json, merges.txt and tokenizer_config.json.

        Raises `CheckpointError` where one of them is missing, damaged, or does not fit the others.
        """
        request_huge_pages()
        stored = Stored(folder, _Pair, _PairConfig)
        tokenizer = load_tokenizer(folder)
        processor = read_config(folder / "preprocessor_config.json", CLIPImageProcessor)
        text, vision = stored.config.text, stored.config.vision
        for what, in_file, in_config in (
            ("tokens", len(tokenizer.vocab), text.vocab_size),
            ("pixels per side", processor.crop_size, vision.image_size),
        ):
            if in_file != in_config:
                raise CheckpointError(
                    f"the files of {folder} are not of one CLIP: one has {in_file} {what} and config.json {in_config}; "
                    "download them again"
                )
        pair = stored.load(dtype, torch.device(device))
        fingerprint = "+".join(map(sha256, weight_files(stored.path)))
        return cls(*pair.towers, processor, tokenizer, name=folder.resolve().name, fingerprint=fingerprint)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """See `Features`."""
        pixels = self._processor([centre_crop(picture.convert("RGB")) for picture in pictures])
        with without_tf32():
            return self._vision(pixels.to(self._device, self._dtype)).float().cpu()

    @torch.inference_mode()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Captions, at least one -> float32 [n, dim] on the CPU; long captions are truncated."""
        ids = self._tokenizer(list(captions)).trimmed().ids
        with without_tf32():
            return self._text(ids.to(self._device)).embed.float().cpu()


@dataclass(frozen=True, kw_only=True)
class _PairConfig(Config):
    """The configuration of both towers, from the `config.json` of transformers' `CLIPModel`."""

    text: CLIPTextConfig
    vision: CLIPVisionConfig

    def architecture(self) -> Mapping[str, Any]:
        return {"model_type": "clip"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Missing values are the defaults of transformers' configuration classes.

        Raises `ValueError` for another model type.
        """
        if values.get("model_type") != "clip":
            raise ValueError(
                f"model_type is {values.get('model_type')!r}, not 'clip'; name a CLIP's folder, such as that of "
                "openai/clip-vit-large-patch14-336"
            )
        return cls(
            text=_tower(CLIPTextConfig, values, "text_config", TEXT_DEFAULTS),
            vision=_tower(CLIPVisionConfig, values, "vision_config", VISION_DEFAULTS),
        )


TOWER_DEFAULTS = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
TEXT_DEFAULTS = {
    **TOWER_DEFAULTS,
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
}
VISION_DEFAULTS = {
    **TOWER_DEFAULTS,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}


def _tower(config: type[C], values: Mapping[str, Any], key: str, defaults: Mapping[str, Any]) -> C:
    """A tower's configuration, with the pair's projection width; the `_dict` of older files takes precedence."""
    given = {**defaults, **(values.get(key) or {}), **(values.get(f"{key}_dict") or {})}
    known = {field.name for field in fields(config)}  # type: ignore[arg-type]  # every configuration is a dataclass
    width = values.get("projection_dim", 512)
    return config.from_dict({**{name: given[name] for name in known & given.keys()}, "projection_dim": width})


class _Pair(nn.Module):
    """Both towers, with the tensor names of a `CLIPModel` file."""

    def __init__(self, config: _PairConfig) -> None:
        super().__init__()
        self.config = config
        text, vision = CLIPText(config.text), CLIPVision(config.vision)
        self.text_model, self.text_projection = text.text_model, text.text_projection
        self.vision_model, self.visual_projection = vision.vision_model, vision.visual_projection
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self._towers = (vision, text)  # in a tuple, so that their weights are not registered twice

    @property
    def towers(self) -> tuple[CLIPVision, CLIPText]:
        """The vision and text tower; their modules are those of this pair."""
        return self._towers
