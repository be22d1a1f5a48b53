"""What all pipelines have in common: named parts that can be loaded, moved, saved, replaced and shared.

A pipeline class declares diffusers' signature on `__call__` and computes in `run`; `calls_run` connects the two.
Networks are loaded when they are first needed. On a CPU without acceleration, float16 is computed in float32, with one
warning.
"""

import inspect
import warnings
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from functools import cache, cached_property, wraps
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, Self

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from kandinsky22.checkpoints import components
from kandinsky22.checkpoints.catalog import PRIOR_INDEX
from kandinsky22.checkpoints.components import PREFIX, LoadOptions, Part, dtype_of
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.console import text_column
from kandinsky22.engine.placement import Networks, Placement
from kandinsky22.engine.runs import Step
from kandinsky22.generators import Returning
from kandinsky22.pipelines.callbacks import StepCallbacks
from kandinsky22.pipelines.outputs import Output
from kandinsky22.pipelines.runs import StageOptions

P = ParamSpec("P")

LEAVE_OUT = "nothing would change here; leave the line out"
UNSUPPORTED = {
    "enable_xformers_memory_efficient_attention": LEAVE_OUT,
    "enable_attention_slicing": LEAVE_OUT,
    "enable_vae_slicing": LEAVE_OUT,
    "fuse_qkv_projections": LEAVE_OUT,
    "enable_freeu": "it is not for Kandinsky; leave the line out",
    "enable_group_offload": "use enable_sequential_cpu_offload()",
    "load_lora_weights": "merge the LoRA into the weights and load their folder",
    "push_to_hub": "use save_pretrained, and upload the folder with `hf upload`",
}
"""Methods of diffusers' pipelines that do not exist here, and what to do instead."""
NOT_NONE = ("image", "mask_image", "hint", "image_embeds")  # arguments that may not be None where a class has them
PROMPT_FOR_DECODER = (
    "only the prior takes a prompt: give it to KandinskyV22PriorPipeline and pass on what that returns, "
    "pipe(**prior_out), or use a Combined class, which has both networks"
)


def calls_run(declaration: Callable[P, Any]) -> Callable[P, Any]:
    """Decorator of a pipeline's `__call__`, of which the decorated function is only the signature and the docstring.

    The resulting method has that signature and passes all arguments but `return_dict`, by name, to the pipeline's
    `run`, without gradients. It returns what `run` returns, or its tuple if `return_dict` is false. Raises `ValueError`
    for a prompt where none is taken and for a missing input, `TypeError` for arguments that are not in the signature.
    """
    signature = inspect.signature(declaration)

    @torch.no_grad()
    @wraps(declaration)
    def __call__(*args: P.args, **kwargs: P.kwargs) -> Any:  # noqa: N807
        if "prompt" in kwargs and "prompt" not in signature.parameters:
            raise ValueError(PROMPT_FOR_DECODER)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        pipeline, return_dict = arguments.pop("self"), arguments.pop("return_dict")
        if missing := [name for name in NOT_NONE if name in arguments and arguments[name] is None]:
            raise ValueError(f"{' and '.join(missing)} must be given")
        output = pipeline.run(**arguments)
        return output if return_dict else output.to_tuple()

    return __call__


