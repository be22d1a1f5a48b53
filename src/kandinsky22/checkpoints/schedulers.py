"""The published schedulers: their configurations, each a noise schedule and a sampler."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from kandinsky22.checkpoints.json_files import CheckpointError, read_json
from kandinsky22.diffusion import PUBLISHED_DEFAULTS, SAMPLERS, NoiseSchedule

FILE = "scheduler_config.json"
SAMPLER_OF = {"DDPMScheduler": "ddpm", "DDIMScheduler": "ddim", "UnCLIPScheduler": "unclip"}
"""The sampler of each published scheduler class."""


class SchedulerConfig(dict[str, Any]):
    """A published configuration, with its keys as attributes too; a missing key has its class's default."""

    def __getattr__(self, name: str) -> Any:
        defaults = PUBLISHED_DEFAULTS.get(self.get("_class_name", ""), {})
        if name in self or name in defaults:
            return self.get(name, defaults.get(name))
        raise AttributeError(f"this scheduler's configuration has no {name}")


class Scheduler:
    """A noise schedule and a sampler, with the configuration of the published scheduler that its class is named after.

    `from_config(config, sampler="dpmpp_2m")` takes any of this package's samplers. Raises `ValueError` for settings
    that are not supported.
    """

    default_sampler: ClassVar[str]

    def __init__(self, sampler: str | None = None, **config: Any) -> None:
        settings = {key: value for key, value in config.items() if not key.startswith("_")}
        self.config = SchedulerConfig(_class_name=type(self).__name__, **settings)
        self.sampler = sampler or self.default_sampler
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
        self.schedule = NoiseSchedule.from_config(self.config)

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
