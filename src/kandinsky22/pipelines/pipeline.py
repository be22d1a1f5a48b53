"""What all pipelines have in common: named parts that can be loaded, moved, saved, replaced and shared.

A pipeline class declares diffusers' signature on `__call__` and computes in `run`; `calls_run` connects the two.
Networks are loaded when they are first needed. On a CPU without acceleration, float16 is computed in float32, with one
warning.
"""

import inspect
from collections.abc import Callable, Generator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, ParamSpec, Self

import torch
from torch import Tensor

from kandinsky22.checkpoints import components
from kandinsky22.checkpoints.catalog import PRIOR_INDEX
from kandinsky22.checkpoints.components import PREFIX, LoadOptions, dtype_of
from kandinsky22.checkpoints.json_files import CheckpointError
from kandinsky22.checkpoints.part import Part
from kandinsky22.engine.placement import Networks, Placement
from kandinsky22.engine.runs import Step
from kandinsky22.generators import Returning
from kandinsky22.pipelines.attributes import DiffusersAttributes
from kandinsky22.pipelines.callbacks import StepCallbacks
from kandinsky22.pipelines.outputs import Output
from kandinsky22.pipelines.progress import ProgressBar
from kandinsky22.pipelines.runs import StageOptions
from kandinsky22.pipelines.switches import warn_once
from kandinsky22.pipelines.views import native_of, view_of, view_of_network

P = ParamSpec("P")

HUB_ARGUMENTS = "revision", "variant", "local_files_only", "cache_dir", "token"
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
        positional = args[1] if len(args) > 1 else None  # after the pipeline itself
        texts = positional if isinstance(positional, list | tuple) else [positional]
        is_prompt = bool(texts) and all(isinstance(text, str) for text in texts)
        if "prompt" not in signature.parameters and ("prompt" in kwargs or is_prompt):
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


