"""Generators of hostile pictures: small files that ask for much, run programs, or hold text for a terminal."""

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from kandinsky22.imaging.file_texts import RECIPE
from kandinsky22.request.tasks import text2img

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
CONTROLS = "\x1b]0;owned\x07\x1b[2J\x9b31m\x7f\u202e\r\n"  # title, clear, C1 sequence, delete, override, new line


def png_of_size(width: int, height: int, *, bits: int = 8, colour: int = 2, level: int = 9) -> bytes:
    """A PNG of equal rows, compressed row by row: little memory here, and a small file.

    colour: PNG's number of the colour type: 0 grey, 2 RGB, 6 RGBA.
    """
    row = b"\0" + bytes(width * {0: 1, 2: 3, 6: 4}[colour] * bits // 8)
    packer = zlib.compressobj(level)
    body = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def png_header(width: int, height: int) -> bytes:
    """A PNG that states a size and holds no pixels: what is decided on the header alone needs no more."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", b"") + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_recipe(path: Path, request: dict[str, Any] | None = None, made_by: dict[str, Any] | None = None) -> Path:
    """A picture of 64x64 with a recipe of text to image, in which `request` and `made_by` replace values."""
    values = json.loads(text2img("a red circle", seed=1, height=64, width=64).to_json()) | (request or {})
    info = PngImagePlugin.PngInfo()
    info.add_itxt(RECIPE, json.dumps({"request": values, "made_by": made_by or {}}))
    Image.new("RGB", (64, 64)).save(path, pnginfo=info)
    return path


def special_files(folder: Path) -> Iterator[Path]:
    """A pipe and a link to an endless device, with the names of pictures."""
    os.mkfifo(folder / "pipe.png")
    (folder / "endless.png").symlink_to("/dev/zero")
    yield from (folder / "pipe.png", folder / "endless.png")
