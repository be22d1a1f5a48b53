"""JSON files of a model's folders, and the error for a folder that cannot be loaded. Imports no torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandinsky22.files import atomic_write


class CheckpointError(ValueError):
    """A folder or file that cannot be loaded; the message says what is wrong and where."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `CheckpointError`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} complete?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not contain a JSON object")
    return values


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as a JSON file, its keys in their order."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
