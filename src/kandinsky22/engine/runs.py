"""Runs of samplers over tensors: where a run starts, what inpainting constrains, and running one to its end."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from kandinsky22.diffusion import Draw, Job, NoiseSchedule, Prediction, sample
from kandinsky22.diffusion.denoiser import Denoiser, Guidance
from kandinsky22.models.prior import Prefix
from kandinsky22.models.unet import UNetCondition

R = TypeVar("R", Prefix, UNetCondition)
Constrain = Callable[[Tensor, int], Tensor]
"""(x, t) -> the state to continue from"""


class StartState(NamedTuple):
    """What a run starts from: the state x [n, ...], the timesteps it visits, and the noise in x."""

    x: Tensor
    timesteps: tuple[int, ...]
    noise: Tensor

    @classmethod
    def from_noise(cls, schedule: NoiseSchedule, steps: int, x: Tensor) -> Self:
        """Start from pure noise x. Raises `ValueError` for a number of steps that the schedule does not have."""
        return cls(x, schedule.timesteps(steps), x)

    @classmethod
    def from_clean(cls, schedule: NoiseSchedule, steps: int, clean: Tensor, strength: float, draw: Draw) -> Self:
        """Start from a clean state noised to `strength` in (0, 1]. Raises `ValueError` if no step would remain."""
        timesteps = schedule.timesteps(steps, strength)
        noise = draw(clean)
        return cls(schedule.add_noise(clean, noise, timesteps[0]), timesteps, noise)


class KnownRegion(Protocol):
    """What inpainting keeps, as a run uses it."""

    @property
    def channels(self) -> Tensor:
        """The channels that an inpainting U-Net gets beside its state, [1 or n, 5, h, w]: masked latents, mask."""
        ...

    def constraint(self, start: StartState, schedule: NoiseSchedule) -> Constrain:
        """Keeps the known latents: at timestep t noised with the noise of the start, at the end (t < 0) clean."""
        ...


class InpaintCondition(NamedTuple):
    """What inpainting keeps: latents z [1 or n, 4, h, w] of the picture; a mask [1 or n, 1, h, w], 1: known."""

    z: Tensor
    mask: Tensor

    @property
    def channels(self) -> Tensor:
        """The channels that an inpainting U-Net gets beside its state, [1 or n, 5, h, w]: masked latents, mask."""
        return torch.cat([self.z * self.mask, self.mask], dim=1)

    def constraint(self, start: StartState, schedule: NoiseSchedule) -> Constrain:
        """Keeps the known latents: at timestep t noised with the noise of the start, at the end (t < 0) clean."""

        def constrain(x: Tensor, t: int) -> Tensor:
            z = self.z.expand_as(x)
            reference = z if t < 0 else schedule.add_noise(z, start.noise, t)
            return self.mask * reference + (1 - self.mask) * x

        return constrain


@dataclass(slots=True)
class Run(Generic[R]):
    """A sampler ready to run: its number of steps, its guidance, and in every how many calls the network's deeper
    levels are computed (`reuse`).

    A constraint of the job may assign another guidance of as many pictures, which holds from the next step on.
    """

    job: Job
    steps: int
    guidance: Guidance[R]
    reuse: int = 1


class Step(NamedTuple):
    """Step i of n is done; the state is x."""

    i: int
    n: int
    x: Tensor


def run_sampler(
    stage: str,
    run: Run[R],
    network: Callable[[Tensor, Tensor, R, Tensor], Tensor],
    schedule: NoiseSchedule,
    dtype: torch.dtype,
) -> Generator[Step, None, Tensor]:
    """Run a sampler to its end; returns the final state. Raises `FloatingPointError` if that is not finite."""
    denoiser: Denoiser[R] = Denoiser(network, schedule, {0: run.guidance}, dtype, {0: run.reuse})
    for i, now in enumerate(sample(run.job.sampler, denoiser.alone(0), run.job.constrain), 1):
        denoiser.change(0, run.guidance)
        yield Step(i, run.steps, now.x)
    check_finite(now.x, stage, dtype)
    return now.x


def check_finite(x: Tensor, stage: str, dtype: torch.dtype) -> None:
    """Raises `FloatingPointError` if a stage's result is not finite."""
    if not bool(x.isfinite().all()):
        raise FloatingPointError(
            f"the {stage}'s result is not finite in {str(dtype).removeprefix('torch.')}, so nothing was saved; "
            "use --dtype float32, or a lower guidance scale"
        )


def draw_noise_only(run: Run[R]) -> None:
    """Run a sampler without its network, so that the caller's generator ends in the state after that run."""

    def zeros(x: Tensor, t: int) -> Prediction:
        return Prediction(*(torch.zeros_like(x) for _ in range(3)))

    for _ in sample(run.job.sampler, zeros):
        pass


def repeat_rows(values: Tensor | Sequence[Tensor], times: int = 1) -> Tensor:
    """The rows of a tensor [B, ...], or of several concatenated, each repeated `times` times in a row."""
    return (values if isinstance(values, Tensor) else torch.cat(list(values))).repeat_interleave(times, dim=0)


def weighted_sum(vectors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The weighted sum of vectors of one shape; weights are not normalised."""
    return torch.stack([vector * weight for vector, weight in zip(vectors, weights, strict=True)]).sum(dim=0)
