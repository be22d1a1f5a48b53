"""The parts of a pipeline, as code written for diffusers uses them: each in its own folder, or passed in as an object.

`model.py` reads the folders of a whole model; here the parts may come from anywhere, and are saved to a new folder.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from kandinsky22.checkpoints import catalog, hub
from kandinsky22.checkpoints.dtypes import NETWORK_DTYPES, network_dtype
from kandinsky22.checkpoints.json_files import CheckpointError, read_json, write_json
from kandinsky22.checkpoints.model import check_processor
from kandinsky22.checkpoints.network import Stored, read_config, save
from kandinsky22.checkpoints.schedulers import FILE as SCHEDULER_FILE
from kandinsky22.checkpoints.schedulers import Scheduler, read_scheduler, scheduler_of
from kandinsky22.checkpoints.tokenizer import load_tokenizer, save_tokenizer
from kandinsky22.checkpoints.zero_image import zero_image_embed
from kandinsky22.console import echo
from kandinsky22.files import expand
from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from kandinsky22.models.config import Config
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.tokenizer import Tokenizer
from kandinsky22.models.unet import UNet, UNetConfig

INDEX, PROCESSOR_FILE = "model_index.json", "preprocessor_config.json"
PREFIX = "prior_"  # of the prior's parts, in a pipeline that has a prior and a decoder
UNSUPPORTED = {
    "cache_dir": "set HF_HOME instead",
    "token": "log in with `hf auth login` instead",
    "proxies": "set HTTPS_PROXY instead",
    "force_download": "remove it from the hub's cache instead",
    "device_map": "use .to(device) or enable_model_cpu_offload() instead",
    "quantization_config": "choose a dtype instead",
    "custom_pipeline": "only the published pipelines are supported",
}
"""diffusers' other arguments of `from_pretrained`, and what to do instead."""
IGNORED = {"use_safetensors", "low_cpu_mem_usage"}  # always so here, or without effect


def dtype_of(value: Any) -> torch.dtype:
    """A dtype by itself or by its name. Raises `ValueError` for one that networks are not computed in."""
    dtype = network_dtype(value)
    if dtype is None:
        raise ValueError(
            f"dtype must be one for all, such as torch.float16, of {', '.join(NETWORK_DTYPES)}; got {value!r}"
        )
    return dtype


@dataclass(frozen=True)
class LoadOptions:
    """The arguments of `from_pretrained`."""

    dtype: torch.dtype = torch.float32
    variant: str | None = None
    revision: str | None = None
    local_files_only: bool = False

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> Self:
        """From keyword arguments. Raises `ValueError` for unsupported ones, `TypeError` for unknown ones."""
        for name, value in kwargs.items():
            if name in UNSUPPORTED and value not in (None, False):
                raise ValueError(f"{name} is not supported: {UNSUPPORTED[name]}")
            if name not in {"torch_dtype", *cls.__dataclass_fields__, *UNSUPPORTED, *IGNORED}:
                raise TypeError(f"from_pretrained has no argument {name!r}")
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype") or torch.float32
        return cls(dtype_of(dtype), kwargs.get("variant"), kwargs.get("revision"), bool(kwargs.get("local_files_only")))

    def folder(self, name: str | Path) -> Path:
        """The folder of a pipeline, given its path or its name on the hub, from where it is fetched if it is missing.

        Raises `CheckpointError`.
        """
        return hub.snapshot(
            str(name),
            revision=self.revision,
            variant=self.variant,
            local_files_only=self.local_files_only,
            say=lambda text: echo(text, error=True),
        )


class Kind(NamedTuple):
    """A kind of network: its class, its configuration's class, and the name of its weight file."""

    network: type[Any]
    config: type[Config]
    file: str


KINDS = {
    "unet": Kind(UNet, UNetConfig, "diffusion_pytorch_model"),
    "movq": Kind(MoVQ, MoVQConfig, "diffusion_pytorch_model"),
    "prior": Kind(PriorTransformer, PriorConfig, "diffusion_pytorch_model"),
    "text_encoder": Kind(CLIPText, CLIPTextConfig, "model"),
    "image_encoder": Kind(CLIPVision, CLIPVisionConfig, "model"),
}
"""The networks, by the names of their folders."""
CHANNELS = {catalog.DECODER: (4, False), catalog.INPAINT: (9, False), catalog.DEPTH: (8, True)}
"""The input channels of each decoder's U-Net, and whether some of them are made from a hint."""


