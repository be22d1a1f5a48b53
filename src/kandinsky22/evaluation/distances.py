"""FID, KID and CMMD between two sets of features, and the CLIP score of pictures and captions. Float64 throughout.

Works on tensors alone: no networks, pictures or files. FID and the CLIP score come from sums that can be computed in
parts and added; KID and CMMD need every row, in a fixed order (`reference.Statistics`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.moments import Gaussian, Moments

SIGMA, SCALE = 10, 1000  # of CMMD: the width of the Gaussian kernel, and the factor of the published numbers
SUBSETS, SEED = 100, 0  # of KID
BLOCK = 2048  # rows of each set that CMMD compares at once: 32 MiB
NORMAL = 1.959964  # standard errors on either side of a 95% interval


class Spread(NamedTuple):
    """A mean over random subsets, and the standard deviation of the subsets' own values around it."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Mean:
    """The mean of one number per picture, with its error. The means of two sets add up to that of their union."""

    moments: Moments

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """The mean of values [n], n at least 1."""
        return cls(Moments.of(values[:, None]))

    def __add__(self, other: Self) -> Self:
        return type(self)(self.moments + other.moments)

    @property
    def count(self) -> int:
        """The number of pictures."""
        return round(self.moments.count)

    @property
    def value(self) -> float:
        """The mean."""
        return float(self.moments.mean)

    @property
    def error(self) -> float:
        """Its standard error; nan for a single picture."""
        return math.sqrt(float(self.moments.covariance) / self.count) if self.count > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% confidence interval, (low, high)."""
        return self.value - NORMAL * self.error, self.value + NORMAL * self.error


def frechet(a: Moments | Gaussian, b: Moments | Gaussian) -> float:
    """The squared Frechet distance between two normal distributions; with Inception's features, FID. At least 0.

    Heusel et al. 2017 (arXiv:1706.08500), equation 6, with unbiased covariances. The trace of (A B)^(1/2) is computed
    as the sum of the singular values of A^(1/2) B^(1/2), which avoids squaring and stays real. Raises `ValueError` for
    different dimensions, and unless each set has more pictures than dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise _different_dimensions(len(a.mean), len(b.mean))
    dim = len(a.mean)
    if min(a.count, b.count) <= dim:
        raise ValueError(
            f"a covariance of {dim} features needs more than {dim} pictures, got {a.count:.15g} and {b.count:.15g}; "
            "give more pictures, or use KID or CMMD, which need fewer"
        )
    traces = a.covariance.trace() + b.covariance.trace()
    common = torch.linalg.svdvals(_root(a.covariance).T @ _root(b.covariance)).sum()
    return max(0.0, float((a.mean - b.mean).square().sum() + traces - 2 * common))


def kernel_distance(a: Tensor, b: Tensor, *, subsets: int = SUBSETS, size: int = 1000, seed: int = SEED) -> Spread:
    """The squared maximum mean discrepancy of features a [n, K] and b [m, K]; with Inception's features, KID.

    Binkowski et al. 2018 (arXiv:1801.01401): the unbiased estimate, which may be below 0, with the kernel (x . y / K +
    1)^3, over `subsets` pairs of random subsets of `size` rows without replacement. For each pair, a torch generator
    with `seed` shuffles the rows of a and then those of b. Raises `ValueError` for different dimensions and where a set
    has fewer than `size` rows.
    """
    if a.shape[1] != b.shape[1]:
        raise _different_dimensions(a.shape[1], b.shape[1])
    if not 2 <= size <= min(len(a), len(b)):
        raise ValueError(
            f"KID's subsets of {size} need at least 2 pictures, and at most as many as there are: {len(a)} and {len(b)}"
            f"; give more pictures, or a size of at most {min(len(a), len(b))}, and state it with the number"
        )
    generator = torch.Generator().manual_seed(seed)

    def subset(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:size].to(rows.device)].double()

    values = torch.tensor([_unbiased_mmd(subset(a), subset(b)) for _ in range(subsets)], dtype=torch.float64)
    return Spread(float(values.mean()), float(values.std(correction=0)))


def cmmd(a: Tensor, b: Tensor, *, block: int = BLOCK) -> float:
    """CMMD of CLIP's image embeddings a [n, K] and b [m, K], of any norm; `block` rows of each are compared at a time.

    Jayasumana et al. 2024 (arXiv:2401.09603), as google-research/cmmd computes it: embeddings scaled to unit norm, the
    Gaussian kernel exp(-|x - y|^2 / (2 * 10^2)), the minimum-variance estimate, in which a picture is also compared
    with itself (Gretton et al. 2012, equation 5), times 1000. Raises `ValueError` for different dimensions and for
    empty sets.
    """
    if a.shape[1] != b.shape[1]:
        raise _different_dimensions(a.shape[1], b.shape[1])
    if not (len(a) and len(b)):
        raise ValueError(f"CMMD needs pictures on both sides, got {len(a)} and {len(b)}")
    a, b = F.normalize(a.double(), dim=1), F.normalize(b.double(), dim=1)
    within, across = _kernel_mean(a, a, block) + _kernel_mean(b, b, block), _kernel_mean(a, b, block)
    return SCALE * (within - 2 * across)


def clip_score(text_embeds: Tensor, image_embeds: Tensor) -> Mean:
    """The CLIP score: the mean of 100 max(cos, 0) of CLIP's embeddings [n, K] of each caption and its picture.

    Hessel et al. 2021 (arXiv:2104.08718), equation 1, with 100 instead of 2.5 and no prefix before the caption, as in
    torchmetrics and most reports. Each picture's score is clamped at 0, as in the paper; torchmetrics clamps the mean.
    Raises `ValueError` for different shapes or no rows.
    """
    if text_embeds.shape != image_embeds.shape or not len(text_embeds):
        raise ValueError(
            f"the CLIP score needs one caption embedding per picture, of the same CLIP, got {list(text_embeds.shape)} "
            f"of texts and {list(image_embeds.shape)} of pictures"
        )
    return Mean.of(100 * F.cosine_similarity(text_embeds.double(), image_embeds.double()).clamp(min=0))


def _root(covariance: Tensor) -> Tensor:
    """F [K, K] with F F^T = covariance; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()


def _unbiased_mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased MMD^2 of x and y, [n, K] each: no row is compared with itself."""
    n = len(x)
    xx, yy, xy = ((p @ q.T / p.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    within = xx.sum() - xx.trace() + yy.sum() - yy.trace()
    return float(within / (n * (n - 1)) - 2 * xy.mean())


def _kernel_mean(x: Tensor, y: Tensor, block: int) -> float:
    """The mean kernel of all pairs of rows of x and y, which have unit norm, so that |x - y|^2 = 2 - 2 x . y."""

    def sums() -> Iterator[float]:
        for p in x.split(block):
            for q in y.split(block):
                yield float((p @ q.T).sub_(1).div_(SIGMA**2).exp_().sum())

    return math.fsum(sums()) / (len(x) * len(y))


def _different_dimensions(a: int, b: int) -> ValueError:
    return ValueError(f"the features have {a} and {b} dimensions, so they are from two networks; compute both with one")
