"""3x3 convolutions by Winograd's algorithm F(4,3): 4 x 4 outputs of a channel for 36 multiplications instead of 144.

Winograd 1980; Lavin and Gray 2015, arXiv:1509.09308.

Tiles of the picture and filters are transformed, multiplied point by point, which over channels is one matrix product
for each point, and transformed back. The points are 0, +-p, +-q and infinity. p and q are free, and decide how
rounding errors grow: with 2/3 and 3/2 they are less than half of those with the usual 1 and 2, and about those of a
library's direct convolution, channels last (docs/log.md).

The picture may be upsampled by two before the convolution (each cell four times): then the product of point -1 is zero
(the upsampled picture, as a polynomial, has the factor 1 + z), and 25 of 36 matrix products remain. So that -1 is a
point, p and q are 1 and 2 there.

It is exact in float32 alone. In bfloat16 its constants would make a network's error several times as large, and those
of F(2,3), the smaller form, up to 1.2 times: measured, and not offered.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.acceleration import kernels

M = 4  # outputs of a tile, each way
POINTS, UPSAMPLE_POINTS = (2 / 3, 3 / 2), (1.0, 2.0)  # p and q
UPSAMPLE_ZERO_POINT = 2  # the index of point -1


def matrices(p: float, q: float) -> tuple[list[list[float]], ...]:
    """B transposed, G and A transposed of Lavin and Gray, section 4, for points 0, p, -p, q, -q and infinity."""
    both, total = (p * q) ** 2, p * p + q * q
    pairs = [(p, q * q), (-p, q * q), (q, p * p), (-q, p * p)]  # a point, and the square of the other two
    into = [
        [both, 0, -total, 0, 1, 0],
        *([0, -z * other, -other, z, 1, 0] for z, other in pairs),
        [0, both, 0, -total, 0, 1],
    ]
    sizes = [2 * z * z * (z * z - other) for z, other in pairs]
    filters: list[list[float]] = [
        [1 / both, 0, 0],
        *([1 / size, z / size, z * z / size] for (z, _), size in zip(pairs, sizes, strict=True)),
        [0, 0, 1],
    ]
    back = [[float(k == 0), *(z**k for z, _ in pairs), float(k == M - 1)] for k in range(M)]
    return into, filters, back


@dataclass(frozen=True)
class Transforms:
    """The transforms of a tile of `side` x `side` cells to products, and back to 4 x 4 outputs.

    `into` and `back` are two-dimensional: for all cells of a tile at once.
    """

    points: tuple[float, float]  # p and q
    side: int
    stride: int  # of the picture's cells from tile to tile
    filter: Tensor  # G, of one dimension: [a tile's points each way, 3]
    into: Tensor  # [products, side * side]
    back: Tensor  # [16, products]

    @classmethod
    @cache
    def of(cls, upsample: bool) -> "Transforms":
        """The transforms in float64, without or with upsampling."""
        points = UPSAMPLE_POINTS if upsample else POINTS
        into, filters, back = (torch.tensor(matrix, dtype=torch.float64) for matrix in matrices(*points))
        if upsample:
            doubling = torch.zeros(M + 2, M // 2 + 2, dtype=torch.float64)
            doubling[range(M + 2), [(k + 1) // 2 for k in range(M + 2)]] = 1
            nonzero = [k for k in range(M + 2) if k != UPSAMPLE_ZERO_POINT]
            into, filters, back = into[nonzero] @ doubling, filters[nonzero], back[:, nonzero]
        both = (torch.kron(matrix, matrix) for matrix in (into, back))
        return cls(points, into.shape[1], M // 2 if upsample else M, filters, *both)


def points_per_side(upsample: bool) -> int:
    """How many points a tile has, each way."""
    return M + 1 if upsample else M + 2


def transform_filter(weight: Tensor, *, upsample: bool, at_once: bool = False) -> Iterator[Tensor]:
    """A filter [O, C, 3, 3] of any dtype as float32 [points, C, O].

    at_once: as one tensor. Otherwise a line of points at a time, in a buffer that the next line overwrites.
    """
    (outputs, channels), lines = weight.shape[:2], points_per_side(upsample)
    g = Transforms.of(upsample).filter
    by_kernel = kernels.is_applicable(weight) and weight.is_contiguous() and kernels.library() is not None
    taps = None if by_kernel else weight.float().permute(2, 3, 0, 1).flatten(0, 1).flatten(1)  # [9, O * C]
    buffer = weight.new_empty(lines if at_once else 1, lines, outputs * channels, dtype=torch.float32)
    for line in range(lines):
        u = buffer[line if at_once else 0]
        if taps is None:
            kernels.transform_filters(weight, u, g.float(), line)
        else:
            torch.mm(torch.kron(g[line : line + 1], g).float(), taps, out=u)
        if not at_once or line == lines - 1:
            yield buffer.view(-1, outputs, channels).transpose(1, 2)


def multiply(v: Tensor, filters: Iterable[Tensor], outputs: int) -> Tensor:
    """Products [points, tiles, O] of tiles v [points, tiles, C] and a filter, in chunks of points [k, C, O]."""
    products, at = v.new_empty(*v.shape[:2], outputs), 0
    for chunk in filters:
        points = slice(at, at := at + len(chunk))
        torch.bmm(v[points], chunk, out=products[points])
    return products


def convolve(x: Tensor, filters: Iterable[Tensor], bias: Tensor, *, upsample: bool, strip: bool) -> Tensor:
    """Convolve x [B, C, H, W], channels last, with what `transform_filter` gives -> [B, O, H, W], channels last.

    bias: [O]. upsample: x with its sides doubled. strip: the first and last row of x are only neighbours, with no
    output.
    """
    height, width = (x.shape[2] - 2 * strip) * (1 + upsample), x.shape[3] * (1 + upsample)
    rows, columns = -(-height // M), -(-width // M)
    y = x.new_empty((len(x), height, width, len(bias))).permute(0, 3, 1, 2)
    transforms = Transforms.of(upsample)
    if kernels.supports(x) and kernels.supports(y):
        first = (1 if upsample else 0) if strip else -1
        tiles = x.new_empty(points_per_side(upsample) ** 2, len(x) * rows * columns, x.shape[1])
        kernels.transform_in(x, tiles, rows, columns, first, transforms.points, upsample=upsample)
        products = multiply(tiles, filters, len(bias))
        kernels.transform_out(products, bias, y, rows, columns, transforms.points, upsample=upsample)
        return y
    # The tiles overlap. Zeros around the picture, and below and right of it as many as the last tiles need.
    below, right = (
        transforms.stride * (tiles - 1) + transforms.side - size
        for tiles, size in ((rows, x.shape[2] + 1 - strip), (columns, x.shape[3] + 1))
    )
    cells = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, max(right, 0), 0 if strip else 1, max(below, 0))).contiguous()
    n, line, step, one = cells.stride()
    tiles = cells.as_strided(
        (transforms.side, transforms.side, len(x), rows, columns, x.shape[1]),
        (line, step, n, transforms.stride * line, transforms.stride * step, one),
    )
    points = (transforms.into.to(x) @ tiles.reshape(transforms.side**2, -1)).unflatten(1, (-1, x.shape[1]))
    outputs = transforms.back.to(x) @ multiply(points, filters, len(bias)).flatten(1)
    cells = outputs.view(M, M, len(x), rows, columns, -1).permute(2, 3, 0, 4, 1, 5).flatten(1, 2).flatten(2, 3)
    return y.copy_(cells[:, :height, :width].permute(0, 3, 1, 2) + bias[:, None, None])