class Part:
    """A network of a pipeline: in its folder until it is first loaded, or passed in as an object. A `NetworkSource`.

    shared: whether all pipelines that have the part use the same network; otherwise each reads its own, to move it
    independently. Raises `CheckpointError` as `Stored` does, when it is first used.
    """

    def __init__(self, kind: str, folder: Path | None, variant: str | None = None) -> None:
        self.kind, self.variant = KINDS[kind], variant
        self.folder = folder or Path(kind)
        self.passed_in = folder is None
        self.shared = True
        self.network: nn.Module | None = None

    @classmethod
    def of(cls, name: str, value: Any) -> Self:
        """The part `name` from a part or a network. Raises `ValueError` for anything else."""
        if isinstance(value, cls):
            return value
        kind = KINDS[name]
        if not isinstance(getattr(value, "_orig_mod", value), kind.network):  # torch.compile wraps it
            raise ValueError(
                f"{name} must be a {kind.network.__name__} of kandinsky22, got {type(value).__name__}; save yours with "
                "save_pretrained and pass the pipeline's folder to from_pretrained"
            )
        part = cls(name, None)
        part.network = value
        return part

    @cached_property
    def stored(self) -> Stored[Any, Any]:
        """The network in its folder."""
        return Stored(self.folder, self.kind.network, self.kind.config, self.variant)

    @property
    def outline(self) -> Any:
        """The network: on the meta device, or the one that was loaded."""
        return self.stored.outline if self.network is None else self.network

    @property
    def config(self) -> Any:
        """The network's configuration."""
        return self.outline.config

    @property
    def elements(self) -> int:
        """How many numbers the network's parameters and buffers have."""
        return sum(value.numel() for value in self.outline.state_dict().values())

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that identify the weights. Raises `CheckpointError` for a network passed in."""
        if self.passed_in:
            raise CheckpointError("a network that was passed in has no fingerprint; save it, and load its folder")
        return self.stored.fingerprint

    def load(self, dtype: torch.dtype, device: torch.device) -> Any:
        """The network, in a dtype on a device: the shared one, moved there, or one read for the caller."""
        network = self.stored.load(dtype, device) if self.network is None else self.network.to(device, dtype)
        self.network = network if self.shared or self.passed_in else None
        return network

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network, or of its file as long as it is not loaded."""
        return self.stored.dtype if self.location is None else self.location[1]

    @property
    def location(self) -> tuple[torch.device, torch.dtype] | None:
        """The device and dtype of the network, if it is loaded."""
        if self.network is None:
            return None
        first = next(self.network.parameters())
        return first.device, first.dtype


class PriorParts:
    """What the prior's stage is made of, part by part. A `PriorSource`.

    Raises `CheckpointError` where the parts do not fit each other.
    """

    def __init__(
        self,
        *,
        prior: Part,
        text_encoder: Part,
        image_encoder: Part,
        tokenizer: Tokenizer,
        scheduler: Scheduler,
        image_processor: CLIPImageProcessor,
    ) -> None:
        self.prior, self.text_encoder, self.tokenizer = prior, text_encoder, tokenizer
        self.image_encoder = image_encoder
        self.scheduler, self._processor = scheduler.config, image_processor
        text, dim = text_encoder.config, prior.config.embedding_dim
        if {text.hidden_size, text.projection_dim} != {dim} or tokenizer.max_length != prior.config.num_embeddings:
            raise CheckpointError(
                f"prior, text encoder and tokenizer are not of one model: their embeddings have {dim}, "
                f"{text.projection_dim} numbers, and texts {prior.config.num_embeddings}, {tokenizer.max_length} "
                "tokens; load them from one folder"
            )

    @property
    def linear_prior(self) -> Part:
        """Raises `CheckpointError`: pipelines have no linear prior."""
        raise CheckpointError("a pipeline has no linear prior; load the model with kandinsky22.Kandinsky to use it")

    @property
    def space(self) -> str:
        """What identifies the space of its embeddings: the text tower."""
        return self.text_encoder.fingerprint

    def image_processor(self) -> CLIPImageProcessor:
        """How pictures are prepared for CLIP's vision tower."""
        return check_processor(self.image_encoder.folder, self._processor, self.image_encoder.config)

    @torch.no_grad()
    def zero_image_embed(self) -> Tensor:
        """The embedding of the all-zero picture, float32 [1, D]: see `zero_image.py`."""
        encoder = self.image_encoder
        if encoder.location is None and encoder.folder.name == catalog.IMAGE_ENCODER:
            return zero_image_embed(encoder.folder.parent)
        config: CLIPVisionConfig = encoder.config
        device, dtype = encoder.location or (torch.device("cpu"), torch.float32)
        zeros = torch.zeros(1, config.num_channels, config.image_size, config.image_size, device=device, dtype=dtype)
        return encoder.load(dtype, device)(zeros).float()


