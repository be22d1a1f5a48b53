"""Picture files: a saved picture carries the request that made it, and files are written atomically."""

import io
import json
import math
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from PIL import Image, ImageDraw, ImageFont

from kandinsky22.files import atomic_write, expand, parse_json
from kandinsky22.imaging.file_texts import FORMATS, PARAMETERS, RECIPE, Format, read_texts, save_options
from kandinsky22.imaging.infotext import infotext
from kandinsky22.request import Request
from kandinsky22.request.parts import describe
from kandinsky22.request.picture_file import open_picture, read_picture

TILE, ROW, GAP = 512, 2048, 24  # pixels of a sheet: a picture's longer side, the pictures of a row, the margins
RECIPE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
QUALITY: Mapping[str, Mapping[str, Any]] = {
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"lossless": True, "quality": 90, "exact": True},
}
PAPER, INK = (250, 249, 247), (110, 108, 104)


@dataclass(frozen=True, slots=True, repr=False)
class Painting:
    """A painted picture: its pixels, the request for it alone, and what else made it (weights, version, dtype, ...)."""

    image: Image.Image
    request: Request
    made_by: dict[str, Any]

    def save(self, path: str | os.PathLike[str], *, exclusive: bool = False) -> Path:
        """Write a PNG, WebP or JPEG, by the suffix, that carries its request; a JPEG changes pixels.

        exclusive: raise `FileExistsError` instead of replacing a file. Raises `ValueError` if it cannot be written; an
        old file then stays.
        """
        return save_image(self.image, path, self.texts, exclusive=exclusive)

    def encode(self, format: Format = "png") -> bytes:
        """The file that `save` writes, in a format."""
        return encode(self.image, format, self.texts)

    def to_png(self) -> bytes:
        """The PNG file that `save` writes."""
        return self.encode("png")

    @classmethod
    def from_png(cls, file: bytes) -> Self:
        """The painting in a PNG file. Raises `ValueError` if it carries no request, or is no PNG."""
        image = read_picture(file, name="this painting", formats=("PNG",))
        recipe = _parse_recipe(read_texts(image).get(RECIPE), "this painting")
        pixels = image.convert("RGB")
        pixels.info.clear()  # as of a picture that was just painted
        return cls(pixels, recipe.request, recipe.made_by)

    def _repr_png_(self) -> bytes:
        """How a notebook shows it: the file that `save` writes."""
        return self.encode("png")

    @property
    def texts(self) -> dict[str, str]:
        """What the file says of the picture: the record that `read_recipe` reads, and AUTOMATIC1111's parameters."""
        parameters = infotext(self.request, version=self.made_by.get("kandinsky22"))
        return {RECIPE: Recipe(self.request, self.made_by).to_json(), PARAMETERS: parameters}

    def __repr__(self) -> str:
        width, height = self.image.size
        return f"<Painting of {describe(self.request.condition)!r}, {width}x{height}, seed {self.request.seed}>"


def encode(
    image: Image.Image,
    format: Format,
    texts: Mapping[str, str] | None = None,
    *,
    xmp: bool = False,
    quality: int | None = None,
) -> bytes:
    """A picture's file. texts, xmp: see `file_texts.save_options`.

    quality: of JPEG and WebP, 0 to 100; None: hardly any loss, and none in WebP.
    """
    file = io.BytesIO()
    image.save(file, **_save_arguments(format, texts or {}, xmp=xmp, quality=quality))
    return file.getvalue()


def save_image(
    image: Image.Image, path: str | os.PathLike[str], texts: Mapping[str, str] | None = None, *, exclusive: bool = False
) -> Path:
    """Write a picture atomically, as PNG, JPEG or WebP by its suffix. texts: see `file_texts`.

    exclusive: raise `FileExistsError` instead of replacing a file. Raises `ValueError` if it cannot be written.
    """
    path = expand(path)
    check_picture(path)
    try:
        with atomic_write(path, exclusive=exclusive) as partial:
            image.save(partial, **_save_arguments(FORMATS[path.suffix.lower()], texts or {}))
    except FileExistsError:
        raise
    except OSError as error:
        raise ValueError(
            f"cannot write {path}: {error.strerror or error}; choose another place with --output"
        ) from error
    return path


def check_picture(path: Path) -> None:
    """Raises `ValueError` for a file that is written in no format of `FORMATS`."""
    if path.suffix.lower() not in FORMATS:
        name = path.with_suffix(".png").name
        raise ValueError(f"pictures are written as PNG, JPEG or WebP, got {path.name}; name it {name}")


