"""The parts of a request, as frozen values: its condition, start image, mask, and the sampling of each stage.

Each validates itself when it is constructed. Imports no torch.
"""

import sys
from collections.abc import Collection, Iterable
from dataclasses import dataclass, fields, replace
from types import NoneType
from typing import Any, Literal, Self, TypeAlias, TypeGuard

from kandinsky22.request import limits
from kandinsky22.request.embedding import Embedding
from kandinsky22.request.picture import Picture

SAMPLERS = (
    "ddpm",
    "unclip",
    "ddim",
    "euler",
    "dpmpp_2m",
    "unipc",
    "heun",
)
"""The samplers of `kandinsky22.diffusion`, listed here without torch; a test compares the two lists."""
SECOND_CALL_SAMPLERS = frozenset({"heun"})
"""The samplers that call the network a second time in every step except the last; a test counts their calls."""


def is_int(value: object) -> TypeGuard[int]:
    """Whether a value is an `int` and not a `bool`."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a finite `int` or `float` and not a `bool`."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _check_strength(strength: object) -> None:
    if not (is_number(strength) and 0 < strength <= 1):
        raise ValueError(f"strength must be above 0 and at most 1, got {strength!r}; try 0.3")


def to_python(number: Any) -> Any:
    """A NumPy or torch scalar as a Python number; anything else unchanged."""
    return number.item() if hasattr(number, "item") and getattr(number, "ndim", 1) == 0 else number


def convert_scalars(instance: Any) -> None:
    """Turn NumPy and torch scalars in the fields of a new frozen dataclass into Python numbers."""
    for f in fields(instance):
        object.__setattr__(instance, f.name, to_python(getattr(instance, f.name)))


def check_type(name: str, value: object, types: tuple[type, ...], expected: str) -> None:
    """Raises `ValueError` unless a value is of one of these types; `expected` describes them in the message."""
    if not isinstance(value, types):
        raise ValueError(f"{name} must be {expected}, got {type(value).__name__}")


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt, used as it is.

    With an image, the prior starts from that picture's embedding, noised to `strength` in (0, 1]; 1 is pure noise.
    """

    prompt: str
    image: Picture | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise ValueError(f"the prompt must be text, got {type(self.prompt).__name__}; join several into one")
        limits.check_count("the characters of a prompt", len(self.prompt), limits.MAX_PROMPT)
        try:
            self.prompt.encode()
        except UnicodeEncodeError:
            raise ValueError("the prompt contains a lone surrogate (half a character); type it again") from None
        if (self.image is None) != (self.strength is None):
            raise ValueError("a prior that starts from a picture needs an image and a strength; give both or neither")
        if self.strength is not None:
            convert_scalars(self)
            check_type("image", self.image, (Picture,), "a Picture: Picture.of(...)")
            _check_strength(self.strength)


PARTS = (Text, Picture, Embedding)
Part: TypeAlias = Text | Picture | Embedding
"""Something with an image embedding: a text (by the prior), a picture (by CLIP), or a saved embedding."""