class DiffusionPipeline(DiffusersAttributes):
    """Named parts, the device and dtype they compute on, and the options of its calls.

    Each part is an attribute, and assigning another part replaces it: a network, tokenizer or image processor of this
    package, diffusers or transformers, any scheduler of the published classes, or None to do without. Raises
    `ValueError` for others, and `AttributeError` for other attributes, which nothing would use.
    """

    __call__: Callable[..., Any]
    run: Callable[..., Output]
    """Computes a call's output from its arguments by name. Raises `ValueError` before any network runs."""
    PARTS: ClassVar[tuple[str, ...]]
    OUTPUT_TYPES: ClassVar[tuple[str, ...]]
    CALLBACK_TENSORS: ClassVar[tuple[str, ...]] = ("latents",)
    """The tensors that `callback_on_step_end` can be called with."""
    CLASSES: ClassVar[dict[str, type["DiffusionPipeline"]]] = {}
    """The pipelines of diffusers, by name."""

    def __init_subclass__(cls) -> None:
        cls.CLASSES[cls.__name__] = cls

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self._parts = {name: components.as_part(name, native_of(part)) for name, part in parts.items()}
        self._views: dict[str, Any] = {}  # of the parts that are no networks
        self.placement: Placement = "keep"
        self._progress_options: Mapping[str, Any] = {}
        self._guidance_scale, self._num_timesteps = 1.0, 0  # of the latest call
        self._networks: Networks | None = None
        self._stage: Any = None
        self._placed: list[tuple[Any, ...]] = []  # where the parts were when `_networks` was made

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.PARTS:
            self.replace_part(name, value)
        elif name in self.ATTRIBUTES:
            super().__setattr__(name, value)
        elif isinstance(getattr(type(self), name, None), property):
            raise AttributeError(f"{name} of a {type(self).__name__} can be read, and not be set")
        elif value is not None:  # None is a part to do without, such as a safety checker
            raise AttributeError(f"a {type(self).__name__} has no {name}; setting it would change nothing")

    def __getattr__(self, name: str) -> Any:
        if name in type(self).PARTS:
            return self.part(name)
        return super().__getattr__(name)

    @property
    def parts(self) -> dict[str, Any]:
        """The parts by name, each network as a `Part`, which this does not load."""
        return dict(self._parts)

    def part(self, name: str) -> Any:
        """A part by name, as programs written for diffusers use it; a network is loaded first."""
        part = self._parts[name]
        if not isinstance(part, Part):
            if name not in self._views or native_of(self._views[name]) is not part:
                self._views[name] = view_of(part)
            return self._views[name]
        if len({(other.device, other.dtype) for other in self._parts.values() if isinstance(other, Part)}) == 1:
            return view_of_network(part, self.networks.get(part), self.networks.dtype)
        return view_of_network(part, part.load(part.dtype, part.device), part.dtype)

    def replace_part(self, name: str, value: Any) -> None:
        """Use another part under this name. Raises `ValueError` for one that is not supported."""
        self._parts[name] = components.as_part(name, native_of(value))
        self._networks = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """The pipeline in a folder, or in a repository "owner/name" of the hub.

        kwargs: torch_dtype (or dtype), one, "auto" for that of the files, or one by part; device_map, one device;
        variant, revision, local_files_only, cache_dir, token; parts to use instead of the folder's, None to do without
        one; and for a pipeline with both networks `prior`, the prior's folder or repository, if the decoder does not
        name it. The weights are opened at once, and converted when they are needed. Raises `CheckpointError`, and
        `ValueError` for what is not supported.
        """
        if cls is DiffusionPipeline:
            return cls._class_of(pretrained_model_name_or_path, kwargs).from_pretrained(
                pretrained_model_name_or_path, **kwargs
            )
        passed = {name: kwargs.pop(name) for name in cls.PARTS if name in kwargs}
        has_prior = PREFIX + "prior" in cls.PARTS
        prior = kwargs.pop("prior", None) if has_prior else None
        options = LoadOptions.from_kwargs(kwargs)
        folder = options.folder(pretrained_model_name_or_path)
        class_name = components.class_name(folder)
        components.check_variant(folder, options.variant)
        parts = {**components.read(folder, cls.PARTS, options.variant), **passed}
        if has_prior and not all(name in parts for name in cls.PARTS if name.startswith(PREFIX)):
            prior_folder = options.of_prior().folder(prior or components.find_prior(folder))
            prior_parts = components.read(prior_folder, PRIOR_INDEX, options.variant)
            parts = {PREFIX + name: part for name, part in prior_parts.items()} | parts
        if missing := [name for name in cls.PARTS if name not in parts]:
            raise CheckpointError(
                f"{folder} holds a {class_name}, and a {cls.__name__} also needs {', '.join(missing)}; pass them, as "
                f"{missing[0]}=..."
            )
        pipeline = cls(**{name: parts[name] for name in cls.PARTS})
        for name, part in pipeline.parts.items():
            if isinstance(part, Part) and name not in passed:
                options.place(name, part)
        pipeline.place(options.device)
        return pipeline

    @classmethod
    def _class_of(cls, name: str | Path, kwargs: dict[str, Any]) -> Any:
        """The class of the pipeline in a folder or repository; with `load_connected_pipeline` that with its prior."""
        is_connected = kwargs.pop("load_connected_pipeline", False)
        hub_arguments = {key: kwargs[key] for key in HUB_ARGUMENTS if key in kwargs}
        found = cls.CLASSES[components.class_name(LoadOptions.from_kwargs(hub_arguments).folder(name))]
        combined = (kind for kind in cls.CLASSES.values() if getattr(kind, "DECODER", None) is found)
        return next(combined, found) if is_connected else found

    @classmethod
    def from_pipe(
        cls, pipeline: "DiffusionPipeline", *, torch_dtype: Any = None, dtype: Any = None, **parts: Any
    ) -> Self:
        """A pipeline that shares another's parts, and so their device and dtype; `parts` replace those of the same
        name.

        dtype, torch_dtype: have the shared networks in another dtype. Raises `ValueError` where some are missing.
        """
        available = pipeline.parts | parts
        if missing := [name for name in cls.PARTS if name not in available]:
            raise ValueError(f"a {cls.__name__} also needs {', '.join(missing)}; pass them")
        new = cls(**{name: available[name] for name in cls.PARTS})
        new.place(None, None, pipeline.placement)
        return new if torch_dtype is None and dtype is None else new.to(dtype=dtype or torch_dtype)

    def save_pretrained(
        self, save_directory: str | Path, safe_serialization: bool = True, variant: str | None = None
    ) -> None:
        """Write a folder that this package and diffusers load; always as safetensors.

        Raises `ValueError` if the folder or one above it is a file.
        """
        folder = Path(save_directory)
        if files := [path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()]:
            raise ValueError(f"cannot save to {folder}: {files[0]} is a file; choose a folder")
        components.write(folder, type(self).__name__, self.parts, variant)

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name, networks loaded; another pipeline can be constructed from them."""
        return {name: getattr(self, name) for name in self.PARTS}

    @property
    def main_part(self) -> Part:
        """The network that decides where and in which dtype the others compute: the first that there is."""
        for part in self.parts.values():
            if isinstance(part, Part):
                return part
        raise CheckpointError(f"this {type(self).__name__} has no networks; pass them")

    @property
    def device(self) -> torch.device:
        """The device it computes on."""
        return self.main_part.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of its networks: as wanted, and of pipelines that share them the one that was wanted last."""
        return self.main_part.dtype

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
        target = None
        if device is not None:
            try:
                target = torch.empty(0, device=device).device
            except (RuntimeError, AssertionError) as error:
                raise ValueError(
                    f"the device {device!r} cannot be used here; leave the line out for the CPU"
                ) from error
        self.placement = placement or self.placement
        for part in self._parts.values():
            if isinstance(part, Part):
                part.shared = self.placement == "keep"
                part.place(target, dtype)
        self._networks = None

    @property
    def networks(self) -> Networks:
        """The networks on their device, all in the dtype of `main_part`."""
        if self._networks is None or self._where() != self._placed:
            main = self.main_part
            for part in self._parts.values():
                if isinstance(part, Part):
                    part.shared = self.placement == "keep"
                    part.place(main.device, main.dtype)
            self._networks, self._stage = Networks(main.device, main.dtype, self.placement), None
            if self._networks.dtype == torch.float16 and main.device.type == "cpu":
                warn_once("float16 is slow and coarse on a CPU without acceleration, so this runs in float32")
                self._networks = Networks(main.device, torch.float32, self.placement)
            self._placed = self._where()
        return self._networks

    def _where(self) -> list[tuple[Any, ...]]:
        networks = [part for part in self._parts.values() if isinstance(part, Part)]
        return [(part.device, part.dtype, part.shared, self.placement) for part in networks]

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
        steps = Returning(stage)
        with ProgressBar(None, self._progress_options) as bar:
            for step in steps:
                bar.show(step.i, step.n)
        return steps.value

    def _offload(self, device: Any, placement: Placement) -> None:
        if device is not None:
            self.place(device, placement=placement)


def _accelerator(gpu_id: int | None) -> str | None:
    """The accelerator of this machine, if it has one."""
    if torch.cuda.is_available():
        return f"cuda:{gpu_id or 0}"
    return "mps" if torch.backends.mps.is_available() else None
