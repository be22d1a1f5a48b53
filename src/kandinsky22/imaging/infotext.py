"""AUTOMATIC1111's generation parameters: a text in pictures that many programs read, beside our own record.

`file_texts` says where it is in a file.
"""

import json
import re
from collections.abc import Mapping
from importlib import metadata

from kandinsky22.imaging.file_texts import PARAMETERS as PARAMETERS
from kandinsky22.imaging.file_texts import read_texts
from kandinsky22.request import Request
from kandinsky22.request.parts import Text, describe
from kandinsky22.request.picture_file import WEB_FORMATS, open_picture

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
SETTING = re.compile(r'([A-Za-z][\w /+-]{0,60}): ("(?:[^"\\]|\\.)*"|[^,]*)')


def infotext(request: Request, model: str | None = None, version: str | None = None) -> str:
    """The parameters of a resolved request for one picture.

    model: its name (None: as in the request). version: of kandinsky22 (None: the installed one).
    """
    decoder = request.decoder
    settings = {
        "Steps": decoder.steps,
        "Sampler": SAMPLER_LABELS.get(decoder.sampler or "", decoder.sampler),
        "CFG scale": None if decoder.guidance_scale is None else f"{decoder.guidance_scale:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model": model or request.model,
        "Variation seed": request.variation_seed if request.variation_strength else None,
        "Variation seed strength": f"{request.variation_strength:g}" if request.variation_strength else None,
        "Denoising strength": f"{request.start.strength:g}" if request.start else None,
        "Version": f"kandinsky22 {version or _installed_version()}",
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


def read(file: bytes) -> dict[str, str]:
    """The texts in a picture's metadata by name, "parameters" among them. Raises `ValueError` for no such picture."""
    try:
        with open_picture(file, formats=WEB_FORMATS) as image:
            if image.format == "PNG":
                image.load()  # text after the pixels is read only then
            return read_texts(image)
    except Exception as error:  # decoders raise many kinds of errors for damaged files
        raise ValueError("it is not a whole PNG, JPEG or WebP picture") from error


def _installed_version() -> str:
    try:
        return metadata.version("kandinsky22")
    except metadata.PackageNotFoundError:  # its source is used without having been installed
        return ""


def _quoted(value: str) -> str:
    """A value of a setting, as a JSON string if it has a comma, a colon or a line break."""
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value
    except ValueError:
        return value
