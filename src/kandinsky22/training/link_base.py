"""Filling a new model's folder with the files of the base model that it starts from."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

MIN_LINKED = 1 << 20  # bytes: smaller files are copied


def link_missing(model: Path, base: Mapping[str, Path]) -> None:
    """Add to the folder `model` the files and networks of the `base` parts that it lacks, each network completely.

    Raises `OSError` if there is no space for them.
    """
    for part, source in base.items():
        for path in source.iterdir():
            target = model / part / path.name
            if target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.part")
            shutil.rmtree(partial, ignore_errors=True)
            try:
                for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                    if file.is_file():
                        copy = partial / file.relative_to(path)
                        copy.parent.mkdir(parents=True, exist_ok=True)
                        _link_or_copy(file, copy)
                partial.replace(target)
            except OSError as error:
                shutil.rmtree(partial, ignore_errors=True)
                partial.unlink(missing_ok=True)
                raise OSError(
                    f"{path} cannot be copied to {target} ({error.strerror}); make room, and give the command again"
                ) from error


def _link_or_copy(path: Path, target: Path) -> None:
    """Hard-link a large file, which is never written in place, if the file system can; copy any other."""
    try:
        if path.stat().st_size < MIN_LINKED:
            shutil.copyfile(path, target)
        else:
            os.link(path.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(path, target)
