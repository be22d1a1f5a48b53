"""An input picture of a request, as a value: the hash of its pixels, its size and its file name. Imports no torch.

Pictures are read from files, bytes, PIL images, arrays and tensors, rotated as their EXIF data says, and converted to
8-bit grey, RGB or RGBA. In JSON, and so in saved pictures, only this reference is stored: never the pixels, which would
leak a photograph, and never a folder.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, Union

from kandinsky22.files import expand
from kandinsky22.request.limits import check_size
from kandinsky22.request.picture_file import open_picture

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

Source: TypeAlias = Union[str, "os.PathLike[str]", bytes, "Image.Image", "np.ndarray", "torch.Tensor", "Picture"]
"""What a picture can be made from: a file name or path, the bytes of a file, a PIL image, an array [H, W] or [H, W,
1|3|4], a tensor [1|3|4, H, W], a `Painting`. Integers are 0 to 255. Floats are in [0, 1], or in [-1, 1] if any is
below -0.05; values up to 0.05 outside, as a bicubic resize produces, are clipped. A mask is never in [-1, 1]: values
below -0.05 raise an error.
"""
DIGITS = 32  # of the SHA-256: enough to make collisions impossible in practice
OVERSHOOT = 0.05  # how far a bicubic resize goes beyond black and white at an edge
CHANNELS = (1, 3, 4)
BAND = 256  # rows that are converted at a time, so that no second picture is in memory


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture; two are equal if their pixels are.

    `name` is the name of its file, if any. `pixels` is None in a reference.
    """

    sha256: str
    height: int
    width: int
    name: str | None = field(default=None, compare=False)
    pixels: "Image.Image | None" = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, source: Source, *, mask: bool = False) -> Self:
        """Create from any `Source`.

        mask: read it as a mask. Then an integer array of only 0 and 1 is black and white, an array may also be [1, H,
        W] or [1, 1, H, W], and floats must be in [0, 1]. Raises `ValueError` for a file that cannot be read and for
        anything that is not a picture.
        """
        if isinstance(source, cls):
            return source
        name, image = _open(source, mask)
        image = to_eight_bit(image, mask)
        return cls(_digest(image), image.height, image.width, name, image)

    @property
    def image(self) -> "Image.Image":
        """The pixels, as a PIL image of mode L, RGB or RGBA. Raises `ValueError` for a reference without pixels."""
        if self.pixels is None:
            raise ValueError(
                f"{self.name or 'a picture'} ({self.width}x{self.height}, {self.sha256[:8]}) is part of this request, "
                "and a request holds no pixels; pass the file"
            )
        return self.pixels

    @property
    def rgb(self) -> "Image.Image":
        """The picture in RGB, on white where it is transparent."""
        from PIL import Image

        if self.image.mode == "RGB":
            return self.image
        if self.image.mode != "RGBA":
            return self.image.convert("RGB")
        return Image.alpha_composite(Image.new("RGBA", self.image.size, "white"), self.image).convert("RGB")

    def to_dict(self) -> dict[str, Any]:
        """The reference as JSON values, without pixels."""
        values = {"name": self.name, "height": self.height, "width": self.width, "sha256": self.sha256}
        return {key: value for key, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A reference without pixels. Raises `TypeError` for any other mapping."""
        picture = cls(**{**values, "pixels": None})
        for side in (picture.height, picture.width):
            if not isinstance(side, int) or isinstance(side, bool):
                raise TypeError(f"a picture's height and width must be whole numbers, got {side!r}")
        check_size("a picture of it", picture.height, picture.width)
        if not (isinstance(picture.sha256, str) and isinstance(picture.name, str | None)):
            raise TypeError(f"a picture's sha256 and name must be text, got {picture.sha256!r} and {picture.name!r}")
        return picture


def _open(source: Source, mask: bool) -> tuple[str | None, "Image.Image"]:
    """The file name, if any, and the pixels of a source, upright."""
    from PIL import Image, ImageOps

    if isinstance(source, Image.Image):
        check_size("the picture", source.height, source.width)
        file = getattr(source, "filename", "")  # only opened files have one
        return (Path(file).name if file else None), ImageOps.exif_transpose(source)
    if isinstance(source, bytes):
        return None, _read(source)
    if isinstance(source, str) and not source.strip():  # as a path it would be the current folder
        raise ValueError("the name of the picture is empty; give the name of a file")
    if isinstance(source, str | os.PathLike):
        path = expand(source)
        return path.name, _read(path)
    if isinstance(inner := getattr(source, "image", None), Image.Image):  # a `Painting`
        return None, inner.copy()
    return None, _from_array(source, mask)


def _read(source: Path | bytes) -> "Image.Image":
    from PIL import ImageOps

    with open_picture(source) as image:
        ImageOps.exif_transpose(image, in_place=True)  # also decodes it
        return image


def _digest(image: "Image.Image") -> str:
    """The hash of a picture's mode, size and pixels, without a copy of all pixels."""
    digest = hashlib.sha256(f"{image.mode} {image.height} {image.width} ".encode())
    for top in range(0, image.height, BAND):
        digest.update(image.crop((0, top, image.width, min(top + BAND, image.height))).tobytes())
    return digest.hexdigest()[:DIGITS]


def to_eight_bit(image: "Image.Image", mask: bool) -> "Image.Image":
    """The image in mode L, RGB or RGBA."""
    import numpy as np
    from PIL import Image

    if image.mode == "F":
        return Image.fromarray(_from_floats(np.asarray(image), mask))
    if image.mode.startswith("I"):
        return Image.fromarray(_upper_bits(np.asarray(image), image.mode))
    if image.has_transparency_data:  # also a grey or RGB PNG in which one colour is transparent
        return image.convert("RGBA")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _upper_bits(levels: "np.ndarray", mode: str) -> "np.ndarray":
    """Eight bits of PIL's integer modes. Mode "I" may hold 8 or 16 bits: 16 if any level is above 255."""
    import numpy as np

    lowest, highest = int(levels.min()), int(levels.max())
    if lowest < 0 or highest > 65535:
        raise ValueError(
            f"a picture of whole numbers must lie in 0 to 65535, got {lowest} to {highest}; scale it to 0 to 255"
        )
    return (levels >> 8 if mode != "I" or highest > 255 else levels).astype(np.uint8)


def _from_array(source: Any, mask: bool) -> "Image.Image":
    import numpy as np
    from PIL import Image

    array = _to_channels_last(source, mask)
    check_size("the picture", *array.shape[:2])
    if array.dtype.kind == "f":
        return Image.fromarray(_from_floats(array, mask))
    lowest, highest = int(array.min(initial=0)), int(array.max(initial=0))
    if lowest < 0 or highest > 255:
        raise ValueError(f"a picture of whole numbers must lie in 0 to 255, got {lowest} to {highest}; rescale it")
    full = array.dtype.kind == "b" or (mask and highest <= 1)  # 1 is white
    return Image.fromarray(np.ascontiguousarray(array, np.uint8) * np.uint8(255 if full else 1))


def _to_channels_last(source: Any, mask: bool) -> "np.ndarray":
    """An array or tensor as [H, W] or [H, W, 3|4].

    Raises `ValueError` for other shapes and for lists, which are ambiguous.
    """
    import numpy as np

    is_tensor = hasattr(source, "detach")
    array: np.ndarray = np.empty(0, object)
    try:
        if is_tensor:
            values = source.detach().cpu()
            array = np.asarray(values.float() if values.is_floating_point() else values)  # NumPy has no bfloat16
        elif hasattr(source, "shape"):
            array = np.asarray(source)
    except (TypeError, ValueError, RuntimeError):
        pass  # the message below says what it is instead
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    if array.ndim == 3 and (is_tensor or (mask and len(array) == 1 and array.shape[2] not in CHANNELS)):
        array = array.transpose(1, 2, 0)
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in CHANNELS or array.dtype.kind not in "fbui":
        given = f"shape {tuple(source.shape)}" if hasattr(source, "shape") else type(source).__name__
        raise ValueError(
            "a picture is a file, bytes, PIL, an array [H, W] or [H, W, 3] or a tensor [3, H, W], one at a time; "
            f"got {given}"
        )
    return array[..., 0] if array.ndim == 3 and channels == 1 else array


def _from_floats(array: "np.ndarray", mask: bool) -> "np.ndarray":
    """Eight bits of floats in [0, 1], or in [-1, 1] if any is below `-OVERSHOOT`."""
    import numpy as np

    lowest, highest = float(array.min(initial=0)), float(array.max(initial=0))
    minimum = -OVERSHOOT if mask else -1 - OVERSHOOT
    if not (np.isfinite(array).all() and lowest >= minimum and highest <= 1 + OVERSHOOT):
        kind, ranges = ("mask", "[0, 1]") if mask else ("picture", "[0, 1] or [-1, 1]")
        raise ValueError(
            f"a {kind} of floats must lie in {ranges}, got {lowest:g} to {highest:g}; divide 8-bit values by 255"
        )
    levels = np.empty(array.shape, np.uint8)
    for top in range(0, len(array), BAND):
        band = array[top : top + BAND].astype(np.float64)
        band = band / 2 + 0.5 if lowest < -OVERSHOOT else band
        levels[top : top + BAND] = (band.clip(0, 1) * 255).round()
    return levels
