"""The files of pictures as they leave the server: what made them, in XMP that a model did, and a signature."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from PIL import Image

from kandinsky22.imaging import images
from kandinsky22.imaging.file_texts import PARAMETERS, Format, save_options
from kandinsky22.imaging.images import Painting
from kandinsky22.imaging.infotext import infotext
from kandinsky22.request import Request

Sign = Callable[[bytes, Format], bytes]
"""The signed file of a picture's file and its format; see `content_credentials`."""


@dataclass(frozen=True, slots=True)
class PictureFiles:
    """Encodes pictures. model: the name of the model that the parameters give (None: as in the request)."""

    model: str | None = None
    sign: Sign | None = None

    def encode(self, painting: Painting, format: Format = "png", quality: int | None = None) -> bytes:
        """The file of a finished picture, with its request. quality: see `images.encode`."""
        parameters = infotext(painting.request, self.model, painting.made_by.get("kandinsky22"))
        return self._file(painting.image, format, painting.texts | {PARAMETERS: parameters}, quality)

    def convert(self, png: bytes, format: Format, quality: int | None = None) -> bytes:
        """A file that `encode` wrote as PNG, in a format."""
        return png if format == "png" else self.encode(Painting.from_png(png), format, quality)

    def unfinished(
        self, image: Image.Image, request: Request, format: Format = "png", quality: int | None = None
    ) -> bytes:
        """The file of a picture that is not finished, with the parameters of its resolved request alone."""
        return self._file(image, format, {PARAMETERS: infotext(request, self.model)}, quality)

    def _file(self, image: Image.Image, format: Format, texts: Mapping[str, str], quality: int | None) -> bytes:
        file = images.encode(image.convert("RGB"), format, _fitting(format, texts), xmp=True, quality=quality)
        return file if self.sign is None else self.sign(file, format)


def _fitting(format: Format, texts: Mapping[str, str]) -> Mapping[str, str]:
    """As much of the texts as the format has room for."""
    for some in (texts, {PARAMETERS: texts[PARAMETERS]}):
        try:
            save_options(format, some)
        except ValueError:  # a JPEG has little room
            continue
        return some
    return {PARAMETERS: texts[PARAMETERS][:30_000]}
