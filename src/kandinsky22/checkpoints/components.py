"""The parts of a pipeline, as code written for diffusers uses them: each in its own folder, or passed in as an object.

`model.py` reads the folders of a whole model; here the parts may come from anywhere, and are saved to a new folder.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from kandinsky22.checkpoints import catalog, hub
from kandinsky22.checkpoints.dtypes import NETWORK_DTYPES, network_dtype
from kandinsky22.checkpoints.json_files import CheckpointError, read_json, write_json
from kandinsky22.checkpoints.model import check_processor
from kandinsky22.checkpoints.network import read_config, save
from kandinsky22.checkpoints.other_libraries import adopt_image_processor, adopt_tokenizer
from kandinsky22.checkpoints.part import KINDS, Part
from kandinsky22.checkpoints.schedulers import FILE as SCHEDULER_FILE
from kandinsky22.checkpoints.schedulers import Scheduler, read_scheduler, scheduler_of
from kandinsky22.checkpoints.tokenizer import load_tokenizer, save_tokenizer
from kandinsky22.checkpoints.weight_names import is_variant
from kandinsky22.checkpoints.zero_image import zero_image_embed
from kandinsky22.console import echo
from kandinsky22.files import expand
from kandinsky22.models.clip import CLIPImageProcessor, CLIPVisionConfig
from kandinsky22.models.tokenizer import Tokenizer

INDEX, PROCESSOR_FILE = "model_index.json", "preprocessor_config.json"
MISSING = [None, None]  # in an index: a part that the pipeline does without
PREFIX = "prior_"  # of the prior's parts, in a pipeline that has a prior and a decoder
UNSUPPORTED = {
    "proxies": "set HTTPS_PROXY instead",
    "force_download": "remove it from the hub's cache instead",
    "quantization_config": "choose a dtype instead",
    "custom_pipeline": "only the published pipelines are supported",
}
"""diffusers' other arguments of `from_pretrained`, and what to do instead."""
IGNORED = {
    "use_safetensors",
    "low_cpu_mem_usage",
    "resume_download",
    "max_memory",
    "offload_folder",
    "load_connected_pipeline",
}
"""Arguments that are always so here, or without effect."""
DEFAULT_DTYPE = "default"  # the key of a mapping of dtypes for the parts that it does not name


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
    """The arguments of `from_pretrained`.

    dtypes: by the name of a part, and of all others by `DEFAULT_DTYPE`; None is the dtype of the part's file. device:
    where the networks are wanted; None: where they are loaded, on the CPU.
    """

    dtypes: Mapping[str, torch.dtype | None] = field(default_factory=dict)
    variant: str | None = None
    revision: str | None = None
    local_files_only: bool = False
    cache_dir: str | Path | None = None
    token: str | bool | None = None
    device: Any = None

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> Self:
        """From keyword arguments. Raises `ValueError` for unsupported ones, `TypeError` for unknown ones.

        An unknown one that is None, such as `safety_checker=None`, is accepted: there is nothing to leave out.
        """
        named = {"revision", "variant", "local_files_only", "cache_dir", "token"}
        for name, value in kwargs.items():
            if name in UNSUPPORTED and value not in (None, False):
                raise ValueError(f"{name} is not supported: {UNSUPPORTED[name]}")
            if value is not None and name not in {*named, *UNSUPPORTED, *IGNORED, "torch_dtype", "dtype", "device_map"}:
                raise TypeError(f"from_pretrained has no argument {name!r}")
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype") or torch.float32
        dtypes = dtype if isinstance(dtype, Mapping) else {DEFAULT_DTYPE: dtype}
        return cls(
            dtypes={DEFAULT_DTYPE: torch.float32}
            | {name: None if value == "auto" else dtype_of(value) for name, value in dtypes.items()},
            device=device_of(kwargs.get("device_map")),
            **{name: kwargs[name] for name in named if kwargs.get(name) is not None},
        )

    def folder(self, name: str | Path) -> Path:
        """The folder of a pipeline, given its path or its name on the hub, from where it is fetched if it is missing.

        Raises `CheckpointError`.
        """
        return hub.snapshot(
            str(name),
            revision=self.revision,
            variant=self.variant,
            local_files_only=self.local_files_only,
            cache=None if self.cache_dir is None else expand(str(self.cache_dir)),
            token=self.token if isinstance(self.token, str) else None,
            say=lambda text: echo(text, error=True),
        )

    def of_prior(self) -> Self:
        """For the prior of a decoder's folder, which is another repository and need not have the variant."""
        return replace(self, revision=None)

    def place(self, name: str, part: Part) -> None:
        """Open the part of a folder and have it in the dtype of these options. Raises `CheckpointError`."""
        part.open()
        dtype = self.dtypes.get(name, self.dtypes[DEFAULT_DTYPE])
        part.place(dtype=part.stored.dtype if dtype is None else dtype)


