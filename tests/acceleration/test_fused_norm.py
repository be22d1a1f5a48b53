"""The normalisation's kernels for a GPU, run by Triton's interpreter, which needs no GPU, where Triton is installed.

torch's CPU builds come without it; `pip install triton` installs it.
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
    (8, 64, 72, 64, (1, 1), True, torch.float16, 20.0),  # several parts, and a mean that half precision just resolves
]
for groups, channels, height, width, coarse, silu, dtype, mean in cases:
    norm = Norm(groups, channels, eps=1e-5, silu=silu)
    norm.weight.data, norm.bias.data = noise(channels), noise(channels)
    norm.to(dtype)
    x = (noise(2, channels, height, width) + mean).to(dtype)
    scale_shift = [] if coarse is None else [noise(2, channels, *coarse).to(dtype) for _ in range(2)]
    with torch.no_grad():
        assert fused_norm.supports(x, scale_shift[0] if scale_shift else None)
        exact = norm.double()(x.double(), *(value.double() for value in scale_shift))
        plain = norm.to(dtype)(x, *scale_shift)
        y = fused_norm.group_norm(
            x, norm.weight, norm.bias, norm.eps, *(scale_shift or (None, None)), groups=groups, silu=silu
        )
    assert y.dtype == dtype and y.shape == x.shape and y.is_contiguous(memory_format=torch.channels_last)
    error, plain_error = ((value.double() - exact).norm() / exact.norm() for value in (y, plain))
    if dtype == torch.bfloat16:  # the interpreter truncates where a GPU rounds, which doubles the error
        plain_error = 2 * plain_error
    assert error < 1.1 * plain_error and error < 1e-2, (error, plain_error)
"""


def norm_by_torch(
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
    """What the kernels must compute, in x's own dtype."""
    norm = Norm(groups, len(weight), eps=eps, silu=silu).to(x.dtype)
    norm.weight.data, norm.bias.data = weight, bias
    return norm(x, scale, shift)


@pytest.mark.parametrize("dtype", fused_norm.DTYPES)
def test_kernels_that_match_torch_are_used(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    fused_norm.matches_torch.cache_clear()
    monkeypatch.setattr(fused_norm, "group_norm", norm_by_torch)
    assert fused_norm.matches_torch(torch.device("cpu"), dtype)


@pytest.mark.parametrize("fault", ["raises", "forgets the shift", "forgets SiLU"])
def test_kernels_that_fail_or_differ_are_not_used_and_a_warning_says_so(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if fault == "raises":
            raise OSError("no compiler\nat all")
        if fault == "forgets SiLU":
            kwargs["silu"] = False
        elif args[-1] is not None:
            args = (*args[:-1], torch.zeros_like(args[-1]))
        return norm_by_torch(x, *args, **kwargs)

    fused_norm.matches_torch.cache_clear()
    monkeypatch.setattr(fused_norm, "group_norm", faulty)
    with pytest.warns(UserWarning, match="and torch's does: (no compiler$|another result)"):
        assert not fused_norm.matches_torch(torch.device("cpu"), torch.float16)
    fused_norm.matches_torch.cache_clear()


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton comes with this build of torch")
def test_the_kernels_are_as_exact_as_torchs() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
