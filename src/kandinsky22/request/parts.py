"""The columns of a request, as values: what to paint, what to start from, what to repaint, and how a stage is sampled.

Each checks itself when it is made. Imports no torch.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from types import NoneType
from typing import Any, Literal, Self, TypeAlias

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
)  # named here so that asking needs no torch; a test keeps them true


def is_int(value: object) -> bool:
    """Whether a value is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _check_strength(strength: object) -> None:
    if not (isinstance(strength, int | float) and 0 < strength <= 1):
        raise ValueError(f"strength must be above 0 and at most 1, got {strength!r}; try 0.3")


def plain(number: Any) -> Any:
    """Python's own number of one that is numpy's or torch's; anything else as it is."""
    return number.item() if hasattr(number, "item") and getattr(number, "ndim", 1) == 0 else number


def plain_numbers(value: Any) -> None:
    """Make Python's own numbers of a new value's fields that are numpy's or torch's."""
    for f in fields(value):
        object.__setattr__(value, f.name, plain(getattr(value, f.name)))


def check_kind(name: str, value: object, kinds: tuple[type, ...], fix: str) -> None:
    """Raises `ValueError` for a value of none of these kinds; `fix` says what it must be."""
    if not isinstance(value, kinds):
        raise ValueError(f"{name} must be {fix}, got {type(value).__name__}")


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt, taken literally. With an image, the prior starts from that picture's embedding, noised to `strength` (1:
    from noise alone)."""

    prompt: str
    image: Picture | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise ValueError(f"the prompt must be text, got {type(self.prompt).__name__}; join several into one")
        try:
            self.prompt.encode()
        except UnicodeEncodeError:
            raise ValueError("the prompt holds half a character (a lone surrogate); type it anew") from None
        if (self.image is None) != (self.strength is None):
            raise ValueError(
                "a prior that starts from a picture needs the picture and a strength; give both or neither"
            )
        if self.strength is not None:
            plain_numbers(self)
            check_kind("image", self.image, (Picture,), "a Picture: Picture.of(...)")
            _check_strength(self.strength)


PARTS = (Text, Picture, Embedding)
Part: TypeAlias = Text | Picture | Embedding
"""One thing with an image embedding: what the prior makes of a text, a picture's own, a saved one."""


@dataclass(frozen=True, slots=True)
class Mix:
    """A weighted sum of embeddings; the weights are taken as they are."""

    parts: tuple[Part, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(map(plain, self.weights)))
        for part in self.parts:
            check_kind("a part of a mix", part, PARTS, "a Text, Picture or Embedding")
        if not self.parts or len(self.parts) != len(self.weights):
            raise ValueError(f"a mix of {len(self.parts)} needs as many weights, got {len(self.weights)}")
        for weight in self.weights:
            if not (isinstance(weight, int | float) and math.isfinite(weight)):
                raise ValueError(f"weights must be numbers, got {weight!r}")


CONDITIONS = (*PARTS, Mix)
Condition: TypeAlias = Part | Mix


