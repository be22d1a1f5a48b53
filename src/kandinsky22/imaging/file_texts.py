"""Texts in the metadata of picture files: our own record, and AUTOMATIC1111's parameters, which many programs read.

A PNG has each in a text chunk of its own; JPEG and WebP have them in EXIF, the record in ImageDescription and the
parameters in UserComment; a GIF has the record as its comment.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from PIL import Image, PngImagePlugin

from kandinsky22.imaging.provenance import XMP, XMP_CHUNK

RECIPE, PARAMETERS = "kandinsky22", "parameters"  # the names of the two texts
Format: TypeAlias = Literal["png", "jpeg", "webp"]
FORMATS: Mapping[str, Format] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".jfif": "jpeg", ".webp": "webp"}
"""The format of a picture's file by its suffix in lower case."""
EXIF_IFD, USER_COMMENT, DESCRIPTION = 0x8769, 0x9286, 0x010E
UNICODE = b"UNICODE\0"  # begins a UserComment in UTF-16
MAX_EXIF = 65_000  # bytes that a JPEG has room for


def save_options(format: Format | Literal["gif"], texts: Mapping[str, str], *, xmp: bool = False) -> dict[str, Any]:
    """The arguments of Pillow's `save` that store texts, by `RECIPE` and `PARAMETERS`.

    xmp: a PNG, JPEG or WebP also says in XMP that a model made it (see `provenance`). Raises `ValueError` for more than
    a JPEG has room for.
    """
    if format == "png":
        info = PngImagePlugin.PngInfo()
        for name, text in texts.items():
            info.add_itxt(name, text)
        if xmp:
            info.add_itxt(XMP_CHUNK, XMP)
        return {"pnginfo": info}
    if format == "gif":
        return {"comment": _ascii(texts[RECIPE]).encode()} if RECIPE in texts else {}
    exif = Image.Exif()
    if RECIPE in texts:
        exif[DESCRIPTION] = _ascii(texts[RECIPE])
    if PARAMETERS in texts:
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = UNICODE + texts[PARAMETERS].encode("utf-16-be")
    block = exif.tobytes()
    if format == "jpeg" and len(block) > MAX_EXIF:
        raise ValueError("the request is too long to be stored in a JPEG; name the picture .png")
    return {"exif": block, **({"xmp": XMP.encode()} if xmp else {})}


def read_texts(image: Image.Image) -> dict[str, str]:
    """The texts of a loaded picture by name."""
    texts = {name: str(value) for name, value in getattr(image, "text", {}).items()}
    if image.format == "GIF" and isinstance(comment := image.info.get("comment"), bytes):
        texts[RECIPE] = comment.decode(errors="replace")
    if image.format in ("JPEG", "MPO", "WEBP"):
        exif = image.getexif()
        if isinstance(record := exif.get(DESCRIPTION), str):
            texts[RECIPE] = record
        comment = exif.get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
        if isinstance(comment, bytes) and comment.startswith(UNICODE):
            texts[PARAMETERS] = comment.removeprefix(UNICODE).decode("utf-16-be", errors="replace")
    return texts


def _ascii(text: str) -> str:
    """A JSON text in ASCII, as EXIF requires."""
    return json.dumps(json.loads(text))
