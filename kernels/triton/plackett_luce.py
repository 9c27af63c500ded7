"""Log-probability of a sampled order without sorting: every patch is compared with every other of its row.

A program takes a tile of a row's patches and goes over the whole row, so each row is read once a tile (T / 64
of them, from the L2 cache after the first). The work is T² comparisons and exponentials: 34 million at 512
rows of 256 patches, where an H200 does trillions a second. A sort would do fewer, in many dependent steps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import block, cdiv, on_device_of

_BLOCK = 32  # patches that a tile meets at a time: with twice as many a thread needs over 200 registers


@triton.jit
def ahead(scores, places, other_scores, other_places):
    """Tell where a patch is drawn before another: a higher score, or an equal one at a lower place."""
    return (scores > other_scores) | ((scores == other_scores) & (places < other_places))


@triton.jit
def plackett_luce_kernel(
    logits_ptr,  # [N, T] wide
    perturbed_ptr,  # [N, T] float
    counts_ptr,  # [N] int64
    part_ptr,  # [N, tiles] wide: a tile's part of the log-probability
    surprisal_ptr,  # [N, T] wide
    T,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """TILE patches i of one row against all patches j, BLOCK at a time."""
    row = tl.program_id(0).to(tl.int64)
    wide = surprisal_ptr.dtype.element_ty
    i = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = i < T
    own = tl.load(logits_ptr + row * T + i, mask=inside, other=0.0)
    own_score = tl.load(perturbed_ptr + row * T + i, mask=inside, other=0.0)
    # Σ exp(logit - own) over what is left is total * exp(highest); own itself is left, so 0 is a fair start
    highest = tl.zeros([TILE], wide)
    total = tl.zeros([TILE], wide)
    rank = tl.zeros([TILE], tl.int32)
    for first in range(0, T, BLOCK):
        j = first + tl.arange(0, BLOCK)
        there = j < T
        logits = tl.load(logits_ptr + row * T + j, mask=there, other=-float("inf"))
        scores = tl.load(perturbed_ptr + row * T + j, mask=there, other=-float("inf"))
        before = ahead(scores[None, :], j[None, :], own_score[:, None], i[:, None])
        rank += tl.sum(before.to(tl.int32), 1)
        left = tl.where(before, -float("inf"), logits[None, :] - own[:, None])
        risen = tl.maximum(highest, tl.max(left, 1))
        total = total * tl.exp(highest - risen) + tl.sum(tl.exp(left - risen[:, None]), 1)
        highest = risen
    drawn = inside & (rank < tl.load(counts_ptr + row))
    surprisal = highest + tl.log(tl.where(drawn, total, 1.0))
    tl.store(surprisal_ptr + row * T + i, tl.where(drawn, surprisal, float("inf")), mask=inside)
    part = tl.sum(tl.where(drawn, -surprisal, 0.0), 0)
    tl.store(part_ptr + row * tl.num_programs(1) + tl.program_id(1), part)


@triton.jit
def plackett_luce_backward_kernel(
    gradient_ptr,  # [N] wide
    logits_ptr,  # [N, T] wide
    perturbed_ptr,  # [N, T] float
    surprisal_ptr,  # [N, T] wide
    out_ptr,  # [N, T] wide
    T,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """TILE patches j of one row against all patches i, BLOCK at a time."""
    row = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = j < T
    own = tl.load(logits_ptr + row * T + j, mask=inside, other=0.0)
    own_score = tl.load(perturbed_ptr + row * T + j, mask=inside, other=0.0)
    own_surprisal = tl.load(surprisal_ptr + row * T + j, mask=inside, other=0.0)
    spent = tl.zeros([TILE], out_ptr.dtype.element_ty)
    for first in range(0, T, BLOCK):
        i = first + tl.arange(0, BLOCK)
        there = i < T
        logits = tl.load(logits_ptr + row * T + i, mask=there, other=0.0)
        scores = tl.load(perturbed_ptr + row * T + i, mask=there, other=0.0)
        surprisal = tl.load(surprisal_ptr + row * T + i, mask=there, other=float("inf"))  # +inf: not drawn
        after = ahead(own_score[:, None], j[:, None], scores[None, :], i[None, :])
        exponent = own[:, None] - logits[None, :] - surprisal[None, :]
        nothing = after | (own == -float("inf"))[:, None]  # never drawn: it has no part in any draw
        spent += tl.sum(tl.exp(tl.where(nothing, -float("inf"), exponent)), 1)
    gradient = tl.load(gradient_ptr + row)
    drawn = tl.where(own_surprisal < float("inf"), 1.0, 0.0)
    tl.store(out_ptr + row * T + j, gradient * (drawn - spent), mask=inside)


def plackett_luce(logits: Tensor, perturbed: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Launch `plackett_luce_kernel` (on contiguous copies): log-probability [N] and surprisal [N, T]."""
    rows, tokens = logits.shape
    surprisal = torch.empty((rows, tokens), dtype=logits.dtype, device=logits.device)
    if surprisal.numel() == 0:
        return logits.new_zeros(rows), surprisal
    tile = _tile(logits)
    parts = torch.empty((rows, cdiv(tokens, tile)), dtype=logits.dtype, device=logits.device)
    with on_device_of(logits):
        plackett_luce_kernel[parts.shape](
            logits.contiguous(),
            perturbed.contiguous(),
            counts.contiguous(),
            parts,
            surprisal,
            tokens,
            TILE=tile,
            BLOCK=_BLOCK,
            num_warps=4,
        )
    return parts.sum(1), surprisal


def plackett_luce_backward(gradient: Tensor, logits: Tensor, perturbed: Tensor, surprisal: Tensor) -> Tensor:
    """Launch `plackett_luce_backward_kernel` (on contiguous copies): [N, T]."""
    rows, tokens = logits.shape
    out = torch.empty((rows, tokens), dtype=logits.dtype, device=logits.device)
    if out.numel() == 0:
        return out
    tile = _tile(logits)
    with on_device_of(logits):
        plackett_luce_backward_kernel[(rows, cdiv(tokens, tile))](
            gradient.contiguous(),
            logits.contiguous(),
            perturbed.contiguous(),
            surprisal.contiguous(),
            out,
            tokens,
            TILE=tile,
            BLOCK=_BLOCK,
            num_warps=4,
        )
    return out


def _tile(logits: Tensor) -> int:
    """Return the side of a tile: 64 patches, or 32 of fp64, keep it in registers."""
    return block(logits.shape[1], most=64 if logits.dtype == torch.float32 else 32)
