"""Networks that turn pictures into features: Inception for FID and KID, a CLIP for CMMD and the CLIP score.

Weights are a model's own, or a file's or folder's that the user names; nothing is fetched. What a number depends on is said by
a network's `name`, `fingerprint` and `resize`.
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
from kandinsky22.checkpoints.json_files import CheckpointError, read_json
from kandinsky22.checkpoints.model import StoredPrior
from kandinsky22.checkpoints.network import Stored
from kandinsky22.checkpoints.tokenizer import load_tokenizer
from kandinsky22.checkpoints.verify import sha256
from kandinsky22.checkpoints.weight_files import weight_files
from kandinsky22.evaluation import inception
from kandinsky22.evaluation.resize import WAYS, centre_crop
from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from kandinsky22.models.config import Config
from kandinsky22.models.tokenizer import Tokenizer

C = TypeVar("C", bound=Config)


class Features(Protocol):
    """A feature network and how pictures are prepared for it."""

    @property
    def name(self) -> str:
        """What it is called, such as "inception-2015"."""

    @property
    def fingerprint(self) -> str:
        """What tells its weights from others: the SHA-256 of a file that the user named."""

    @property
    def resize(self) -> str:
        """How pictures become its pixels, in words; features of pictures that became so otherwise are not comparable."""

    @property
    def dim(self) -> int:
        """Numbers of a feature."""

    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Pictures of any sizes, at least one -> float32 [n, dim] on the CPU; all go through the network at once."""


@contextmanager
def in_float32() -> Iterator[None]:
    """Float32 on CUDA is float32 for as long, and not TF32, which keeps ten binary digits, whatever the process has set."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


class InceptionFeatures:
    """The last pool of the Inception network of 2015, [n, 2048].

    path: see `inception.load`. resize: one of `resize.WAYS`. crop: whether to take the middle square first, as COCO's 30,000
    are; clean-fid takes pictures whole, however that distorts them. Raises `CheckpointError`, and `ValueError` for another way.
    """

    name, dim = inception.NAME, inception.DIM

    def __init__(
        self, path: Path, resize: str = "clean", device: torch.device | str = "cpu", *, crop: bool = True
    ) -> None:
        if resize not in WAYS:
            raise ValueError(f"pictures are resized by one of {', '.join(WAYS)}, got {resize!r}")
        request_huge_pages()
        self._network, self.fingerprint = inception.load(path)
        self._network.to(device)
        self._way, self._device, self._crop = WAYS[resize], device, crop
        self.resize = f"{'centre crop, ' if crop else ''}{resize} to {inception.SIDE}"

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """See `Features`."""
        squares = map(centre_crop, pictures) if self._crop else pictures
        pixels = torch.stack([self._way.resize(picture, inception.SIDE) for picture in squares]).to(self._device)
        with in_float32():
            return self._network((pixels - self._way.centre) / self._way.centre).cpu()


class ClipFeatures:
    """The embeddings of a CLIP, [n, D], not of unit length: of pictures when it is called, of captions by `texts`.

    Pictures are cut to the middle square first, as CMMD does, then prepared as the CLIP's own file says.
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
        """The two towers that a model itself works with. Raises `CheckpointError`."""
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
        """A CLIP in a folder as transformers saves `CLIPModel`, such as openai/clip-vit-large-patch14-336 for CMMD and
        openai/clip-vit-base-patch32 for the CLIP score: config.json, the weights, preprocessor_config.json, vocab.json,
        merges.txt and tokenizer_config.json.

        Raises `CheckpointError` where any is missing or damaged, or is not of that CLIP.
        """
        request_huge_pages()
        stored = Stored(folder, _Pair, _PairConfig)
        tokenizer = load_tokenizer(folder)
        processor = CLIPImageProcessor.from_dict(read_json(folder / "preprocessor_config.json"))
        text, vision = stored.config.text, stored.config.vision
        for what, one, other in (
            ("tokens", len(tokenizer.vocab), text.vocab_size),
            ("pixels a side", processor.crop_size, vision.image_size),
        ):
            if one != other:
                raise CheckpointError(
                    f"the files of {folder} are not of one CLIP: they tell of {one} and of {other} {what}; fetch them again"
                )
        pair = stored.load(dtype, torch.device(device))
        fingerprint = "+".join(map(sha256, weight_files(stored.path)))
        return cls(*pair.towers, processor, tokenizer, name=folder.resolve().name, fingerprint=fingerprint)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image]) -> Tensor:
        """See `Features`."""
        pixels = self._processor([centre_crop(picture.convert("RGB")) for picture in pictures])
        with in_float32():
            return self._vision(pixels.to(self._device, self._dtype)).float().cpu()

    @torch.inference_mode()
    def texts(self, captions: Sequence[str]) -> Tensor:
        """Captions, at least one -> float32 [n, dim] on the CPU; what does not fit the text tower is left out."""
        ids = self._tokenizer(list(captions)).trimmed().ids
        with in_float32():
            return self._text(ids.to(self._device)).embed.float().cpu()


@dataclass(frozen=True, kw_only=True)
class _PairConfig(Config):
    """Both towers, from the `config.json` of transformers' `CLIPModel`."""

    text: CLIPTextConfig
    vision: CLIPVisionConfig

    def architecture(self) -> Mapping[str, Any]:
        return {"model_type": "clip"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Raises `ValueError` for another kind of model. What a file leaves out is the value of transformers' own classes."""
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
    """A tower's configuration; old files say some of it again in a `_dict`, which counts. Both project to the pair's width."""
    said = {**defaults, **(values.get(key) or {}), **(values.get(f"{key}_dict") or {})}
    known = {field.name for field in fields(config)}  # type: ignore[arg-type]  # every configuration is a dataclass
    width = values.get("projection_dim", 512)
    return config.from_dict({**{name: said[name] for name in known & said.keys()}, "projection_dim": width})


class _Pair(nn.Module):
    """Both towers under the names of one file."""

    def __init__(self, config: _PairConfig) -> None:
        super().__init__()
        self.config = config
        text, vision = CLIPText(config.text), CLIPVision(config.vision)
        self.text_model, self.text_projection = text.text_model, text.text_projection
        self.vision_model, self.visual_projection = vision.vision_model, vision.visual_projection
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self._towers = (vision, text)  # no modules of this one: their parts are

    @property
    def towers(self) -> tuple[CLIPVision, CLIPText]:
        """They share their parts with this pair."""
        return self._towers
