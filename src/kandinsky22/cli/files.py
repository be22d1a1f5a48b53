"""Where pictures go: names that say what is in them, and never over another picture."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple, Self

from PIL import Image

from kandinsky22.imaging.images import Painting, read_recipe, save_png, sheet
from kandinsky22.request import Part, Request, Text
from kandinsky22.request.events import Result
from kandinsky22.request.parts import parts
from kandinsky22.request.task_schema import PICTURES

NAME_WORDS, NAME_LENGTH = 6, 40
LARGE = 512  # pixels: a single picture with such sides needs no sheet to be seen


class Place(NamedTuple):
    """A folder for pictures, and what to call them there; None is words of the prompt."""

    folder: Path
    name: str | None = None

    @classmethod
    def of(cls, output: str | Path) -> Self:
        """The place that --output means: a folder, or a file ending in .png."""
        path = Path(output).expanduser()
        if path.suffix.lower() == ".png" and not path.is_dir():
            return cls(path.parent, path.stem)
        if path.suffix.lower() in PICTURES and not path.is_dir():
            raise ValueError(
                f"pictures are written as PNG, which keeps their request; name it {path.with_suffix('.png').name}"
            )
        return cls(path)

    def path(self, stem: str, again: int) -> Path:
        """A file here; `again` counts the names that were taken."""
        return self.folder / f"{stem}{f'-{again}' if again > 1 else ''}.png"


def check_room(place: Place, request: Request) -> None:
    """Raises `ValueError` if the pictures of a resolved request could not be written; leaves no trace."""
    check_writable(place, request.num_images * (request.height or 0) * (request.width or 0) * 3)


def check_writable(place: Place, size: int) -> None:
    """Raises `ValueError` if so many bytes could not be written to a place; leaves no trace."""
    try:
        there = next(folder for folder in (place.folder, *place.folder.absolute().parents) if folder.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"a picture")
            file.flush()
        if shutil.disk_usage(there).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"cannot write into {place.folder}: {reason}; choose another place with --output") from error


def save(result: Result, place: Place) -> Iterator[Path]:
    """Write the pictures, each carrying its request, then a sheet of them to look at. Yields where each is."""
    for picture in result.pictures:
        yield save_picture(picture, place, alone=len(result.pictures) == 1)
    images = [picture.image for picture in result.pictures]
    if len(images) > 1 or min(images[0].size) < LARGE:
        page = sheet(images, [f"seed {picture.request.seed}" for picture in result.pictures])
        stem = f"{place.name}-sheet" if place.name else f"{_words(result.request)}-{result.request.seed}-sheet"
        yield save_png(page, _free(place, stem, page))


def save_picture(picture: Painting, place: Place, *, alone: bool = True) -> Path:
    """Write one picture, which carries its request."""
    stem = place.name if place.name and alone else f"{place.name or _words(picture.request)}-{picture.request.seed}"
    return picture.save(_free(place, stem, picture.image, picture))


def _words(request: Request) -> str:
    """A few words of the prompt, as part of a file's name."""
    said = [_name(part) for part in parts(request.condition)]
    words = re.findall(r"[^\W_]+", " ".join(said).lower())
    return "-".join(words[:NAME_WORDS])[:NAME_LENGTH].strip("-") or "picture"


def _name(part: Part) -> str:
    """A prompt, or the name of a picture's file without its ending."""
    return part.prompt if isinstance(part, Text) else Path(getattr(part, "name", None) or "").stem


def _free(place: Place, stem: str, image: Image.Image, picture: Painting | None = None) -> Path:
    """The first name that is free, or holds the very same."""
    paths = (place.path(stem, again) for again in count(1))
    return next(path for path in paths if not path.exists() or _holds(path, image, picture))


def _holds(path: Path, image: Image.Image, picture: Painting | None) -> bool:
    try:
        with Image.open(path, formats=("PNG",)) as there:
            if there.size != image.size or there.convert("RGB").tobytes() != image.tobytes():
                return False
        if picture is None:
            return True
        recipe = read_recipe(path)
        return (recipe.request, recipe.made_by) == (picture.request, picture.made_by)
    except (OSError, SyntaxError, ValueError):
        return False
