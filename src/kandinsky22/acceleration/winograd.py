"""3x3 convolutions by Winograd's algorithm F(4,3) (Winograd 1980; Lavin and Gray 2015, arXiv:1509.09308): 4 x 4 outputs of a
channel for 36 multiplications instead of 144.

Tiles of the picture and filters are transformed, multiplied point by point, which over channels is one matrix product for each
point, and transformed back. The points are 0, +-p, +-q and infinity. Which p and q is free, and decides how rounding errors
grow: with 2/3 and 3/2 they are less than half of those with the usual 1 and 2, and about a library's direct convolution's,
channels last (docs/log.md).

Before the convolution a picture may be doubled, each cell four times: then the product of point -1 is zero (what was doubled, as
a polynomial, has the factor 1 + z), and 25 of 36 matrix products remain. So that -1 is a point, p and q are 1 and 2 there.

It is exact in float32 alone. In bfloat16 its constants would make a network's error several times as large, and those of F(2,3),
the smaller form, up to 1.2 times: measured, and not offered.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.acceleration import kernels

M = 4  # outputs of a tile, each way
POINTS, POINTS_OF_DOUBLED = (2 / 3, 3 / 2), (1.0, 2.0)  # p and q
ZERO_OF_DOUBLED = 2  # the place of point -1


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
    """Those of a tile with `side` cells of the picture, to products, and back to 4 x 4 outputs; `into` and `back` for all of its
    cells at once."""

    points: tuple[float, float]  # p and q
    side: int
    stride: int  # of the picture's cells from tile to tile
    filter: Tensor  # G, of one dimension: [a tile's points each way, 3]
    into: Tensor  # [products, side * side]
    back: Tensor  # [16, products]

    @classmethod
    @cache
    def of(cls, doubled: bool) -> "Transforms":
        """In float64."""
        points = POINTS_OF_DOUBLED if doubled else POINTS
        into, filters, back = (torch.tensor(matrix, dtype=torch.float64) for matrix in matrices(*points))
        if doubled:
            doubling = torch.zeros(M + 2, M // 2 + 2, dtype=torch.float64)
            doubling[range(M + 2), [(k + 1) // 2 for k in range(M + 2)]] = 1
            kept = [k for k in range(M + 2) if k != ZERO_OF_DOUBLED]
            into, filters, back = into[kept] @ doubling, filters[kept], back[:, kept]
        both = (torch.kron(matrix, matrix) for matrix in (into, back))
        return cls(points, into.shape[1], M // 2 if doubled else M, filters, *both)


def side(doubled: bool) -> int:
    """How many points a tile has, each way."""
    return M + 1 if doubled else M + 2


def transformed(weight: Tensor, *, doubled: bool, lasting: bool = False) -> Iterator[Tensor]:
    """A filter [O, C, 3, 3] of any dtype as float32 [points, C, O]: all at once, if it is to last; else a line of points at a
    time, gone when the next is made."""
    (outputs, channels), lines, g = weight.shape[:2], side(doubled), Transforms.of(doubled).filter
    by_kernel = kernels.concern(weight) and weight.is_contiguous() and kernels.library() is not None
    taps = None if by_kernel else weight.float().permute(2, 3, 0, 1).flatten(0, 1).flatten(1)  # [9, O * C]
    space = weight.new_empty(lines if lasting else 1, lines, outputs * channels, dtype=torch.float32)
    for line in range(lines):
        u = space[line if lasting else 0]
        if taps is None:
            kernels.transform_filters(weight, u, g.float(), line)
        else:
            torch.mm(torch.kron(g[line : line + 1], g).float(), taps, out=u)
        if not lasting or line == lines - 1:
            yield space.view(-1, outputs, channels).transpose(1, 2)


def multiplied(v: Tensor, filters: Iterable[Tensor], outputs: int) -> Tensor:
    """Products [points, tiles, O] of tiles v [points, tiles, C] with a filter, some of its points [points, C, O] at a time."""
    made, at = v.new_empty(*v.shape[:2], outputs), 0
    for some in filters:
        points = slice(at, at := at + len(some))
        torch.bmm(v[points], some, out=made[points])
    return made


def convolved(x: Tensor, filters: Iterable[Tensor], bias: Tensor, *, doubled: bool, inner: bool) -> Tensor:
    """x [B, C, H, W], channels last, by what `transformed` gives, plus a bias [O] -> [B, O, H, W], channels last.

    doubled: of the picture with its sides doubled. inner: the first and last row of x are only looked at.
    """
    height, width = (x.shape[2] - 2 * inner) * (1 + doubled), x.shape[3] * (1 + doubled)
    rows, columns = -(-height // M), -(-width // M)
    y = x.new_empty((len(x), height, width, len(bias))).permute(0, 3, 1, 2)
    how = Transforms.of(doubled)
    if kernels.fit(x) and kernels.fit(y):
        first = (1 if doubled else 0) if inner else -1
        tiles = x.new_empty(side(doubled) ** 2, len(x) * rows * columns, x.shape[1])
        kernels.transform_in(x, tiles, rows, columns, first, how.points, doubled=doubled)
        products = multiplied(tiles, filters, len(bias))
        kernels.transform_out(products, bias, y, rows, columns, how.points, doubled=doubled)
        return y
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
