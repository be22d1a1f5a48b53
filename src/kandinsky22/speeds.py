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


# From a first look at the box, 32 captions (docs/log.md): deep features used again cost least for what they save. Fewer
# steps are no part of a speed: how many are needed is a model's own matter, and the box's default is few already.
SPEEDS: Mapping[str, Speed] = MappingProxyType(
    {
        "exact": Speed(),
        "fast": Speed(decoder=Sampling(reuse=2)),
        "turbo": Speed(prior=Sampling(steps=10), decoder=Sampling(reuse=3)),
    }
)
"""By name, the exact one first."""