class Pipeline:
    """Named parts, the device and dtype they compute on, and the options of its calls.

    Each part is an attribute, and assigning another part replaces it: a network or tokenizer of this package, or any
    scheduler of the published classes. Raises `ValueError` for others.
    """

    __call__: Callable[..., Any]
    run: Callable[..., Output]
    """Computes a call's output from its arguments by name. Raises `ValueError` before any network runs."""
    PARTS: ClassVar[tuple[str, ...]]
    OUTPUT_TYPES: ClassVar[tuple[str, ...]]
    CALLBACK_TENSORS: ClassVar[tuple[str, ...]] = ("latents",)
    """The tensors that `callback_on_step_end` can be called with."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self._parts = {name: components.as_part(name, part) for name, part in parts.items()}
        loaded = [part.location for part in self._parts.values() if isinstance(part, Part) and part.location]
        # A part that another pipeline has loaded stays where it is.
        self._device, self._dtype = loaded[0] if loaded else (torch.device("cpu"), torch.float32)
        self.placement: Placement = "keep"
        self._progress_options: Mapping[str, Any] = {}
        self.guidance_scale, self.num_timesteps = 1.0, 0  # of the latest call; callbacks read them

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.PARTS:
            self.replace_part(name, value)
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in type(self).PARTS:
            return self.part(name)
        message = f"{type(self).__name__} has no {name}"
        raise AttributeError(f"{message}: {UNSUPPORTED[name]}" if name in UNSUPPORTED else message)

    @property
    def parts(self) -> dict[str, Any]:
        """The parts by name, each network as a `Part`, which this does not load."""
        return dict(self._parts)

    def part(self, name: str) -> Any:
        """A part by name; a network is loaded first."""
        part = self._parts[name]
        return self.networks.get(part) if isinstance(part, Part) else part

    def replace_part(self, name: str, value: Any) -> None:
        """Use another part under this name. Raises `ValueError` for one that is not supported."""
        self._parts[name] = components.as_part(name, value)
        self._discard_stage()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """The pipeline in a folder, or in a repository "owner/name" of the hub.

        kwargs: torch_dtype (or dtype), variant, revision, local_files_only; parts to use instead of the folder's; and
        for a pipeline with both networks `prior`, the prior's folder or repository, if the decoder does not name it.
        Raises `CheckpointError`, and `ValueError` for what is not supported.
        """
        passed = {name: kwargs.pop(name) for name in cls.PARTS if name in kwargs}
        has_prior = PREFIX + "prior" in cls.PARTS
        prior = kwargs.pop("prior", None) if has_prior else None
        options = LoadOptions.from_kwargs(kwargs)
        folder = options.folder(pretrained_model_name_or_path)
        class_name = components.class_name(folder)
        parts = {**components.read(folder, cls.PARTS, options.variant), **passed}
        if has_prior and not all(name in parts for name in cls.PARTS if name.startswith(PREFIX)):
            prior_folder = replace(options, revision=None).folder(prior or components.find_prior(folder))
            prior_parts = components.read(prior_folder, PRIOR_INDEX, options.variant)
            parts = {PREFIX + name: part for name, part in prior_parts.items()} | parts
        if missing := [name for name in cls.PARTS if parts.get(name) is None]:
            raise CheckpointError(
                f"{folder} holds a {class_name}, and a {cls.__name__} also needs {', '.join(missing)}"
            )
        return cls(**{name: parts[name] for name in cls.PARTS}).to(options.dtype)

    @classmethod
    def from_pipe(cls, pipeline: "Pipeline", **parts: Any) -> Self:
        """A pipeline that shares another's parts, device and dtype; `parts` replace those of the same name.

        Raises `ValueError` where some are missing.
        """
        available = pipeline.parts | parts
        if missing := [name for name in cls.PARTS if name not in available]:
            raise ValueError(f"a {cls.__name__} also needs {', '.join(missing)}; pass them")
        new = cls(**{name: available[name] for name in cls.PARTS})
        new.place(pipeline.device, pipeline.dtype, pipeline.placement)
        return new

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, variant: str | None = None
    ) -> None:
        """Write a folder that this package and diffusers load; always as safetensors.

        Raises `ValueError` if the folder or one above it is a file.
        """
        folder = Path(save_directory)
        if files := [path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()]:
            raise ValueError(f"cannot save to {folder}: {files[0]} is a file; choose a folder")
        components.write(folder, type(self).__name__, self.parts, self._dtype, variant)

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name, networks loaded; another pipeline can be constructed from them."""
        return {name: getattr(self, name) for name in self.PARTS}

    @property
    def device(self) -> torch.device:
        """The device it computes on."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """The requested dtype."""
        return self._dtype

    def to(self, *args: Any, device: Any = None, dtype: torch.dtype | str | None = None, **ignored: Any) -> Self:
        """Compute on a device, in a dtype, or both.

        Raises `ValueError` for a device that this machine does not have, and for dtypes other than float32, bfloat16
        and float16.
        """
        dtype = next((arg for arg in args if isinstance(arg, torch.dtype)), dtype)
        device = next((arg for arg in args if arg is not None and not isinstance(arg, torch.dtype)), device)
        self.place(device, None if dtype is None else dtype_of(dtype), None if device is None else "keep")
        return self

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keep each network on the accelerator only while it computes; without an accelerator nothing changes."""
        self._offload(device or _accelerator(gpu_id), "offload")

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: Any = None) -> None:
        """Keep each part of a network on the accelerator only while it computes; without one nothing changes."""
        self._offload(device or _accelerator(gpu_id), "sequential")

    def place(self, device: Any = None, dtype: torch.dtype | None = None, placement: Placement | None = None) -> None:
        """Set device, dtype and placement (see `Networks`) of the networks; None leaves one unchanged.

        Raises `ValueError` for a device that this machine does not have.
        """
        if device is not None:
            try:
                self._device = torch.empty(0, device=device).device
            except (RuntimeError, AssertionError) as error:
                raise ValueError(
                    f"the device {device!r} cannot be used here; leave the line out for the CPU"
                ) from error
        self._dtype, self.placement = dtype or self._dtype, placement or self.placement
        self._discard_stage()

    def set_progress_bar_config(self, **config: Any) -> None:
        """disable, desc and leave, with tqdm's meaning; other options are accepted and have no effect."""
        self._progress_options = config

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the latest call was guided."""
        return self.guidance_scale > 1

    @cached_property
    def networks(self) -> Networks:
        """The networks on their device."""
        for part in self._parts.values():
            if isinstance(part, Part):
                part.shared = self.placement == "keep"
        networks = Networks(self._device, self._dtype, self.placement)
        if networks.dtype == torch.float16 and self._device.type == "cpu":
            warn_once("float16 is slow and coarse on a CPU without acceleration, so this runs in float32")
            return Networks(self._device, torch.float32, self.placement)
        return networks

    def stage_options(
        self,
        *,
        num_inference_steps: Any,
        guidance_scale: Any,
        generator: Any,
        output_type: str,
        num_images_per_prompt: Any = 1,
        latents: Any = None,
        strength: Any = 1.0,
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Any = None,
        callback: Any = None,
        callback_steps: Any = 1,
    ) -> StageOptions:
        """The arguments that all calls have in common, under diffusers' names. Raises `ValueError` for wrong ones."""
        tensor_names = tuple(callback_on_step_end_tensor_inputs or ())
        if output_type not in self.OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(self.OUTPUT_TYPES)}, got {output_type!r}")
        if unknown := [name for name in tensor_names if name not in self.CALLBACK_TENSORS]:
            raise ValueError(f"a callback can ask for {', '.join(self.CALLBACK_TENSORS)}, not for {', '.join(unknown)}")
        return StageOptions(
            steps=num_inference_steps,
            guidance_scale=guidance_scale,
            sampler=self.scheduler.sampler,
            generator=generator,
            callbacks=StepCallbacks(self, callback_on_step_end, tensor_names, callback, callback_steps or 1),
            images_per_prompt=num_images_per_prompt,
            latents=latents,
            strength=strength,
        )

    def run_with_progress(self, stage: Generator[Step, None, Tensor]) -> Tensor:
        """Run the sampling of a stage, with a progress bar; returns its final state."""
        console = Console(stderr=True)
        options = self._progress_options
        disabled = bool(options.get("disable")) or not console.is_terminal
        steps = Returning(stage)
        columns = text_column("{task.description}"), *Progress.get_default_columns()[1:]
        with Progress(*columns, console=console, disable=disabled, transient=options.get("leave") is False) as bar:
            task = bar.add_task(str(options.get("desc") or ""), total=None)
            for step in steps:
                bar.update(task, completed=step.i, total=step.n)
        return steps.value

    def _offload(self, device: Any, placement: Placement) -> None:
        if device is not None:
            self.place(device, placement=placement)

    def _discard_stage(self) -> None:
        """Discard the cached `networks` and `stage`; they are created again when next needed."""
        vars(self).pop("networks", None)
        vars(self).pop("stage", None)


def _accelerator(gpu_id: int | None) -> str | None:
    """The accelerator of this machine, if it has one."""
    if torch.cuda.is_available():
        return f"cuda:{gpu_id or 0}"
    return "mps" if torch.backends.mps.is_available() else None


@cache
def warn_once(text: str) -> None:
    """Show a warning, once per process."""
    warnings.warn(text, stacklevel=2)
