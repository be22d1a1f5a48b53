"""Counting the U-Net's work for a picture, by running the sampler with a stand-in for the network."""

from typing import NamedTuple

import torch
from torch import Tensor

from kandinsky22.diffusion import SAMPLERS, NoiseSchedule, sample
from kandinsky22.diffusion.denoiser import Denoiser, Guidance
from kandinsky22.engine.cost import UNetStep
from kandinsky22.models.lora import RowAdapters
from kandinsky22.models.timestep_cache import repeat_guided
from kandinsky22.models.unet import UNetCondition
from kandinsky22.request import Sampling


class UNetWork(NamedTuple):
    """The U-Net's work for a picture: calls, rows of all calls, and rows whose deep levels are computed."""

    calls: int
    rows: int
    deep: int

    @classmethod
    def of(cls, sampling: Sampling, schedule: NoiseSchedule) -> "UNetWork":
        """The work for a picture from noise, counted with the sampler and denoiser of a resolved sampling."""
        assert sampling.sampler and sampling.steps and sampling.guidance_interval and sampling.reuse
        network, nothing = _CountingUNet(), UNetCondition(torch.empty(1, 0), (), None, RowAdapters.of((), 1))
        interval = schedule.timestep_interval(*sampling.guidance_interval)
        guided = {0: Guidance.of(nothing, nothing, torch.tensor([sampling.weight]), interval)}
        denoiser: Denoiser[UNetCondition] = Denoiser(network, schedule, guided, torch.float32, {0: sampling.reuse})
        x, timesteps = torch.zeros(1, 4, 1, 1), schedule.timesteps(sampling.steps)
        for _ in sample(SAMPLERS[sampling.sampler](schedule, x, timesteps, torch.zeros_like), denoiser.alone(0)):
            pass
        return cls(network.calls, network.rows, network.deep)

    def operations(self, step: UNetStep) -> int:
        """Operations of a U-Net whose step for one row costs `step`."""
        return self.rows * step.first + self.deep * (step.whole - step.first)


class _CountingUNet:
    """Stands in for a U-Net, and counts the calls and rows that it receives."""

    calls = rows = deep = 0

    def __call__(self, x: Tensor, t: Tensor, conditioned: UNetCondition, guided_rows: Tensor) -> Tensor:
        return self.forward_cached(x, t, conditioned, None, None, guided_rows)[0]

    def forward_cached(
        self,
        x: Tensor,
        t: Tensor,
        conditioned: UNetCondition,
        deep: Tensor | None,
        rows: Tensor | None,
        guided_rows: Tensor,
    ) -> tuple[Tensor, Tensor]:
        self.calls += 1
        self.rows += len(conditioned)
        self.deep += len(conditioned) if deep is None else 0 if rows is None else len(rows)
        output = torch.zeros_like(repeat_guided(x, guided_rows))
        return output.repeat(1, 2, 1, 1), output
