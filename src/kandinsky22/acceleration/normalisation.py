"""The normalisations of a network on a CPU: x is read twice and written once, modulation and SiLU included."""

import torch
from torch import Tensor

from kandinsky22.acceleration import kernels
from kandinsky22.acceleration.weight_upcast import upcast_layer
from kandinsky22.models.layers import Norm


class FastNorm(Norm):
    """Without gradients, the compiled kernels. With gradients, or if no kernels were built, the plain layer."""

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        if not self._kernels_apply(x, scale):
            return super(FastNorm, upcast_layer(self, x.dtype)).forward(x, scale, shift)
        x = x.contiguous(memory_format=torch.channels_last)
        return self._normalise(*kernels.group_moments(x, self.num_groups), x, scale, shift)

    def group_moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self._kernels_apply(x, None):
            return super().group_moments(x)
        mean, variance = kernels.group_moments(x.contiguous(memory_format=torch.channels_last), self.num_groups)
        return mean[0], variance[0]

    def forward_strip(
        self, mean: Tensor, variance: Tensor, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        if not self._kernels_apply(x, scale):
            return super().forward_strip(mean, variance, x, scale, shift)
        _, channels, height, width = x.shape
        padded = x.new_empty(1, height + 2, width, channels).permute(0, 3, 1, 2)
        x = x.contiguous(memory_format=torch.channels_last)
        self._normalise(mean, variance, x, scale, shift, out=padded[:, :, 1:-1])
        return padded

    def _normalise(
        self,
        mean: Tensor,
        variance: Tensor,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        out: Tensor | None = None,
    ) -> Tensor:
        if scale is not None and shift is not None:
            scale, shift = (value.contiguous(memory_format=torch.channels_last) for value in (scale, shift))
        return kernels.normalise(
            x,
            mean,
            variance,
            self.weight,
            self.bias,
            self.eps,
            scale,
            shift,
            groups=self.num_groups,
            silu=self.silu,
            out=out,
        )

    def _kernels_apply(self, x: Tensor, scale: Tensor | None) -> bool:
        """Whether the kernels can compute it: they enlarge a scale by whole factors only, to the nearest."""
        coarse = (1, 1) if scale is None else scale.shape[-2:]
        divides = not any(size % cells for size, cells in zip(x.shape[-2:], coarse, strict=True))
        exact = torch.promote_types(self.weight.dtype, x.dtype) == x.dtype
        return kernels.supports(x) and exact and divides
