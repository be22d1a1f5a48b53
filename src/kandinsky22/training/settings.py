"""The settings that a run was started with: its checkpoints store them, and a resumed run must use the same."""

from collections.abc import Mapping
from typing import TypeAlias

from kandinsky22.training.sources import Source

MAY_BE_LOWERED = "learning_rate"  # when resuming, as after a loss that is not finite
RENAMED = {"untold": "cond_dropout", "anew": "from_scratch"}
"""Option names in checkpoints of earlier versions -> the current names."""

Settings: TypeAlias = Mapping[str, object]
"""The values of options by their names with underscores, as JSON values; None: not set."""


def with_current_names(settings: Settings) -> Settings:
    """Settings of a checkpoint, with options that were renamed since under their current names."""
    return {RENAMED.get(name, name): value for name, value in settings.items()}


def refuse_changes(stored: Settings, settings: Settings) -> None:
    """Raises `ValueError` for a setting that differs from a checkpoint's. The learning rate may be lower."""
    stored = with_current_names(stored)
    for name in stored.keys() & settings.keys():
        if not _is_compatible(name, stored[name], settings[name]):
            lower = " (or lower it)" if name == MAY_BE_LOWERED else ""
            raise ValueError(
                f"this run was started {_as_options(name, stored[name])}, not {_as_options(name, settings[name])}; "
                f"leave it out to resume{lower}, or start a new run in another --folder"
            )


def of_sources(sources: tuple[Source, ...]) -> list[str]:
    """Sources as texts that `Source.parse` reads in any working directory."""
    return [f"{source.path.absolute()}:{source.weight:g}" for source in sources]


def _is_compatible(name: str, stored: object, value: object) -> bool:
    if name == MAY_BE_LOWERED:
        return float(str(value)) <= float(str(stored))
    if isinstance(stored, list) and isinstance(value, list) and name == "data":  # contents are compared by fingerprint
        return [str(text).rpartition(":")[2] for text in stored] == [text.rpartition(":")[2] for text in value]
    return stored == value


def _as_options(name: str, value: object) -> str:
    """A setting as on the command line, after "with" or "without"."""
    option = f"--{name.replace('_', '-')}"
    if value is None or value == []:
        return f"without {option}"
    if isinstance(value, bool):
        return f"with {option if value else f'--no-{option[2:]}'}"
    values = value if isinstance(value, list) else [value]
    return "with " + " ".join(f"{option} {one:g}" if isinstance(one, float) else f"{option} {one}" for one in values)