@dataclass(frozen=True, slots=True)
class Mix:
    """A weighted sum of embeddings; the weights are not normalised."""

    parts: tuple[Part, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("parts", "weights"):
            check_type(f"the {name} of a mix", to_python(getattr(self, name)), (Collection,), "a tuple")
        limits.check_count("the parts of a mix", len(self.parts), limits.MAX_PARTS)
        if not len(self.parts) or len(self.parts) != len(self.weights):
            raise ValueError(f"a mix of {len(self.parts)} parts needs as many weights, got {len(self.weights)}")
        object.__setattr__(self, "parts", tuple(self.parts))
        object.__setattr__(self, "weights", tuple(map(to_python, self.weights)))
        for part in self.parts:
            check_type("a part of a mix", part, PARTS, "a Text, Picture or Embedding")
        for weight in self.weights:
            if not is_number(weight):
                raise ValueError(f"weights must be finite numbers, got {weight!r}")


CONDITIONS = (*PARTS, Mix)
Condition: TypeAlias = Part | Mix


@dataclass(frozen=True, slots=True)
class Start:
    """A picture to start from instead of noise, noised to `strength` in (0, 1]; 1 is almost pure noise."""

    image: Picture
    strength: float

    def __post_init__(self) -> None:
        convert_scalars(self)
        check_type("image", self.image, (Picture,), "a Picture: Picture.of(...)")
        _check_strength(self.strength)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """A picture of which one part is repainted and the rest is preserved.

    area: a mask of that part, where it has the colour `repaint` ("white" or "black"); None: the border that `pad` adds.
    pad: pixels added around the picture (top, right, bottom, left), which are painted too. feather: width in pixels of
    the blend between new and old, inside the area. paste_back: whether pixels outside the area are copied from the
    picture exactly. crop: whether to paint an enlarged window around the area instead of the full picture; None decides
    by the area's size.
    """

    image: Picture
    area: Picture | None = None
    repaint: Literal["white", "black"] = "white"
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    feather: int = 0
    paste_back: bool = True
    crop: bool | None = None

    def __post_init__(self) -> None:
        convert_scalars(self)
        check_type("image", self.image, (Picture,), "a Picture: Picture.of(...)")
        check_type("area", self.area, (Picture, NoneType), "a Picture: Picture.of(...)")
        check_type("paste_back", self.paste_back, (bool,), "True or False")
        check_type("crop", self.crop, (bool, NoneType), "True, False or None")
        if self.repaint not in ("white", "black"):
            raise ValueError(f"mask_mode must be white or black, the colour to repaint; got {self.repaint!r}")
        pad = tuple(map(to_python, self.pad)) if isinstance(self.pad, tuple | list) else ()
        if len(pad) != 4 or not all(is_int(side) and side >= 0 for side in pad):
            raise ValueError(f"a picture is extended by four whole numbers of pixels from 0 up, got {self.pad!r:.100}")
        object.__setattr__(self, "pad", pad)
        if self.area is None and not any(self.pad):
            raise ValueError("nothing would be painted: give a mask, or the number of pixels to extend the picture by")
        if not (is_int(self.feather) and self.feather >= 0):
            raise ValueError(f"feather must be a whole number of pixels from 0 up, got {self.feather!r}")
        limits.check_count("feather", self.feather, limits.MAX_FEATHER)
        limits.check_size("the picture with what is added to it", *self.size)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture with its padding."""
        top, right, bottom, left = self.pad
        return self.image.height + top + bottom, self.image.width + left + right


EVERYWHERE = (0.0, 1.0)
"""The guidance interval that is the full noise schedule."""

LINEAR = "linear"
"""A "sampler" of the prior stage only: one linear map replaces the prior, without randomness, steps or guidance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one stage is sampled; None is the model's own default. A `guidance_scale` of 1 or less turns guidance off.

    The last two apply to the decoder only. guidance_interval: the first and last timestep that are guided, as fractions
    of the noise schedule from 0 (the picture) to 1 (noise), both included; steps outside need half the rows.
    Kynkaanniemi et al. 2024 (arXiv:2404.07724). reuse: compute the U-Net's deeper levels only at every n-th call and
    reuse their output in between; 1 computes them at each call. Ma et al. 2023 (DeepCache, arXiv:2312.00858). Raises
    `ValueError` for values out of range.
    """

    sampler: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    reuse: int | None = None

    def __post_init__(self) -> None:
        convert_scalars(self)
        if self.guidance_interval is not None:
            object.__setattr__(self, "guidance_interval", _interval(self.guidance_interval))
        if self.reuse is not None and not (is_int(self.reuse) and 1 <= self.reuse <= 1000):
            raise ValueError(f"reuse must be a whole number from 1 (off) to 1000, got {self.reuse!r}; try 2")
        if self.sampler is not None and self.sampler not in (*SAMPLERS, LINEAR):
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        if self.steps is not None and not (is_int(self.steps) and 1 <= self.steps <= 1000):
            raise ValueError(f"steps must be a whole number from 1 to 1000, got {self.steps!r}; try 25")
        scale = self.guidance_scale
        if scale is not None and not (is_number(scale) and scale >= 0):
            raise ValueError(f"guidance_scale must be 0 or more (up to 1 is off), got {scale!r}; try 4")
        if self.linear and (self.steps not in (None, 1) or scale not in (None, 1)):
            raise ValueError("the linear prior has no steps and no guidance; leave them out")

    @property
    def linear(self) -> bool:
        """Whether one linear map replaces the prior."""
        return self.sampler == LINEAR

    @property
    def network_calls(self) -> int:
        """Network calls of a run from noise; the sampling is resolved."""
        assert self.steps is not None
        return 2 * self.steps - 1 if self.sampler in SECOND_CALL_SAMPLERS else self.steps

    def with_defaults(self, defaults: Self) -> Self:
        """A copy in which `defaults` fill what is None."""
        if self.linear:
            return replace(self, steps=1, guidance_scale=1)
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(defaults, **given)

    @property
    def exact(self) -> bool:
        """Whether every step is computed in full: guided at every timestep, all U-Net levels at each call."""
        return self.guidance_interval in (None, EVERYWHERE) and self.reuse in (None, 1)

    @property
    def weight(self) -> float:
        """The effective guidance scale of a resolved sampling, at least 1; 1 is off."""
        assert self.guidance_scale is not None
        return max(1.0, float(self.guidance_scale))


UNSPECIFIED = Sampling()  # everything is the model's default


def _interval(value: Any) -> tuple[float, float]:
    """Two increasing numbers in [0, 1]. Raises `ValueError` for anything else."""
    ends = tuple(map(to_python, value)) if isinstance(value, Iterable) and not isinstance(value, str) else ()
    if len(ends) == 2 and all(map(is_number, ends)) and 0 <= ends[0] < ends[1] <= 1:
        return float(ends[0]), float(ends[1])
    raise ValueError(
        f"guidance_interval must be two rising numbers from 0 (the picture) to 1 (noise), got {value!r}; try 0.2,0.8"
    )


def parts(condition: Condition) -> tuple[Part, ...]:
    """The parts of a mix, or the condition itself."""
    return condition.parts if isinstance(condition, Mix) else (condition,)


def describe(condition: Condition) -> str:
    """A condition in words, for messages and listings."""
    match condition:
        case Text():
            return (
                condition.prompt
                if condition.image is None
                else f"{condition.prompt} (from {describe(condition.image)})"
            )
        case Picture():
            return f"the picture {condition.name or condition.sha256[:8]}"
        case Embedding():
            return f"the embedding {condition.digest}"
        case Mix():
            return " + ".join(
                f"{w:g} {describe(part)}" for part, w in zip(condition.parts, condition.weights, strict=True)
            )
