"""What is asked, as a value: a frozen `Request` that goes to JSON and back, and all validation of it. Imports no torch.

A request leaves open what it does not care about (None); `resolved` fills that from a model's own defaults, and a resolved
request paints the same picture wherever the weights are the same. Its four columns are where the image embedding comes from
(`condition`), what painting starts from (`start`), a depth picture to follow (`hint`) and a region to repaint (`mask`); the
first two and the last are values of their own (`columns.py`).
"""

import json
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from types import NoneType
from typing import Any, Self

from kandinsky22.request import sizes
from kandinsky22.request.embedding import Embedding
from kandinsky22.request.parts import (
    CONDITIONS,
    OPEN,
    SAMPLERS,
    Condition,
    Mask,
    Mix,
    Part,
    Sampling,
    Start,
    Text,
    check_kind,
    is_int,
    parts,
    plain_numbers,
    said,
)
from kandinsky22.request.picture import Picture
from kandinsky22.request.presets import EXACT, SPEEDS
from kandinsky22.request.sizes import SMALLEST

__all__ = [
    "MAX_SEED",
    "SAMPLERS",
    "SMALLEST",
    "Condition",
    "Defaults",
    "Mask",
    "Mix",
    "Part",
    "Request",
    "Sampling",
    "Start",
    "Text",
    "parts",
    "said",
]

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What a model's own folder says of a request that leaves things open."""

    height: int
    width: int
    prior: Sampling
    decoder: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A wish for `num_images` pictures. Picture k of seed s is the picture of seed s + k alone.

    condition: what to paint. negative: what to keep away from; None is the embedding of the empty picture, as is usual;
    `Text("")` is the empty text, literally, which tints. start, hint, mask: see the module. height, width: in pixels, from
    64 up; aspect: a ratio such as "16:9", at the area that the sides or the model's own say, or for the one side given.
    prior_seed: the prior's chance, the same for all pictures; None is each picture's own. variation_seed,
    variation_strength: another seed's noise is turned to: at 1 it is that noise, at 4 it has come round to the first again.
    speed: a name of `SPEEDS`, for what the samplings leave open; None is the exact one. A resolved request has the dials that
    it stands for in its place.
    Raises `ValueError`, one sentence that names the fix, for what no model could paint.
    """

    condition: Condition
    negative: Condition | None = None
    start: Start | None = None
    hint: Picture | None = None
    mask: Mask | None = None
    height: int | None = None
    width: int | None = None
    aspect: str | None = None
    num_images: int = 1
    seed: int | None = None
    prior_seed: int | None = None
    variation_seed: int | None = None
    variation_strength: float = 0.0
    prior: Sampling = OPEN
    decoder: Sampling = OPEN
    speed: str | None = None
    model: str = "box"

    def __post_init__(self) -> None:
        plain_numbers(self)
        check_kind("condition", self.condition, CONDITIONS, "a Text, Picture, Embedding or Mix")
        check_kind("negative", self.negative, (*CONDITIONS, NoneType), "a Text, Picture, Embedding or Mix, or None")
        check_kind("start", self.start, (Start, NoneType), "a Start(Picture.of(...), strength)")
        check_kind("hint", self.hint, (Picture, NoneType), "a Picture: Picture.of(...)")
        check_kind("mask", self.mask, (Mask, NoneType), "a Mask(...)")
        check_kind("prior", self.prior, (Sampling,), "a Sampling(...)")
        check_kind("decoder", self.decoder, (Sampling,), "a Sampling(...)")
        for name in ("condition", "negative"):
            given = getattr(self, name)
            if isinstance(given, Mix) and given.weights == (1,):  # one thing, whole, is that thing
                object.__setattr__(self, name, given.parts[0])
        for name in ("height", "width"):
            side = getattr(self, name)
            if side is not None and not (is_int(side) and side >= SMALLEST):
                raise ValueError(f"{name} must be a whole number from {SMALLEST} up, got {side!r}; try {SMALLEST}")
        if self.aspect is not None:
            sizes.ratio(self.aspect)
        if not (is_int(self.num_images) and self.num_images >= 1):
            raise ValueError(f"num_images must be a whole number from 1 up, got {self.num_images!r}")
        for name in ("seed", "prior_seed", "variation_seed"):
            seed = getattr(self, name)
            if seed is not None and not (is_int(seed) and 0 <= seed <= MAX_SEED - self.num_images):
                raise ValueError(f"{name} must be a whole number from 0 to {MAX_SEED - self.num_images}, got {seed!r}")
        if not (isinstance(self.variation_strength, int | float) and 0 <= self.variation_strength <= 4):
            raise ValueError(f"variation_strength must be in [0, 4], got {self.variation_strength!r}; try 0.2")
        if self.variation_strength and self.variation_seed is None:
            raise ValueError("variation_strength needs a variation_seed, the seed to turn to")
        if self.aspect is not None and self.mask is not None:
            raise ValueError(
                "inpainting keeps the picture's own ratio; leave aspect out, or extend the picture with outpaint"
            )
        if self.decoder.linear:
            raise ValueError(
                f"the decoder's sampler must be one of {', '.join(SAMPLERS)}; the prior alone can be linear"
            )
        if self.prior.guidance_interval is not None or self.prior.reuse is not None:
            raise ValueError("guidance_interval and reuse are the decoder's; leave them out of the prior")
        if self.speed == EXACT:
            object.__setattr__(self, "speed", None)
        if self.speed is not None and self.speed not in SPEEDS:
            raise ValueError(f"speed must be one of {', '.join(SPEEDS)}, got {self.speed!r}")
        started = any(isinstance(part, Text) and part.image for part in parts(self.condition))
        if self.prior.linear and started:
            raise ValueError("the linear prior cannot begin with a picture; leave out the image, or prior='linear'")
        if self.hint is not None and self.mask is not None:
            raise ValueError("a hint and a mask do not go together: no weights take both; leave one out")

    @property
    def pictures(self) -> dict[str, Picture]:
        """Every picture it is about, by the place it has."""
        return dict(_pictures(self))

    @property
    def texts(self) -> tuple[str, ...]:
        """Every prompt in it, the negative ones last."""
        conditions = [self.condition, *([self.negative] if self.negative is not None else [])]
        return tuple(part.prompt for condition in conditions for part in parts(condition) if isinstance(part, Text))

    def resolved(self, defaults: Defaults) -> Self:
        """This request with nothing left open; a seed that was not given is drawn."""
        height, width = self._size(defaults)
        said = self.spelt(defaults)
        return replace(
            said,
            height=height,
            width=width,
            aspect=None,
            seed=secrets.randbelow(2**32) if self.seed is None else self.seed,
            prior=said.prior.filled(defaults.prior),
            decoder=said.decoder.filled(defaults.decoder),
        )

    def spelt(self, defaults: Defaults) -> Self:
        """This request with its speed in dials, for a model of these defaults; what it says of them itself goes before."""
        speed = SPEEDS[self.speed or EXACT]
        prior, decoder = speed.prior.of(defaults.prior), speed.decoder.of(defaults.decoder)
        return replace(self, speed=None, prior=self.prior.filled(prior), decoder=self.decoder.filled(decoder))

    def single(self, k: int) -> Self:
        """The request for picture `k` alone."""
        seed, varied = (s if s is None else s + k for s in (self.seed, self.variation_seed))
        return replace(self, num_images=1, seed=seed, variation_seed=varied)

    def batch_of(self, index: int, of: int) -> Self:
        """The request for `of` pictures of which this one is picture `index`: what `single` came from. Raises `ValueError`
        where there is none."""
        seed, varied = (s if s is None else s - index for s in (self.seed, self.variation_seed))
        return replace(self, num_images=of, seed=seed, variation_seed=varied)

    def with_pictures(self, found: Mapping[str, Picture]) -> Self:
        """This request with pixels for the pictures named by their place in `pictures`."""
        replaced: Self = _replaced(self, "", found)
        return replaced

    def to_json(self) -> str:
        """The request as JSON; what is None is left out."""
        return json.dumps(_plain(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The request that `to_json` wrote. Raises `ValueError` for anything else."""
        try:
            values = dict(json.loads(text))
            if unknown := set(values) - {f.name for f in fields(cls)}:
                raise TypeError(f"it has {', '.join(sorted(unknown))}, which this version does not know")
            return cls(**{name: _READERS.get(name, _as_it_is)(value) for name, value in values.items()})
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is no request of kandinsky22: {error}") from error

    def _size(self, defaults: Defaults) -> tuple[int, int]:
        """Height and width: those asked for; else a mask's picture's own; else the model's area in the ratio asked for, or
        of the picture that is started from or followed."""
        own = self.mask.size if self.mask else (defaults.height, defaults.width)
        if self.mask and min(own) < SMALLEST and not (self.height or self.width):
            raise ValueError(
                f"the picture has {own[0]}x{own[1]} pixels, and the smallest side is {SMALLEST}; enlarge it"
            )
        shown = self.start.image if self.start else self.hint
        size = self.mask.size if self.mask else (shown.height, shown.width) if shown else None
        ratio = sizes.ratio(self.aspect) if self.aspect else sizes.ratio_of(*size) if size else None
        if self.height and self.width:
            return (
                sizes.of_area(self.height * self.width, ratio) if self.aspect and ratio else (self.height, self.width)
            )
        if ratio is None or (self.mask and not (self.height or self.width)):
            return self.height or own[0], self.width or own[1]
        if self.height:
            return self.height, sizes.grained(self.height * ratio)
        if self.width:
            return sizes.grained(self.width / ratio), self.width
        return sizes.of_area(own[0] * own[1], ratio)


