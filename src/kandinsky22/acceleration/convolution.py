"""The convolutions of a network on a CPU, each by the algorithm that is fastest for its shape."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from kandinsky22.acceleration import kernels, subpixel, winograd
from kandinsky22.acceleration.weight_upcast import upcast_layer, upcast_linear
from kandinsky22.models.layers import Conv1x1, Conv3x3, UpsampleConv3x3

CHANNEL_MULTIPLE = 32  # channels in and out must be multiples of this
WINOGRAD_CELLS = 256  # of a map, from which Winograd pays: with fewer, reading its larger filter costs what it saves
CACHED_FILTER = 2 << 20  # bytes of a transformed filter that stays in a processor's cache: Winograd then always pays
FEW_CELLS = 4  # times fewer cells than output channels: laying out the filter at every call is slower than multiplying


class FastConv3x3(Conv3x3):
    """Without gradients, a fast 3x3 convolution. With gradients, on other devices or for other shapes, the plain layer.

    By Winograd's algorithm where the map is large enough. As one matrix product over neighbourhoods where there are few
    cells, since the filter is then read as it lies in memory.
    """

    upsamples = False
    caches_filter = False  # whether there is memory for the transformed filter
    filter_cache: tuple[tuple[object, ...], list[Tensor]] | None = None
    """The weights last transformed (address, version, dtype), and their transformed filter: empty at the first use."""

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, strip=False)

    def forward_strip(self, x: Tensor) -> Tensor:
        return self._convolve(x, strip=True)

    def _convolve(self, x: Tensor, *, strip: bool) -> Tensor:
        if not kernels.is_applicable(x):
            return self._convolve_plainly(x, strip=strip)
        if self.keep_exact and x.dtype == torch.float32:
            # Channels first: oneDNN's own algorithm for channels last is no more exact than Winograd's.
            return self._convolve_plainly(x.contiguous(), strip=strip)
        x = x.contiguous(memory_format=torch.channels_last)
        if not _has_suitable_channels(self) or self.bias is None:
            return self._convolve_plainly(x, strip=strip)
        cells = len(x) * (x.shape[2] - 2 * strip) * x.shape[3] * (4 if self.upsamples else 1)
        if x.dtype == torch.float32 and (cells >= WINOGRAD_CELLS or filter_bytes(self, x.dtype) <= CACHED_FILTER):
            return winograd.convolve(
                x, self._transform_filter(x.dtype), self.bias, upsample=self.upsamples, strip=strip
            )
        if x.dtype != torch.float32 and self.upsamples:
            (phases,) = self._transform_filter(x.dtype)
            return subpixel.convolve(x, phases, self.bias, strip=strip)
        few = FEW_CELLS if x.dtype == torch.float32 else 1
        if few * cells < self.out_channels and not (strip or self.upsamples):
            return _as_matrix_product(x, self.weight, self.bias)
        return self._convolve_plainly(x, strip=strip)

    def _convolve_plainly(self, x: Tensor, *, strip: bool) -> Tensor:
        layer = upcast_layer(self, x.dtype)
        return super(FastConv3x3, layer).forward_strip(x) if strip else super(FastConv3x3, layer).forward(x)

    def _transform_filter(self, dtype: torch.dtype) -> Iterable[Tensor]:
        """The filter for Winograd's algorithm, or in half precision that of the four phases of an upsampled picture.

        Where there is memory, it is cached, until the weights change: in half precision at once, otherwise from its
        second use on. A first use may be the only one, and mapping the memory takes longer than the convolution. The
        numbers are the same.
        """
        weight = self.weight
        unversioned = weight.is_inference() or is_parametrized(self)  # nothing says when such a weight has changed
        if unversioned or not self.caches_filter:
            return self._transform(dtype, at_once=False)
        version, cached = (weight.data_ptr(), weight._version, weight.dtype), self.filter_cache
        if cached is None or cached[0] != version:
            self.filter_cache = cached = version, []
            if dtype == torch.float32:
                return self._transform(dtype, at_once=False)
        if not cached[1]:
            self.filter_cache = cached = version, list(self._transform(dtype, at_once=True))
        return cached[1]

    def _transform(self, dtype: torch.dtype, *, at_once: bool) -> Iterable[Tensor]:
        if dtype != torch.float32:
            return [subpixel.sum_taps(self.weight)]
        return winograd.transform_filter(self.weight, upsample=self.upsamples, at_once=at_once)


class FastConv1x1(Conv1x1):
    """A 1x1 convolution, computed as a matrix product: with channels last it is one."""

    def forward(self, x: Tensor) -> Tensor:
        if not kernels.is_applicable(x) or not (_has_suitable_channels(self) or x.dtype == torch.bfloat16):
            return super(FastConv1x1, upcast_layer(self, x.dtype)).forward(x)
        (b, c, h, w), rows = x.shape, x.permute(0, 2, 3, 1)
        y = upcast_linear(
            rows.reshape(-1, c), self.weight.flatten(1), self.bias
        )  # a bias is added to rows alone for free
        return y.view(b, h, w, -1).permute(0, 3, 1, 2)


class FastUpsampleConv3x3(FastConv3x3, UpsampleConv3x3):
    """A 3x3 convolution of a picture upsampled by two, which is never written to memory."""

    upsamples = True


def allocate_filter_caches(convolutions: list[FastConv3x3], dtype: torch.dtype, budget: int) -> None:
    """Give `budget` bytes for transformed filters to the convolutions of a network that computes in a dtype.

    Those with the fewest channels come first: they work on the largest maps, and gain the most for each byte.
    """
    for conv in sorted(convolutions, key=lambda conv: (conv.out_channels, conv.weight.numel())):
        budget -= filter_bytes(conv, dtype)
        conv.caches_filter = budget >= 0


def filter_bytes(conv: Conv3x3, dtype: torch.dtype) -> int:
    """Bytes of a convolution's transformed filter when it computes in a dtype; 0 where it has none."""
    if not _has_suitable_channels(conv) or (conv.keep_exact and dtype == torch.float32):
        return 0
    upsamples, elements = isinstance(conv, UpsampleConv3x3), conv.in_channels * conv.out_channels
    if dtype != torch.float32:
        return 16 * dtype.itemsize * elements if upsamples else 0
    return 4 * winograd.points_per_side(upsamples) ** 2 * elements


