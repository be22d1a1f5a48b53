"""How far apart two sets of pictures are, and pictures from their captions, given their features. Float64 throughout.

Knows no network, no picture and no file. FID and the CLIP score come from sums that add up over workers; KID and CMMD need
every row, in an order that all agree on (`reference.Statistics`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.moments import Gaussian, Moments

SIGMA, SCALE = 10, 1000  # CMMD's width of the kernel, and what makes its numbers readable
SUBSETS, SEED = 100, 0  # of KID
BLOCK = 2048  # rows of each side that CMMD holds against each other at once: 32 MiB
NORMAL = 1.959964  # standard errors to either side that hold 95%


class Spread(NamedTuple):
    """A mean over random subsets, and the standard deviation of the subsets' own values around it."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Mean:
    """The mean of one number per picture, and how sure it is. Those of two sets of pictures add up to that of both."""

    moments: Moments

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Of values [n], n at least 1."""
        return cls(Moments.of(values[:, None]))

    def __add__(self, other: Self) -> Self:
        return type(self)(self.moments + other.moments)

    @property
    def count(self) -> int:
        """Of how many pictures."""
        return round(self.moments.count)

    @property
    def value(self) -> float:
        """The mean itself."""
        return float(self.moments.mean)

    @property
    def error(self) -> float:
        """Its standard error; nan for a single picture."""
        return math.sqrt(float(self.moments.covariance) / self.count) if self.count > 1 else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """From where to where it lies, for 95 of 100 such sets."""
        return self.value - NORMAL * self.error, self.value + NORMAL * self.error


def frechet(a: Moments | Gaussian, b: Moments | Gaussian) -> float:
    """The squared Frechet distance of two normal distributions; with Inception's features, FID. At least 0.

    Heusel et al. 2017 (arXiv:1706.08500), equation 6, with unbiased covariances. The trace of (A B)^(1/2) is the sum of the
    singular values of A^(1/2) B^(1/2), which loses no digits to squaring and stays real. Raises `ValueError` for
    distributions of different dimensions, and for fewer pictures than a covariance needs: more than its dimensions.
    """
    if a.mean.shape != b.mean.shape:
        raise _apart(len(a.mean), len(b.mean))
    dim = len(a.mean)
    if min(a.count, b.count) <= dim:
        raise ValueError(
            f"a covariance of {dim} features needs more than {dim} pictures, got {a.count:.15g} and {b.count:.15g}; "
            "give more pictures, or compare these by KID or CMMD, which do with fewer"
        )
    traces = a.covariance.trace() + b.covariance.trace()
    common = torch.linalg.svdvals(_root(a.covariance).T @ _root(b.covariance)).sum()
    return max(0.0, float((a.mean - b.mean).square().sum() + traces - 2 * common))


def kernel_distance(a: Tensor, b: Tensor, *, subsets: int = SUBSETS, size: int = 1000, seed: int = SEED) -> Spread:
    """The squared maximum mean discrepancy of features a [n, K] and b [m, K]; with Inception's features, KID.

    Binkowski et al. 2018 (arXiv:1801.01401): the unbiased estimate, which may be below 0, with the kernel
    (x . y / K + 1)^3, over `subsets` pairs of random subsets of `size` rows without replacement. Torch's generator of `seed`
    shuffles the rows of a, then those of b, anew for each pair. Raises `ValueError` for other dimensions and fewer rows.
    """
    if a.shape[1] != b.shape[1]:
        raise _apart(a.shape[1], b.shape[1])
    if not 2 <= size <= min(len(a), len(b)):
        raise ValueError(
            f"KID's subsets of {size} need at least 2 pictures, and at most as many as there are: {len(a)} and {len(b)}; "
            f"give more pictures, or a size of at most {min(len(a), len(b))}, and say so beside the number"
        )
    generator = torch.Generator().manual_seed(seed)

    def drawn(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:size].to(rows.device)].double()

    values = torch.tensor([_unbiased(drawn(a), drawn(b)) for _ in range(subsets)], dtype=torch.float64)
    return Spread(float(values.mean()), float(values.std(correction=0)))


def cmmd(a: Tensor, b: Tensor, *, block: int = BLOCK) -> float:
    """CMMD of CLIP's embeddings a [n, K] and b [m, K] of pictures, of any length; `block` rows of each are compared at a time.

    Jayasumana et al. 2024 (arXiv:2401.09603), as google-research/cmmd computes it: embeddings of unit length, the Gaussian
    kernel exp(-|x - y|^2 / (2 * 10^2)), the estimate of least variance, in which a picture is also compared with itself
    (Gretton et al. 2012, equation 5), times 1000. Raises `ValueError` for other dimensions and where there are no rows.
    """
    if a.shape[1] != b.shape[1]:
        raise _apart(a.shape[1], b.shape[1])
    if not (len(a) and len(b)):
        raise ValueError(f"CMMD needs pictures on both sides, got {len(a)} and {len(b)}")
    a, b = F.normalize(a.double(), dim=1), F.normalize(b.double(), dim=1)
    within, across = _kernel_mean(a, a, block) + _kernel_mean(b, b, block), _kernel_mean(a, b, block)
    return SCALE * (within - 2 * across)


def clip_score(text_embeds: Tensor, image_embeds: Tensor) -> Mean:
    """How well pictures fit their captions: 100 max(cos, 0) of CLIP's embeddings [n, K] of each caption and its picture.

    Hessel et al. 2021 (arXiv:2104.08718), equation 1, with 100 for its 2.5 and no words put before the caption, as
    torchmetrics and most reports have it. Each picture is held above 0, as in the paper, where torchmetrics holds the mean.
    Raises `ValueError` for embeddings that are not pairs.
    """
    if text_embeds.shape != image_embeds.shape or not len(text_embeds):
        raise ValueError(
            f"the CLIP score needs an embedding of every picture's own caption, of one CLIP, got {list(text_embeds.shape)} "
            f"of texts and {list(image_embeds.shape)} of pictures"
        )
    return Mean.of(100 * F.cosine_similarity(text_embeds.double(), image_embeds.double()).clamp(min=0))


def _root(covariance: Tensor) -> Tensor:
    """F [K, K] with F F^T the covariance; what rounding took below 0 is 0."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()


def _unbiased(x: Tensor, y: Tensor) -> float:
    """Of rows [n, K] each: none is compared with itself."""
    n = len(x)
    xx, yy, xy = ((p @ q.T / p.shape[1] + 1) ** 3 for p, q in ((x, x), (y, y), (x, y)))
    within = xx.sum() - xx.trace() + yy.sum() - yy.trace()
    return float(within / (n * (n - 1)) - 2 * xy.mean())


def _kernel_mean(x: Tensor, y: Tensor, block: int) -> float:
    """Of every row of x with every row of y, all of unit length, so that |x - y|^2 = 2 - 2 x . y."""

    def sums() -> Iterator[float]:
        for p in x.split(block):
            for q in y.split(block):
                yield float((p @ q.T).sub_(1).div_(SIGMA**2).exp_().sum())

    return math.fsum(sums()) / (len(x) * len(y))


def _apart(a: int, b: int) -> ValueError:
    return ValueError(f"the features have {a} and {b} dimensions, so they are of two networks; compute both with one")
