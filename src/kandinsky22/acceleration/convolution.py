"""The convolutions of a network on a CPU, each by the algorithm that pays for its shape."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from kandinsky22.acceleration import kernels, winograd
from kandinsky22.acceleration.weight_upcast import linear, widened
from kandinsky22.models.layers import Conv1x1, Conv3x3, UpsampleConv3x3

LANES = 32  # channels must be a multiple of this, on either side
CELLS = 256  # of a map from which Winograd's algorithm pays: with fewer, reading its larger filter takes the time that it saves
CACHED = 2 << 20  # bytes of a transformed filter that stays in a processor's cache, so that it pays on any map
FEW = 4  # times fewer cells than channels come out: then laying out the filter anew at every call takes longer than to multiply


class FastConv3x3(Conv3x3):
    """A 3x3 convolution without gradients; with them, or on another device, or of a shape where nothing pays, the plain one.

    By Winograd's algorithm where the map is large enough. As one matrix product over neighbourhoods where there are few cells, as
    the filter then is read as it lies.
    """

    doubled = False
    roomy = False  # whether there is room for the transformed filter
    _kept: tuple[tuple[object, ...], list[Tensor]] | None = None
    """What was transformed last, and what came of it, if it was kept."""

    def forward(self, x: Tensor) -> Tensor:
        return self._by_what_pays(x, inner=False)

    def forward_strip(self, x: Tensor) -> Tensor:
        return self._by_what_pays(x, inner=True)

    def _by_what_pays(self, x: Tensor, *, inner: bool) -> Tensor:
        if not kernels.concern(x):
            return self._plainly(x, inner=inner)
        if self.keep_exact and x.dtype == torch.float32:
            # Channels first: oneDNN's own, channels last, is no exacter than Winograd's algorithm.
            return self._plainly(x.contiguous(), inner=inner)
        x = x.contiguous(memory_format=torch.channels_last)
        if not _is_wide(self) or self.bias is None:
            return self._plainly(x, inner=inner)
        cells = len(x) * (x.shape[2] - 2 * inner) * x.shape[3] * (4 if self.doubled else 1)
        if x.dtype == torch.float32 and (cells >= CELLS or form(self) <= CACHED):
            return winograd.convolved(x, self._transformed(), self.bias, doubled=self.doubled, inner=inner)
        if FEW * cells < self.out_channels and not (inner or self.doubled):
            return _as_one_product(x, self.weight, self.bias)
        return self._plainly(x, inner=inner)

    def _plainly(self, x: Tensor, *, inner: bool) -> Tensor:
        layer = widened(self, x.dtype)
        return super(FastConv3x3, layer).forward_strip(x) if inner else super(FastConv3x3, layer).forward(x)

    def _transformed(self) -> Iterable[Tensor]:
        """The filter for Winograd's algorithm; where there is room, kept from its second use on, until the weights change. A
        first use may be the only one, and to fetch the memory takes longer than to convolve. The numbers are the same."""
        weight = self.weight
        untold = weight.is_inference() or is_parametrized(self)  # nothing says when such a weight has changed
        if untold or not self.roomy:
            return winograd.transformed(weight, doubled=self.doubled)
        now, kept = (weight.data_ptr(), weight._version, weight.dtype), self._kept
        if kept is None or kept[0] != now:
            self._kept = now, []
            return winograd.transformed(weight, doubled=self.doubled)
        if not kept[1]:
            self._kept = kept = now, list(winograd.transformed(weight, doubled=self.doubled, lasting=True))
        return kept[1]


class FastConv1x1(Conv1x1):
    """A 1x1 convolution as the matrix product that it is where channels come last."""

    def forward(self, x: Tensor) -> Tensor:
        if not kernels.concern(x) or not _is_wide(self):
            return super(FastConv1x1, widened(self, x.dtype)).forward(x)
        return linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class FastUpsampleConv3x3(FastConv3x3, UpsampleConv3x3):
    """The same, of a picture with its sides doubled, which is never laid out."""

    doubled = True


def share_out(convolutions: list[FastConv3x3], dtype: torch.dtype, room: int) -> None:
    """Give `room` bytes for transformed filters to the convolutions of a network that computes in a dtype, the narrowest first:
    they are those of the largest maps, and gain the most for each byte."""
    for conv in sorted(convolutions, key=lambda conv: (conv.out_channels, conv.weight.numel())):
        room -= form(conv)
        conv.roomy = room >= 0 and dtype == torch.float32


def form(conv: Conv3x3) -> int:
    """How many bytes a convolution's transformed filter has; 0 where it has none."""
    if conv.keep_exact or not _is_wide(conv):
        return 0
    return 4 * winograd.side(isinstance(conv, UpsampleConv3x3)) ** 2 * conv.in_channels * conv.out_channels


def _is_wide(conv: nn.Conv2d) -> bool:
    return conv.in_channels % LANES == 0 and conv.out_channels % LANES == 0


def _as_one_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of a small x [B, C, H, W] as a product of its neighbourhoods, [B * H * W, C * 9], with the filter."""
    b, c, h, w = x.shape
    n, plane, line, one = (cells := F.pad(x.contiguous(), (1, 1, 1, 1))).stride()
    around = cells.as_strided((b, h, w, c, 3, 3), (n, line, one, plane, line, one)).reshape(b * h * w, c * 9)
    return linear(around, weight.flatten(1), bias).view(b, h, w, -1).permute(0, 3, 1, 2)
