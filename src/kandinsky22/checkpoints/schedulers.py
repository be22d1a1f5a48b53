"""The published schedulers' configurations, as values with their names: a noise schedule and a sampler."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from kandinsky22.checkpoints.about import read_json
from kandinsky22.diffusion import PUBLISHED_DEFAULTS, SAMPLERS, NoiseSchedule

FILE = "scheduler_config.json"


class Settings(dict[str, Any]):
    """A published configuration, its keys as attributes too; what it does not say is its class's default."""

    def __getattr__(self, name: str) -> Any:
        defaults = PUBLISHED_DEFAULTS.get(self.get("_class_name", ""), {})
        if name in self or name in defaults:
            return self.get(name, defaults.get(name))
        raise AttributeError(f"this scheduler's configuration does not say {name}")


class Scheduler:
    """A noise schedule and a sampler, with the configuration of the published scheduler that its class is named after.

    `from_config(config, sampler="dpmpp_2m")` takes any sampler there is. Raises `ValueError` for settings that are not
    supported.
    """

    own: ClassVar[str]

    def __init__(self, sampler: str | None = None, **config: Any) -> None:
        said = {key: value for key, value in config.items() if not key.startswith("_")}
        self.config = Settings(_class_name=type(self).__name__, **said)
        self.sampler = sampler or self.own
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
        return cls.from_config(read_json(Path(folder) / subfolder / FILE), **changes)


class DDPMScheduler(Scheduler):
    """The decoders' published scheduler."""

    own = "ddpm"


class DDIMScheduler(Scheduler):
    """A deterministic one, with the published settings of another."""

    own = "ddim"


class UnCLIPScheduler(Scheduler):
    """The prior's published scheduler."""

    own = "unclip"


KNOWN = {kind.__name__: kind for kind in (DDPMScheduler, DDIMScheduler, UnCLIPScheduler)}


def scheduler_of(given: Any) -> Scheduler:
    """The scheduler that a published configuration describes, or another library's scheduler of one of these names.

    Raises `ValueError` for one that is not known here.
    """
    if isinstance(given, Scheduler):
        return given
    if isinstance(given, Mapping):
        name, config = str(given.get("_class_name")), given
    else:  # its class's name: its configuration may still say the one that it was made from
        name, config = type(given).__name__, getattr(given, "config", {})
    if name not in KNOWN:
        raise ValueError(
            f"there is no {name} here; assign one of {', '.join(KNOWN)}, with any sampler of this package: "
            "DDPMScheduler.from_config(pipe.scheduler.config, sampler='dpmpp_2m')"
        )
    return KNOWN[name].from_config(config)
