"""Filling a new model's folder with the files of the base model that it starts from."""

from collections.abc import Mapping
from pathlib import Path

from kandinsky22.files import atomic_folder, copy_file


def copy_missing(model: Path, base: Mapping[str, Path]) -> None:
    """Add to the folder `model` the files and networks of the `base` parts that it lacks, each network completely.

    They are copies, so that changing the new model never changes the base model. Raises `OSError` if there is no space.
    """
    for part, source in base.items():
        for path in source.iterdir():
            target = model / part / path.name
            if target.exists():
                continue
            try:
                if path.is_dir():
                    _copy_folder(path, target)
                else:
                    copy_file(path, target)
            except OSError as error:
                raise OSError(
                    f"{path} cannot be copied to {target} ({error.strerror}); make room, and give the command again"
                ) from error


def _copy_folder(source: Path, target: Path) -> None:
    with atomic_folder(target, exclusive=True) as partial:
        for file in source.rglob("*"):
            if file.is_file():
                copy_file(file, partial / file.relative_to(source))
