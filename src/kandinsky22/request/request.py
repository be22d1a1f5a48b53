"""A request for pictures, as a frozen value that is validated and serialised to JSON. Imports no torch.

Fields that are None take the model's defaults, which `resolved` fills in; a resolved request produces the same picture
wherever the weights are the same. The tasks differ in four fields: where the image embedding comes from (`condition`),
what sampling starts from (`start`), a depth picture to follow (`hint`) and a region to repaint (`mask`). Their types
are in `parts.py`.
"""

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from os import PathLike
from types import NoneType
from typing import Any, Self

from kandinsky22.files import first_line, parse_json
from kandinsky22.request import limits, sizes
from kandinsky22.request.embedding import Embedding
from kandinsky22.request.lora import LoRA
from kandinsky22.request.parts import (
    CONDITIONS,
    SAMPLERS,
    UNSPECIFIED,
    Condition,
    Mask,
    Mix,
    Part,
    Sampling,
    Start,
    Text,
    check_type,
    convert_scalars,
    is_int,
    is_number,
    parts,
)
from kandinsky22.request.picture import Picture
from kandinsky22.request.presets import EXACT, SPEEDS
from kandinsky22.request.sizes import MIN_SIDE

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """A model's defaults for the fields that a request leaves at None."""

    height: int
    width: int
    prior: Sampling
    decoder: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request for `num_images` pictures. Picture k of seed s equals the single picture of seed s + k.

    condition: what to paint.
    negative: what to avoid. None is the usual embedding of an empty picture; `Text("")` is the empty text, which tints.
    start, hint, mask: a start image, a depth picture to follow, a region to repaint.
    height, width: in pixels, from 64 up.
    aspect: a ratio such as "16:9", at the area of the given or default size, or for the one side that is given.
    prior_seed: the seed of the prior for all pictures; None: each picture's own seed.
    variation_seed, variation_strength: rotate the noise towards another seed's; 1 is that noise, 4 a full circle.
    loras: low-rank adapters of the networks; they add up.
    speed: a name in `SPEEDS`, for what `prior` and `decoder` leave at None; None is exact. `resolved` replaces it by
        its settings.
    model: "box", the name of a published model, or a folder.

    Raises `ValueError`, one sentence that names the fix, for a request that no model can run.
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
    prior: Sampling = UNSPECIFIED
    decoder: Sampling = UNSPECIFIED
    loras: tuple[LoRA, ...] = ()
    speed: str | None = None
    model: str = "box"

    def __post_init__(self) -> None:
        convert_scalars(self)
        check_type("condition", self.condition, CONDITIONS, "a Text, Picture, Embedding or Mix")
        check_type("negative", self.negative, (*CONDITIONS, NoneType), "a Text, Picture, Embedding or Mix, or None")
        check_type("start", self.start, (Start, NoneType), "a Start(Picture.of(...), strength)")
        check_type("hint", self.hint, (Picture, NoneType), "a Picture: Picture.of(...)")
        check_type("mask", self.mask, (Mask, NoneType), "a Mask(...)")
        object.__setattr__(self, "model", str(self.model) if isinstance(self.model, PathLike) else self.model)
        check_type("model", self.model, (str,), "a name or a folder")
        check_type("prior", self.prior, (Sampling,), "a Sampling(...)")
        check_type("decoder", self.decoder, (Sampling,), "a Sampling(...)")
        check_type("loras", self.loras, (tuple,), "a tuple of LoRAs: (LoRA.of('style.safetensors', 0.8),)")
        for lora in self.loras:
            check_type("loras", lora, (LoRA,), "a tuple of LoRAs: (LoRA.of('style.safetensors', 0.8),)")
        limits.check_count("loras", len(self.loras), limits.MAX_LORAS)
        for name in ("condition", "negative"):
            condition = getattr(self, name)
            if isinstance(condition, Mix) and condition.weights == (1,):  # equals its only part
                object.__setattr__(self, name, condition.parts[0])
        for name in ("height", "width"):
            side = getattr(self, name)
            if side is not None and not (is_int(side) and side >= MIN_SIDE):
                raise ValueError(f"{name} must be a whole number from {MIN_SIDE} up, got {side!r}; try {MIN_SIDE}")
            limits.check_count(name, side or 0, limits.MAX_SIDE)
        if self.height and self.width:
            limits.check_size("the picture to paint", self.height, self.width)
        if self.aspect is not None:
            sizes.parse_aspect(self.aspect)  # raises for a bad ratio
        if not (is_int(self.num_images) and self.num_images >= 1):
            raise ValueError(f"num_images must be a whole number from 1 up, got {self.num_images!r}")
        limits.check_count("num_images", self.num_images, limits.MAX_IMAGES)
        for name in ("seed", "prior_seed", "variation_seed"):
            seed = getattr(self, name)
            if seed is not None and not (is_int(seed) and 0 <= seed <= MAX_SEED - self.num_images):
                raise ValueError(
                    f"{name} must be a whole number from 0 to {MAX_SEED - self.num_images}, got {seed!r:.40}; "
                    "leave it out to have one drawn"
                )
        if not (is_number(self.variation_strength) and 0 <= self.variation_strength <= 4):
            raise ValueError(f"variation_strength must be in [0, 4], got {self.variation_strength!r}; try 0.2")
        if self.variation_strength and self.variation_seed is None:
            raise ValueError("variation_strength needs a variation_seed, the seed of the other noise")
        if self.aspect is not None and self.mask is not None:
            raise ValueError(
                "inpainting keeps the picture's own ratio; leave aspect out, or extend the picture with outpaint"
            )
        if self.decoder.linear:
            raise ValueError(
                f"the decoder's sampler must be one of {', '.join(SAMPLERS)}; only the prior can be linear"
            )
        if self.prior.guidance_interval is not None or self.prior.reuse is not None:
            raise ValueError("guidance_interval and reuse apply to the decoder; leave them out of the prior")
        if self.speed == EXACT:
            object.__setattr__(self, "speed", None)
        if self.speed is not None and self.speed not in SPEEDS:
            raise ValueError(f"speed must be one of {', '.join(SPEEDS)}, got {self.speed!r}")
        starts_from_picture = any(isinstance(part, Text) and part.image for part in parts(self.condition))
        if self.prior.linear and starts_from_picture:
            raise ValueError("the linear prior cannot start from a picture; leave out the image, or prior='linear'")
        if self.hint is not None and self.mask is not None:
            raise ValueError("no weights take both a hint and a mask; leave one out")

    @property
    def pictures(self) -> dict[str, Picture]:
        """Every input picture by its path in the request, such as "start" or "condition.0"."""
        return dict(_pictures(self))

    @property
    def texts(self) -> tuple[str, ...]:
        """Every prompt of the request, the negative ones last."""
        conditions = [self.condition, *([self.negative] if self.negative is not None else [])]
        return tuple(part.prompt for condition in conditions for part in parts(condition) if isinstance(part, Text))

    def resolved(self, defaults: Defaults) -> Self:
        """A copy in which the model's defaults fill everything that is None; a missing seed is drawn."""
        height, width = self._size(defaults)
        limits.check_size("the picture to paint", height, width)
        expanded = self.expand_speed(defaults)
        return replace(
            expanded,
            height=height,
            width=width,
            aspect=None,
            seed=secrets.randbelow(2**32) if self.seed is None else self.seed,
            prior=expanded.prior.with_defaults(defaults.prior),
            decoder=expanded.decoder.with_defaults(defaults.decoder),
        )

    def expand_speed(self, defaults: Defaults) -> Self:
        """A copy with the speed replaced by its settings for a model with these defaults; given options win."""
        preset = SPEEDS[self.speed or EXACT]
        prior, decoder = preset.prior.for_model(defaults.prior), preset.decoder.for_model(defaults.decoder)
        return replace(
            self, speed=None, prior=self.prior.with_defaults(prior), decoder=self.decoder.with_defaults(decoder)
        )

    def for_image(self, k: int) -> Self:
        """The request for picture `k` alone."""
        seed, variation_seed = (s if s is None else s + k for s in (self.seed, self.variation_seed))
        return replace(self, num_images=1, seed=seed, variation_seed=variation_seed)

    def batch_from(self, k: int, num_images: int) -> Self:
        """The request for `num_images` pictures whose `for_image(k)` this is.

        Raises `ValueError` if its seeds would be out of range.
        """
        seed, variation_seed = (s if s is None else s - k for s in (self.seed, self.variation_seed))
        return replace(self, num_images=num_images, seed=seed, variation_seed=variation_seed)

    def with_pictures(self, pictures: Mapping[str, Picture]) -> Self:
        """A copy with these pictures, by their path as in `pictures`; it adds pixels to references."""
        changed: Self = _with_pictures(self, "", pictures)
        return changed

    def to_json(self) -> str:
        """The request as JSON, without the fields that are None or empty."""
        return json.dumps(_to_plain(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Restore from what `to_json` returned. Raises `ValueError` for anything else."""
        try:
            values = dict(_parse(text))
            if unknown := set(values) - {f.name for f in fields(cls)}:
                raise TypeError(f"it has {', '.join(sorted(unknown))}, which this version does not support")
            return cls(**{name: _READERS[name](value) if name in _READERS else value for name, value in values.items()})
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"this is not a request of kandinsky22: {first_line(error)}") from error

    def _size(self, defaults: Defaults) -> tuple[int, int]:
        """Height and width of the pictures.

        In this order: those given; the size of the mask's picture; the model's default area in the ratio given, or in
        that of the start image or the hint.
        """
        default = self.mask.size if self.mask else (defaults.height, defaults.width)
        if self.mask and min(default) < MIN_SIDE and not (self.height or self.width):
            raise ValueError(
                f"the picture has {default[1]}x{default[0]} pixels, and the smallest side is {MIN_SIDE}; enlarge it"
            )
        picture = self.start.image if self.start else self.hint
        size = self.mask.size if self.mask else (picture.height, picture.width) if picture else None
        ratio = sizes.parse_aspect(self.aspect) if self.aspect else sizes.clamped_ratio(*size) if size else None
        if self.height and self.width:
            if self.aspect and ratio:
                return sizes.fit_canvas(self.height * self.width, ratio)
            return self.height, self.width
        if ratio is None or (self.mask and not (self.height or self.width)):
            return self.height or default[0], self.width or default[1]
        if self.height:
            return self.height, sizes.round_side(self.height * ratio)
        if self.width:
            return sizes.round_side(self.width / ratio), self.width
        size_of = sizes.fit_canvas if self.aspect else sizes.size_from_area
        return size_of(default[0] * default[1], ratio)


def _pictures(value: Any, path: str = "") -> Iterator[tuple[str, Picture]]:
    """Every picture in a request with its path: "start", "mask.area", "condition.0"."""
    if isinstance(value, Picture):
        yield path, value
    elif isinstance(value, tuple):
        for k, item in enumerate(value):
            yield from _pictures(item, f"{path}.{k}")
    elif is_dataclass(value) and not isinstance(value, Embedding):
        for f in fields(value):
            yield from _pictures(getattr(value, f.name), _field_path(value, f.name, path))


def _with_pictures(value: Any, path: str, pictures: Mapping[str, Picture]) -> Any:
    """A copy of a request or a part of it, with other pictures by path."""
    if isinstance(value, Picture):
        return pictures.get(path, value)
    if isinstance(value, tuple):
        return tuple(_with_pictures(item, f"{path}.{k}", pictures) for k, item in enumerate(value))
    if not is_dataclass(value) or isinstance(value, Embedding):
        return value
    changed = {
        f.name: _with_pictures(getattr(value, f.name), _field_path(value, f.name, path), pictures)
        for f in fields(value)
    }
    return replace(value, **changed)  # type: ignore[type-var]


def _field_path(value: Any, name: str, path: str) -> str:
    """The path of a field; fields that are the only picture or list of their part add nothing to it."""
    own = "" if name in ("image", "parts") and not isinstance(value, Mask) else name
    return ".".join(filter(None, (path, own)))


def _to_plain(value: Any) -> Any:
    """As values for JSON. The first key of a condition identifies its type."""
    match value:
        case Picture():
            return {"picture": value.to_dict()}
        case Embedding():
            return {"embedding": value.to_dict()}
        case LoRA():
            return value.to_dict()
        case tuple():
            return [_to_plain(item) for item in value]
        case _ if is_dataclass(value):
            plain = {f.name: _to_plain(getattr(value, f.name)) for f in fields(value)}
            return {name: item for name, item in plain.items() if item is not None and item != []}
    return value


def _parse(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise TypeError(f"it is no JSON: {first_line(error)}") from error


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


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "condition": _condition,
    "negative": _condition,
    "start": lambda values: Start(**{**values, "image": _picture(values["image"])}),
    "hint": _picture,
    "mask": _mask,
    "prior": lambda values: Sampling(**values),
    "decoder": lambda values: Sampling(**values),
    "loras": lambda values: tuple(map(LoRA.from_dict, values)),
}
"""How to read the fields that are not plain JSON values."""
