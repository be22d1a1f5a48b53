"""What a run was begun with: its checkpoints keep it, and whoever goes on from one learns by the same."""

from collections.abc import Mapping
from typing import TypeAlias

from kandinsky22.training.sources import Source

LOWERED = "learning_rate"  # what may be lower from now on: a run whose numbers grew beyond bounds goes on so

Settings: TypeAlias = Mapping[str, object]
"""The values of options, by their names with underscores, as JSON takes them; None: it has none."""


def refuse_other(began: Settings, now: Settings) -> None:
    """Raises `ValueError` for a setting that was another when the run began. The learning rate may be lower by now."""
    for name in began.keys() & now.keys():
        if not _goes_on(name, began[name], now[name]):
            raise ValueError(
                f"this run began {_said(name, began[name])}, and not {_said(name, now[name])}; leave it out to go on"
                f"{' (or lower it)' if name == LOWERED else ''}, or begin anew in another --folder"
            )


def of_sources(sources: tuple[Source, ...]) -> list[str]:
    """Where pictures are and how often each is drawn from, as `Source.parsed` reads it in any folder."""
    return [f"{source.path.absolute()}:{source.weight:g}" for source in sources]


def _goes_on(name: str, began: object, now: object) -> bool:
    if name == LOWERED:
        return float(str(now)) <= float(str(began))
    if isinstance(began, list) and isinstance(now, list) and name == "data":  # a fingerprint tells what is in them
        return [text.rpartition(":")[2] for text in began] == [text.rpartition(":")[2] for text in now]
    return began == now


def _said(name: str, value: object) -> str:
    """As it is said on the command line."""
    option = f"--{name.replace('_', '-')}"
    if value is None or value == []:
        return f"without {option}"
    if isinstance(value, bool):
        return f"with {option if value else f'--no-{option[2:]}'}"
    values = value if isinstance(value, list) else [value]
    return "with " + " ".join(f"{option} {one:g}" if isinstance(one, float) else f"{option} {one}" for one in values)
