"""The forward process: how much signal and noise x carries at timestep t, and which timesteps a run visits.

A `NoiseSchedule` is a value, made of what a published `scheduler_config.json` says; its tables follow from its fields.
Timesteps count 0 .. T-1 from little to much noise, and t = -1 is the clean picture (alpha_bar = 1). Knows no network,
no sampler and no file.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from types import MappingProxyType
from typing import Any, Final, Literal, Self, get_args

import torch
from torch import Tensor

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
PredictionType = Literal["epsilon", "sample", "v_prediction"]
VarianceType = Literal["fixed_small", "fixed_small_log", "fixed_large", "learned_range"]
TimestepSpacing = Literal["leading", "linspace", "trailing"]

MAX_TIMESTEPS: Final = 100_000  # a hundred times the published number

_DDPM: Final[Mapping[str, object]] = MappingProxyType(
    {
        "num_train_timesteps": 1000,
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "prediction_type": "epsilon",
        "variance_type": "fixed_small",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "timestep_spacing": "leading",
        "steps_offset": 0,
        "set_alpha_to_one": True,  # DDIMScheduler's: DDPMScheduler has no such key, which does not read it
    }
)
_UNCLIP: Final[Mapping[str, object]] = MappingProxyType(
    {
        "num_train_timesteps": 1000,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "epsilon",
        "variance_type": "fixed_small_log",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "timestep_spacing": "linspace",  # no key of this class, but the way it counts; so is the offset
        "steps_offset": 0,
        "set_alpha_to_one": True,  # DDIMScheduler's, used when sampling with ddim
    }
)
PUBLISHED_DEFAULTS: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType(
    {
        "DDPMScheduler": _DDPM,
        "DDIMScheduler": _DDPM,  # key by key the same; variance_type is DDPMScheduler's, used when sampling with ddpm
        "UnCLIPScheduler": _UNCLIP,
    }
)
"""What a key that is absent from a published file means: the defaults of the class that the file names."""


@dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
    """The noise of every timestep, and all that a sampler needs to know of a published scheduler.

    Fields have the published key names and no defaults. Equal fields make equal, interchangeable schedules; a variant
    is `dataclasses.replace`, for instance the settings of the original 2.2 code:
    `replace(schedule, timestep_spacing="linspace", variance_type="learned_range", clip_sample_range=2.0)`.

    Raises ValueError where a field has a value that is not supported; the message names the field.
    """

    num_train_timesteps: int
    beta_schedule: BetaSchedule
    beta_start: float | None  # None where the cosine fixes the betas
    beta_end: float | None
    prediction_type: PredictionType
    variance_type: VarianceType
    clip_sample_range: float | None  # x0 is clipped to plus or minus this; None: not clipped
    timestep_spacing: TimestepSpacing
    steps_offset: int
    set_alpha_to_one: bool  # where DDIM's last step lands: on alpha_bar = 1, or on alpha_bar of timestep 0

    def __post_init__(self) -> None:
        _one_of("beta_schedule", self.beta_schedule, get_args(BetaSchedule))
        _one_of("prediction_type", self.prediction_type, get_args(PredictionType))
        _one_of("variance_type", self.variance_type, get_args(VarianceType))
        _one_of("timestep_spacing", self.timestep_spacing, get_args(TimestepSpacing))
        _one_of("set_alpha_to_one", self.set_alpha_to_one, (True, False))
        total, offset, clip = self.num_train_timesteps, self.steps_offset, self.clip_sample_range
        _check(
            type(total) is int and 1 <= total <= MAX_TIMESTEPS,
            "num_train_timesteps",
            total,
            f"a whole number from 1 to {MAX_TIMESTEPS}",
        )
        _check(type(offset) is int and 0 <= offset < total, "steps_offset", offset, f"a whole number in [0, {total})")
        _check(clip is None or (_is_number(clip) and clip > 0), "clip_sample_range", clip, "a positive number")
        if self.beta_schedule != "squaredcos_cap_v2":
            for key in ("beta_start", "beta_end"):
                beta = getattr(self, key)
                _check(_is_number(beta) and 0 < beta < 1, key, beta, "a number in (0, 1)")

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:
        """The schedule that a published `scheduler_config.json` describes.

        `_class_name` is required: it says what absent keys mean (`PUBLISHED_DEFAULTS`). Keys that change nothing here
        are ignored, as the published classes ignore them. Raises ValueError, naming key, value and what is supported.
        """
        name = config.get("_class_name")
        _one_of("_class_name", name, tuple(PUBLISHED_DEFAULTS))
        values: dict[str, Any] = {**PUBLISHED_DEFAULTS[str(name)], **config}
        for key in ("thresholding", "rescale_betas_zero_snr"):
            _one_of(key, values.get(key, False), (False,))
        _one_of("trained_betas", values.get("trained_betas"), (None,))
        _one_of("clip_sample", values["clip_sample"], (True, False))
        if not values["clip_sample"]:
            values["clip_sample_range"] = None
        elif values["clip_sample_range"] is None:
            raise ValueError("clip_sample_range must be a positive number where clip_sample is true, got None")
        known: dict[str, Any] = {field.name: values.get(field.name) for field in fields(cls)}
        return cls(**known)

    @cached_property
    def betas(self) -> Tensor:
        """float32 [T] on the CPU: the variance that step t adds (Ho et al. 2020, equation 2)."""
        # Cached tensors made under inference_mode could not be used with gradients later.
        with torch.inference_mode(False), torch.device("cpu"):
            total, start, end = self.num_train_timesteps, self.beta_start, self.beta_end
            if start is None or end is None or self.beta_schedule == "squaredcos_cap_v2":
                return torch.tensor(_cosine_betas(total), dtype=torch.float32)
            if self.beta_schedule == "linear":
                return torch.linspace(start, end, total, dtype=torch.float32)
            return torch.linspace(start**0.5, end**0.5, total, dtype=torch.float32) ** 2  # Rombach et al. 2022

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """float32 [T] on the CPU: alpha_bar of timesteps 0 .. T-1 (Ho et al. 2020, equation 4)."""
        with torch.inference_mode(False):
            return torch.cumprod(1.0 - self.betas, dim=0)

    @cached_property
    def _tables(self) -> dict[torch.device, Tensor]:
        """alphas_cumprod by device: copying it at every step would wait for the device at every step."""
        return {}

    def alpha_bar(self, t: int | Tensor) -> Tensor:
        """The share of signal in x at t, float32: 0-dim on the CPU for an int, [B] on t's device for a tensor [B].

        t = -1 gives 1. Raises ValueError for an int outside [-1, T).
        """
        if isinstance(t, Tensor):
            table = self._tables.get(t.device)
            if table is None:
                with torch.inference_mode(False):
                    table = self._tables[t.device] = self.alphas_cumprod.to(t.device)
            return torch.where(t < 0, torch.ones_like(table[0]), table[t.clamp(min=0)])
        _check(-1 <= t < self.num_train_timesteps, "t", t, f"in [-1, {self.num_train_timesteps})")
        return self.alphas_cumprod[t] if t >= 0 else torch.tensor(1.0, device="cpu")

    @property
    def final_alpha_bar(self) -> Tensor:
        """The alpha_bar on which DDIM's last step lands, float32, 0-dim."""
        return self.alpha_bar(-1 if self.set_alpha_to_one else 0)

    def add_noise(self, x0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """x at timestep t, sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise (Ho et al. 2020, equation 4).

        x0 and noise are [B, ...]; t is an int, or whole numbers [B], one per row.
        """
        alpha, sigma = self._levels(t, x0)
        return alpha * x0 + sigma * noise

    def velocity(self, x0: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """What a v_prediction network is asked for: sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x0, shaped like x0.

        Salimans and Ho 2022, section 4. Arguments as in `add_noise`.
        """
        alpha, sigma = self._levels(t, x0)
        return alpha * noise - sigma * x0

    def snr(self, t: int | Tensor) -> Tensor:
        """The signal-to-noise ratio alpha_bar / (1 - alpha_bar), float32, shaped like t.

        The weight of min-SNR training is `snr.clamp(max=5)` over x0, or that over snr for eps (Hang et al. 2023).
        """
        a = self.alpha_bar(t)
        return a / (1 - a)

    def _levels(self, t: int | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        # The cast comes before 1 - a and the root: this is where the published classes round in half precision.
        a = per_row(self.alpha_bar(t).to(x.dtype), x)
        return a**0.5, (1 - a) ** 0.5

    def timestep_interval(self, low: float, high: float) -> tuple[float, float]:
        """The timesteps at two fractions of the schedule, in [0, 1]: 0 is its first (little noise), 1 its last."""
        last = self.num_train_timesteps - 1
        return low * last, high * last

    def timesteps(self, steps: int, strength: float | None = None) -> tuple[int, ...]:
        """The timesteps of a run of `steps` network steps, falling. With a `strength`, those that `start_at` leaves of
        them.

        The spacings are those of Lin et al. 2024, table 2. `leading` counts down from less than T, to `steps_offset`;
        `linspace` runs from T-1 to 0, both included, and is T-1 alone for one step; `trailing` starts at T-1. Raises
        ValueError for steps outside 1 .. T, where the offset pushes the first timestep past T-1, and as `start_at`
        does.
        """
        total, offset = self.num_train_timesteps, self.steps_offset
        if steps not in range(1, total + 1):
            raise ValueError(f"steps must be in [1, {total}], got {steps!r}")
        match self.timestep_spacing:
            case "leading":
                chosen = [offset + k * (total // steps) for k in reversed(range(steps))]
            case "linspace":
                stride = (total - 1) / max(steps - 1, 1)
                chosen = [round(k * stride) for k in reversed(range(steps))] if steps > 1 else [total - 1]
            case "trailing":
                stride = (total - total / steps) - total  # as numpy.arange takes it, so halves round alike
                chosen = [round(total + k * stride) - 1 for k in range(steps)]
        if chosen[0] >= total:
            raise ValueError(
                f"{steps} steps with steps_offset {offset} would start at t={chosen[0]}, past the last timestep"
                f" {total - 1}; ask for fewer steps"
            )
        return tuple(chosen) if strength is None else start_at(chosen, strength)


def start_at(timesteps: Sequence[int], strength: float) -> tuple[int, ...]:
    """The timesteps of a run that starts from a noised picture: the last `int(len(timesteps) * strength)` of all.

    strength 1 keeps all of them. Raises ValueError for strength outside (0, 1] and if no step would remain.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be in (0, 1], got {strength}; try 0.3")
    remaining = int(len(timesteps) * strength)
    if remaining == 0:
        raise ValueError(f"strength {strength} leaves none of {len(timesteps)} steps; raise strength or the steps")
    return tuple(timesteps[-remaining:])


def to_device(x: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """x on a device, without waiting for it: a CUDA device copies x from pinned memory when it reaches the copy."""
    if x.device.type == "cpu" and torch.device(device).type == "cuda":
        x = x.pin_memory()
    return x.to(device, dtype, non_blocking=torch.device(device).type != "cpu")


def per_row(value: Tensor, x: Tensor) -> Tensor:
    """One number per row of x, [B], shaped to meet x [B, ...] on its device; a single number, 0-dim, stays as it is."""
    return value if value.ndim == 0 else to_device(value, x.device).reshape(-1, *[1] * (x.ndim - 1))


def _cosine_betas(total: int) -> list[float]:
    """Nichol and Dhariwal 2021, equation 17, with beta capped at 0.999, in double precision."""

    def f(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return [min(1 - f((i + 1) / total) / f(i / total), 0.999) for i in range(total)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _check(holds: bool, key: str, value: object, supported: str) -> None:
    if not holds:
        raise ValueError(f"{key} must be {supported}, got {value!r:.100}")


def _one_of(key: str, value: object, supported: Sequence[object]) -> None:
    _check(value in supported, key, value, " or ".join(repr(choice) for choice in supported))
