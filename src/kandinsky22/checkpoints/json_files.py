"""JSON files of a model's folders, and the error for a folder that cannot be loaded. Imports no torch."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kandinsky22.files import atomic_write, open_regular, parse_json

MAX_BYTES = 64 << 20  # of a file; the largest published one is a vocabulary of a megabyte
NAMED = 3  # problems that an error lists


class CheckpointError(ValueError):
    """A folder or file that cannot be loaded; the message says what is wrong and where."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises `CheckpointError`."""
    try:
        values = parse_json(read_text(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; is {path.parent} complete?") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not contain a JSON object")
    return values


def read_text(path: Path) -> str:
    """The text of a regular file of at most `MAX_BYTES`, in UTF-8. Raises `ValueError` and `OSError`."""
    with open_regular(path, MAX_BYTES) as file:
        return file.read().decode("utf-8")


def summary(problems: Sequence[str]) -> str:
    """The first few problems, and how many more there are."""
    more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
    return "; ".join(problem[:200] for problem in problems[:NAMED]) + more


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as a JSON file, its keys in their order."""
    with atomic_write(path) as partial:
        partial.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
