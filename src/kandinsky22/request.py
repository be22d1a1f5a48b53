"""What is asked, as a value: a frozen `Request` that goes to JSON and back, and all validation of it. Imports no torch.

A request leaves open what it does not care about (None); `resolved` fills that from a model's own defaults, and a resolved
request paints the same picture wherever the weights are the same.
"""

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

SMALLEST = 64  # pixels of a side; also what computed sides are multiples of
SAMPLERS = (
    "ddpm",
    "unclip",
    "ddim",
    "dpmpp_2m",
    "heun",
)  # named here so that asking needs no torch; a test keeps them true
MAX_SEED = 2**63 - 1


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt, taken literally."""

    prompt: str

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise ValueError(f"the prompt must be text, got {type(self.prompt).__name__}; join several into one")
        try:
            self.prompt.encode()
        except UnicodeEncodeError:
            raise ValueError("the prompt holds half a character (a lone surrogate); type it anew") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one stage is sampled; None is the model's own default. `guidance_scale` 1 is no guidance."""

    sampler: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        if self.sampler is not None and self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {self.sampler!r}")
        if self.steps is not None and not (_is_int(self.steps) and 1 <= self.steps <= 1000):
            raise ValueError(f"steps must be a whole number from 1 to 1000, got {self.steps!r}; try 25")
        scale = self.guidance_scale
        if scale is not None and not (isinstance(scale, int | float) and math.isfinite(scale) and scale >= 1):
            raise ValueError(f"guidance_scale must be at least 1 (1 is off), got {scale!r}; try 4")

    def filled(self, defaults: Self) -> Self:
        """These choices, and the defaults where there is none."""
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(defaults, **chosen)


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

    negative: what to keep away from; None is the embedding of the empty picture. height, width: in pixels, from 64 up.
    Raises `ValueError`, one sentence that names the fix, for what no model could paint.
    """

    condition: Text
    negative: Text | None = None
    height: int | None = None
    width: int | None = None
    num_images: int = 1
    seed: int | None = None
    prior: Sampling = Sampling()
    decoder: Sampling = Sampling()
    model: str = "box"

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            side = getattr(self, name)
            if side is not None and not (_is_int(side) and side >= SMALLEST):
                raise ValueError(f"{name} must be a whole number from {SMALLEST} up, got {side!r}; try {SMALLEST}")
        if not (_is_int(self.num_images) and self.num_images >= 1):
            raise ValueError(f"num_images must be a whole number from 1 up, got {self.num_images!r}")
        if self.seed is not None and not (_is_int(self.seed) and 0 <= self.seed <= MAX_SEED - self.num_images):
            raise ValueError(f"seed must be a whole number from 0 to {MAX_SEED - self.num_images}, got {self.seed!r}")

    def resolved(self, defaults: Defaults) -> Self:
        """This request with nothing left open; a seed that was not given is drawn."""
        return replace(
            self,
            height=self.height or defaults.height,
            width=self.width or defaults.width,
            seed=secrets.randbelow(2**32) if self.seed is None else self.seed,
            prior=self.prior.filled(defaults.prior),
            decoder=self.decoder.filled(defaults.decoder),
        )

    def single(self, k: int) -> Self:
        """The request for picture `k` alone."""
        return replace(self, num_images=1, seed=None if self.seed is None else self.seed + k)

    def to_json(self) -> str:
        """The request as JSON; what is None is left out."""
        return json.dumps(_without_none(asdict(self)), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The request that `to_json` wrote. Raises `ValueError` for anything else."""
        try:
            values = json.loads(text)
            known = {f.name for f in fields(cls)}
            if unknown := set(values) - known:
                raise TypeError(f"it has {', '.join(sorted(unknown))}, which this version does not know")
            parts: dict[str, Any] = {**values, "condition": Text(**values["condition"])}
            if "negative" in values:
                parts["negative"] = Text(**values["negative"])
            for stage in ("prior", "decoder"):
                parts[stage] = Sampling(**values.get(stage, {}))
            return cls(**parts)
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(f"this is no request of kandinsky22: {error}") from error


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return value
