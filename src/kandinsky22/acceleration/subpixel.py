"""Nearest upsampling by two, then a 3x3 convolution, as one 2x2 convolution of the small picture.

Sub-pixel convolution (Shi et al. 2016, arXiv:1609.05158): each of the four cells that a cell becomes sees 2 x 2 cells
of the small picture, with the sums of the filter's taps that fall on the same cell: 16 multiplications instead of 36,
and the upsampled picture is never written. For half precision, where Winograd's algorithm is not exact enough.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

SUMS = (((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1)))  # [phase, tap of 2, tap of 3], of one dimension


def sum_taps(weight: Tensor) -> Tensor:
    """A filter [O, C, 3, 3] as that of the four phases, [4 * O, C, 2, 2], channels last; summed in float32."""
    sums = torch.tensor(SUMS, dtype=torch.float32)
    summed = torch.einsum("pak,qbl,ockl->pqoabc", sums, sums, weight.float())
    return summed.flatten(0, 2).to(weight.dtype).permute(0, 3, 1, 2)


def convolve(x: Tensor, phases: Tensor, bias: Tensor, *, strip: bool) -> Tensor:
    """Convolve x [B, C, H, W], channels last, upsampled by two -> [B, O, 2 H, 2 W], channels last.

    phases: of `sum_taps`. bias: [O]. strip: the first and last row of x are only neighbours, with no output.
    """
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, *((0, 0) if strip else (1, 1)))).permute(0, 3, 1, 2)
    cells = F.conv2d(x, phases, bias.repeat(4)).permute(0, 2, 3, 1).unflatten(-1, (2, 2, -1))
    (b, height, width), outputs = cells.shape[:3], len(bias)
    y = x.new_empty(b, height - 1, 2, width - 1, 2, outputs)
    for i in range(2):
        for j in range(2):
            y[:, :, i, :, j] = cells[:, i : height - 1 + i, j : width - 1 + j, i, j]
    return y.flatten(1, 2).flatten(2, 3).permute(0, 3, 1, 2)
