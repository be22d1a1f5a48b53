"""The parts of a pipeline one by one, as code written against diffusers knows them: each in a folder of its own, or handed
over by another pipeline.

`model.py` knows a model's folders whole; here the parts may come from anywhere, and go into a new folder again.
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from kandinsky22.checkpoints import catalog, hub
from kandinsky22.checkpoints.about import CheckpointError, read_json, write_json
from kandinsky22.checkpoints.model import StoredDecoder, StoredPrior
from kandinsky22.checkpoints.schedulers import FILE as SCHEDULER_FILE
from kandinsky22.checkpoints.schedulers import Scheduler, scheduler_of
from kandinsky22.checkpoints.store import Stored, save, weights_file
from kandinsky22.checkpoints.tokenizer import load_tokenizer, save_tokenizer
from kandinsky22.checkpoints.zero_image import zero_image_embed
from kandinsky22.models.clip import CLIPImageProcessor, CLIPText, CLIPTextConfig, CLIPVision, CLIPVisionConfig
from kandinsky22.models.config import Config
from kandinsky22.models.movq import MoVQ, MoVQConfig
from kandinsky22.models.prior import PriorConfig, PriorTransformer
from kandinsky22.models.tokenizer import Tokenizer
from kandinsky22.models.unet import UNet, UNetConfig

INDEX, PROCESSOR_FILE = "model_index.json", "preprocessor_config.json"
PREFIX = "prior_"  # of the prior's parts in a pipeline that has both
NOT_HERE = {
    "cache_dir": "set HF_HOME instead",
    "token": "log in with `hf auth login` instead",
    "proxies": "set HTTPS_PROXY instead",
    "force_download": "remove it from the hub's cache instead",
    "device_map": "use .to(device) or enable_model_cpu_offload() instead",
    "quantization_config": "choose a dtype instead",
    "custom_pipeline": "only the published pipelines are here",
}
"""What else `from_pretrained` takes elsewhere, and what to do here instead."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
IN_ANY_CASE = {"use_safetensors", "low_cpu_mem_usage"}  # what they ask for is done here, or changes nothing


def dtype_of(given: Any) -> torch.dtype:
    """A dtype by itself or by its name. Raises `ValueError` for one that networks are not computed in."""
    dtype = DTYPES.get(given) if isinstance(given, str) else given
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES.values():
        raise ValueError(f"dtype must be one for all, such as torch.float16, of {', '.join(DTYPES)}; got {given!r}")
    return dtype


@dataclass(frozen=True)
class Loading:
    """How `from_pretrained` was asked to load."""

    dtype: torch.dtype = torch.float32
    variant: str | None = None
    revision: str | None = None
    local_files_only: bool = False

    @classmethod
    def of(cls, how: Mapping[str, Any]) -> Self:
        """From its keywords. Raises `ValueError` for those that are not supported, `TypeError` for unknown ones."""
        for name, value in how.items():
            if name in NOT_HERE and value not in (None, False):
                raise ValueError(f"{name} is not supported: {NOT_HERE[name]}")
            if name not in {"torch_dtype", *cls.__dataclass_fields__, *NOT_HERE, *IN_ANY_CASE}:
                raise TypeError(f"from_pretrained has no argument {name!r}")
        dtype = how.get("dtype") or how.get("torch_dtype") or torch.float32
        return cls(dtype_of(dtype), how.get("variant"), how.get("revision"), bool(how.get("local_files_only")))

    def folder(self, name: str | Path) -> Path:
        """The folder of a pipeline by its path or its name on the hub, fetched if need be. Raises `CheckpointError`."""
        return hub.snapshot(
            str(name),
            revision=self.revision,
            variant=self.variant,
            local_files_only=self.local_files_only,
            say=lambda text: print(text, file=sys.stderr),
        )


class Kind(NamedTuple):
    """A kind of network: its class, its configuration's, and what its file is called."""

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
"""The networks, by the names of the folders they are in."""


def _dtype(network: nn.Module) -> torch.dtype:
    """The dtype that a network's numbers are in."""
    return next(network.parameters()).dtype


