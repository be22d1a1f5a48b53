"""Pipelines as code written against diffusers knows them: named parts put together, that can be moved, saved, exchanged
and made into another pipeline. What a pipeline does when it is called, `pipelines/__init__.py` says.

Networks are read when they are first needed. Without an accelerator float16 runs in float32, and says so once.
"""

import ast
import inspect
import warnings
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from rich.console import Console
from rich.progress import Progress

from kandinsky22.checkpoints import components
from kandinsky22.checkpoints.catalog import PRIOR_INDEX
from kandinsky22.checkpoints.components import PREFIX, LoadOptions, Part, dtype_of
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.engine.placement import Networks, Placement

LEAVE_OUT = "nothing would change here; leave the line out"
NOT_HERE = {
    "enable_xformers_memory_efficient_attention": LEAVE_OUT,
    "enable_attention_slicing": LEAVE_OUT,
    "enable_vae_slicing": LEAVE_OUT,
    "fuse_qkv_projections": LEAVE_OUT,
    "enable_freeu": "it is not for Kandinsky; leave the line out",
    "enable_group_offload": "use enable_sequential_cpu_offload()",
    "load_lora_weights": "merge the LoRA into the weights and load their folder",
    "push_to_hub": "use save_pretrained, and upload the folder with `hf upload`",
}
"""What else can be called elsewhere, and what to do here instead."""


class Output(Mapping[str, Any]):
    """A result: by attribute, by name, by place, as a tuple, or unpacked with `**`."""

    def __getitem__(self, key: Any) -> Any:
        return self.to_tuple()[key] if isinstance(key, int | slice) else vars(self)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))

    def to_tuple(self) -> tuple[Any, ...]:
        """The values alone."""
        return tuple(vars(self).values())


@dataclass(frozen=True, eq=False)
class ImagePipelineOutput(Output):
    """`images`: PIL pictures, or an array or tensor of them or of their latents."""

    images: Any


@dataclass(frozen=True, eq=False)
class KandinskyPriorPipelineOutput(Output):
    """CLIP image embeddings [B, D]: of what to paint, and of what to keep away from."""

    image_embeds: Any
    negative_image_embeds: Any


