"""AUTOMATIC1111's generation parameters: the text in pictures that many programs read. It stands beside our own record.

A PNG has it in the text chunk `parameters`; JPEG and WebP in the EXIF field UserComment, with our record in the field
ImageDescription.
"""

import io
import json
import re
import struct
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from typing import Literal

from PIL import Image

from kandinsky22.imaging.images import RECIPE
from kandinsky22.request import Request
from kandinsky22.request.parts import Text, describe
from kandinsky22.request.picture_file import WEB_FORMATS, open_picture

Format = Literal["png", "jpeg", "webp"]
PARAMETERS = "parameters"
SAMPLER_LABELS: Mapping[str, str] = {
    "ddpm": "DDPM",
    "unclip": "UnCLIP",
    "ddim": "DDIM",
    "euler": "Euler",
    "dpmpp_2m": "DPM++ 2M",
    "unipc": "UniPC",
    "heun": "Heun",
}
"""Our samplers as AUTOMATIC1111 writes them."""
IHDR_END = 33  # bytes of a PNG file before its second chunk
EXIF_IFD, USER_COMMENT, DESCRIPTION = 0x8769, 0x9286, 0x010E
MAX_EXIF = 65_000  # bytes that a JPEG has room for
SETTING = re.compile(r'([A-Za-z][\w /+-]{0,60}): ("(?:[^"\\]|\\.)*"|[^,]*)')


def infotext(request: Request, model: str) -> str:
    """The parameters of a resolved request for one picture."""
    decoder = request.decoder
    settings = {
        "Steps": decoder.steps,
        "Sampler": SAMPLER_LABELS.get(decoder.sampler or "", decoder.sampler),
        "CFG scale": None if decoder.guidance_scale is None else f"{decoder.guidance_scale:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model": model,
        "Variation seed": request.variation_seed if request.variation_strength else None,
        "Variation seed strength": f"{request.variation_strength:g}" if request.variation_strength else None,
        "Denoising strength": f"{request.start.strength:g}" if request.start else None,
        "Version": f"kandinsky22 {version('kandinsky22')}",
    }
    negative = [f"Negative prompt: {request.negative.prompt}"] if isinstance(request.negative, Text) else []
    line = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items() if value is not None)
    return "\n".join([describe(request.condition), *negative, line])


def parse(text: str) -> dict[str, str]:
    """The values of parameters by their names, also "Prompt" and "Negative prompt"; {} if they have no settings."""
    *lines, last = text.strip().split("\n")
    if not last.startswith("Steps: "):
        return {}
    prompt, _, negative = "\n".join(["", *lines]).partition("\nNegative prompt:")
    settings = {name: _unquoted(value.strip()) for name, value in SETTING.findall(last)}
    return {"Prompt": prompt.strip(), "Negative prompt": negative.strip()} | settings


def encode(png: bytes, text: str, format: Format = "png", quality: int = 95) -> bytes:
    """A PNG file that we wrote, with parameters added, or in another format with all of its metadata.

    quality: of JPEG and WebP, 0 to 100. A record that is too long for a JPEG is left out.
    """
    if format == "png":
        return png[:IHDR_END] + _text_chunk(PARAMETERS, text) + png[IHDR_END:]
    with open_picture(png, formats=("PNG",)) as image:
        image.load()  # text after the pixels is read only then
        recipe, xmp = getattr(image, "text", {}).get(RECIPE), image.info.get("xmp")
        file = io.BytesIO()
        more = {"xmp": xmp} if xmp else {}
        image.convert("RGB").save(file, format.upper(), quality=max(1, quality), exif=_exif(text, recipe), **more)
    return file.getvalue()


def read(file: bytes) -> dict[str, str]:
    """The texts in a picture's metadata by name, "parameters" among them. Raises `ValueError` for no such picture."""
    try:
        with open_picture(file, formats=WEB_FORMATS) as image:
            if image.format == "PNG":
                image.load()  # text after the pixels is read only then
            texts = {name: str(value) for name, value in getattr(image, "text", {}).items()}
            exif = image.getexif()
            comment = exif.get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
            if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
                texts[PARAMETERS] = comment[8:].decode("utf-16-be", errors="replace")
            if isinstance(recipe := exif.get(DESCRIPTION), str):
                texts[RECIPE] = recipe
            return texts
    except Exception as error:  # decoders raise many kinds of errors for damaged files
        raise ValueError("it is not a whole PNG, JPEG or WebP picture") from error


def _exif(text: str, recipe: str | None) -> bytes:
    """An EXIF block with as much as a JPEG has room for."""
    for comment, description in ((text, recipe), (text, None), (text[:30_000], None)):
        exif = Image.Exif()
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + comment.encode("utf-16-be")
        if description is not None:
            exif[DESCRIPTION] = json.dumps(json.loads(description))  # ASCII, as EXIF requires
        block = exif.tobytes()
        if len(block) <= MAX_EXIF:
            break
    return block


def _text_chunk(name: str, text: str) -> bytes:
    """A PNG text chunk: tEXt for Latin-1, else iTXt."""
    text = text.replace("\0", " ")
    try:
        kind, body = b"tEXt", name.encode() + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        kind, body = b"iTXt", name.encode() + b"\0\0\0\0\0" + text.encode()
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _quoted(value: str) -> str:
    """A value of a setting, as a JSON string if it has a comma, a colon or a line break."""
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value
    except ValueError:
        return value
