"""Saving pictures: file names made from the prompt and the seed, without overwriting other pictures."""

import errno
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from PIL import Image

from kandinsky22.console import echo
from kandinsky22.files import expand, numbered, parse_json, write_first_free
from kandinsky22.imaging.file_texts import FORMATS, RECIPE, read_texts, save_options
from kandinsky22.imaging.images import Painting, Recipe, check_picture, save_image, sheet
from kandinsky22.request import Part, Request, Text
from kandinsky22.request.events import Result
from kandinsky22.request.parts import parts
from kandinsky22.request.picture_file import SUFFIXES, open_picture

NAME_WORDS, NAME_LENGTH = 6, 40
STDOUT = "-"  # as --output


class Destination(NamedTuple):
    """A folder for pictures, their file name without suffix (None: words of the prompt), and their suffix.

    is_stdout: the picture is written to standard output instead.
    """

    folder: Path
    name: str | None = None
    suffix: str = ".png"
    is_stdout: bool = False

    @classmethod
    def of(cls, output: str | Path) -> Self:
        """A folder; a file ending in .png, .jpg or .webp; or "-". Raises `ValueError` for other formats."""
        if output == STDOUT:
            return cls(Path(), is_stdout=True)
        path = expand(output)
        if path.suffix.lower() in FORMATS and not path.is_dir():
            return cls(path.parent, path.stem, path.suffix)
        if path.suffix.lower() in SUFFIXES and not path.is_dir():
            check_picture(path)  # raises
        return cls(path)

    def check(self, request: Request) -> None:
        """Raises `ValueError` for pictures that cannot be written here."""
        if self.is_stdout and request.num_images > 1:
            raise ValueError(f"--output - writes one picture, and there are {request.num_images}; name a folder")
        if self.is_stdout and sys.stdout.isatty():
            raise ValueError("--output - writes a picture to a program, and this is a terminal; add > picture.png")


def check_space(destination: Destination, request: Request) -> None:
    """Raises `ValueError` if the pictures of a resolved request could not be written; leaves no file behind."""
    destination.check(request)
    if destination.is_stdout:
        return
    if FORMATS[destination.suffix.lower()] == "jpeg":
        save_options("jpeg", {RECIPE: request.to_json()})  # raises for a request that is too long for it
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


def save(result: Result, destination: Destination, *, with_sheet: bool = False) -> Iterator[Path]:
    """Write each picture with its request, then a contact sheet, if wanted. Yields the paths of what is written.

    To standard output, the only picture is written as PNG, and no path is yielded.
    """
    if destination.is_stdout:
        sys.stdout.flush()
        sys.stdout.buffer.write(result.pictures[0].to_png())
        return
    for picture in result.pictures:
        yield save_picture(picture, destination, alone=len(result.pictures) == 1)
    if with_sheet:
        images = [picture.image for picture in result.pictures]
        page = sheet(images, [f"seed {picture.request.seed}" for picture in result.pictures])
        name = destination.name
        stem = f"{name}-sheet" if name else f"{_prompt_words(result.request)}-{result.request.seed}-sheet"
        made_by = {key: value for key, value in result.pictures[0].made_by.items() if key != "batch"}
        texts = {RECIPE: Recipe(result.request, made_by, {"kind": "sheet", "pictures": len(images)}).to_json()}
        yield save_new_image(page, destination.folder / f"{stem}{destination.suffix}", texts)


def save_picture(picture: Painting, destination: Destination, *, alone: bool = True) -> Path:
    """Write one picture with its request. alone: a name given with --output needs no seed added.

    Where another picture has the name that was given, it takes the next one and says so.
    """
    name = destination.name
    stem = name if name and alone else f"{name or _prompt_words(picture.request)}-{picture.request.seed}"
    path = destination.folder / f"{stem}{destination.suffix}"
    written = write_first_free(
        numbered(path),
        partial(picture.save, exclusive=True),
        lambda path: _is_same(path, picture.image, picture.texts),
    )
    if name and written != path:
        echo(f"{path} is another picture, which stays; this one is {written}", error=True)
    return written


def save_new_image(image: Image.Image, path: Path, texts: Mapping[str, str] | None = None) -> Path:
    """Write a picture with these texts to this path, or to one with a number if there is another picture."""
    return write_first_free(
        numbered(path),
        lambda path: save_image(image, path, texts, exclusive=True),
        lambda path: _is_same(path, image, texts or {}),
    )


def _prompt_words(request: Request) -> str:
    """The first words of the prompt, for a file name."""
    text = " ".join(_part_name(part) for part in parts(request.condition))
    words = re.findall(r"[^\W_]+", text.lower())
    return "-".join(words[:NAME_WORDS])[:NAME_LENGTH].strip("-") or "picture"


def _part_name(part: Part) -> str:
    """A prompt, or the name of a picture's file without its suffix."""
    return part.prompt if isinstance(part, Text) else Path(getattr(part, "name", None) or "").stem


def _is_same(path: Path, image: Image.Image, texts: Mapping[str, str]) -> bool:
    """Whether a file is this picture with these texts. A JPEG never is, since it changes pixels."""
    try:
        with open_picture(path, formats=("PNG", "WEBP")) as stored:
            if stored.size != image.size or stored.convert("RGB").tobytes() != image.convert("RGB").tobytes():
                return False
            known = read_texts(stored)
            return all(_parsed(known.get(name)) == _parsed(text) for name, text in texts.items())
    except ValueError:
        return False


def _parsed(text: str | None) -> Any:
    """A text that is JSON as its value, since a file may store it in another way."""
    try:
        return parse_json(text or "")
    except ValueError:
        return text