def signature_of(row: str) -> inspect.Signature:
    """The signature of a method with these arguments, such as "prompt steps=25"."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("self", kind)]
    for word in row.split():
        name, _, default = word.partition("=")
        value = ast.literal_eval(default) if default else inspect.Parameter.empty
        parameters.append(inspect.Parameter(name, kind, default=value))
    return inspect.Signature(parameters)


class Assembly:
    """Parts by name, where they are, and how they are told to run.

    A part is an attribute, and is exchanged by assigning another: a network or tokenizer of this package, any scheduler
    of the published classes. Raises `ValueError` for others.
    """

    PARTS: ClassVar[tuple[str, ...]]
    _device: torch.device = torch.device("cpu")
    _dtype: torch.dtype = torch.float32
    placement: Placement = "keep"
    _bar: Mapping[str, Any] = {}
    guidance_scale, num_timesteps = 1.0, 0  # of the latest call

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = {name: components.as_part(name, parts[name]) for name in self.PARTS}
        places = [part.location for part in self.parts.values() if isinstance(part, Part) and part.location]
        if places:  # made of another pipeline's parts: it goes on where they are
            self._device, self._dtype = places[0]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.PARTS:
            self.exchange(name, value)
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in type(self).PARTS:
            return self.part(name)
        what = f"{type(self).__name__} has no {name}"
        raise AttributeError(f"{what}: {NOT_HERE[name]}" if name in NOT_HERE else what)

    def part(self, name: str) -> Any:
        """A part; a network is read if it was not."""
        part = self.parts[name]
        return self.networks.get(part) if isinstance(part, Part) else part

    def exchange(self, name: str, value: Any) -> None:
        """Put another part in the place of one."""
        self.parts[name] = components.as_part(name, value)
        self._forget()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **how: Any) -> Self:
        """The pipeline in a folder, or in a repository "owner/name" of the hub.

        how: torch_dtype (or dtype), variant, revision, local_files_only; parts to use instead of the folder's; and for
        a pipeline with both networks `prior`, where the prior is, if the folder does not say so. Raises
        `CheckpointError`, and `ValueError` for what is not supported.
        """
        given = {name: how.pop(name) for name in cls.PARTS if name in how}
        both = PREFIX + "prior" in cls.PARTS
        prior = how.pop("prior", None) if both else None
        loading = LoadOptions.from_kwargs(how)
        folder = loading.folder(pretrained_model_name_or_path)
        kind = components.class_name(folder)
        parts = {**components.read(folder, cls.PARTS, loading.variant), **given}
        if both and not all(name in parts for name in cls.PARTS if name.startswith(PREFIX)):
            beside = replace(loading, revision=None).folder(prior or components.find_prior(folder))
            of_prior = components.read(beside, PRIOR_INDEX, loading.variant)
            parts = {PREFIX + name: part for name, part in of_prior.items()} | parts
        if missing := [name for name in cls.PARTS if parts.get(name) is None]:
            raise CheckpointError(f"{folder} holds a {kind}, and a {cls.__name__} also needs {', '.join(missing)}")
        return cls(**{name: parts[name] for name in cls.PARTS}).to(loading.dtype)

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, variant: str | None = None
    ) -> None:
        """Write a folder that this package and diffusers load; always safetensors. Raises `ValueError` where it is a
        file."""
        folder = Path(save_directory)
        if taken := [place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()]:
            raise ValueError(f"cannot save to {folder}: {taken[0]} is a file; choose a folder")
        components.write(folder, type(self).__name__, self.handles(), self._dtype, variant)

    @classmethod
    def made_of(cls, other: "Assembly", **parts: Any) -> Self:
        """A pipeline of another's parts, not copied, and of those given; it runs where the other does. Raises
        `ValueError` where some are missing."""
        found = other.handles() | parts
        if missing := [name for name in cls.PARTS if name not in found]:
            raise ValueError(f"a {cls.__name__} also needs {', '.join(missing)}; pass them")
        made = cls(**{name: found[name] for name in cls.PARTS})
        made.place(other.device, other.dtype, other.placement)
        return made

    def handles(self) -> dict[str, Any]:
        """The parts by name, networks not yet read as such."""
        return dict(self.parts)

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name; another pipeline can be made of them."""
        return {name: getattr(self, name) for name in self.PARTS}

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it was asked to compute in."""
        return self._dtype

    def to(self, *args: Any, device: Any = None, dtype: torch.dtype | str | None = None, **ignored: Any) -> Self:
        """Compute on a device, in a dtype, or both. Raises `ValueError` where this machine has no such device,
        and for other dtypes than float32, bfloat16 and float16."""
        dtype = next((arg for arg in args if isinstance(arg, torch.dtype)), dtype)
        device = next((arg for arg in args if arg is not None and not isinstance(arg, torch.dtype)), device)
        self.place(device, None if dtype is None else dtype_of(dtype), None if device is None else "keep")
        return self

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Have a network on the accelerator only while it works; where there is none, nothing changes."""
        self._come_and_go(device or _accelerator(gpu_id), "offload")

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Have a part of a network on the accelerator only while it works; where there is none, nothing changes."""
        self._come_and_go(device or _accelerator(gpu_id), "sequential")

    def place(self, device: Any = None, dtype: torch.dtype | None = None, placement: Placement | None = None) -> None:
        """Compute there, in that dtype, with networks that come and go like that; None is as before. Raises
        `ValueError`."""
        if device is not None:
            try:
                self._device = torch.empty(0, device=device).device
            except (RuntimeError, AssertionError) as error:
                raise ValueError(
                    f"the device {device!r} cannot be used here; leave the line out for the CPU"
                ) from error
        self._dtype, self.placement = dtype or self._dtype, placement or self.placement
        self._forget()

    def set_progress_bar_config(self, **config: Any) -> None:
        """disable, desc and leave, as tqdm means them; the rest of what it knows is taken and changes nothing."""
        self._bar = config

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the latest call was guided."""
        return self.guidance_scale > 1

    def now(self, guidance_scale: float, num_timesteps: int) -> None:
        """Note what is being done, for callbacks to look at."""
        self.guidance_scale, self.num_timesteps = guidance_scale, num_timesteps

    @cached_property
    def networks(self) -> Networks:
        """The networks, where they are to be."""
        for part in self.parts.values():
            if isinstance(part, Part):
                part.shared = self.placement == "keep"
        networks = Networks(self._device, self._dtype, self.placement)
        if networks.dtype == torch.float16 and self._device.type == "cpu":
            _say_once("float16 is slow and coarse on a CPU without acceleration, so this runs in float32")
            return Networks(self._device, torch.float32, self.placement)
        return networks

    def driven(self, stage: Generator[Any, None, Mapping[int, torch.Tensor]]) -> torch.Tensor:
        """What a stage makes of its only run, behind a progress bar."""
        console = Console(stderr=True)
        off = bool(self._bar.get("disable")) or not console.is_terminal
        with Progress(console=console, disable=off, transient=self._bar.get("leave") is False) as bar:
            task = bar.add_task(str(self._bar.get("desc") or ""), total=None)
            while True:
                try:
                    _, step = next(stage)
                except StopIteration as end:
                    made: torch.Tensor = end.value[0]
                    return made
                bar.update(task, completed=step.i, total=step.n)

    def _come_and_go(self, device: Any, placement: Placement) -> None:
        if device is not None:
            self.place(device, placement=placement)

    def _forget(self) -> None:
        """What was put together is put together anew when it is next needed."""
        vars(self).pop("networks", None)
        vars(self).pop("stage", None)


class Joint(Assembly):
    """A prior and a decoder as one pipeline: `prior_pipe`, whose parts are called prior_..., and `decoder_pipe`."""

    prior_pipe: Assembly
    decoder_pipe: Assembly

    def handles(self) -> dict[str, Any]:
        return self.decoder_pipe.handles() | {PREFIX + name: part for name, part in self.prior_pipe.handles().items()}

    def part(self, name: str) -> Any:
        return self._owner(name).part(name.removeprefix(PREFIX))

    def exchange(self, name: str, value: Any) -> None:
        self._owner(name).exchange(name.removeprefix(PREFIX), value)

    def place(self, *where: Any, **how: Any) -> None:
        super().place(*where, **how)
        for pipe in (self.prior_pipe, self.decoder_pipe):
            pipe.place(*where, **how)

    def set_progress_bar_config(self, **config: Any) -> None:
        for pipe in (self.prior_pipe, self.decoder_pipe):
            pipe.set_progress_bar_config(**config)

    def _owner(self, name: str) -> Assembly:
        return self.prior_pipe if name.startswith(PREFIX) else self.decoder_pipe


def _accelerator(gpu_id: int | None) -> str | None:
    """The accelerator of this machine, if it has one."""
    if torch.cuda.is_available():
        return f"cuda:{gpu_id or 0}"
    return "mps" if torch.backends.mps.is_available() else None


@cache
def _say_once(text: str) -> None:
    warnings.warn(text, stacklevel=2)