for _kind_of in KINDS.values():  # programs read `pipe.unet.dtype`; asked each time, it is right after any `.to` as well
    _kind_of.network.dtype = property(_dtype)
CHANNELS = {catalog.DECODER: (4, False), catalog.INPAINT: (9, False), catalog.DEPTH: (8, True)}
"""What a U-Net of each kind of task takes: how many channels, and whether a hint makes some of them."""


class Part(Stored[Any, Any]):
    """A network of a pipeline: in its folder until it is first needed, or handed over.

    `shared` says whether all pipelines that have the part have one and the same network; else each reads its own, to send it
    where it wants. Raises `CheckpointError` as `Stored` does, when it is first looked at.
    """

    shared = True

    def __init__(self, kind: str, folder: Path | None, variant: str | None = None) -> None:
        self.kind, self.variant = KINDS[kind], variant
        self.folder = folder or Path(kind)
        self.given = folder is None
        self.network: nn.Module | None = None

    @classmethod
    def of(cls, name: str, network: Any) -> Self:
        """The part `name` as it was handed over: a part, or a network. Raises `ValueError` for anything else."""
        if isinstance(network, cls):
            return network
        kind = KINDS[name]
        if not isinstance(getattr(network, "_orig_mod", network), kind.network):  # torch.compile wraps one
            raise ValueError(
                f"{name} must be a {kind.network.__name__} of kandinsky22, got {type(network).__name__}; save yours with "
                "save_pretrained and pass the pipeline's folder to from_pretrained"
            )
        part = cls(name, None)
        part.network = network
        return part

    @cached_property
    def stored(self) -> Stored[Any, Any]:
        """The network in its folder."""
        stored = Stored(self.folder, self.kind.network, self.kind.config)
        stored.path = weights_file(self.folder, self.variant)
        return stored

    @property
    def config(self) -> Any:
        """The network's configuration."""
        return self.network.config if self.network is not None else self.stored.config

    @property
    def elements(self) -> int:
        """How many numbers the network is."""
        if self.network is None:
            return self.stored.elements
        return sum(value.numel() for value in self.network.state_dict().values())

    def load(self, dtype: torch.dtype, device: torch.device) -> Any:
        """The network, in a dtype on a device: the shared one, wherever it was, or one of its own."""
        network = self.stored.load(dtype, device) if self.network is None else self.network.to(device, dtype)
        self.network = network if self.shared or self.given else None
        return network

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the network, or of its file while it was not read."""
        return self.stored.dtype if self.place is None else self.place[1]

    @property
    def place(self) -> tuple[torch.device, torch.dtype] | None:
        """Where the network is and in which dtype, if it was read."""
        if self.network is None:
            return None
        first = next(self.network.parameters())
        return first.device, first.dtype


class PriorParts(StoredPrior):
    """What the prior's stage needs, part by part.

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
                f"prior, text encoder and tokenizer are not of one model: their embeddings have {dim}, {text.projection_dim} "
                f"numbers, and texts {prior.config.num_embeddings}, {tokenizer.max_length} tokens; load them from one folder"
            )

    def image_processor(self) -> CLIPImageProcessor:
        """How pictures are prepared for CLIP's vision tower."""
        return self._processor

    @torch.no_grad()
    def zero_image_embed(self) -> Tensor:
        """float32 [1, D]: see `zero_image.py`; of an encoder that was handed over, by itself."""
        encoder = self.image_encoder
        assert isinstance(encoder, Part)
        if encoder.place is None and encoder.folder.name == catalog.IMAGE_ENCODER:
            return zero_image_embed(encoder.folder.parent)
        config: CLIPVisionConfig = encoder.config
        device, dtype = encoder.place or (torch.device("cpu"), torch.float32)
        zeros = torch.zeros(1, config.num_channels, config.image_size, config.image_size, device=device, dtype=dtype)
        return encoder.load(dtype, device)(zeros).float()


