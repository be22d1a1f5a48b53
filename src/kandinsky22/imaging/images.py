"""Picture files: a saved picture carries the request that made it, and files are written atomically."""

import io
import json
import math
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from kandinsky22.files import atomic_write, expand, parse_json
from kandinsky22.imaging.provenance import encode
from kandinsky22.request import Request
from kandinsky22.request.picture_file import read_picture

RECIPE = "kandinsky22"  # the PNG text chunk that holds the recipe
TILE, ROW, GAP = 512, 2048, 24  # pixels of a sheet: a picture's longer side, the pictures of a row, the margins
PAPER, INK = (250, 249, 247), (110, 108, 104)


@dataclass(frozen=True, slots=True)
class Painting:
    """A painted picture: its pixels, the request for it alone, and what else made it (weights, version, dtype, ...)."""

    image: Image.Image
    request: Request
    made_by: dict[str, Any]

    def save(self, path: str | os.PathLike[str], *, exclusive: bool = False) -> Path:
        """Write a PNG that carries its request. Raises `ValueError` if it cannot be written; an old file then stays.

        exclusive: raise `FileExistsError` instead of replacing a file.
        """
        return save_png(self.image, path, self._info(), exclusive=exclusive)

    def to_png(self, *, xmp: bool = False) -> bytes:
        """The PNG file that `save` writes; xmp: it also says in XMP that a model made it (see `provenance`)."""
        if xmp:
            return encode(self.image, "PNG", info=self._info())
        file = io.BytesIO()
        self.image.save(file, "PNG", pnginfo=self._info())
        return file.getvalue()

    @classmethod
    def from_png(cls, file: bytes) -> Self:
        """The painting in a PNG file. Raises `ValueError` if it carries no request, or is no PNG."""
        image = read_picture(file, name="this painting", formats=("PNG",))
        recipe = _recipe_of(image, "this painting")
        pixels = image.convert("RGB")
        pixels.info.clear()  # as of a picture that was just painted
        return cls(pixels, recipe.request, recipe.made_by)

    def _info(self) -> PngImagePlugin.PngInfo:
        info = PngImagePlugin.PngInfo()
        recipe = {"request": json.loads(self.request.to_json()), "made_by": self.made_by}
        info.add_itxt(RECIPE, json.dumps(recipe, ensure_ascii=False))
        return info


def save_png(
    image: Image.Image,
    path: str | os.PathLike[str],
    info: PngImagePlugin.PngInfo | None = None,
    *,
    exclusive: bool = False,
) -> Path:
    """Write a PNG atomically. Raises `ValueError` if it cannot be written.

    exclusive: raise `FileExistsError` instead of replacing a file.
    """
    path = expand(path)
    if path.suffix.lower() != ".png":
        raise ValueError(
            f"pictures are written as PNG, which keeps their request; name it {path.with_suffix('.png').name}"
        )
    try:
        with atomic_write(path, exclusive=exclusive) as partial:
            image.save(partial, "PNG", pnginfo=info)
    except FileExistsError:
        raise
    except OSError as error:
        raise ValueError(
            f"cannot write {path}: {error.strerror or error}; choose another place with --output"
        ) from error
    return path


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a saved picture records: its request, and what else decided its pixels."""

    request: Request
    made_by: dict[str, Any]


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """The recipe stored in a PNG. Raises `ValueError` if there is none or the file is no PNG."""
    image = read_picture(Path(path).expanduser(), name=str(path), formats=("PNG",))  # text may follow the pixels
    return _recipe_of(image, str(path))


def _recipe_of(image: Image.Image, name: str) -> Recipe:
    text = getattr(image, "text", {}).get(RECIPE)
    if text is None:
        raise ValueError(
            f"{name} carries no request; name a single picture that kandinsky22 saved (sheets and strips carry none)"
        )
    try:
        values = parse_json(text)
        return Recipe(Request.from_json(json.dumps(values["request"])), dict(values["made_by"]))
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
    images: Sequence[Image.Image], path: str | os.PathLike[str], *, fps: float, loop: bool, exclusive: bool = False
) -> Path:
    """Write pictures of one size as a film: GIF, APNG (.png, .apng), or MP4 where ffmpeg is installed.

    loop: play it repeatedly. exclusive: raise `FileExistsError` instead of replacing a file. Raises `ValueError` for
    another suffix, and if it cannot be written.
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
                images[0].save(partial, "GIF", **shown, **({"loop": 0} if loop else {}))
            elif suffix in (".png", ".apng"):
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