class DecoderParts:
    """What a decoder's stage is made of, part by part. A `DecoderSource`.

    Raises `CheckpointError` where the U-Net is that of another task than `kind`.
    """

    def __init__(self, kind: str, *, unet: Part, movq: Part, scheduler: Scheduler) -> None:
        self.kind, self.unet, self.movq, self.scheduler = kind, unet, movq, scheduler.config
        inputs = unet.config.in_channels, unet.config.hinted
        if inputs != CHANNELS[kind]:
            actual = next((name for name, channels in CHANNELS.items() if channels == inputs), "an unknown task")
            raise CheckpointError(f"the U-Net in {unet.folder} is that of {actual}; this pipeline needs one of {kind}")


def read(folder: Path, names: Iterable[str], variant: str | None = None) -> dict[str, Any]:
    """The parts of these names that a pipeline's folder has, each network as a `Part`, not yet read.

    Raises `CheckpointError` for invalid parts.
    """
    return {name: _read(folder / name, _kind(name), variant) for name in names if (folder / name).is_dir()}


def class_name(folder: Path) -> str:
    """The class of the pipeline in a folder. Raises `CheckpointError` where it is none of Kandinsky 2.2."""
    name = str(read_json(folder / INDEX).get("_class_name"))
    if not name.startswith("KandinskyV22"):
        raise CheckpointError(f"{folder} contains a {name}; this package is for Kandinsky 2.2")
    return name


def write(folder: Path, name: str, parts: Mapping[str, Any], dtype: torch.dtype, variant: str | None = None) -> None:
    """Write the folder of a pipeline of the class `name`, in the published layout."""
    published = {**catalog.PRIOR_INDEX, **catalog.DECODER_INDEX}
    index: dict[str, Any] = {"_class_name": name}
    for part, value in sorted(parts.items()):
        target, kind = folder / part, _kind(part)
        index[part] = published[kind]
        if isinstance(value, Part):
            network = value.stored.load(dtype, torch.device("cpu")) if value.network is None else value.network
            save(target, network, dtype=dtype, name=KINDS[kind].file + (f".{variant}" if variant else ""))
        elif kind == "tokenizer":
            save_tokenizer(target, value)
        elif kind == "scheduler":
            index[part] = ["diffusers", type(value).__name__]
            write_json(target / SCHEDULER_FILE, value.config)
        else:
            write_json(target / PROCESSOR_FILE, value.to_dict())
    write_json(folder / INDEX, index)


def as_part(name: str, value: Any) -> Any:
    """A part that was passed in, as this package uses it. Raises `ValueError` for what is not supported."""
    kind = _kind(name)
    if kind in KINDS:
        return Part.of(kind, value)
    if kind == "scheduler":
        return scheduler_of(value)
    expected: type[Any] = Tokenizer if kind == "tokenizer" else CLIPImageProcessor
    if not isinstance(value, expected):
        raise ValueError(f"{name} must be this package's {expected.__name__}, got {type(value).__name__}; leave it out")
    return value


def find_prior(folder: Path) -> str:
    """Where a decoder's prior is: the folder `prior` beside it, or what its card names. Raises `CheckpointError`."""
    beside = folder.parent / catalog.PRIOR
    named = hub.prior_of(folder)
    if named and expand(named).is_dir():
        return named
    if (beside / INDEX).is_file():
        return str(beside)
    if named is None:
        raise CheckpointError(
            f"{folder} does not say where its prior is (`prior:` in the front matter of README.md); pass prior=FOLDER"
        )
    return named


def _kind(name: str) -> str:
    """The kind of a part, without the prefix of a prior's."""
    return name.removeprefix(PREFIX)


def _read(folder: Path, kind: str, variant: str | None) -> Any:
    if kind in KINDS:
        return Part(kind, folder, variant)
    if kind == "tokenizer":
        return load_tokenizer(folder)
    if kind == "scheduler":
        return scheduler_of(read_scheduler(folder))
    return read_config(folder / PROCESSOR_FILE, CLIPImageProcessor)
