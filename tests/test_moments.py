"""Moments: the covariance is numpy's, for any partition of the rows."""

from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from torch import Tensor

from kandinsky22.moments import Gaussian, Moments


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative_error(actual: Tensor, expected: Tensor | np.ndarray) -> float:
    expected = torch.as_tensor(expected)
    return float((actual - expected).abs().max() / expected.abs().max())


def test_mean_and_covariance_equal_numpys() -> None:
    rows = draw(300, 20) @ draw(20, 20, seed=1) + 7
    moments = Moments.of(rows.float())
    assert moments.count == 300
    assert relative_error(moments.covariance, np.cov(rows.float().double().numpy(), rowvar=False)) < 1e-12
    assert relative_error(moments.mean, rows.float().double().mean(dim=0)) < 1e-12


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_of_parts_add_up_in_any_order(offset: float) -> None:
    rows = draw(500, 12) + offset
    expected = Moments.of(rows)
    parts = [Moments.of(part) for part in rows.split([1, 99, 7, 393])]
    tolerance = 1e-12 if offset == 0 else 1e-9  # at this offset, float64 has ten digits left for the rows
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        merged = reduce(add, (parts[i] for i in order))
        assert merged.count == 500
        assert relative_error(merged.mean, expected.mean) < 1e-12
        assert relative_error(merged.covariance, expected.covariance) < tolerance
    nested = (parts[0] + parts[1]) + (parts[2] + parts[3])
    assert relative_error(nested.covariance, expected.covariance) < tolerance


def test_one_row_has_no_covariance() -> None:
    with pytest.raises(ValueError, match=r"at least 2 rows, got 1$"):
        _ = Moments.of(draw(1, 3)).covariance


def test_the_count_of_a_gaussian_is_unknown_by_default() -> None:
    assert Gaussian(torch.zeros(2), torch.eye(2)).count == float("inf")
