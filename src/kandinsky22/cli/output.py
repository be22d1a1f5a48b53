"""Saving pictures: file names made from the prompt and the seed, without overwriting other pictures."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

from PIL import Image

from kandinsky22.files import expand, numbered, write_first_free
from kandinsky22.imaging.images import Painting, read_recipe, save_png, sheet
from kandinsky22.request import Part, Request, Text
from kandinsky22.request.events import Result
from kandinsky22.request.parts import parts
from kandinsky22.request.picture_file import open_picture
from kandinsky22.request.task_schema import PICTURE_SUFFIXES

NAME_WORDS, NAME_LENGTH = 6, 40
LARGE = 512  # pixels: a single picture with no shorter side needs no enlarged contact sheet


class Destination(NamedTuple):
    """A folder for pictures, and their file name without suffix; None: words of the prompt."""

    folder: Path
    name: str | None = None

    @classmethod
    def of(cls, output: str | Path) -> Self:
        """A folder, or a file ending in .png. Raises `ValueError` for picture files of other formats."""
        path = expand(output)
        if path.suffix.lower() == ".png" and not path.is_dir():
            return cls(path.parent, path.stem)
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.is_dir():
            raise ValueError(
                f"pictures are written as PNG, which stores their request; name it {path.with_suffix('.png').name}"
            )
        return cls(path)


def check_space(destination: Destination, request: Request) -> None:
    """Raises `ValueError` if the pictures of a resolved request could not be written; leaves no file behind."""
    check_writable(destination, request.num_images * (request.height or 0) * (request.width or 0) * 3)


def check_writable(destination: Destination, size: int) -> None:
    """Raises `ValueError` if `size` bytes could not be written to a destination; leaves no file behind."""
    folder = destination.folder
    try:
        existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"a picture")
            file.flush()
        if shutil.disk_usage(existing).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"cannot write into {folder}: {reason}; choose another place with --output") from error


def save(result: Result, destination: Destination) -> Iterator[Path]:
    """Write each picture with its request, then a contact sheet of them. Yields the paths as they are written."""
    for picture in result.pictures:
        yield save_picture(picture, destination, alone=len(result.pictures) == 1)
    images = [picture.image for picture in result.pictures]
    if len(images) > 1 or min(images[0].size) < LARGE:
        page = sheet(images, [f"seed {picture.request.seed}" for picture in result.pictures])
        name = destination.name
        stem = f"{name}-sheet" if name else f"{_prompt_words(result.request)}-{result.request.seed}-sheet"
        yield save_new_png(page, destination.folder / f"{stem}.png")


def save_picture(picture: Painting, destination: Destination, *, alone: bool = True) -> Path:
    """Write one picture with its request. alone: a name given with --output needs no seed added."""
    name = destination.name
    stem = name if name and alone else f"{name or _prompt_words(picture.request)}-{picture.request.seed}"
    return write_first_free(
        numbered(destination.folder / f"{stem}.png"),
        partial(picture.save, exclusive=True),
        lambda path: _is_same(path, picture.image, picture),
    )


def save_new_png(image: Image.Image, path: Path) -> Path:
    """Write a picture that carries no request to this path, or to one with a number if there is another picture."""
    return write_first_free(
        numbered(path),
        lambda path: save_png(image, path, exclusive=True),
        lambda path: _is_same(path, image, None),
    )


def _prompt_words(request: Request) -> str:
    """The first words of the prompt, for a file name."""
    text = " ".join(_part_name(part) for part in parts(request.condition))
    words = re.findall(r"[^\W_]+", text.lower())
    return "-".join(words[:NAME_WORDS])[:NAME_LENGTH].strip("-") or "picture"


def _part_name(part: Part) -> str:
    """A prompt, or the name of a picture's file without its suffix."""
    return part.prompt if isinstance(part, Text) else Path(getattr(part, "name", None) or "").stem


def _is_same(path: Path, image: Image.Image, picture: Painting | None) -> bool:
    """Whether a file has these pixels and, if `picture` is given, its request and metadata."""
    try:
        with open_picture(path, formats=("PNG",)) as stored:
            if stored.size != image.size or stored.convert("RGB").tobytes() != image.convert("RGB").tobytes():
                return False
        if picture is None:
            return True
        recipe = read_recipe(path)
        return (recipe.request, recipe.made_by) == (picture.request, picture.made_by)
    except ValueError:
        return False
