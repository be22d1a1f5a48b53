"""Linear layers with few rows: the plain numbers, by our own kernel or oneDNN where they read weights faster."""

import pytest
import torch
from torch import nn

from kandinsky22 import acceleration
from kandinsky22.acceleration import kernels
from kandinsky22.acceleration.linear import MAX_ROWS, MIN_ROWS
from kandinsky22.acceleration.weight_upcast import upcast_linear
from tests.acceleration.comparison import noise

HAS_KERNELS = kernels.library() is not None


@pytest.fixture(params=["kernels", "torch"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What computes: our kernels or torch. Small weights are treated as large ones."""
    monkeypatch.setattr(kernels, "LARGE_WEIGHT", 40 * 48)
    if request.param == "torch":
        monkeypatch.setattr(kernels, "library", lambda: None)
    return str(request.param)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(0,), (1,), (MIN_ROWS,), (3, 2), (2, 50), (MAX_ROWS + 1,), (2, 2, 3)])
def test_a_prepared_layer_has_the_plain_numbers(shape: tuple[int, ...], bias: bool) -> None:
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
def test_the_kernel_multiplies_any_number_of_few_rows(
    dtype: torch.dtype, rows: int, threads: int, backend: str
) -> None:
    layer, x = nn.Linear(48, 40).requires_grad_(False).to(dtype), noise(rows, 48)
    exact = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    assert kernels.few_rows_apply(x, layer.weight) == (
        HAS_KERNELS and backend == "kernels" and rows <= kernels.MAX_ROWS
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        result = upcast_linear(x, layer.weight, layer.bias)
    finally:
        torch.set_num_threads(before)
    assert result.dtype == torch.float32 and torch.allclose(result.double(), exact, atol=1e-5)


def test_onednn_is_used_where_it_is_faster_and_not_with_gradients(backend: str) -> None:
    layer = nn.Linear(48, 40)
    acceleration.prepare(layer, budget=0)

    def uses_onednn(layer: nn.Module, rows: int) -> bool:
        with torch.no_grad(), torch.profiler.profile() as profile:
            layer(noise(rows, 48))
        return any("_linear_pointwise" in event.name for event in profile.events())

    available = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    few = available and not (HAS_KERNELS and backend == "kernels")
    assert [uses_onednn(layer, rows) for rows in (3, 4, 9, 256, 257)] == [False, few, available, available, False]
    small = nn.Linear(48, 39)
    acceleration.prepare(small, budget=0)
    assert not uses_onednn(small, 4)
    layer(noise(4, 48)).sum().backward()
    assert layer.weight.grad is not None and type(layer) is not nn.Linear
    acceleration.undo(layer)
    assert type(layer) is nn.Linear


def test_changed_weights_are_used() -> None:
    layer, x = nn.Linear(48, 40).requires_grad_(False), noise(8, 48)
    acceleration.prepare(layer, budget=0)
    before = layer(x)
    layer.weight.mul_(2)
    assert torch.allclose(layer(x) - layer.bias, 2 * (before - layer.bias), atol=1e-5)