def _pictures(value: Any, place: str = "") -> Iterator[tuple[str, Picture]]:
    """Every picture in a request, with where it is: "start", "mask.area", "condition.0"."""
    if isinstance(value, Picture):
        yield place, value
    elif isinstance(value, tuple):
        for k, item in enumerate(value):
            yield from _pictures(item, f"{place}.{k}")
    elif is_dataclass(value) and not isinstance(value, Embedding):
        for f in fields(value):
            name = "" if f.name in ("image", "parts") and not isinstance(value, Mask) else f.name
            yield from _pictures(getattr(value, f.name), ".".join(filter(None, (place, name))))


def _replaced(value: Any, place: str, found: Mapping[str, Picture]) -> Any:
    """A copy with other pictures, walked as `_pictures` walks."""
    if isinstance(value, Picture):
        return found.get(place, value)
    if isinstance(value, tuple):
        return tuple(_replaced(item, f"{place}.{k}", found) for k, item in enumerate(value))
    if not is_dataclass(value) or isinstance(value, Embedding):
        return value
    changed = {}
    for f in fields(value):
        name = "" if f.name in ("image", "parts") and not isinstance(value, Mask) else f.name
        changed[f.name] = _replaced(getattr(value, f.name), ".".join(filter(None, (place, name))), found)
    return replace(value, **changed)  # type: ignore[type-var]