def _save_arguments(
    format: Format, texts: Mapping[str, str], *, xmp: bool = False, quality: int | None = None
) -> dict[str, Any]:
    """The arguments of Pillow's `save` for a format."""
    options = QUALITY.get(format, {}) if quality is None or format == "png" else {"quality": max(1, quality)}
    return {"format": format.upper(), **options, **save_options(format, texts, xmp=xmp)}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a saved picture records: its request, and what else decided its pixels.

    layout: for a file of several pictures, what it is (`kind`: a sheet, strip or film) and how they follow from the
    request; {} for a picture.
    """

    request: Request
    made_by: dict[str, Any]
    layout: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """As it is stored."""
        values = {"request": json.loads(self.request.to_json()), "made_by": self.made_by}
        return json.dumps(values | ({"layout": self.layout} if self.layout else {}), ensure_ascii=False)


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe stored in a picture. Raises `ValueError` if there is none or the file is no picture."""
    with open_picture(expand(path), name=str(path), formats=RECIPE_FORMATS) as image:
        image.load()  # text may follow the pixels
        text = read_texts(image).get(RECIPE)
    return _parse_recipe(text, str(path))


def _parse_recipe(text: str | None, name: str) -> Recipe:
    if text is None:
        raise ValueError(f"{name} carries no request; name a picture that kandinsky22 saved")
    try:
        values = parse_json(text)
        layout = dict(values["layout"]) if "layout" in values else {}
        return Recipe(Request.from_json(json.dumps(values["request"])), dict(values["made_by"]), layout)
    except (TypeError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} carries a request that cannot be read: {error}") from error


def sheet(images: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """A contact sheet: pictures of one size side by side, resized for viewing, each with its label beneath."""
    columns = len(images) if len(images) <= 4 else math.ceil(len(images) ** 0.5)
    scale = min(TILE, ROW // columns) / max(images[0].size)
    width, height = (max(1, round(side * scale)) for side in images[0].size)
    font = ImageFont.load_default(max(10, width // 28))
    line = 2 * round(font.getbbox("0")[3])
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (GAP + columns * (width + GAP), GAP + rows * (height + line) + GAP // 2), PAPER)
    draw = ImageDraw.Draw(page)
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        left, top = GAP + k % columns * (width + GAP), GAP + k // columns * (height + line)
        page.paste(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), (left, top))
        draw.text((left + width / 2, top + height + line / 2), label, fill=INK, font=font, anchor="mm")
    return page


def strip(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size in a row, edge to edge."""
    width, height = images[0].size
    page = Image.new("RGB", (width * len(images), height))
    for k, image in enumerate(images):
        page.paste(image, (k * width, 0))
    return page


def save_film(
    images: Sequence[Image.Image],
    path: str | os.PathLike[str],
    *,
    fps: float,
    loop: bool,
    texts: Mapping[str, str] | None = None,
    exclusive: bool = False,
) -> Path:
    """Write pictures of one size as a film: GIF, APNG (.png, .apng), or MP4 where ffmpeg is installed.

    loop: play it repeatedly. texts: see `file_texts`; an MP4 has none. exclusive: raise `FileExistsError` instead of
    replacing a file. Raises `ValueError` for another suffix, and if it cannot be written.
    """
    check_film(path, fps)
    path, shown = (
        expand(path),
        {"save_all": True, "append_images": [*images[1:]], "duration": round(1000 / fps)},
    )
    suffix = path.suffix.lower()
    try:
        with atomic_write(path, exclusive=exclusive) as partial:
            if suffix == ".gif":
                shown |= save_options("gif", texts or {}) | ({"loop": 0} if loop else {})
                images[0].save(partial, "GIF", **shown)
            elif suffix in (".png", ".apng"):
                shown |= save_options("png", texts or {})
                images[0].save(partial, "PNG", **shown, loop=0 if loop else 1, default_image=False)
            else:
                _save_mp4(images, partial, fps)
    except FileExistsError:
        raise
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    return path


def check_film(path: str | os.PathLike[str], fps: float) -> None:
    """Raises `ValueError` for a film that cannot be written: unknown suffix, no ffmpeg, impossible frame rate."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".gif", ".png", ".apng", ".mp4"):
        raise ValueError(f"a film is written as .gif, .apng or .mp4, got {Path(path).name}")
    if suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise ValueError(
            "an .mp4 needs the program ffmpeg, which is not installed here; a .gif or an .apng needs nothing"
        )
    if not 0.1 <= fps <= 100:
        raise ValueError(f"fps must be from 0.1 to 100 pictures a second, got {fps!r}; try 12")


def _save_mp4(images: Sequence[Image.Image], path: Path, fps: float) -> None:
    program = shutil.which("ffmpeg")
    assert program is not None
    width, height = images[0].size
    frames = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}", "-i", "-"]
    # yuv420p, which every player knows, needs even sides
    coded = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", "-crf", "16", "-f", "mp4", str(path)]
    pixels = b"".join(image.convert("RGB").tobytes() for image in images)
    done = subprocess.run(
        [program, "-v", "error", "-y", *frames, *coded], input=pixels, capture_output=True, check=False
    )
    if done.returncode:
        raise ValueError(f"ffmpeg could not write the film: {done.stderr.decode(errors='replace').strip()}")
