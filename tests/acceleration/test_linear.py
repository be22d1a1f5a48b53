"""Linear maps of a few rows: the numbers of the plain ones, by our own kernel or oneDNN where they read weights faster."""

import pytest
import torch
from torch import Tensor, nn

from kandinsky22 import acceleration
from kandinsky22.acceleration import kernels
from kandinsky22.acceleration.linear import MIN_ROWS, MAX_ROWS
from kandinsky22.acceleration.weight_upcast import upcast_linear

OURS = kernels.library() is not None


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What computes. Small weights stand for large ones."""
    monkeypatch.setattr(kernels, "LARGE_WEIGHT", 40 * 48)
    if request.param == "torch":
        monkeypatch.setattr(kernels, "library", lambda: None)
    return str(request.param)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(0,), (1,), (MIN_ROWS,), (3, 2), (2, 50), (MAX_ROWS + 1,), (2, 2, 3)])
def test_its_numbers_are_the_plain_ones(shape: tuple[int, ...], bias: bool) -> None:
    layer, x = nn.Linear(48, 40, bias=bias).requires_grad_(False), noise(*shape, 48)
    exact = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    acceleration.prepare(layer, budget=0)
    assert layer(x).shape == exact.shape
    assert torch.allclose(layer(x).double(), exact, atol=1e-5)
    assert torch.allclose(layer(x.movedim(0, -2).contiguous().movedim(-2, 0)).double(), exact, atol=1e-5)
    assert torch.allclose(layer.double()(x.double()), exact, atol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", range(1, kernels.MAX_ROWS + 2))
@pytest.mark.parametrize("dtype", kernels.DTYPES)
@torch.no_grad()
def test_the_kernel_multiplies_any_few_rows(dtype: torch.dtype, rows: int, threads: int, by: str) -> None:
    layer, x = nn.Linear(48, 40).requires_grad_(False).to(dtype), noise(rows, 48)
    exact = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    assert kernels.few_rows_apply(x, layer.weight) == (OURS and by == "kernels" and rows <= kernels.MAX_ROWS)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = upcast_linear(x, layer.weight, layer.bias)
    finally:
        torch.set_num_threads(before)
    assert found.dtype == torch.float32 and torch.allclose(found.double(), exact, atol=1e-5)


def test_another_library_is_taken_where_it_pays_and_none_with_gradients(by: str) -> None:
    layer = nn.Linear(48, 40)
    acceleration.prepare(layer, budget=0)

    def taken(layer: nn.Module, rows: int) -> bool:
        with torch.no_grad(), torch.profiler.profile() as seen:
            layer(noise(rows, 48))
        return any("_linear_pointwise" in event.name for event in seen.events())

    there = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    few = there and not (OURS and by == "kernels")
    assert [taken(layer, rows) for rows in (3, 4, 9, 256, 257)] == [False, few, there, there, False]
    small = nn.Linear(48, 39)
    acceleration.prepare(small, budget=0)
    assert not taken(small, 4)
    layer(noise(4, 48)).sum().backward()
    assert layer.weight.grad is not None and type(layer) is not nn.Linear
    acceleration.undo(layer)
    assert type(layer) is nn.Linear


def test_weights_that_change_are_seen() -> None:
    layer, x = nn.Linear(48, 40).requires_grad_(False), noise(8, 48)
    acceleration.prepare(layer, budget=0)
    before = layer(x)
    layer.weight.mul_(2)
    assert torch.allclose(layer(x) - layer.bias, 2 * (before - layer.bias), atol=1e-5)
