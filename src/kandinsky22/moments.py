"""What many rows amount to: their number, mean and covariance, in float64, from any pieces. Imports torch alone."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """A mean [K] and a covariance [K, K], float64, of `count` rows; infinity where nobody said of how many."""

    mean: Tensor
    covariance: Tensor
    count: float = math.inf


@dataclass(frozen=True)
class Moments:
    """What regression and distances need to know of weighted rows [n, K], float64: their total weight, their mean [K], and the
    weighted sum of their squared deviations [K, K]. Those of two sets of rows add up to those of both (Chan et al. 1979),
    and no digits are lost where the mean is large."""

    weight: float
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, rows: Tensor, weight: float = 1.0) -> Self:
        """Of rows [n, K], n at least 1, that count `weight` each."""
        rows = rows.double()
        mean = rows.mean(dim=0)
        deviations = rows - mean
        return cls(weight * len(rows), mean, weight * deviations.T @ deviations)

    def __add__(self, other: Self) -> Self:
        weight = self.weight + other.weight
        apart = other.mean - self.mean
        between = self.weight * other.weight / weight * torch.outer(apart, apart)
        mean = self.mean + apart * (other.weight / weight)
        return type(self)(weight, mean, self.scatter + other.scatter + between)

    @property
    def count(self) -> float:
        """How many rows there were, where each counted 1."""
        return self.weight

    @property
    def covariance(self) -> Tensor:
        """[K, K], unbiased (n - 1), of rows that counted 1 each. Raises `ValueError` for fewer than two."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 rows, got {self.count:g}")
        return self.scatter / (self.count - 1)
