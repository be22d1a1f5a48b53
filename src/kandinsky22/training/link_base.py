"""A model that begins with another: it has all of that one's files from the first step on."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

WORTH_A_LINK = 1 << 20  # bytes


def complete(model: Path, start: Mapping[str, Path]) -> None:
    """Give the folder `model` what the parts in `start` have and it has not, each network whole or not at all.

    Raises `OSError` where there is no room for it.
    """
    for part, source in start.items():
        for path in source.iterdir():
            place = model / part / path.name
            if place.exists():
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = place.with_name(f".{place.name}.part")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                    if file.is_file():
                        copy = partial / file.relative_to(path)
                        copy.parent.mkdir(parents=True, exist_ok=True)
                        _linked(file, copy)
                partial.replace(place)
            except OSError as error:
                shutil.rmtree(partial, ignore_errors=True)
                partial.unlink(missing_ok=True)
                raise OSError(
                    f"{path} cannot be copied to {place} ({error.strerror}); make room, and give the command again"
                ) from error


def _linked(path: str | Path, place: str | Path) -> None:
    """The file at another place: a large one, which nothing writes into, without a copy where the file system can."""
    try:
        if Path(path).stat().st_size < WORTH_A_LINK:
            shutil.copyfile(path, place)
        else:
            os.link(Path(path).resolve(), place)
    except OSError:  # another file system
        shutil.copyfile(path, place)