def device_of(device_map: Any) -> Any:
    """The device that a `device_map` names: one for all networks. Raises `ValueError` where it names several."""
    if isinstance(device_map, Mapping):
        if len(devices := set(map(str, device_map.values()))) != 1:
            raise ValueError(f"device_map must name one device for all networks, got {', '.join(sorted(devices))}")
        return next(iter(device_map.values()))
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return torch.accelerator.current_accelerator() or "cpu"
    return device_map


CHANNELS = {catalog.DECODER: (4, False), catalog.INPAINT: (9, False), catalog.DEPTH: (8, True)}
"""The input channels of each decoder's U-Net, and whether some of them are made from a hint."""


class _Parts:
    """Parts by name; one that a pipeline does without is None, and missed only when it is needed."""

    def __init__(self, **parts: Any) -> None:
        self._parts = parts

    def _part(self, name: str) -> Any:
        """A part. Raises `CheckpointError` where it is None."""
        if self._parts[name] is None:
            raise CheckpointError(f"this pipeline has no {name}; pass one to it, or load it from a folder that has one")
        return self._parts[name]

    def check_has(self, name: str) -> None:
        """Raises `CheckpointError` where a part is None."""
        self._part(name)

    def _has(self, *names: str) -> bool:
        return all(self._parts[name] is not None for name in names)


class PriorParts(_Parts):
    """What the prior's stage is made of, part by part. A `PriorSource`.

    Raises `CheckpointError` where the parts do not fit each other, and for a part that is None when it is needed.
    """

    def __init__(
        self,
        *,
        prior: Part | None,
        text_encoder: Part | None,
        image_encoder: Part | None,
        tokenizer: Tokenizer | None,
        scheduler: Scheduler | None,
        image_processor: CLIPImageProcessor | None,
    ) -> None:
        super().__init__(
            prior=prior,
            text_encoder=text_encoder,
            image_encoder=image_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
            image_processor=image_processor,
        )
        if not self._has("prior", "text_encoder", "tokenizer"):
            return
        text, prior_config = self.text_encoder.config, self.prior.config
        dim, tokens = prior_config.embedding_dim, prior_config.num_embeddings
        if {text.hidden_size, text.projection_dim} != {dim} or self.tokenizer.max_length != tokens:
            raise CheckpointError(
                f"prior, text encoder and tokenizer are not of one model: their embeddings have {dim}, "
                f"{text.projection_dim} numbers, and texts {tokens}, {self.tokenizer.max_length} "
                "tokens; load them from one folder"
            )

    @property
    def prior(self) -> Part:
        """The prior network."""
        part: Part = self._part("prior")
        return part

    @property
    def text_encoder(self) -> Part:
        """CLIP's text tower."""
        part: Part = self._part("text_encoder")
        return part

    @property
    def image_encoder(self) -> Part:
        """CLIP's vision tower."""
        part: Part = self._part("image_encoder")
        return part

    @property
    def tokenizer(self) -> Tokenizer:
        """The text encoder's tokenizer."""
        tokenizer: Tokenizer = self._part("tokenizer")
        return tokenizer

    @property
    def scheduler(self) -> Mapping[str, Any]:
        """The configuration of the noise schedule."""
        scheduler: Scheduler = self._part("scheduler")
        return scheduler.config

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
        encoder = self.image_encoder
        return check_processor(encoder.folder, self._part("image_processor"), encoder.config)

    @torch.no_grad()
    def zero_image_embed(self) -> Tensor:
        """The embedding of the all-zero picture, float32 [1, D]: see `zero_image.py`."""
        encoder = self.image_encoder
        if encoder.location is None and encoder.folder.name == catalog.IMAGE_ENCODER and encoder.folder.is_dir():
            return zero_image_embed(encoder.folder.parent)
        config: CLIPVisionConfig = encoder.config
        device, dtype = encoder.location or (torch.device("cpu"), torch.float32)
        zeros = torch.zeros(1, config.num_channels, config.image_size, config.image_size, device=device, dtype=dtype)
        return encoder.load(dtype, device)(zeros).float()


