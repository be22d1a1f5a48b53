"""The kernels of fused_norm.py, in Triton. Pictures [B, C, H, W] lie channels last: as [B, cells, C]."""

# ruff: noqa: N803 - what is constant for a kernel is in capitals
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def sums(x, out, cells, c, parts, EACH: tl.constexpr, CELLS: tl.constexpr, CHANNELS: tl.constexpr):
    """Of each channel, over each part of EACH cells: the sum and the sum of squares, out [B, 2, parts, C]."""
    row, part, channel = (
        tl.program_id(0).to(tl.int64),
        tl.program_id(1),
        tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS),
    )
    there = channel < c
    total = tl.zeros([CHANNELS], tl.float32)
    squares = tl.zeros([CHANNELS], tl.float32)
    for start in range(0, EACH, CELLS):
        cell = part * EACH + start + tl.arange(0, CELLS)
        at = (row * cells + cell)[:, None] * c + channel[None, :]
        value = tl.load(x + at, mask=(cell < cells)[:, None] & there[None, :], other=0.0).to(tl.float32)
        total += tl.sum(value, axis=0)
        squares += tl.sum(value * value, axis=0)
    at = (row * 2 * parts + part) * c + channel
    tl.store(out + at, total, mask=there)
    tl.store(out + at + parts * c, squares, mask=there)


@triton.jit
def affine(sums, weight, bias, out, cells, c, parts, width, eps, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """Of each group of `width` channels: what its channels are multiplied by, and what is added, out [B, 2, C]."""
    row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part, within = tl.arange(0, PARTS), tl.arange(0, WIDTH)
    channel = group * width + within
    there = within < width
    at = (row * 2 * parts + part)[:, None] * c + channel[None, :]
    mask = (part < parts)[:, None] & there[None, :]
    count = cells * width
    mean = tl.sum(tl.sum(tl.load(sums + at, mask=mask, other=0.0), axis=0), axis=0) / count
    square = tl.sum(tl.sum(tl.load(sums + at + parts * c, mask=mask, other=0.0), axis=0), axis=0) / count
    variance = tl.maximum(square - mean * mean, 0.0)
    factor = tl.load(weight + channel, mask=there, other=0.0).to(tl.float32) / tl.sqrt(variance + eps)
    added = tl.load(bias + channel, mask=there, other=0.0).to(tl.float32) - mean * factor
    tl.store(out + row * 2 * c + channel, factor, mask=there)
    tl.store(out + row * 2 * c + c + channel, added, mask=there)


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
    TOLD: tl.constexpr,
    SILU: tl.constexpr,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """y = silu((x * factor + added) * scale + shift). A cell of scale and shift, [B, coarse, C] with `columns` in a line, is for
    tall * wide cells of x, which has w in a line."""
    row = tl.program_id(0).to(tl.int64)
    cell = tl.program_id(1) * CELLS + tl.arange(0, CELLS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < c
    mask = (cell < cells)[:, None] & there[None, :]
    at = (row * cells + cell)[:, None] * c + channel[None, :]
    factor = tl.load(affine + row * 2 * c + channel, mask=there, other=0.0)
    added = tl.load(affine + row * 2 * c + c + channel, mask=there, other=0.0)
    value = tl.load(x + at, mask=mask, other=0.0).to(tl.float32) * factor[None, :] + added[None, :]
    if TOLD:
        told = row * coarse + cell // w // tall * columns + cell % w // wide
        told_at = told[:, None] * c + channel[None, :]
        value = value * tl.load(scale + told_at, mask=mask, other=0.0).to(tl.float32)
        value += tl.load(shift + told_at, mask=mask, other=0.0).to(tl.float32)
    if SILU:
        value = value / (1.0 + tl.exp(-value))
    tl.store(y + at, value.to(y.dtype.element_ty), mask=mask)
