"""Number, mean and covariance of rows in float64, accumulated from any partition of them. Imports torch alone."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """A mean [K] and a covariance [K, K], float64, of `count` rows; infinity if their number is unknown."""

    mean: Tensor
    covariance: Tensor
    count: float = math.inf


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of weighted rows [n, K], float64: total weight, mean [K], and the scatter matrix, which is
    the weighted sum of outer products of deviations from the mean, [K, K].

    Moments of two sets of rows add up to those of both (Chan et al. 1979), without cancellation where the mean is
    large.
    """

    weight: float
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor, weight: float = 1.0) -> Self:
        """The moments of rows [n, K], n at least 1, that have a weight of `weight` each."""
        rows = rows.double()
        mean = rows.mean(dim=0)
        deviations = rows - mean
        return cls(weight * len(rows), mean, weight * deviations.T @ deviations)

    def __add__(self, other: Self) -> Self:
        weight = self.weight + other.weight
        delta = other.mean - self.mean
        between = self.weight * other.weight / weight * torch.outer(delta, delta)
        mean = self.mean + delta * (other.weight / weight)
        return type(self)(weight, mean, self.scatter + other.scatter + between)

    @property
    def count(self) -> float:
        """The number of rows, if each has weight 1."""
        return self.weight

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance [K, K] (over n - 1) of rows of weight 1. Raises `ValueError` for fewer than two."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {self.count:g}")
        return self.scatter / (self.count - 1)
