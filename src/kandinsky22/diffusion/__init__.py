"""The mathematics of diffusion: schedules, what a prediction means, samplers that ask, and the drivers that answer.

Imports torch and nothing of this package; knows no network, no picture and no file.
"""

from kandinsky22.diffusion.drive import Constrain, Job, keep, sample
from kandinsky22.diffusion.noise import Noise, SharedNoise
from kandinsky22.diffusion.prediction import Prediction, guide, interpret, split_variance
from kandinsky22.diffusion.samplers import DESCRIPTIONS, SAMPLERS, Ask, Draw, Now, Sampler, SamplerFunction, sampler
from kandinsky22.diffusion.schedule import PUBLISHED_DEFAULTS, NoiseSchedule, per_row, start_at, to_device

__all__ = [
    "DESCRIPTIONS",
    "PUBLISHED_DEFAULTS",
    "SAMPLERS",
    "Ask",
    "Constrain",
    "Draw",
    "Job",
    "Noise",
    "NoiseSchedule",
    "Now",
    "Prediction",
    "Sampler",
    "SamplerFunction",
    "SharedNoise",
    "guide",
    "interpret",
    "keep",
    "per_row",
    "sample",
    "sampler",
    "split_variance",
    "start_at",
    "to_device",
]
