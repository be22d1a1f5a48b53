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
[1|3|4, H, W] (floats in [0, 1], or in [-1, 1] where any is negative; 8-bit integers), a painting."""
DIGITS = 32  # of the SHA-256: enough that no two pictures share them


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture, equal to another if its pixels are. `name` is its file's, if it had one."""

    sha256: str
    height: int
    width: int
    name: str | None = field(default=None, compare=False)
    pixels: "Image.Image | None" = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, source: Source) -> Self:
        """The picture in a file, bytes, PIL, array, tensor or painting.

        Raises `ValueError` for what is no picture, and for a file that cannot be read.
        """
        if isinstance(source, cls):
            return source
        name, image = _opened(source)
        image = _eight_bit(image)
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
        return _over(self.image, "white").convert("RGB")

    @property
    def grey(self) -> "Image.Image":
        """In grey, mode L, where transparent over black: what a mask says."""
        return _over(self.image, "black").convert("L")

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
        return cls(**{**values, "pixels": None})


def _opened(source: Source) -> tuple[str | None, "Image.Image"]:
    """The name and the pixels of what was given."""
    from PIL import Image

    if isinstance(source, Image.Image):
        file = getattr(source, "filename", "")  # of pictures that were opened
        return (Path(file).name if file else None), source
    if isinstance(source, bytes):
        return None, _read(io.BytesIO(source), "these bytes")
    if isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        return path.name, _read(path, str(path))
    if isinstance(inner := getattr(source, "image", None), Image.Image):  # a painting
        return None, inner
    return None, _from_array(source)


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


def _eight_bit(image: "Image.Image") -> "Image.Image":
    """Upright, and of mode L, RGB or RGBA. Sixteen bits keep their upper eight; floats are in [0, 1]."""
    from PIL import Image, ImageOps

    if 0 in image.size:
        raise ValueError("the picture has no pixels; check the file or the array")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("L", "RGB", "RGBA"):
        return image
    if image.mode == "F":
        return image.point(lambda value: value * 255 + 0.5).convert("L")
    if image.mode.startswith("I"):
        import numpy as np

        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "1":
        return image.convert("L")
    has_alpha = "A" in image.getbands() or "transparency" in image.info
    return image.convert("RGBA" if has_alpha else "RGB")


def _from_array(source: Any) -> "Image.Image":
    import numpy as np
    from PIL import Image

    is_tensor = hasattr(source, "detach")
    try:
        array = np.asarray(source.detach().cpu().float() if is_tensor else source)
    except (TypeError, ValueError, RuntimeError):
        array = np.empty(0, object)
    if is_tensor and getattr(source, "dtype", None) is not None and not source.dtype.is_floating_point:
        array = array.astype(np.uint8)
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    array = array.transpose(1, 2, 0) if is_tensor and array.ndim == 3 else array
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.dtype.kind not in "fbui":
        said = f"shape {tuple(source.shape)}" if hasattr(source, "shape") else type(source).__name__
        raise ValueError(
            f"a picture is a file, bytes, PIL, an array [H, W] or [H, W, 3] or a tensor [3, H, W], one at a time; got {said}"
        )
    if array.dtype.kind == "b":
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min(initial=0) < -1.01 or array.max(initial=0) > 1.01:
            raise ValueError("a picture of floats must lie in [0, 1] or [-1, 1]; divide 8-bit values by 255")
        array = array / 2 + 0.5 if array.min(initial=0) < 0 else array
        array = (array.clip(0, 1) * 255).round().astype(np.uint8)
    elif array.dtype != np.uint8:
        if array.min(initial=0) < 0 or array.max(initial=0) > 255:
            raise ValueError("a picture of whole numbers must lie in 0 to 255")
        array = array.astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if channels == 1 and array.ndim == 3 else array))


def _over(image: "Image.Image", ground: str) -> "Image.Image":
    from PIL import Image

    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
