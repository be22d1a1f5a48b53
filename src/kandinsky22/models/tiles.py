"""MoVQ in tiles: the same pictures in a fraction of the memory.

A tile is a strip of whole rows. MoVQ's lowest level and its middle block, whose attention spans all cells, are small
and run untiled. Above them an activation exists only as strips, each freed as soon as it has been read. A convolution
gets one row of each neighbouring strip, and a normalisation gets the moments of the whole picture, so the result is
exact up to rounding. Inference only: no gradient flows through the moments.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kandinsky22.generators import drain
from kandinsky22.models.layers import Conv3x3, Norm

Strips: TypeAlias = deque[Tensor]
"""The strips of an activation [1, C, H, W], from the top. Reading them for the last time empties the deque."""
R = TypeVar("R")
Steps: TypeAlias = Generator[None, None, R]
"""A computation that pauses after each strip."""


def decode(decoder: Any, h: Tensor, z: Tensor, rows: int) -> Steps[Tensor]:
    """`movq.Decoder`'s forward for one picture, [1, 3, H, W], in strips of `rows` latent rows; pauses after each."""
    lowest, *blocks = list[Any](decoder.up_blocks)
    h = lowest.layers(decoder.mid_block(decoder.conv_in(h), z), z)
    strips = yield from _upsample(lowest, Strips(h.split(rows, dim=2)))
    latents = z.split(rows, dim=2)
    for block in blocks:
        for resnet in block.resnets:
            strips = yield from _resnet(resnet, strips, latents)
        strips = yield from _upsample(block, strips)
    strips = yield from _collect(_convolve(decoder.conv_out, _normalise(decoder.conv_norm_out, strips, latents)))
    return torch.cat([*strips], dim=2)


def encode(encoder: Any, x: Tensor, rows: int) -> Tensor:
    """`movq.Encoder`'s forward for one picture [1, 3, H, W], in strips of `rows` rows of latents."""
    *blocks, lowest = list[Any](encoder.down_blocks)
    strips = Strips(_convolve(encoder.conv_in, _padded(x.split(rows * 2 ** len(blocks), dim=2))))
    for block in blocks:
        for resnet in block.resnets:
            strips = drain(_resnet(resnet, strips, None))
        strips = _downsample(block, strips)
    h = encoder.mid_block(lowest(torch.cat([*strips], dim=2), None), None)
    return encoder.conv_out(encoder.conv_norm_out(h))


def _collect(strips: Iterable[Tensor]) -> Steps[Strips]:
    """All strips, each computed after a pause."""
    collected = Strips()
    for strip in strips:
        collected.append(strip)
        yield
    return collected


def _pop_all(x: Strips) -> Iterator[Tensor]:
    """The strips in order, each removed from the deque as it is read."""
    while x:
        yield x.popleft()


def _resnet(block: Any, x: Strips, latents: Sequence[Tensor] | None) -> Steps[Strips]:
    """A residual block. As a strip is read, its shortcut is stored in its place."""
    shortcut: Callable[[Tensor], Tensor] = getattr(block, "conv_shortcut", nn.Identity())
    shortcuts = Strips()

    def read(x: Strips) -> Iterator[Tensor]:
        for strip in _pop_all(x):
            shortcuts.append(shortcut(strip))
            yield strip

    h = yield from _collect(_convolve(block.conv1, _normalise(block.norm1, x, latents, read)))
    h = yield from _collect(_convolve(block.conv2, _normalise(block.norm2, h, latents)))
    return Strips(strip.add_(shortcuts.popleft()) for strip in _pop_all(h))


def _upsample(block: Any, x: Strips) -> Steps[Strips]:
    """The upsampler of a decoder level, if it has one."""
    for upsampler in getattr(block, "upsamplers", ()):
        x = yield from _collect(_convolve(upsampler.conv, _padded(_pop_all(x))))
    return x


def _downsample(block: Any, x: Strips) -> Strips:
    """The downsampler of an encoder level. Strip heights are even, as one row of latents spans several rows."""
    for downsampler in block.downsamplers:
        pairs = ((strip, [] if below is None else [below[:, :, :1]]) for strip, below in _with_next(_pop_all(x)))
        x = Strips(
            downsampler.conv(F.pad(torch.cat([strip, *below], dim=2), (0, 1, 0, 1 - len(below))))
            for strip, below in pairs
        )
    return x


def _normalise(
    norm: Any, x: Strips, latents: Sequence[Tensor] | None, read: Callable[[Strips], Iterator[Tensor]] = _pop_all
) -> Iterator[Tensor]:
    """A normalisation and its SiLU, with the moments of the whole picture; the strips `latents` modulate it.

    The strips have a row more above and below, for `_convolve`.
    """
    plain: Norm = getattr(norm, "norm_layer", norm)
    mean, variance = moments(x, plain)
    for i, strip in enumerate(read(x)):
        yield plain.forward_strip(mean, variance, strip, *(() if latents is None else norm.scale_shift(latents[i])))


def moments(x: Strips, norm: Norm) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group over all strips, [groups] each, in float32 at least."""
    means, variances = map(torch.stack, zip(*(norm.group_moments(strip) for strip in x), strict=True))
    heights = torch.tensor([strip.shape[2] for strip in x], dtype=means.dtype, device=means.device)
    share = (heights / heights.sum())[:, None]
    mean = (share * means).sum(dim=0)
    variance = (share * (variances + (means - mean).square())).sum(dim=0)
    return mean, variance


def _convolve(conv: Conv3x3, strips: Iterable[Tensor]) -> Iterator[Tensor]:
    """A 3x3 convolution of the whole picture. Strips have a row more above and below, which is filled here."""
    above: Tensor | float = 0.0
    for strip, below in _with_next(strips):
        strip[:, :, :1] = above
        strip[:, :, -1:] = 0.0 if below is None else below[:, :, 1:2]
        above = strip[:, :, -2:-1].clone()
        yield conv.forward_strip(strip)


def _padded(strips: Iterable[Tensor]) -> Iterator[Tensor]:
    """Strips with a row more above and below."""
    return (F.pad(strip, (0, 0, 1, 1)) for strip in strips)


def _with_next(strips: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Each strip with the one below; None is below the last."""
    rest = iter(strips)
    strip = next(rest)
    for below in rest:
        yield strip, below
        strip = below
    yield strip, None