class DecoderParts(StoredDecoder):
    """What a decoder's stage needs, part by part. Raises `CheckpointError` for the U-Net of another task than `kind`."""

    def __init__(self, kind: str, *, unet: Part, movq: Part, scheduler: Scheduler) -> None:
        self.kind, self.unet, self.movq, self.scheduler = kind, unet, movq, scheduler.config
        given = unet.config.in_channels, unet.config.hinted
        if given != CHANNELS[kind]:
            holds = next((name for name, channels in CHANNELS.items() if channels == given), "an unknown task")
            raise CheckpointError(f"the U-Net in {unet.folder} is that of {holds}; this pipeline needs one of {kind}")


def read(folder: Path, names: Iterable[str], variant: str | None = None) -> dict[str, Any]:
    """Those parts of a pipeline's folder that are there, of the names asked for; networks as `Part`, not yet read. Raises
    `CheckpointError` for what cannot be understood."""
    return {name: _read(folder / name, _kind(name), variant) for name in names if (folder / name).is_dir()}


def class_name(folder: Path) -> str:
    """The pipeline's class that a folder is of. Raises `CheckpointError` where it is none of Kandinsky 2.2."""
    name = str(read_json(folder / INDEX).get("_class_name"))
    if not name.startswith("KandinskyV22"):
        raise CheckpointError(f"{folder} holds a {name}; this package is for Kandinsky 2.2")
    return name


def write(folder: Path, name: str, parts: Mapping[str, Any], dtype: torch.dtype, variant: str | None = None) -> None:
    """A pipeline's folder of the class `name`, in the published layout."""
    published = {**catalog.PRIOR_INDEX, **catalog.DECODER_INDEX}
    index: dict[str, Any] = {"_class_name": name}
    for part, value in sorted(parts.items()):
        place, kind = folder / part, _kind(part)
        index[part] = published[kind]
        if isinstance(value, Part):
            network = value.stored.load(dtype, torch.device("cpu")) if value.network is None else value.network
            save(place, network, dtype=dtype, name=KINDS[kind].file + (f".{variant}" if variant else ""))
        elif kind == "tokenizer":
            save_tokenizer(place, value)
        elif kind == "scheduler":
            index[part] = ["diffusers", type(value).__name__]
            write_json(place / SCHEDULER_FILE, value.config)
        else:
            write_json(place / PROCESSOR_FILE, value.to_dict())
    write_json(folder / INDEX, index)


def taken(name: str, value: Any) -> Any:
    """A part as it was handed over, as this package has it. Raises `ValueError` for what is not supported."""
    kind = _kind(name)
    if kind in KINDS:
        return Part.of(kind, value)
    if kind == "scheduler":
        return scheduler_of(value)
    wanted: type[Any] = Tokenizer if kind == "tokenizer" else CLIPImageProcessor
    if not isinstance(value, wanted):
        raise ValueError(f"{name} must be this package's {wanted.__name__}, got {type(value).__name__}; leave it out")
    return value


def prior_beside(folder: Path) -> str:
    """Where a decoder's prior is: the folder `prior` next to it, or what its model card says. Raises `CheckpointError`."""
    beside = folder.parent / catalog.PRIOR
    named = hub.prior_of(folder)
    if named and Path(named).expanduser().is_dir():
        return named
    if (beside / INDEX).is_file():
        return str(beside)
    if named is None:
        raise CheckpointError(
            f"{folder} does not say where its prior is (`prior:` in the front matter of README.md); pass prior=FOLDER"
        )
    return named


def _kind(name: str) -> str:
    """What a part is, whichever of the two networks of a pipeline it belongs to."""
    return name.removeprefix(PREFIX)


def _read(place: Path, kind: str, variant: str | None) -> Any:
    if kind in KINDS:
        return Part(kind, place, variant)
    if kind == "tokenizer":
        return load_tokenizer(place)
    if kind == "scheduler":
        return scheduler_of(read_json(place / SCHEDULER_FILE))
    return CLIPImageProcessor.from_dict(read_json(place / PROCESSOR_FILE))
