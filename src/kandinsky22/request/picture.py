"""A picture that a request is about, as a value: the hash of its pixels, its size, its file's name. Imports no torch.

Pictures come from anywhere (files, bytes, PIL, arrays, tensors) and are brought to 8 bits of grey, RGB or RGBA at the door,
turned as their EXIF says. In JSON, and so in saved pictures, a picture is that reference alone: never its pixels, which
would leak a photograph, and never a folder.
"""

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias, Union

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

Source: TypeAlias = Union[str, "os.PathLike[str]", bytes, "Image.Image", "np.ndarray", "torch.Tensor", "Picture"]
"""Where a picture may come from: a file's name or path, its bytes, PIL, an array [H, W] or [H, W, 1|3|4], a tensor
[1|3|4, H, W], a painting. Whole numbers are 0 to 255. Floats are in [0, 1], what a resize overshoots of it by up to 0.05 is
clipped; where any is below -0.05 they are in [-1, 1]. A mask is never in [-1, 1]: there, below -0.05 is refused."""
DIGITS = 32  # of the SHA-256: enough that no two pictures share them
OVERSHOOT = 0.05  # what a bicubic resize makes of an edge, beyond black and white
CHANNELS = (1, 3, 4)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture, equal to another if its pixels are. `name` is its file's, if it had one."""

    sha256: str
    height: int
    width: int
    name: str | None = field(default=None, compare=False)
    pixels: "Image.Image | None" = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, source: Source, *, mask: bool = False) -> Self:
        """The picture in a file, bytes, PIL, array, tensor or painting.

        mask: it says where to repaint. Then an array of whole numbers that are all 0 or 1 is black and white, an array may
        also be [1, H, W] or [1, 1, H, W], and floats are in [0, 1] alone. Raises `ValueError` for what is no picture, and
        for a file that cannot be read.
        """
        if isinstance(source, cls):
            return source
        name, image = _opened(source, mask)
        image = _eight_bit(image, mask)
        digest = hashlib.sha256(f"{image.mode} {image.height} {image.width} ".encode() + image.tobytes())
        return cls(digest.hexdigest()[:DIGITS], image.height, image.width, name, image)

    @property
    def image(self) -> "Image.Image":
        """The pixels: PIL, of mode L, RGB or RGBA. Raises `ValueError` where only the reference is known."""
        if self.pixels is None:
            raise ValueError(
                f"{self.name or 'a picture'} ({self.height}x{self.width}, {self.sha256[:8]}) is part of this request, "
                "and a request holds no pixels; pass the file"
            )
        return self.pixels

    @property
    def rgb(self) -> "Image.Image":
        """In colour, where transparent over white."""
        from PIL import Image

        if self.image.mode != "RGBA":
            return self.image.convert("RGB")
        return Image.alpha_composite(Image.new("RGBA", self.image.size, "white"), self.image).convert("RGB")

    def found(self, source: Source) -> Self:
        """This picture with its pixels, from `source`. Raises `ValueError` where that is another picture."""
        there = type(self).of(source)
        if there != self:
            raise ValueError(
                f"{there.name or 'that'} is not the picture that was used ({self.name or self.sha256[:8]})"
            )
        return there

    def to_dict(self) -> dict[str, Any]:
        """The reference."""
        values = {"name": self.name, "height": self.height, "width": self.width, "sha256": self.sha256}
        return {key: value for key, value in values.items() if value is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """A reference without pixels; `found` gives them back. Raises `TypeError` for another mapping."""
        picture = cls(**{**values, "pixels": None})
        for side in (picture.height, picture.width):
            if not isinstance(side, int) or isinstance(side, bool):
                raise TypeError(f"a picture's height and width are whole numbers, got {side!r}")
        if not (isinstance(picture.sha256, str) and isinstance(picture.name, str | None)):
            raise TypeError(f"a picture's sha256 and name are text, got {picture.sha256!r} and {picture.name!r}")
        return picture


def _opened(source: Source, mask: bool) -> tuple[str | None, "Image.Image"]:
    """The name and the pixels of what was given."""
    from PIL import Image

    if isinstance(source, Image.Image):
        file = getattr(source, "filename", "")  # of pictures that were opened
        return (Path(file).name if file else None), source
    if isinstance(source, bytes):
        return None, _read(io.BytesIO(source), "these bytes")
    if isinstance(source, str) and not source.strip():  # as a path it would be the folder we are in
        raise ValueError("no file was named; give the name of a picture")
    if isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        return path.name, _read(path, str(path))
    if isinstance(inner := getattr(source, "image", None), Image.Image):  # a painting
        return None, inner
    return None, _from_array(source, mask)


def _read(file: Path | io.BytesIO, said: str) -> "Image.Image":
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise ValueError(f"{said} is not there; check the name of the picture") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not a whole picture"
        raise ValueError(f"cannot read {said}: {reason}") from error


def _eight_bit(image: "Image.Image", mask: bool) -> "Image.Image":
    """Upright, and of mode L, RGB or RGBA."""
    import numpy as np
    from PIL import Image, ImageOps

    if 0 in image.size:
        raise ValueError("the picture has no pixels; check the file or the array")
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        return Image.fromarray(_from_floats(np.asarray(image), mask))
    if image.mode.startswith("I"):
        return Image.fromarray(_upper_bits(np.asarray(image).astype(np.int64), image.mode))
    if image.has_transparency_data:  # also a colour of a PNG in grey or RGB that stands for it
        return image.convert("RGBA")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _upper_bits(levels: "np.ndarray", mode: str) -> "np.ndarray":
    """Eight bits of PIL's integer modes. "I" does not say how many bits it has: eight, or sixteen where some level needs
    them."""
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

    array = _shaped(source, mask)
    if array.dtype.kind == "f":
        return Image.fromarray(_from_floats(array, mask))
    lowest, highest = int(array.min(initial=0)), int(array.max(initial=0))
    if lowest < 0 or highest > 255:
        raise ValueError(f"a picture of whole numbers must lie in 0 to 255, got {lowest} to {highest}")
    full = array.dtype.kind == "b" or (mask and highest <= 1)  # where 1 is all there can be
    return Image.fromarray(np.ascontiguousarray(array, np.uint8) * np.uint8(255 if full else 1))


def _shaped(source: Any, mask: bool) -> "np.ndarray":
    """An array's or a tensor's numbers as [H, W] or [H, W, 3|4]; lists are several pictures as likely as one, and refused."""
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
        pass  # the sentence below says what it is instead
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    if array.ndim == 3 and (is_tensor or (mask and len(array) == 1 and array.shape[2] not in CHANNELS)):
        array = array.transpose(1, 2, 0)
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in CHANNELS or array.dtype.kind not in "fbui":
        said = f"shape {tuple(source.shape)}" if hasattr(source, "shape") else type(source).__name__
        raise ValueError(
            f"a picture is a file, bytes, PIL, an array [H, W] or [H, W, 3] or a tensor [3, H, W], one at a time; got {said}"
        )
    return array[..., 0] if array.ndim == 3 and channels == 1 else array


def _from_floats(array: "np.ndarray", mask: bool) -> "np.ndarray":
    """Eight bits of floats in [0, 1], or in [-1, 1] where any is below what a resize overshoots."""
    import numpy as np

    lowest, highest = float(array.min(initial=0)), float(array.max(initial=0))
    least = -OVERSHOOT if mask else -1 - OVERSHOOT
    if not (np.isfinite(array).all() and lowest >= least and highest <= 1 + OVERSHOOT):
        what, ranges = ("mask", "[0, 1]") if mask else ("picture", "[0, 1] or [-1, 1]")
        raise ValueError(
            f"a {what} of floats must lie in {ranges}, got {lowest:g} to {highest:g}; divide 8-bit values by 255"
        )
    array = array.astype(np.float64)
    array = array / 2 + 0.5 if lowest < -OVERSHOOT else array
    return np.ascontiguousarray((array.clip(0, 1) * 255).round().astype(np.uint8))
