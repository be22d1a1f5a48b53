"""An embedding of a picture as a value: a vector, and the fingerprint of the CLIP encoder whose space it is in.

Embeddings are what pictures and words become before anything is painted, so they add, subtract and blend. CLIP's are not of
unit length, and the decoder reads their length too. Imports no torch.
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

if TYPE_CHECKING:
    import numpy as np

KEY, ENCODER, MADE_BY = "image_embeds", "encoder", "made_by"
FLOAT = "<f4"  # how the numbers are kept: float32, little end first


@dataclass(frozen=True, slots=True)
class Embedding:
    """A vector [D] of float32, as bytes, in the space of `encoder`; `made_by` says how it came about, for people.

    `a + b`, `a - b` and `0.5 * a` are what they say. Raises `ValueError` where two are of different encoders.
    """

    data: bytes
    encoder: str
    made_by: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        import numpy as np

        if not self.data or len(self.data) % 4 or not np.isfinite(self.vector).all():
            raise ValueError("an embedding is finite float32 numbers, at least one")

    @classmethod
    def of(cls, vector: Any, encoder: str, made_by: Mapping[str, Any] | None = None) -> Self:
        """From any vector of numbers, [D] or [1, D]."""
        import numpy as np

        values = np.asarray(vector.detach().float().cpu() if hasattr(vector, "detach") else vector, FLOAT)
        if values.size != max(values.shape, default=0):
            raise ValueError(f"an embedding is one vector, got shape {values.shape}")
        return cls(values.tobytes(), encoder, made_by or {})

    @property
    def vector(self) -> "np.ndarray":
        """float32 [D], not to be written to."""
        import numpy as np

        return np.frombuffer(self.data, FLOAT)

    @property
    def digest(self) -> str:
        """Eight hex digits that tell it from others."""
        return hashlib.sha256(self.data).hexdigest()[:8]

    @property
    def name(self) -> str:
        """How it is called in sums: by what it is the sum of, else by its digest."""
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
        """This one without `other`: self - weight * other."""
        return self - other * weight

    def normalised(self, length: float = 1.0) -> Self:
        """The same direction, of a given length. Raises `ValueError` for the zero vector, which has none."""
        if self.length == 0:
            raise ValueError("the zero embedding has no direction and cannot be normalised")
        return self * (length / self.length)

    def slerp(self, other: "Embedding", t: float) -> "Embedding":
        """The point at `t` in [0, 1] of the way to `other` along the great circle, the length going along evenly.

        Shoemake, Animating rotation with quaternion curves (1985). Opposite vectors have no one way between them; they, and
        nearly parallel ones, are mixed in a straight line.
        """
        self._check_same_space(other)
        cosine = float(self.normalised().vector.astype(float) @ other.normalised().vector.astype(float))
        angle = math.acos(max(-1.0, min(1.0, cosine)))
        if math.sin(angle) < 1e-3:  # closer than float32 tells apart
            return mix((self, other), (1 - t, t))
        along = mix(
            (self.normalised(), other.normalised()),
            (math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)),
        )
        return along * ((1 - t) * self.length + t * other.length)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a safetensors file: the tensor `image_embeds` [1, D], and in its metadata the encoder and what made it."""
        from safetensors.numpy import save_file

        from kandinsky22.files import atomic_write

        path = Path(path).expanduser()
        said = {ENCODER: self.encoder, MADE_BY: json.dumps(self.made_by, ensure_ascii=False)}
        try:
            with atomic_write(path) as partial:
                save_file({KEY: self.vector[None].copy()}, partial, metadata=said)
        except OSError as error:
            raise ValueError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The embedding in a file that `save` wrote. Raises `ValueError` for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(Path(path).expanduser(), framework="numpy") as file:
                said = file.metadata() or {}
                return cls.of(file.get_tensor(KEY), said[ENCODER], json.loads(said.get(MADE_BY, "{}")))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} holds no embedding that kandinsky22 saved ({error})") from error

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the numbers in base64, since nothing else gives them back."""
        return {"encoder": self.encoder, "data": base64.b64encode(self.data).decode()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` wrote."""
        return cls(base64.b64decode(values["data"], validate=True), values["encoder"])

    def _like(self, vector: "np.ndarray", sum_of: str) -> Self:
        return type(self)(vector.astype(FLOAT).tobytes(), self.encoder, {"sum": sum_of})

    def _check_same_space(self, other: "Embedding") -> None:
        if (self.encoder, len(self.data)) != (other.encoder, len(other.data)):
            raise ValueError(
                f"embeddings of two encoders ({self.encoder}, {other.encoder}) do not mix; make both with one model"
            )


def mix(embeddings: Sequence[Embedding], weights: Sequence[float]) -> Embedding:
    """The weighted sum; neither weights nor embeddings are normalised. Raises `ValueError` unless there is a weight each."""
    if not embeddings or len(embeddings) != len(weights):
        raise ValueError(f"{len(embeddings)} embeddings need as many weights, got {len(weights)}")
    return reduce(add, (weight * embedding for embedding, weight in zip(embeddings, weights, strict=True)))


def slerp(first: Embedding, second: Embedding, t: float) -> Embedding:
    """See `Embedding.slerp`."""
    return first.slerp(second, t)
