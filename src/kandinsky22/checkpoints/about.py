"""`kandinsky22.json`, beside a decoder's `model_index.json`: what the published files do not say. Imports no torch.

Its defaults for sampling, and for a small model its language. diffusers ignores the file, and a folder may lack it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kandinsky22.files import atomic_write
from kandinsky22.request import Sampling

NAME = "kandinsky22.json"


class CheckpointError(ValueError):
    """A folder that cannot be loaded; the message says what is wrong and where."""


@dataclass(frozen=True, slots=True)
class About:
    """defaults: by stage ("prior", "decoder"). words: phrases by kind, examples: whole prompts; both empty for a model
    that knows no bounds."""

    defaults: Mapping[str, Sampling] = field(default_factory=dict)
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)
    examples: Sequence[str] = ()


def read_about(decoder: Path | None) -> About:
    """What a decoder's folder says of its model. Raises `CheckpointError` where it cannot be understood."""
    if decoder is None or not (path := decoder / NAME).exists():
        return About()
    values = read_json(path)
    try:
        defaults = {stage: Sampling(**chosen) for stage, chosen in values.get("defaults", {}).items()}
        words = {kind: tuple(map(str, phrases)) for kind, phrases in values.get("words", {}).items()}
        return About(defaults, words, tuple(map(str, values.get("examples", ()))))
    except (TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be understood: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's mapping. Raises `CheckpointError`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} complete?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A JSON file, keys in the order given."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