def _has_suitable_channels(conv: nn.Conv2d) -> bool:
    return conv.in_channels % CHANNEL_MULTIPLE == 0 and conv.out_channels % CHANNEL_MULTIPLE == 0


def use_channels_last(convolutions: Iterable[nn.Conv2d]) -> None:
    """Store filters with the channels last, in the order in which half precision reads them.

    Otherwise oneDNN lays them out at every call, which takes longer than a convolution of a small map. They stay the
    same parameters with the same values.
    """
    for conv in convolutions:
        conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)


def _as_matrix_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The 3x3 convolution of a small x [B, C, H, W] as its neighbourhoods, [B * H * W, 9 * C], times the filter.

    The neighbourhoods are laid out as the filter is: [C, 3, 3] or, with channels last, [3, 3, C].
    """
    (b, c, h, w), channels_last = x.shape, weight.is_contiguous(memory_format=torch.channels_last)
    x = x.permute(0, 2, 3, 1) if channels_last else x
    cells = F.pad(x, (0, 0, 1, 1, 1, 1) if channels_last else (1, 1, 1, 1))
    if channels_last:
        n, line, column, one = cells.stride()
        shape, strides = (b, h, w, 3, 3, c), (n, line, column, line, column, one)
    else:
        n, plane, line, column = cells.stride()
        shape, strides = (b, h, w, c, 3, 3), (n, line, column, plane, line, column)
    around = cells.as_strided(shape, strides).reshape(b * h * w, 9 * c)
    matrix = (weight.permute(0, 2, 3, 1) if channels_last else weight).flatten(1)
    return upcast_linear(around, matrix, bias).view(b, h, w, -1).permute(0, 3, 1, 2)
