"""Linear maps of a few rows: the numbers of the plain ones, by oneDNN where it reads weights faster."""

import pytest
import torch
from torch import Tensor, nn

from kandinsky22 import acceleration
from kandinsky22.acceleration import linear
from kandinsky22.acceleration.linear import FEWEST, MOST


@pytest.fixture(autouse=True)
def any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small weights stand for large ones."""
    monkeypatch.setattr(linear, "LARGE", 40 * 48 * 4)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(0,), (1,), (FEWEST,), (3, 2), (2, 50), (MOST + 1,), (2, 2, 3)])
def test_its_numbers_are_the_plain_ones(shape: tuple[int, ...], bias: bool) -> None:
    layer, x = nn.Linear(48, 40, bias=bias).requires_grad_(False), noise(*shape, 48)
    exact = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    acceleration.prepare(layer, room=0)
    assert layer(x).shape == exact.shape
    assert torch.allclose(layer(x).double(), exact, atol=1e-5)
    assert torch.allclose(layer(x.movedim(0, -2).contiguous().movedim(-2, 0)).double(), exact, atol=1e-5)
    assert torch.allclose(layer.double()(x.double()), exact, atol=1e-12)


def test_it_is_taken_where_it_pays_and_never_with_gradients() -> None:
    layer = nn.Linear(48, 40)
    acceleration.prepare(layer, room=0)

    def taken(layer: nn.Module, rows: int) -> bool:
        with torch.no_grad(), torch.profiler.profile() as seen:
            layer(noise(rows, 48))
        return any("_linear_pointwise" in event.name for event in seen.events())

    there = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    assert [taken(layer, rows) for rows in (3, 4, 256, 257)] == [False, there, there, False]
    small = nn.Linear(48, 39)
    acceleration.prepare(small, room=0)
    assert not taken(small, 4)
    layer(noise(4, 48)).sum().backward()
    assert layer.weight.grad is not None and type(layer) is not nn.Linear
    acceleration.undo(layer)
    assert type(layer) is nn.Linear


def test_weights_that_change_are_seen() -> None:
    layer, x = nn.Linear(48, 40).requires_grad_(False), noise(8, 48)
    acceleration.prepare(layer, room=0)
    before = layer(x)
    layer.weight.mul_(2)
    assert torch.allclose(layer(x) - layer.bias, 2 * (before - layer.bias), atol=1e-5)
