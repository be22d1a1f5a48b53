"""The normalisation's kernels for a GPU, by Triton's interpreter where Triton is: it needs no GPU.

torch's CPU builds come without it; `pip install triton` brings it.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

from kandinsky22.acceleration import fused_norm
from kandinsky22.models.layers import Norm

PROGRAM = """
import torch
from kandinsky22.acceleration import fused_norm
from kandinsky22.models.layers import Norm

fused_norm.DEVICES = ("cpu",)
generator = torch.Generator().manual_seed(0)

def noise(*shape):
    return torch.randn(shape, generator=generator)

cases = [  # groups, channels, height, width, the size of scale and shift, silu, dtype, mean
    (4, 24, 5, 7, None, True, torch.float16, 0.0),
    (4, 96, 6, 10, (1, 1), True, torch.bfloat16, 1.0),
    (8, 32, 12, 8, (3, 4), False, torch.float16, 0.0),
    (8, 64, 72, 64, (1, 1), True, torch.float16, 20.0),  # several parts, and a mean that half precision just bears
]
for groups, channels, height, width, coarse, silu, dtype, mean in cases:
    norm = Norm(groups, channels, eps=1e-5, silu=silu)
    norm.weight.data, norm.bias.data = noise(channels), noise(channels)
    norm.to(dtype)
    x = (noise(2, channels, height, width) + mean).to(dtype)
    told = [] if coarse is None else [noise(2, channels, *coarse).to(dtype) for _ in range(2)]
    with torch.no_grad():
        assert fused_norm.supports(x, told[0] if told else None)
        exact = norm.double()(x.double(), *(value.double() for value in told))
        plain = norm.to(dtype)(x, *told)
        y = fused_norm.group_norm(
            x, norm.weight, norm.bias, norm.eps, *(told or (None, None)), groups=groups, silu=silu
        )
    assert y.dtype == dtype and y.shape == x.shape and y.is_contiguous(memory_format=torch.channels_last)
    apart, theirs = ((value.double() - exact).norm() / exact.norm() for value in (y, plain))
    if dtype == torch.bfloat16:  # the interpreter cuts bits off where a GPU rounds, which is twice as far
        theirs = 2 * theirs
    assert apart < 1.1 * theirs and apart < 1e-2, (apart, theirs)
"""


def by_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    *,
    groups: int,
    silu: bool,
) -> Tensor:
    """What the kernels are to compute, in x's own dtype."""
    norm = Norm(groups, len(weight), eps=eps, silu=silu).to(x.dtype)
    norm.weight.data, norm.bias.data = weight, bias
    return norm(x, scale, shift)


@pytest.mark.parametrize("dtype", fused_norm.DTYPES)
def test_kernels_are_used_where_they_compute_what_torch_does(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused_norm.matches_torch.cache_clear()
    monkeypatch.setattr(fused_norm, "group_norm", by_torch)
    assert fused_norm.matches_torch(torch.device("cpu"), dtype)


@pytest.mark.parametrize("fault", ["raises", "forgets the shift", "forgets SiLU"])
def test_kernels_that_fail_are_left_out_with_a_warning(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(x: Tensor, *others: Any, **named: Any) -> Tensor:
        if fault == "raises":
            raise OSError("no compiler\nat all")
        if fault == "forgets SiLU":
            named["silu"] = False
        elif others[-1] is not None:
            others = (*others[:-1], torch.zeros_like(others[-1]))
        return by_torch(x, *others, **named)

    fused_norm.matches_torch.cache_clear()
    monkeypatch.setattr(fused_norm, "group_norm", faulty)
    with pytest.warns(UserWarning, match="and torch's does: (no compiler$|another result)"):
        assert not fused_norm.matches_torch(torch.device("cpu"), torch.float16)
    fused_norm.matches_torch.cache_clear()


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton comes with this build of torch")
def test_its_kernels_are_no_further_from_the_truth_than_torchs() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
