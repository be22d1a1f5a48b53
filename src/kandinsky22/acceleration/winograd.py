"""3x3 convolutions by Winograd's algorithm (Winograd 1980; Lavin and Gray 2015, arXiv:1509.09308): m x m outputs of a channel for
(m + 2)^2 multiplications instead of 9 m^2. F(4,3) needs a quarter of the direct algorithm's, F(2,3) 4/9.

Tiles of the picture and filters are transformed, multiplied point by point, which over channels is one matrix product for each
point, and transformed back. Before the convolution a picture may be doubled, each cell four times: then the product of point -1
is zero (what was doubled, as a polynomial, has the factor 1 + z), and 25 of 36 matrix products remain, or 9 of 16.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from kandinsky22.acceleration import kernels

INTO = {
    2: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    4: [
        [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0], [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
}  # fmt: skip
FILTER = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6], [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}  # fmt: skip
BACK = {
    2: [[1, 1, 1, 0], [0, 1, -1, -1]],
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
}  # fmt: skip
"""B transposed, G and A transposed of Lavin and Gray, section 4, for points 0, 1, -1 (and 2, -2) and infinity."""
ZERO_OF_DOUBLED = 2  # the place of point -1
OUTPUTS = {torch.float32: 4}
"""m for each dtype in which the algorithm is as exact as is asked of it."""
COARSE = {**OUTPUTS, torch.bfloat16: 2}
"""With those in which it is not: in bfloat16 F(2,3) makes a network's error up to 1.2 times as large; F(4,3)'s constants would
make it several times as large."""
PART = (
    6 << 20
)  # numbers of a filter that are transformed at a time where it is not kept: they stay in a processor's cache


@dataclass(frozen=True)
class Transforms:
    """Those of a tile with `side` cells of the picture, to products, and back to m x m outputs; for all cells at once."""

    m: int
    side: int
    stride: int  # of the picture's cells from tile to tile
    into: Tensor  # [products, side * side]
    filter: Tensor  # [products, 9]
    back: Tensor  # [m * m, products]

    @classmethod
    @cache
    def of(cls, m: int, doubled: bool) -> "Transforms":
        """In float64."""
        into, filters, back = (torch.tensor(matrix[m], dtype=torch.float64) for matrix in (INTO, FILTER, BACK))
        if doubled:
            doubling = torch.zeros(m + 2, m // 2 + 2, dtype=torch.float64)
            doubling[range(m + 2), [(k + 1) // 2 for k in range(m + 2)]] = 1
            kept = [k for k in range(m + 2) if k != ZERO_OF_DOUBLED]
            into, filters, back = into[kept] @ doubling, filters[kept], back[:, kept]
        both = (torch.kron(matrix, matrix) for matrix in (into, filters, back))
        return cls(m, into.shape[1], m // 2 if doubled else m, *both)


def transformed(weight: Tensor, dtype: torch.dtype, *, m: int, doubled: bool, part: int = PART) -> Iterator[Tensor]:
    """A filter [O, C, 3, 3] of any dtype as [products, C, o] of a dtype, some outputs o at a time: about `part` numbers, gone
    when the next are made. Quickest where the filter lies channels last."""
    of = Transforms.of(m, doubled).filter.float()
    (outputs, channels), taps = weight.shape[:2], weight.permute(2, 3, 0, 1).flatten(0, 1)
    size = min(outputs, max(32, part // (len(of) * channels)))
    wide, made = (of.new_empty(rows * size * channels) for rows in reversed(of.shape))
    for some in taps.split(size, dim=1):
        seen = wide[: some.numel()].view(some.shape).copy_(some).flatten(1)
        out = made[: len(of) * seen.shape[1]].view(len(of), -1)
        yield torch.mm(of, seen, out=out).unflatten(1, (-1, channels)).transpose(1, 2).to(dtype)


def multiplied(v: Tensor, filters: Iterable[Tensor], outputs: int) -> Tensor:
    """Products [products, tiles, O] of tiles v [products, tiles, C] with a filter's parts [products, C, o]."""
    made, at = None, 0
    for part in filters:
        if part.shape[2] == outputs:
            return v @ part
        made = v.new_empty(*v.shape[:2], outputs) if made is None else made
        made[:, :, at : at + part.shape[2]] = v @ part
        at += part.shape[2]
    assert made is not None
    return made


def convolved(x: Tensor, filters: Iterable[Tensor], bias: Tensor, *, m: int, doubled: bool, inner: bool) -> Tensor:
    """x [B, C, H, W], channels last, by the filters of `transformed`, plus a bias [O] -> [B, O, H, W], channels last.

    doubled: of the picture with its sides doubled. inner: the first and last row of x are only looked at.
    """
    height, width = (x.shape[2] - 2 * inner) * (1 + doubled), x.shape[3] * (1 + doubled)
    rows, columns = -(-height // m), -(-width // m)
    y = x.new_empty((len(x), height, width, len(bias))).permute(0, 3, 1, 2)
    if kernels.fit(x) and kernels.fit(y):
        first = (1 if doubled else 0) if inner else -1
        tiles = kernels.transform_in(x, rows, columns, first, m=m, doubled=doubled)
        products = multiplied(tiles, filters, len(bias))
        kernels.transform_out(products, bias, y, rows, columns, m=m, doubled=doubled)
        return y
    how = Transforms.of(m, doubled)
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
    cells = made.view(m, m, len(x), rows, columns, -1).permute(2, 3, 0, 4, 1, 5).flatten(1, 2).flatten(2, 3)
    return y.copy_(cells[:, :height, :width].permute(0, 3, 1, 2) + bias[:, None, None])
