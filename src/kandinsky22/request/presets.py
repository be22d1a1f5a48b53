"""Speed presets: named trade-offs between the exactness of a picture and its time. Imports no torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from kandinsky22.request.parts import UNSPECIFIED, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePreset:
    """What a speed preset sets for one stage.

    steps_fraction: the fraction of the model's own number of steps, in (0, 1], since models need different numbers.
    sampling: the other options; what it leaves unspecified is the model's default.
    """

    steps_fraction: float = 1.0
    sampling: Sampling = UNSPECIFIED

    def for_model(self, defaults: Sampling) -> Sampling:
        """This preset for a stage with these model defaults; the number of steps is rounded up."""
        if self.steps_fraction == 1 or defaults.steps is None:
            return self.sampling
        return replace(self.sampling, steps=math.ceil(self.steps_fraction * defaults.steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedPreset:
    """What a speed sets for both stages; options given in a request take precedence."""

    prior: StagePreset = StagePreset()
    decoder: StagePreset = StagePreset()


EXACT = "exact"
SPEEDS: Mapping[str, SpeedPreset] = MappingProxyType(
    {
        EXACT: SpeedPreset(),
        "fast": SpeedPreset(
            prior=StagePreset(steps_fraction=0.4),
            decoder=StagePreset(steps_fraction=0.5, sampling=Sampling(reuse=2)),
        ),
        "turbo": SpeedPreset(
            prior=StagePreset(steps_fraction=0.4),
            decoder=StagePreset(steps_fraction=0.5, sampling=Sampling(reuse=3)),
        ),
    }
)
"""The presets by name, the exact one first. docs/speed-settings.md has the measurements and the rule behind them."""
