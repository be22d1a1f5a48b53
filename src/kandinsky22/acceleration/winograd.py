"""3x3 convolutions by Winograd's algorithm F(4,3) (Winograd 1980; Lavin and Gray 2015, arXiv:1509.09308): 4 x 4 outputs of a
channel for 36 multiplications instead of 144.

Tiles of the picture and filters are transformed, multiplied point by point, which over channels is one matrix product for each
point, and transformed back. Before the convolution a picture may be doubled, each cell four times: then the product of point -1
is zero (what was doubled, as a polynomial, has the factor 1 + z), and 25 of 36 matrix products remain.

It is exact in float32 alone. In bfloat16 its constants would make a network's error several times as large, and those of F(2,3),
the smaller form, up to 1.2 times, which is measured and not offered (docs/log.md).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.acceleration import kernels

M = 4  # outputs of a tile, each way
INTO = [
    [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]  # fmt: skip
FILTER = [
    [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]  # fmt: skip
BACK = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
"""B transposed, G and A transposed of Lavin and Gray, section 4.3, for points 0, 1, -1, 2, -2 and infinity."""
ZERO_OF_DOUBLED = 2  # the place of point -1


@dataclass(frozen=True)
class Transforms:
    """Those of a tile with `side` cells of the picture, to products, and back to 4 x 4 outputs; for all cells at once."""

    side: int
    stride: int  # of the picture's cells from tile to tile
    into: Tensor  # [products, side * side]
    filter: Tensor  # [products, 9]
    back: Tensor  # [16, products]

    @classmethod
    @cache
    def of(cls, doubled: bool) -> "Transforms":
        """In float64."""
        into, filters, back = (torch.tensor(matrix, dtype=torch.float64) for matrix in (INTO, FILTER, BACK))
        if doubled:
            doubling = torch.zeros(M + 2, M // 2 + 2, dtype=torch.float64)
            doubling[range(M + 2), [(k + 1) // 2 for k in range(M + 2)]] = 1
            kept = [k for k in range(M + 2) if k != ZERO_OF_DOUBLED]
            into, filters, back = into[kept] @ doubling, filters[kept], back[:, kept]
        both = (torch.kron(matrix, matrix) for matrix in (into, filters, back))
        return cls(into.shape[1], M // 2 if doubled else M, *both)


def side(doubled: bool) -> int:
    """How many points a tile has, each way."""
    return M + 1 if doubled else M + 2


def transformed(weight: Tensor, *, doubled: bool, lasting: bool = False) -> Iterator[Tensor]:
    """A filter [O, C, 3, 3] of any dtype as float32 [points, C, O], a line of points at a time; gone when the next is made, if
    they are not to last."""
    outputs, channels = weight.shape[:2]
    taps = weight.float().permute(2, 3, 0, 1).flatten(0, 1).flatten(1)  # [9, O * C], a view if it lies as in a file
    space = None if lasting else taps.new_empty(side(doubled), outputs * channels)
    for line in Transforms.of(doubled).filter.float().split(side(doubled)):
        yield torch.mm(line, taps, out=space).unflatten(1, (outputs, channels)).transpose(1, 2)


def multiplied(v: Tensor, filters: Iterable[Tensor], outputs: int) -> Tensor:
    """Products [points, tiles, O] of tiles v [points, tiles, C] with a filter's lines of points [points, C, O]."""
    made, at = v.new_empty(*v.shape[:2], outputs), 0
    for line in filters:
        points = slice(at, at := at + len(line))
        torch.bmm(v[points], line, out=made[points])
    return made


def convolved(x: Tensor, filters: Iterable[Tensor], bias: Tensor, *, doubled: bool, inner: bool) -> Tensor:
    """x [B, C, H, W], channels last, by the lines of `transformed`, plus a bias [O] -> [B, O, H, W], channels last.

    doubled: of the picture with its sides doubled. inner: the first and last row of x are only looked at.
    """
    height, width = (x.shape[2] - 2 * inner) * (1 + doubled), x.shape[3] * (1 + doubled)
    rows, columns = -(-height // M), -(-width // M)
    y = x.new_empty((len(x), height, width, len(bias))).permute(0, 3, 1, 2)
    if kernels.fit(x) and kernels.fit(y):
        first = (1 if doubled else 0) if inner else -1
        tiles = kernels.transform_in(x, rows, columns, first, doubled=doubled)
        products = multiplied(tiles, filters, len(bias))
        kernels.transform_out(products, bias, y, rows, columns, doubled=doubled)
        return y
    how = Transforms.of(doubled)
    # The tiles overlap. Zeros around the picture, and below and right of it as many as the last tiles need.
    below, right = (
        how.stride * (tiles - 1) + how.side - size
        for tiles, size in ((rows, x.shape[2] + 1 - inner), (columns, x.shape[3] + 1))
    )
    cells = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, max(right, 0), 0 if inner else 1, max(below, 0))).contiguous()
    n, line, step, one = cells.stride()
    tiles = cells.as_strided(
        (how.side, how.side, len(x), rows, columns, x.shape[1]),
        (line, step, n, how.stride * line, how.stride * step, one),
    )
    seen = (how.into.to(x) @ tiles.reshape(how.side**2, -1)).unflatten(1, (-1, x.shape[1]))
    made = how.back.to(x) @ multiplied(seen, filters, len(bias)).flatten(1)
    cells = made.view(M, M, len(x), rows, columns, -1).permute(2, 3, 0, 4, 1, 5).flatten(1, 2).flatten(2, 3)
    return y.copy_(cells[:, :height, :width].permute(0, 3, 1, 2) + bias[:, None, None])
