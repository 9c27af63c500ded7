"""Log-sum-exp of scaled logits along rows and along columns, in one read of the logits each.

Both are bound by memory: at [3763, 65536] in bf16 a pass reads 493 MB, against 256 KB of potentials and a
buffer of partial sums of 16 rows (4 MB). Three iterations of Sinkhorn-Knopp are six passes. Each but the
first begins with the rows that the last one ended with: should 40 MB of them still be in the L2 cache, which
no GPU has shown yet, that is 5.6 reads of memory in all. Four would do where a whole panel of rows waits in
the L2 cache for its potentials before its shares are added to the columns: that takes programs that wait for
one another.
A column potential is four bytes and a logit two, so each program works on several rows at once: then the
potentials, which come from the L2 cache, cost less than the logits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import block, cdiv, on_device_of

_PROGRAMS = 1024  # enough to fill a large GPU several times over
_SPLITS = 64  # at most, so that putting them together stays cheap


@triton.jit
def row_logsumexp_kernel(
    logits_ptr,  # [M, K] float, strides (row_stride, column_stride)
    column_ptr,  # [K] wide
    temperature_ptr,  # [M] wide, stride temperature_stride
    out_ptr,  # [M] wide
    M,
    K,
    row_stride,
    column_stride,
    temperature_stride,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS rows, a block of columns at a time."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    there = rows < M
    wide = out_ptr.dtype.element_ty
    temperature = tl.load(temperature_ptr + rows * temperature_stride, mask=there, other=1.0)
    inverse = (1.0 / temperature)[:, None]
    start = logits_ptr + rows[:, None] * row_stride
    highest = tl.full([ROWS], -float("inf"), wide)
    total = tl.zeros([ROWS, BLOCK], wide)  # relative to exp(highest); added up over columns at the end
    for first in range(0, K, BLOCK):
        columns = (first + tl.arange(0, BLOCK)).to(tl.int64)
        inside = columns < K
        column = tl.load(column_ptr + columns, mask=inside, other=-float("inf"))
        mask = there[:, None] & inside[None, :]
        logits = tl.load(start + columns[None, :] * column_stride, mask=mask, other=0.0)
        x = logits.to(wide) * inverse + column[None, :]
        risen = tl.maximum(highest, tl.max(x, 1))
        base = tl.where(risen == -float("inf"), 0.0, risen)
        total = total * tl.exp(highest - base)[:, None] + tl.exp(x - base[:, None])
        highest = risen
    base = tl.where(highest == -float("inf"), 0.0, highest)
    tl.store(out_ptr + rows, base + tl.log(tl.sum(total, 1)), mask=there)


@triton.jit
def column_logsumexp_kernel(
    logits_ptr,  # [M, K] float, strides (row_stride, column_stride)
    row_ptr,  # [M] wide
    temperature_ptr,  # [M] wide, stride temperature_stride
    out_ptr,  # [splits, K] wide: log-sum-exp of each part of the rows
    M,
    K,
    row_stride,
    column_stride,
    temperature_stride,
    splits,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of columns and a part of the rows: every `splits`-th group of ROWS, from the last to the first.

    So all programs go through the rows together, and backwards: those that the pass along rows read last come
    first, and may still be in the L2 cache, as may those that come last for the next pass along rows.
    """
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [BLOCK]
    inside = columns < K
    split = tl.program_id(1).to(tl.int64)
    groups = tl.cdiv(M, ROWS * splits)
    wide = out_ptr.dtype.element_ty
    start = logits_ptr + columns[None, :] * column_stride
    highest = tl.full([BLOCK], -float("inf"), wide)
    total = tl.zeros([BLOCK], wide)
    for group in range(groups):
        rows = ((groups - 1 - group) * splits + split) * ROWS + tl.arange(0, ROWS).to(tl.int64)
        there = rows < M
        row = tl.load(row_ptr + rows, mask=there, other=-float("inf"))
        counts = row > -float("inf")  # of other rows nothing is read, for they may hold anything
        temperature = tl.load(temperature_ptr + rows * temperature_stride, mask=counts, other=1.0)
        mask = counts[:, None] & inside[None, :]
        logits = tl.load(start + rows[:, None] * row_stride, mask=mask, other=0.0)
        x = logits.to(wide) * (1.0 / temperature)[:, None] + row[:, None]
        risen = tl.maximum(highest, tl.max(x, 0))
        base = tl.where(risen == -float("inf"), 0.0, risen)
        total = total * tl.exp(highest - base) + tl.sum(tl.exp(x - base[None, :]), 0)
        highest = risen
    base = tl.where(highest == -float("inf"), 0.0, highest)
    tl.store(out_ptr + split * K + columns, base + tl.log(total), mask=inside)


