"""The one place that opens picture files from outside. Imports no torch.

Only regular files, only the decoders of `FORMATS`, and only sizes within `limits` by the file's header. Pillow has
decoders that start other programs (EPS runs Ghostscript), so no other function may open a picture.
"""

import io
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from kandinsky22.files import open_regular
from kandinsky22.request.limits import MAX_FILE_BYTES, MAX_PIXELS, LimitError, check_size

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".avif": "AVIF",
}
"""The format of a picture file by its suffix in lower case: all that the package reads."""
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
WEB_FORMATS = FORMATS[:3]  # for pictures that arrive over a network
HEIC = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"))
"""How files of telephones begin, after four bytes; Pillow does not read them."""
REDUCED = ("JPEG", "MPO")  # what Pillow calls the files whose decoder can halve their size; MPO is several JPEGs
# What decoders raise for a broken file
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,  # AVIF
    EOFError,
    struct.error,
    zlib.error,
)
_warnings_lock = threading.Lock()  # the filters of warnings are global


class PictureError(ValueError):
    """A picture that cannot be read: one sentence with its name."""


@contextmanager
def open_picture(
    source: Path | bytes, *, name: str | None = None, formats: Sequence[str] = FORMATS
) -> Iterator["Image.Image"]:
    """A file or its bytes as a PIL image of which only the header has been read.

    name: for messages. formats: some of `FORMATS`. A JPEG with up to twice `MAX_PIXELS` is decoded at half its height
    and width. Raises `LimitError` for other sizes outside the `limits`, and `PictureError` for a file that cannot be
    opened and for what decoders raise inside the block.
    """
    from PIL import Image

    name = name or ("these bytes" if isinstance(source, bytes) else str(source))
    with _open_file(source, name) as file:
        try:
            with _read_header(file, name, formats) as image:
                if image.format in REDUCED and image.width * image.height > MAX_PIXELS:
                    image.draft(None, (image.width // 2, image.height // 2))  # Pillow refuses what is larger than twice
                check_size(name, image.height, image.width)
                yield image
        except (LimitError, PictureError):
            raise
        except Image.DecompressionBombError:
            raise LimitError(f"{name} has more than {MAX_PIXELS} pixels; make it smaller") from None
        except BROKEN as error:
            raise PictureError(f"cannot read {name}: {_reason(error, formats)}") from error


def read_picture(source: Path | bytes, *, name: str | None = None, formats: Sequence[str] = FORMATS) -> "Image.Image":
    """A decoded picture, not rotated by its EXIF data; otherwise as `open_picture`."""
    with open_picture(source, name=name, formats=formats) as image:
        image.load()
        return image


def _open_file(source: Path | bytes, name: str) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    try:
        return open_regular(source, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise PictureError(f"{name} does not exist; check the name of the picture") from None
    except OSError as error:
        raise PictureError(f"cannot read {name}: {error.strerror or error}") from error
    except ValueError as error:  # not a regular file, or too large
        raise PictureError(f"cannot read the picture: {error}") from error


def _read_header(file: BinaryIO, name: str, formats: Sequence[str]) -> "Image.Image":
    """The image in a file. Pillow's warning about large pictures is left out: `limits` decide."""
    from PIL import Image, UnidentifiedImageError

    if not (log := logging.getLogger("PIL")).hasHandlers():
        log.addHandler(logging.NullHandler())  # else Python prints what decoders log, beside our own message
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return Image.open(file, formats=tuple(formats))
        except UnidentifiedImageError:
            file.seek(0)
            if file.read(12)[4:] in HEIC:
                raise PictureError(f"{name} is a HEIC picture, which is not read; save it as JPEG or PNG") from None
            raise


def _reason(error: Exception, formats: Sequence[str]) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"it is not a {formats[0]} picture" if len(formats) == 1 else "it is not a complete picture"
