"""The kernels of fused_norm.py, in Triton. Pictures [B, C, H, W] are channels last in memory: [B, cells, C]."""

# ruff: noqa: N803 - compile-time constants are in capitals
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def sums(x, out, cells, c, parts, EACH: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr):
    """Sum and sum of squares of each channel over each part of EACH cells, to out [B, 2, parts, C]."""
    row, part, channel = (
        tl.program_id(0).to(tl.int64),
        tl.program_id(1),
        tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS),
    )
    valid = channel < c
    total = tl.zeros([CHANNELS], tl.float32)
    squares = tl.zeros([CHANNELS], tl.float32)
    for start in range(0, EACH, CELLS):
        cell = part * EACH + start + tl.arange(0, CELLS)
        at = (row * cells + cell)[:, None] * c + channel[None, :]
        value = tl.load(x + at, mask=(cell < cells)[:, None] & valid[None, :], other=0.0).to(tl.float32)
        total += tl.sum(value, axis=0)
        squares += tl.sum(value * value, axis=0)
    at = (row * 2 * parts + part) * c + channel
    tl.store(out + at, total, mask=valid)
    tl.store(out + at + parts * c, squares, mask=valid)


@triton.jit
def affine(sums, weight, bias, out, cells, c, parts, width, eps, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """Factor and offset of each channel, from the moments of its group of `width` channels, to out [B, 2, C]."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part, within = tl.arange(0, PARTS), tl.arange(0, WIDTH)
    channel = group * width + within
    valid = within < width
    at = (row * 2 * parts + part)[:, None] * c + channel[None, :]
    mask = (part < parts)[:, None] & valid[None, :]
    count = cells * width
    mean = tl.sum(tl.sum(tl.load(sums + at, mask=mask, other=0.0), axis=0), axis=0) / count
    square = tl.sum(tl.sum(tl.load(sums + at + parts * c, mask=mask, other=0.0), axis=0), axis=0) / count
    variance = tl.maximum(square - mean * mean, 0.0)
    factor = tl.load(weight + channel, mask=valid, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    offset = tl.load(bias + channel, mask=valid, other=0.0).to(tl.float32) - mean * factor
    tl.store(out + row * 2 * c + channel, factor, mask=valid)
    tl.store(out + row * 2 * c + c + channel, offset, mask=valid)


@triton.jit
def apply(
    x,
    affine,
    scale,
    shift,
    y,
    cells,
    c,
    w,
    tall,
    wide,
    columns,
    coarse,
    MODULATED: tl.constexpr,
    SILU: tl.constexpr,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """y = silu((x * factor + offset) * scale + shift).

    A cell of scale and shift, [B, coarse, C] with `columns` in a line, is for tall * wide cells of x, which has w in a
    line.
    """
    row = tl.program_id(0).to(tl.int64)
    cell = tl.program_id(1) * CELLS + tl.arange(0, CELLS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    valid = channel < c
    mask = (cell < cells)[:, None] & valid[None, :]
    at = (row * cells + cell)[:, None] * c + channel[None, :]
    factor = tl.load(affine + row * 2 * c + channel, mask=valid, other=0.0)
    offset = tl.load(affine + row * 2 * c + c + channel, mask=valid, other=0.0)
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * factor[None, :] + offset[None, :]
    if MODULATED:
        coarse_cell = row * coarse + cell // w // tall * columns + cell % w // wide
        coarse_at = coarse_cell[:, None] * c + channel[None, :]
        value = value * tl.load(scale + coarse_at, mask=mask, other=0.0).to(tl.float32)
        value += tl.load(shift + coarse_at, mask=mask, other=0.0).to(tl.float32)
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(y + at, value.to(y.dtype.element_ty), mask=mask)
