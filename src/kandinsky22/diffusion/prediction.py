"""What a network's output means: an estimate of x0 and of eps, whether it predicts x0, eps or v.

Knows the schedule, but no network, no loop and no randomness.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kandinsky22.diffusion.schedule import NoiseSchedule, per_row


class Prediction(NamedTuple):
    """A network's prediction for x at t: tensors shaped like x, [B, ...].

    `x0` is clipped to the schedule's range, `eps` is not recomputed from it. `variance` is the learned variance, in
    [-1, 1] between the smallest and the largest log variance (Nichol and Dhariwal 2021, equation 15), or None.
    """

    x0: Tensor
    eps: Tensor
    variance: Tensor | None = None

    @classmethod
    def cat(cls, parts: "Sequence[Prediction]") -> "Prediction":
        """The rows of several predictions, in order."""
        if len(parts) == 1:
            return parts[0]
        variances = [part.variance for part in parts if part.variance is not None]
        x0, eps = torch.cat([part.x0 for part in parts]), torch.cat([part.eps for part in parts])
        return cls(x0, eps, torch.cat(variances) if variances else None)

    def split(self, rows: Sequence[int]) -> list["Prediction"]:
        """The predictions of consecutive groups of rows, in order; views, not copies."""
        x0, eps = self.x0.split_with_sizes([*rows]), self.eps.split_with_sizes([*rows])
        variances = [None] * len(rows) if self.variance is None else self.variance.split_with_sizes([*rows])
        return [Prediction(*parts) for parts in zip(x0, eps, variances, strict=True)]


def interpret(
    output: Tensor, x: Tensor, t: int | Tensor, schedule: NoiseSchedule, variance: Tensor | None = None
) -> Prediction:
    """Convert a network's output for x [B, ...] at t to x0 and eps, by the schedule's `prediction_type`.

    `output` and the learned `variance`, which is passed on, are shaped like x (`split_variance` parts a network's
    doubled channels); t is an int, or whole numbers [B]. eps and x0 are related by equation 4 of Ho et al. 2020, v as
    in Salimans and Ho 2022. One t per row gives each row the numbers that its t as an int would give it: the same bits
    in float32 on the CPU; in half precision fewer roundings. Raises ValueError where shapes differ.
    """
    if output.shape != x.shape:
        raise ValueError(f"the network answered {tuple(output.shape)} to x of shape {tuple(x.shape)}")
    a = per_row(schedule.alpha_bar(t), x)
    alpha, sigma = a**0.5, (1 - a) ** 0.5
    match schedule.prediction_type:
        case "epsilon":
            x0, eps = (x - sigma * output) / alpha, output
        case "sample":
            x0, eps = output, (x - alpha * output) / sigma
        case "v_prediction":
            x0, eps = alpha * x - sigma * output, alpha * output + sigma * x
    if schedule.clip_sample_range is not None:
        x0 = x0.clamp(-schedule.clip_sample_range, schedule.clip_sample_range)
    return Prediction(x0.to(x.dtype), eps.to(x.dtype), variance)


def split_variance(output: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """A network's output [B, C or 2C, ...] for x [B, C, ...] as (prediction, learned variance or None)."""
    if output.shape[1] != 2 * x.shape[1]:
        return output, None
    prediction, variance = output.chunk(2, dim=1)
    return prediction, variance


def guide(uncond: Tensor, cond: Tensor, weight: float | Tensor) -> Tensor:
    """Classifier-free guidance, uncond + weight (cond - uncond): weight 0 is uncond, 1 is cond, more exaggerates.

    uncond and cond are [B, ...]; weight is a number, or one per row, [B]. Ho and Salimans 2021, equation 6, with
    weight = 1 + their w.
    """
    if isinstance(weight, Tensor):
        weight = per_row(weight, cond)
    return uncond + (weight * (cond - uncond)).to(uncond.dtype)