def _plain(value: Any) -> Any:
    """For JSON. A condition says what it is by its first key."""
    match value:
        case Picture():
            return {"picture": value.to_dict()}
        case Embedding():
            return {"embedding": value.to_dict()}
        case tuple():
            return [_plain(item) for item in value]
        case _ if is_dataclass(value):
            plain = {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
            return {name: item for name, item in plain.items() if item is not None}
    return value


def _as_it_is(value: Any) -> Any:
    return value


def _picture(values: Any) -> Picture:
    return Picture.from_dict(values["picture"])


def _condition(values: Any) -> Condition:
    if "parts" in values:
        return Mix(tuple(_part(part) for part in values["parts"]), tuple(values["weights"]))
    return _part(values)


def _part(values: Any) -> Part:
    if "picture" in values:
        return _picture(values)
    if "embedding" in values:
        return Embedding.from_dict(values["embedding"])
    image = {"image": _picture(values["image"])} if "image" in values else {}
    return Text(**{**values, **image})


def _mask(values: Any) -> Mask:
    pictures = {name: _picture(values[name]) for name in ("image", "area") if name in values}
    return Mask(**{**values, **pictures, "pad": tuple(values["pad"])})


_READERS = {
    "condition": _condition,
    "negative": _condition,
    "start": lambda values: Start(**{**values, "image": _picture(values["image"])}),
    "hint": _picture,
    "mask": _mask,
    "prior": lambda values: Sampling(**values),
    "decoder": lambda values: Sampling(**values),
}
"""How a field's value is read back; every other one is what it is."""