@triton.jit
def combine_kernel(
    part_ptr,  # [splits, K] wide
    out_ptr,  # [K] wide
    K,
    splits,
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Put the parts of the rows together."""
    columns = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < K
    parts = tl.arange(0, SPLITS).to(tl.int64)
    mask = (parts < splits)[:, None] & inside[None, :]
    x = tl.load(part_ptr + parts[:, None] * K + columns[None, :], mask=mask, other=-float("inf"))
    highest = tl.max(x, 0)
    base = tl.where(highest == -float("inf"), 0.0, highest)
    total = tl.sum(tl.exp(x - base[None, :]), 0)
    tl.store(out_ptr + columns, base + tl.log(total), mask=inside)


def rows_at_once(rows: int) -> int:
    """Return how many rows a program takes: more share a potential, fewer leave no processor idle."""
    return 4 if rows >= 2048 else 2 if rows >= 1024 else 1


def row_logsumexp(logits: Tensor, column: Tensor, temperature: Tensor) -> Tensor:
    """See `vpt_kernels.sinkhorn_potentials.row_logsumexp`."""
    rows, prototypes = logits.shape
    out = column.new_empty(rows)
    if prototypes == 0:
        return out.fill_(-torch.inf)
    if rows == 0:
        return out
    at_once = rows_at_once(rows)
    with on_device_of(logits):
        row_logsumexp_kernel[(cdiv(rows, at_once),)](
            logits,
            column.contiguous(),
            temperature,
            out,
            rows,
            prototypes,
            *logits.stride(),
            temperature.stride(0),
            ROWS=at_once,
            BLOCK=block(prototypes, 2048),
            num_warps=8,
        )
    return out


def column_logsumexp(logits: Tensor, row: Tensor, temperature: Tensor) -> Tensor:
    """See `vpt_kernels.sinkhorn_potentials.column_logsumexp`."""
    rows, prototypes = logits.shape
    if rows == 0 or prototypes == 0:
        return row.new_full((prototypes,), -torch.inf)
    wide_block = block(prototypes, 1024)
    blocks = cdiv(prototypes, wide_block)
    at_once = 16 // logits.element_size()  # 16 bytes of each column a thread: more would not fit in registers
    splits = max(1, min(_SPLITS, cdiv(_PROGRAMS, blocks), cdiv(rows, at_once)))
    parts = row.new_empty(splits, prototypes)
    with on_device_of(logits):
        column_logsumexp_kernel[(blocks, splits)](
            logits,
            row.contiguous(),
            temperature,
            parts,
            rows,
            prototypes,
            *logits.stride(),
            temperature.stride(0),
            splits,
            ROWS=at_once,
            BLOCK=wide_block,
            num_warps=4,
        )
        return combined(parts)


def combined(parts: Tensor) -> Tensor:
    """Give the log-sum-exp [K] of parts [splits, K], on whose device launches go now."""
    splits, prototypes = parts.shape
    if splits == 1:
        return parts[0]
    out = parts.new_empty(prototypes)
    wide = block(prototypes, 128)
    combine_kernel[(cdiv(prototypes, wide),)](
        parts, out, prototypes, splits, SPLITS=triton.next_power_of_2(splits), BLOCK=wide, num_warps=4
    )
    return out
