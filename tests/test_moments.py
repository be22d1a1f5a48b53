"""Moments: numpy's covariance, whatever the pieces."""

from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from torch import Tensor

from kandinsky22.moments import Gaussian, Moments


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def apart(ours: Tensor, theirs: Tensor | np.ndarray) -> float:
    theirs = torch.as_tensor(theirs)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_the_covariance_is_numpys() -> None:
    rows = draw(300, 20) @ draw(20, 20, seed=1) + 7
    moments = Moments.of(rows.float())
    assert moments.count == 300
    assert apart(moments.covariance, np.cov(rows.float().double().numpy(), rowvar=False)) < 1e-12
    assert apart(moments.mean, rows.float().double().mean(dim=0)) < 1e-12


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_any_split_in_any_order_is_the_whole(offset: float) -> None:
    rows = draw(500, 12) + offset
    whole = Moments.of(rows)
    parts = [Moments.of(part) for part in rows.split([1, 99, 7, 393])]
    tolerance = 1e-12 if offset == 0 else 1e-9  # of that offset, float64 keeps ten digits of the rows
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        merged = reduce(add, (parts[i] for i in order))
        assert merged.count == 500
        assert apart(merged.mean, whole.mean) < 1e-12
        assert apart(merged.covariance, whole.covariance) < tolerance
    nested = (parts[0] + parts[1]) + (parts[2] + parts[3])
    assert apart(nested.covariance, whole.covariance) < tolerance


def test_one_row_has_no_covariance() -> None:
    with pytest.raises(ValueError, match=r"at least 2 rows, got 1$"):
        _ = Moments.of(draw(1, 3)).covariance


def test_of_a_given_gaussian_nobody_said_how_many() -> None:
    assert Gaussian(torch.zeros(2), torch.eye(2)).count == float("inf")
