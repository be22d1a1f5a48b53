"""Speeds by name: what each gives up of a picture to be sooner done. Imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from kandinsky22.request.parts import OPEN, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Dials:
    """What a speed says of a stage. steps: a share of the model's own steps, in (0, 1], as models need more or fewer; what
    `sampling` leaves open is the model's own choice."""

    steps: float = 1.0
    sampling: Sampling = OPEN

    def of(self, own: Sampling) -> Sampling:
        """The dials for a model of which this is the stage's own sampling; steps are rounded up."""
        if self.steps == 1 or own.steps is None:
            return self.sampling
        return replace(self.sampling, steps=math.ceil(self.steps * own.steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a speed says of both stages; what is asked for goes before it."""

    prior: Dials = Dials()
    decoder: Dials = Dials()


EXACT = "exact"
SPEEDS: Mapping[str, Speed] = MappingProxyType(
    {
        EXACT: Speed(),
        "fast": Speed(prior=Dials(steps=0.4), decoder=Dials(steps=0.5, sampling=Sampling(reuse=2))),
        "turbo": Speed(prior=Dials(steps=0.4), decoder=Dials(steps=0.5, sampling=Sampling(reuse=3))),
    }
)
"""By name, the exact one first. docs/dials.md has the table that they are chosen from, and the rule."""
