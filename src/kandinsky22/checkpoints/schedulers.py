"""The published schedulers: their configurations, each a noise schedule and a sampler."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from kandinsky22.checkpoints.json_files import CheckpointError, read_json
from kandinsky22.diffusion import (
    PUBLISHED_DEFAULTS,
    SAMPLERS,
    NoiseSchedule,
    SharedNoise,
    interpret,
    split_variance,
)

FILE = "scheduler_config.json"
SAMPLER_OF = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim", "UnCLIPScheduler": "unclip"}
"""The sampler of each published scheduler class."""
ONE_STEP_SAMPLERS = ("ddpm", "ddim", "unclip", "euler")  # whose step depends on one prediction alone


class SchedulerConfig(dict[str, Any]):
    """A published configuration, with its keys as attributes too; a missing key has its class's default."""

    def __getattr__(self, name: str) -> Any:
        defaults = PUBLISHED_DEFAULTS.get(self.get("_class_name", ""), {})
        if name in self or name in defaults:
            return self.get(name, defaults.get(name))
        raise AttributeError(f"this scheduler's configuration has no {name}")


class SchedulerStep(NamedTuple):
    """The state after a step, and the clean one that was predicted; tensors shaped like the state."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class Scheduler:
    """A noise schedule and a sampler, with the configuration of the published scheduler that its class is named after.

    For loops that programs write themselves it has `set_timesteps`, `timesteps`, `step` and `add_noise` of diffusers,
    which pipelines do not use. `from_config(config, sampler="dpmpp_2m")` takes any of this package's samplers. Raises
    `ValueError` for settings that are not supported.
    """

    default_sampler: ClassVar[str]

    def __init__(self, sampler: str | None = None, **config: Any) -> None:
        settings = {key: value for key, value in config.items() if not key.startswith("_")}
        self.config = SchedulerConfig(_class_name=type(self).__name__, **settings)
        self.sampler = sampler or self.default_sampler
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
        self.schedule = NoiseSchedule.from_config(self.config)
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(self.schedule.num_train_timesteps).flip(0)
        """The timesteps of a run, falling, int64: those of `set_timesteps`, at first all."""

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Choose the timesteps of a run. Raises `ValueError` for a number of steps that the schedule does not have."""
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(self.schedule.timesteps(num_inference_steps), device=device)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
        prev_timestep: int | Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerStep:
        """The state at the next of `timesteps`, given the network's output for `sample` at `timestep`.

        prev_timestep: the timestep to step to instead. return_dict: without effect, as the result is read by attribute
        and by index. Raises `ValueError` where the sampler needs more than one prediction for a step.
        """
        if self.sampler not in ONE_STEP_SAMPLERS:
            raise ValueError(f"step works for {', '.join(ONE_STEP_SAMPLERS)}; {self.sampler} needs the whole run")
        t, following = int(timestep), -1
        later = [s for s in self.timesteps.tolist() if s < t]
        if prev_timestep is not None:
            following = int(prev_timestep)
        elif later:
            following = later[0]
        output, variance = split_variance(model_output, sample)
        prediction = interpret(output, sample, t, self.schedule, variance)
        timesteps = (t, following) if following >= 0 else (t,)
        run = SAMPLERS[self.sampler](self.schedule, sample, timesteps, SharedNoise(generator))
        next(run)  # asks for the prediction
        return SchedulerStep(run.send(prediction).x, prediction.x0)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: int | Tensor) -> Tensor:
        """Clean states noised to timesteps, one for all or one for each; see `NoiseSchedule.add_noise`."""
        return self.schedule.add_noise(original_samples, noise, timesteps)

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor | None = None) -> Tensor:
        """The state as it is: no network of Kandinsky 2.2 takes a scaled one."""
        return sample

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the noise that a run starts from."""
        return 1.0

    @property
    def alphas_cumprod(self) -> Tensor:
        """float32 [T]: the share of signal at each timestep."""
        return self.schedule.alphas_cumprod

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **changes: Any) -> Self:
        """From a scheduler's configuration, with changes."""
        return cls(**{**config, **changes})

    @classmethod
    def from_pretrained(cls, folder: str | Path, subfolder: str = "", **changes: Any) -> Self:
        """From a folder with a `scheduler_config.json`, with changes. Raises `CheckpointError`."""
        return cls.from_config(read_scheduler(Path(folder) / subfolder), **changes)


class DDPMScheduler(Scheduler):
    """The decoders' published scheduler."""

    default_sampler = SAMPLER_OF["DDPMScheduler"]


class DDIMScheduler(Scheduler):
    """A deterministic scheduler, with the settings of another published one."""

    default_sampler = SAMPLER_OF["DDIMScheduler"]


class UnCLIPScheduler(Scheduler):
    """The prior's published scheduler."""

    default_sampler = SAMPLER_OF["UnCLIPScheduler"]


def read_scheduler(folder: Path) -> dict[str, Any]:
    """The published configuration in a scheduler's folder. Raises `CheckpointError` for one that is not supported."""
    config = read_json(folder / FILE)
    try:
        NoiseSchedule.from_config(config)
    except ValueError as error:
        raise CheckpointError(f"{folder / FILE}: {error}") from error
    return config


CLASSES = {kind.__name__: kind for kind in (DDPMScheduler, DDIMScheduler, UnCLIPScheduler)}


def scheduler_of(value: Any) -> Scheduler:
    """The scheduler that a published configuration describes, or another library's scheduler of one of these names.

    Raises `ValueError` for one that is not supported.
    """
    if isinstance(value, Scheduler):
        return value
    if isinstance(value, Mapping):
        name, config = str(value.get("_class_name")), value
    else:  # by its class: its configuration may still name the class that it was made from
        name, config = type(value).__name__, getattr(value, "config", {})
    if name not in CLASSES:
        raise ValueError(
            f"{name} is not supported; assign one of {', '.join(CLASSES)}, with any sampler of this package: "
            "DDPMScheduler.from_config(pipe.scheduler.config, sampler='dpmpp_2m')"
        )
    return CLASSES[name].from_config(config)
