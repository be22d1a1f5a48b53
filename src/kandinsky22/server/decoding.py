"""Pictures from strangers, decoded in a process with limited memory; the server reads only the PNG files it returns."""

import asyncio
import io
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from PIL import Image, ImageOps

from kandinsky22.imaging import infotext
from kandinsky22.request import Picture
from kandinsky22.request.picture_file import WEB_FORMATS, open_picture
from kandinsky22.server.errors import ApiError

T = TypeVar("T")
FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64_000_000
MAX_ASPECT = 32
MEMORY = 2 << 30  # bytes of address space of the process that decodes


class Decoder:
    """Decodes pictures, one at a time."""

    def __init__(self) -> None:
        self._process = self._start()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_limit_memory)

    async def picture(self, file: bytes, name: str) -> Picture:
        """The picture in a file. name: of the parameter it came in. Raises `ApiError`."""
        return Picture.of(await self._read(_to_png, file, name))

    async def texts(self, file: bytes, name: str) -> dict[str, str]:
        """The texts in a picture's metadata, as `infotext.read` returns them. Raises `ApiError`."""
        return await self._read(infotext.read, file, name)

    async def _read(self, function: Callable[[bytes], T], file: bytes, name: str) -> T:
        try:
            return await asyncio.wrap_future(self._process.submit(function, file))
        except BrokenProcessPool:  # the picture, or the system, ended it
            self._process = self._start()
            raise ApiError("invalid", f"{name} cannot be decoded; send a PNG, JPEG or WebP picture", name) from None
        except (ValueError, MemoryError) as error:
            text = str(error) or "decoding it needs too much memory"
            raise ApiError("invalid", f"{name} cannot be read: {text}", name) from None

    def close(self) -> None:
        """End the process."""
        self._process.shutdown(wait=False, cancel_futures=True)


def _limit_memory() -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def _to_png(file: bytes) -> bytes:
    """A picture as an upright PNG of mode L, RGB or RGBA. Raises `ValueError`."""
    try:
        with open_picture(file, name="the picture", formats=WEB_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
                raise ValueError(f"it has {width}x{height} pixels, and at most {MAX_PIXELS} are read, not too narrow")
            upright = ImageOps.exif_transpose(image)
            if upright.mode not in ("L", "RGB", "RGBA"):
                upright = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
            png = io.BytesIO()
            Image.Image.save(upright, png, "PNG", compress_level=1)
    except ValueError:
        raise
    except Exception as error:  # decoders raise many kinds of errors for damaged files
        raise ValueError("it is not a whole PNG, JPEG or WebP picture") from error
    return png.getvalue()
