"""MoVQ in tiles: the same pictures in a fraction of the memory.

A tile is a strip of whole rows. MoVQ's lowest level and its middle, where every cell looks at every cell, run whole: they
are small. Above them one activation at a time is kept, as strips that are let go as they are read. A convolution sees one
row of each neighbour, and a normalisation is given the statistics of the whole picture, so nothing is approximate: only
sums are rounded otherwise. It is for inference, since no gradient flows through those statistics.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from kandinsky22.models.layers import Conv3x3, Norm
    from kandinsky22.models.movq import Decoder, Encoder

Strips: TypeAlias = deque[Tensor]
"""An activation [1, C, H, W] cut into rows, from the top. Its last reader empties it, which is what saves the memory."""


def decode(decoder: "Decoder", h: Tensor, z: Tensor, rows: int) -> Tensor:
    """`decoder(h, z)` for one picture, [1, 3, H, W], in strips of `rows` rows of latents."""
    lowest, *blocks = list[Any](decoder.up_blocks)
    h = lowest.layers(decoder.mid_block(decoder.conv_in(h), z), z)
    strips = _upsampled(lowest, Strips(h.split(rows, dim=2)))
    told = z.split(rows, dim=2)
    for block in blocks:
        for resnet in block.resnets:
            strips = _resnet(resnet, strips, told)
        strips = _upsampled(block, strips)
    return torch.cat([*_convolved(decoder.conv_out, _activated(decoder.conv_norm_out, strips, told))], dim=2)


def encode(encoder: "Encoder", x: Tensor, rows: int) -> Tensor:
    """`encoder(x)` for one picture [1, 3, H, W], in strips of `rows` rows of latents."""
    *blocks, lowest = list[Any](encoder.down_blocks)
    strips = Strips(_convolved(encoder.conv_in, x.split(rows * 2 ** len(blocks), dim=2)))
    for block in blocks:
        for resnet in block.resnets:
            strips = _resnet(resnet, strips, None)
        strips = _downsampled(block, strips)
    h = encoder.mid_block(lowest(torch.cat([*strips], dim=2), None), None)
    return encoder.conv_out(encoder.conv_norm_out(h))


def _drained(x: Strips) -> Iterator[Tensor]:
    """The strips, each let go when the next is asked for."""
    while x:
        yield x.popleft()


def _resnet(block: Any, x: Strips, told: Sequence[Tensor] | None) -> Strips:
    """A residual block. The shortcut of a strip takes its place as it is read."""
    shortcut: Callable[[Tensor], Tensor] = getattr(block, "conv_shortcut", nn.Identity())
    kept = Strips()

    def read(x: Strips) -> Iterator[Tensor]:
        for strip in _drained(x):
            kept.append(shortcut(strip))
            yield strip

    h = Strips(_convolved(block.conv1, _activated(block.norm1, x, told, read)))
    h = Strips(_convolved(block.conv2, _activated(block.norm2, h, told)))
    return Strips(strip.add_(kept.popleft()) for strip in _drained(h))


def _upsampled(block: Any, x: Strips) -> Strips:
    """The resampling of a level of the decoder, if it has any."""
    for upsampler in getattr(block, "upsamplers", ()):
        x = Strips(_convolved(upsampler.conv, _drained(x)))
    return x


def _downsampled(block: Any, x: Strips) -> Strips:
    """The resampling of a level of the encoder. Strips have even heights: a row of latents is several of theirs."""
    for downsampler in block.downsamplers:
        seams = _seams(_drained(x))
        x = Strips(downsampler.conv(F.pad(torch.cat([strip, below], dim=2), (0, 1))) for _, strip, below in seams)
    return x


def _activated(
    norm: Any, x: Strips, told: Sequence[Tensor] | None, read: Callable[[Strips], Iterator[Tensor]] = _drained
) -> Iterator[Tensor]:
    """A normalisation and its SiLU, with the statistics of the whole picture and, in the decoder, told the latents' strips."""
    plain: Norm = getattr(norm, "norm_layer", norm)
    mean, variance = _moments(x, plain)
    for i, strip in enumerate(read(x)):
        yield plain.forward_with_moments(mean, variance, strip, *(() if told is None else norm.told(told[i])))


def _moments(x: Strips, norm: "Norm") -> tuple[Tensor, Tensor]:
    """Mean and variance of each group over all strips, [groups] each, in float32 at least: those of the strips, combined."""
    means, variances = map(torch.stack, zip(*(norm.group_moments(strip) for strip in x), strict=True))
    heights = torch.tensor([strip.shape[2] for strip in x], dtype=means.dtype, device=means.device)
    share = (heights / heights.sum())[:, None]
    mean = (share * means).sum(dim=0)
    variance = (share * (variances + (means - mean).square())).sum(dim=0)
    return mean, variance


def _convolved(conv: "Conv3x3", strips: Iterable[Tensor]) -> Iterator[Tensor]:
    """A 3x3 convolution of the whole picture."""
    for seam in _seams(strips):
        yield conv.forward_strip(torch.cat(seam, dim=2))


def _seams(strips: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each strip between the last row of the one above and the first of the one below; zeros around the picture."""
    rest = iter(strips)
    strip = next(rest)
    above = torch.zeros_like(strip[:, :, :1])
    for after in chain(rest, [torch.zeros_like(above)]):
        yield above, strip, after[:, :, :1]
        above, strip = strip[:, :, -1:].clone(), after
