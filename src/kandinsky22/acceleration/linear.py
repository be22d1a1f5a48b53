"""The linear layers of a network on a CPU. For a few rows, most of the time is spent on reading weights."""

import torch
from torch import Tensor, nn

from kandinsky22.acceleration import kernels

MIN_ROWS, MAX_ROWS = 4, 256
"""For oneDNN: with fewer rows MKL, torch's own choice, reads weights faster; with more it is as fast."""


class FastLinear(nn.Linear):
    """A linear layer without gradients, by what reads its weight fastest: our kernel, oneDNN, or torch's own, MKL."""

    def forward(self, x: Tensor) -> Tensor:
        if kernels.few_rows_apply(x, self.weight):
            return kernels.few_rows(x, self.weight, self.bias)
        rows = x.numel() // max(1, self.in_features)
        pays = MIN_ROWS <= rows <= MAX_ROWS and self.weight.numel() >= kernels.LARGE_WEIGHT
        onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if pays else None
        if onednn is None or not kernels.is_applicable(x) or x.dtype != torch.float32 or self.weight.dtype != x.dtype:
            return super().forward(x)
        y: Tensor = onednn(x, self.weight, self.bias, "none", [], "")
        return y
