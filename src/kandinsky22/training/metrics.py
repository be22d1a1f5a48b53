"""The metrics of a run: what each step measured, as values, and as the lines of metrics.jsonl."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True)
class StepMetrics:
    """What one step measured over its rows, on all processes.

    `loss` and `means`, the objective's further metrics by name, are over all rows. `quarters` has the mean loss of the
    rows in each quarter of the timesteps, by the quarter's number; a quarter without rows is absent.
    """

    loss: float
    means: Mapping[str, float] = field(default_factory=dict)
    quarters: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Speed:
    """Seconds since the start of this process, rows a second and utilisation of the step, and peak memory in GiB."""

    seconds: float
    rows_per_second: float
    mfu: float
    memory_gib: float


@dataclass(frozen=True)
class Validation:
    """What averaged weights reach on validation data: `loss`, by which the best weights are chosen, and further metrics
    by name."""

    loss: float
    further: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """The metrics of a step of a run. `step` counts from 1 to `steps`, `grad_norm` is that before clipping."""

    step: int
    steps: int
    measured: StepMetrics
    grad_norm: float | None = None
    speed: Speed | None = None
    validation: Validation | None = None

    @property
    def loss(self) -> float:
        """The mean loss of the step's rows."""
        return self.measured.loss

    @property
    def values(self) -> dict[str, float]:
        """All that was measured, by its key in metrics.jsonl: the loss of quarter i is "loss_ti"."""
        measured, validation = self.measured, self.validation
        return {
            "loss": measured.loss,
            **measured.means,
            **{f"loss_t{quarter}": loss for quarter, loss in measured.quarters.items()},
            **({"grad_norm": self.grad_norm} if self.grad_norm is not None else {}),
            **(asdict(self.speed) if self.speed else {}),
            **({"validation": validation.loss, **validation.further} if validation else {}),
        }

    def to_json(self) -> dict[str, float]:
        """A line of metrics.jsonl."""
        return {"step": self.step, "of": self.steps, **self.values}
