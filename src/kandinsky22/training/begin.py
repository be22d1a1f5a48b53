"""A model that begins with another: it has all of that one's files from the first step on."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

WORTH_A_LINK = 1 << 20  # bytes


def complete(model: Path, start: Mapping[str, Path]) -> None:
    """Give the folder `model` what the parts in `start` have and it has not, each network whole or not at all."""
    for part, source in start.items():
        for path in source.iterdir():
            place = model / part / path.name
            if place.exists():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = place.with_name(f".{place.name}.part")
            if path.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
                shutil.copytree(path, partial, copy_function=_linked)
            else:
                _linked(path, partial)
            partial.replace(place)


def _linked(path: str | Path, place: str | Path) -> None:
    """The file at another place: a large one, which nothing writes into, without a copy where the file system can."""
    try:
        if Path(path).stat().st_size < WORTH_A_LINK:
            shutil.copyfile(path, place)
        else:
            os.link(Path(path).resolve(), place)
    except OSError:  # another file system
        shutil.copyfile(path, place)
