"""CLIP image embeddings as values: a vector and the fingerprint of the CLIP encoder whose space it is in.

The decoder is conditioned on such an embedding, whether the prior made it from a text or CLIP from a picture;
embeddings can therefore be added, subtracted and interpolated. They do not have unit length, and the decoder uses their
length too. Imports no torch.
"""

import base64
import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kandinsky22.files import atomic_write, expand, first_line, open_regular, parse_json

if TYPE_CHECKING:
    import numpy as np

KEY, ENCODER, MADE_BY = "image_embeds", "encoder", "made_by"
FLOAT = "<f4"  # little-endian float32
DTYPES = {"F64": "<f8", "F32": FLOAT, "F16": "<f2"}  # of safetensors, as numpy's
MAX_BYTES = 1 << 24  # of a file: an embedding has some thousand numbers


@dataclass(frozen=True, slots=True, repr=False)
class Embedding:
    """A float32 vector [D], stored as bytes, in the space of `encoder`; `made_by` describes its origin for readers.

    `a + b`, `a - b`, `0.5 * a`, `a / 2` and `-a` work as for vectors. Combining embeddings of different encoders raises
    `ValueError`.
    """

    data: bytes
    encoder: str
    made_by: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __repr__(self) -> str:
        return f"<Embedding {self.name}: {len(self.data) // 4} numbers of length {self.length:.3g}, {self.encoder}>"

    def __post_init__(self) -> None:
        import numpy as np

        if not self.data or len(self.data) % 4 or not np.isfinite(self.vector).all():
            raise ValueError("an embedding must be a non-empty vector of finite float32 numbers")

    @classmethod
    def of(cls, vector: Any, encoder: str, made_by: Mapping[str, Any] | None = None) -> Self:
        """Create from a tensor, array or list of numbers, [D] or [1, D]. Raises `ValueError` for any other shape."""
        import numpy as np

        with np.errstate(over="ignore"):  # infinity is refused
            values = np.asarray(vector.detach().float().cpu() if hasattr(vector, "detach") else vector, FLOAT)
        if values.size != max(values.shape, default=0):
            raise ValueError(f"an embedding must be one vector, [D] or [1, D], got shape {values.shape}")
        return cls(values.tobytes(), encoder, made_by or {})

    @property
    def vector(self) -> "np.ndarray":
        """The numbers, float32 [D], as a read-only array."""
        import numpy as np

        return np.frombuffer(self.data, FLOAT)

    @property
    def digest(self) -> str:
        """The first eight hex digits of the SHA-256 of its numbers."""
        return hashlib.sha256(self.data).hexdigest()[:8]

    @property
    def name(self) -> str:
        """Its name inside sums: the sum it was computed from, or else its digest."""
        return str(self.made_by.get("sum", self.digest))

    @property
    def length(self) -> float:
        """The Euclidean norm."""
        return math.sqrt(float((self.vector.astype(float) ** 2).sum()))

    def __add__(self, other: "Embedding") -> "Embedding":
        if not isinstance(other, Embedding):
            return NotImplemented
        self._check_same_space(other)
        return self._like(self.vector + other.vector, f"({self.name} + {other.name})")

    def __sub__(self, other: "Embedding") -> "Embedding":
        return self + other * -1.0

    def __mul__(self, weight: float) -> Self:
        return self._like(self.vector * weight, f"{weight:g} {self.name}")

    __rmul__ = __mul__

    def __truediv__(self, weight: float) -> Self:
        return self * (1 / weight)

    def __neg__(self) -> Self:
        return self * -1.0

    def subtract(self, other: "Embedding", weight: float = 1.0) -> "Embedding":
        """self - weight * other."""
        return self - other * weight

    def normalised(self, length: float = 1.0) -> Self:
        """The vector in the same direction with Euclidean norm `length`. Raises `ValueError` for the zero vector."""
        if self.length == 0:
            raise ValueError("the zero embedding has no direction and cannot be normalised")
        return self * (length / self.length)

    def slerp(self, other: "Embedding", t: float) -> "Embedding":
        """Spherical interpolation to `other` at `t` in [0, 1]; the length is interpolated linearly.

        Shoemake, Animating rotation with quaternion curves (1985). Opposite vectors have no unique great circle; those
        and nearly parallel ones are interpolated linearly.
        """
        self._check_same_space(other)
        cosine = float(self.normalised().vector.astype(float) @ other.normalised().vector.astype(float))
        angle = math.acos(max(-1.0, min(1.0, cosine)))
        if math.sin(angle) < 1e-3:  # nearer than float32 resolves
            return mix((self, other), (1 - t, t))
        direction = mix(
            (self.normalised(), other.normalised()),
            (math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)),
        )
        return direction * ((1 - t) * self.length + t * other.length)

    def save(self, path: str | os.PathLike[str], *, exclusive: bool = False) -> Path:
        """Write a safetensors file: the tensor `image_embeds` [1, D], with the encoder and `made_by` in its metadata.

        exclusive: raise `FileExistsError` instead of replacing a file. Raises `ValueError` if it cannot be written.
        """
        from safetensors.numpy import save_file

        path = expand(path)
        metadata = {ENCODER: self.encoder, MADE_BY: json.dumps(self.made_by, ensure_ascii=False)}
        try:
            with atomic_write(path, exclusive=exclusive) as partial:
                save_file({KEY: self.vector[None].copy()}, partial, metadata=metadata)
        except FileExistsError:
            raise
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror or error}; choose another path") from error
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote, or one of the same tensor in another floating-point dtype.

        Raises `ValueError` for any other file.
        """
        from safetensors import SafetensorError, deserialize

        try:
            with open_regular(expand(path), MAX_BYTES) as file:
                content = file.read()
            tensor = dict(deserialize(content))[KEY]  # checks the header
            header = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")])
            metadata = header["__metadata__"]
            made_by = parse_json(metadata.get(MADE_BY, "{}"))
            if not isinstance(made_by, dict):
                raise ValueError(f"its {MADE_BY} is no JSON object")
            return cls.of(_numbers(tensor["dtype"], tensor["shape"], tensor["data"]), metadata[ENCODER], made_by)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is not an embedding saved by kandinsky22 ({first_line(error)})") from error

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: the encoder, and the numbers in base64, so that they are restored exactly."""
        return {"encoder": self.encoder, "data": base64.b64encode(self.data).decode()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Restore from what `to_dict` returned. Raises `ValueError`, `KeyError` and `TypeError` for anything else."""
        if not isinstance(values["encoder"], str):
            raise TypeError("an embedding's encoder must be a text")
        return cls(base64.b64decode(values["data"], validate=True), values["encoder"])

    def _like(self, vector: "np.ndarray", sum_of: str) -> Self:
        return type(self)(vector.astype(FLOAT).tobytes(), self.encoder, {"sum": sum_of})

    def _check_same_space(self, other: "Embedding") -> None:
        if (self.encoder, len(self.data)) != (other.encoder, len(other.data)):
            raise ValueError(
                f"cannot combine embeddings of two encoders ({self.encoder}, {other.encoder}); make both with one model"
            )


def _numbers(dtype: str, shape: Sequence[int], data: bytes) -> "np.ndarray":
    """A tensor of a safetensors file as numbers that contain its own exactly."""
    import numpy as np

    if dtype == "BF16":  # the upper half of a float32
        numbers = (np.frombuffer(data, "<u2").astype("<u4") << 16).view(FLOAT)
    elif dtype in DTYPES:
        numbers = np.frombuffer(data, DTYPES[dtype])
    else:
        raise ValueError(f"its numbers are {dtype}, and an embedding's are floating-point numbers")
    return numbers.reshape(shape)


def mix(embeddings: Sequence[Embedding], weights: Sequence[float]) -> Embedding:
    """The weighted sum; nothing is normalised. Raises `ValueError` unless there is one weight for each embedding."""
    if not embeddings or len(embeddings) != len(weights):
        raise ValueError(f"{len(embeddings)} embeddings need as many weights, got {len(weights)}")
    return reduce(add, (weight * embedding for embedding, weight in zip(embeddings, weights, strict=True)))


def slerp(first: Embedding, second: Embedding, t: float) -> Embedding:
    """Spherical interpolation from `first` to `second`: see `Embedding.slerp`."""
    return first.slerp(second, t)
