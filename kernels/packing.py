"""Masks in packed form: the list of hidden tokens beside the mask, and what both mask kernels share."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import BOOLEAN, expect


class PackedMasks(NamedTuple):
    """Which of T tokens are hidden in each of N rows, and the list of the hidden ones in row-major order."""

    hidden: Tensor  # [N, T] bool: True where the token is hidden
    indices: Tensor  # [total] int64: row * T + token of each hidden token
    inverse: Tensor  # [N, T] int64: a hidden token's place in that list, -1 where the token is shown
    weights: Tensor  # [total] fp32: 1 / how many its row hides, so that a row's weights sum to 1


def pack_masks(hidden: Tensor, total: int, *, padded: bool = False) -> PackedMasks:
    """Pack masks that are already made, by torch operations that never wait for the device.

    Args:
        hidden: bool [N, T].
        total: how many are True, known to the caller; checked on the CPU alone.
        padded: fewer may be True. The list then ends in padding: index 0 and weight 0.

    Raises:
        TypeError, ValueError: hidden has another dtype or shape, or another number is True.
    """
    expect("pack_masks", "hidden", hidden, BOOLEAN, ("N", "T"))
    counts = hidden.sum(1)
    expect_total("pack_masks", counts, total, padded)
    return pack(hidden, counts, total)


def pack(hidden: Tensor, counts: Tensor, total: int) -> PackedMasks:
    """Pack `hidden` [N, T], of which row n has counts[n] and all rows have `total`, or fewer."""
    flat = hidden.flatten()
    if flat.device.type == "cpu" and not torch.compiler.is_compiling():
        indices = flat.nonzero().squeeze(1)  # twice as fast there, and there is nothing to wait for
        inverse = torch.full_like(flat, -1, dtype=torch.int64)
        inverse.scatter_(0, indices, torch.arange(len(indices), device=flat.device))
        weights = counts.float().reciprocal().repeat_interleave(counts, output_size=len(indices))
        if padding := total - len(indices):
            indices, weights = F.pad(indices, (0, padding)), F.pad(weights, (0, padding))
        return PackedMasks(hidden, indices, inverse.view(hidden.shape), weights)
    beyond = flat.numel()  # where padding is for now: a place after the last token
    indices = torch.nonzero_static(flat, size=total, fill_value=beyond).squeeze(1)
    inverse = torch.full((beyond + 1,), -1, dtype=torch.int64, device=flat.device)
    inverse.scatter_(0, indices, torch.arange(total, device=flat.device))
    listed = indices < beyond
    indices = indices.where(listed, 0)
    weights = counts.float().reciprocal()[indices // max(1, hidden.shape[1])].where(listed, 0.0)
    return PackedMasks(hidden, indices, inverse[:beyond].view(hidden.shape), weights)


def without_tail(indices: Tensor, weights: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Set what kernels left unwritten after the counts.sum() hidden tokens of a list to index 0, weight 0."""
    listed = torch.arange(len(indices), device=indices.device) < counts.sum()
    return indices.where(listed, 0), weights.where(listed, 0.0)


def expect_total(function: str, counts: Tensor, total: int, padded: bool = False) -> None:
    """Refuse a `total` that is negative or, where looking does not wait for the device, not counts.sum().

    With `padded` it may be more.
    """
    if total < 0:
        raise ValueError(f"{function}: total must be at least 0, got {total}.")
    looks = counts.device.type == "cpu" and not torch.compiler.is_compiling()
    if looks and ((found := sum(counts.tolist())) > total or (found < total and not padded)):
        least = "at least " if padded else ""
        raise ValueError(f"{function}: total must be {least}the sum of counts, {found}, got {total}.")


def hide_highest(scores: Tensor, counts: Tensor) -> Tensor:
    """Hide the counts[n] highest of scores [N, T], of equal ones the first: bool [N, T]."""
    places = scores.argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(scores.shape[1], device=scores.device) < counts[:, None]
    return torch.zeros_like(chosen).scatter(1, places, chosen)


def empty_masks(like: Tensor, rows: int, tokens: int, total: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate hidden, indices, inverse and weights, as operators return them, on the device of `like`."""
    return (
        like.new_empty((rows, tokens), dtype=torch.bool),
        like.new_empty((total,), dtype=torch.int64),
        like.new_empty((rows, tokens), dtype=torch.int64),
        like.new_empty((total,), dtype=torch.float32),
    )
