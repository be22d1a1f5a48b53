"""The linear maps of a network on a CPU, where there are a few rows: most of the time is spent on reading weights then."""

import torch
from torch import Tensor, nn

from kandinsky22.acceleration import kernels

FEWEST, MOST = 4, 256
"""Rows: with fewer MKL, torch's own choice, reads weights faster than oneDNN; with more it is as fast."""


class FastLinear(nn.Linear):
    """A linear map without gradients, by whatever reads its weight fastest: a kernel of ours, oneDNN, or MKL as torch has it."""

    def forward(self, x: Tensor) -> Tensor:
        if kernels.reads(x, self.weight):
            return kernels.few_rows(x, self.weight, self.bias)
        rows = x.numel() // max(1, self.in_features)
        pays = FEWEST <= rows <= MOST and self.weight.numel() >= kernels.LARGE
        by = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if pays else None
        if by is None or not kernels.concern(x) or x.dtype != torch.float32 or self.weight.dtype != x.dtype:
            return super().forward(x)
        y: Tensor = by(x, self.weight, self.bias, "none", [], "")
        return y
