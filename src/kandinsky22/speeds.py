"""Speeds by name: what each gives up of a picture to be sooner done. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kandinsky22.columns import OPEN, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a speed says of the stages; what it leaves open is the model's own choice, and what is asked for goes before it."""

    prior: Sampling = OPEN
    decoder: Sampling = OPEN


# PROVISIONAL until `kandinsky22 evaluate dials` has measured the final weights of the box: its table decides these values.
SPEEDS: Mapping[str, Speed] = MappingProxyType(
    {
        "exact": Speed(),
        "fast": Speed(decoder=Sampling(sampler="dpmpp_2m", steps=20, reuse=2)),
        "turbo": Speed(prior=Sampling(steps=10), decoder=Sampling(sampler="dpmpp_2m", steps=15, reuse=3)),
    }
)
"""By name, the exact one first."""