class DecoderParts(_Parts):
    """What a decoder's stage is made of, part by part. A `DecoderSource`.

    Raises `CheckpointError` where the U-Net is that of another task than `kind`, and for a part that is None when it is
    needed.
    """

    def __init__(self, kind: str, *, unet: Part | None, movq: Part | None, scheduler: Scheduler | None) -> None:
        super().__init__(unet=unet, movq=movq, scheduler=scheduler)
        self.kind = kind
        if unet is None:
            return
        inputs = unet.config.in_channels, unet.config.hinted
        if inputs != CHANNELS[kind]:
            actual = next((name for name, channels in CHANNELS.items() if channels == inputs), "an unknown task")
            raise CheckpointError(f"the U-Net in {unet.folder} is that of {actual}; this pipeline needs one of {kind}")

    @property
    def unet(self) -> Part:
        """The U-Net."""
        part: Part = self._part("unet")
        return part

    @property
    def movq(self) -> Part:
        """The autoencoder."""
        part: Part = self._part("movq")
        return part

    @property
    def scheduler(self) -> Mapping[str, Any]:
        """The configuration of the noise schedule."""
        scheduler: Scheduler = self._part("scheduler")
        return scheduler.config


def read(folder: Path, names: Iterable[str], variant: str | None = None) -> dict[str, Any]:
    """The parts of these names that a pipeline's folder has, each network as a `Part`, not yet read.

    A decoder's folder without MoVQ has that of the folder `decoder` beside it: they are the same. A part that the
    folder was saved without is None. Raises `CheckpointError` for invalid parts.
    """
    parts: dict[str, Any] = {}
    index = read_json(folder / INDEX)
    for name in names:
        target = folder / name
        if name == "movq" and not target.is_dir():
            target = folder.parent / catalog.DECODER / name
        if index.get(name) == MISSING:
            parts[name] = None
        elif target.is_dir():
            parts[name] = _read(target, _kind(name), variant)
    return parts


def check_variant(folder: Path, variant: str | None) -> None:
    """Raises `CheckpointError` where no network of a pipeline's folder has a file of the variant, as in diffusers."""
    names = [path.name for path in folder.glob("*/*") if path.is_file()]
    if variant is not None and not any(is_variant(name, variant) for name in names):
        raise CheckpointError(
            f"You are trying to load the model files of the `variant={variant}`, which {folder} does not have; leave "
            "variant out"
        )


def class_name(folder: Path) -> str:
    """The class of the pipeline in a folder. Raises `CheckpointError` where it is none of Kandinsky 2.2."""
    name = str(read_json(folder / INDEX).get("_class_name"))
    if not name.startswith("KandinskyV22"):
        raise CheckpointError(f"{folder} contains a {name}; this package is for Kandinsky 2.2")
    return name


def index_of(name: str, parts: Mapping[str, Any]) -> dict[str, Any]:
    """The `model_index.json` of a pipeline of the class `name`."""
    published = {**catalog.PRIOR_INDEX, **catalog.DECODER_INDEX}
    index: dict[str, Any] = {"_class_name": name}
    for part, value in sorted(parts.items()):
        is_scheduler = isinstance(value, Scheduler)
        index[part] = ["diffusers", type(value).__name__] if is_scheduler else published[_kind(part)]
        if value is None:
            index[part] = MISSING
    return index


def write(folder: Path, name: str, parts: Mapping[str, Any], variant: str | None = None) -> None:
    """Write the folder of a pipeline of the class `name`, in the published layout, each network in its dtype."""
    for part, value in parts.items():
        target, kind = folder / part, _kind(part)
        if isinstance(value, Part):
            save(target, value.weights(), dtype=value.dtype, name=KINDS[kind].file + (f".{variant}" if variant else ""))
        elif kind == "tokenizer" and value is not None:
            save_tokenizer(target, value)
        elif kind == "scheduler" and value is not None:
            write_json(target / SCHEDULER_FILE, value.config)
        elif value is not None:
            write_json(target / PROCESSOR_FILE, value.to_dict())
    write_json(folder / INDEX, index_of(name, parts))


def as_part(name: str, value: Any) -> Any:
    """A part that was passed in, as this package uses it; None is one to do without.

    Networks, tokenizers, image processors and schedulers may be those of diffusers and transformers. Raises
    `ValueError` for what is not supported.
    """
    kind = _kind(name)
    if value is None:
        return None
    if kind in KINDS:
        return Part.of(kind, value)
    if kind == "scheduler":
        return scheduler_of(value)
    if kind == "tokenizer":
        return value if isinstance(value, Tokenizer) else adopt_tokenizer(value)
    return value if isinstance(value, CLIPImageProcessor) else adopt_image_processor(value)


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