@dataclass(frozen=True, slots=True)
class Start:
    """A picture to start from instead of noise: noised to `strength`, in (0, 1]; 1 is nearly noise alone."""

    image: Picture
    strength: float

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_kind("image", self.image, (Picture,), "a Picture: Picture.of(...)")
        _check_strength(self.strength)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """A picture of which a part is painted anew, and the rest kept.

    area: which part; where it is `repaint` ("white" or "black"); None is what `pad` adds. pad: pixels added around the
    picture (top, right, bottom, left), which are painted. feather: pixels over which new and old blend, inside the area.
    paste_back: whether what is not repainted keeps the picture's own pixels, to the bit. crop: paint a window around the
    area, enlarged, and not the whole picture; None decides by the area's size.
    """

    image: Picture
    area: Picture | None = None
    repaint: Literal["white", "black"] = "white"
    pad: tuple[int, int, int, int] = (0, 0, 0, 0)
    feather: int = 0
    paste_back: bool = True
    crop: bool | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_kind("image", self.image, (Picture,), "a Picture: Picture.of(...)")
        check_kind("area", self.area, (Picture, NoneType), "a Picture: Picture.of(...)")
        if self.repaint not in ("white", "black"):
            raise ValueError(f"mask_mode must be white or black, the colour that is repainted; got {self.repaint!r}")
        if len(self.pad) != 4 or not all(is_int(side) and side >= 0 for side in self.pad):
            raise ValueError(f"a picture is extended by whole numbers of pixels from 0 up, got {self.pad!r}")
        if self.area is None and not any(self.pad):
            raise ValueError("nothing would be painted: give a mask, or pixels to extend the picture by")
        if not (is_int(self.feather) and self.feather >= 0):
            raise ValueError(f"feather must be a whole number of pixels from 0 up, got {self.feather!r}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture with what is added to it."""
        top, right, bottom, left = self.pad
        return self.image.height + top + bottom, self.image.width + left + right


EVERYWHERE = (0.0, 1.0)
"""The interval of the noise that is all of it."""

LINEAR = "linear"
"""A "sampler" of the prior's stage alone: one matrix in the prior's place, without chance, steps or guidance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one stage is sampled; None is the model's own default. `guidance_scale` of 1 or less is no guidance.

    Two are the decoder's alone. guidance_interval: from where to where it is guided, as shares of the noise schedule's
    timesteps from 0 (the picture) to 1 (noise), both included; outside a step has half the rows. Kynkaanniemi et al. 2024
    (arXiv:2404.07724). reuse: at every how many calls of the network its deeper levels are computed, 1 is at each; in between
    they say what they said last. Ma et al. 2023 (DeepCache, arXiv:2312.00858). Raises `ValueError`, one sentence.
    """

    sampler: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    reuse: int | None = None

    def __post_init__(self) -> None:
        plain_numbers(self)
        if self.guidance_interval is not None:
            object.__setattr__(self, "guidance_interval", _interval(self.guidance_interval))
        if self.reuse is not None and not (is_int(self.reuse) and 1 <= self.reuse <= 1000):
            raise ValueError(f"reuse must be a whole number from 1 (off) to 1000, got {self.reuse!r}; try 2")
        if self.sampler is not None and self.sampler not in (*SAMPLERS, LINEAR):
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        if self.steps is not None and not (is_int(self.steps) and 1 <= self.steps <= 1000):
            raise ValueError(f"steps must be a whole number from 1 to 1000, got {self.steps!r}; try 25")
        scale = self.guidance_scale
        if scale is not None and not (isinstance(scale, int | float) and math.isfinite(scale) and scale >= 0):
            raise ValueError(f"guidance_scale must be 0 or more (up to 1 is off), got {scale!r}; try 4")
        if self.linear and (self.steps not in (None, 1) or scale not in (None, 1)):
            raise ValueError("a linear prior takes no steps and no guidance; leave them out")

    @property
    def linear(self) -> bool:
        """Whether a matrix stands in the prior's place."""
        return self.sampler == LINEAR

    def filled(self, defaults: Self) -> Self:
        """These choices, and the defaults where there is none."""
        if self.linear:
            return replace(self, steps=1, guidance_scale=1)
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(defaults, **chosen)

    @property
    def exact(self) -> bool:
        """Whether every step is computed in full: guided everywhere, every level at each call."""
        return self.guidance_interval in (None, EVERYWHERE) and self.reuse in (None, 1)

    @property
    def weight(self) -> float:
        """What guidance multiplies by, for a resolved one: 1 where it is off."""
        assert self.guidance_scale is not None
        return max(1.0, float(self.guidance_scale))


OPEN = Sampling()  # all of it is the model's choice


def _interval(given: Any) -> tuple[float, float]:
    """Two rising numbers from 0 to 1. Raises `ValueError`."""
    ends = tuple(map(plain, given)) if isinstance(given, Iterable) and not isinstance(given, str) else ()
    if len(ends) == 2 and all(isinstance(end, int | float) for end in ends) and 0 <= ends[0] < ends[1] <= 1:
        return float(ends[0]), float(ends[1])
    raise ValueError(
        f"guidance_interval must be two rising numbers from 0 (the picture) to 1 (noise), got {given!r}; try 0.2,0.8"
    )


def parts(condition: Condition) -> tuple[Part, ...]:
    """What a condition is made of: itself, or a mix's parts."""
    return condition.parts if isinstance(condition, Mix) else (condition,)


def said(condition: Condition) -> str:
    """A condition in words, for people."""
    match condition:
        case Text():
            return condition.prompt if condition.image is None else f"{condition.prompt} (from {said(condition.image)})"
        case Picture():
            return f"the picture {condition.name or condition.sha256[:8]}"
        case Embedding():
            return f"the embedding {condition.digest}"
        case Mix():
            return " + ".join(f"{w:g} {said(part)}" for part, w in zip(condition.parts, condition.weights, strict=True))
