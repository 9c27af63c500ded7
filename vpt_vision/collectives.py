"""Statistics over the batch of every rank. With no process group each function is the local statistic."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def group() -> dist.ProcessGroup | None:
    """Return the group of all ranks, or None where there is one process only."""
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None


def world_size() -> int:
    """Return the number of ranks."""
    return dist.get_world_size() if group() is not None else 1


def rank() -> int:
    """Return this process's number among the ranks."""
    return dist.get_rank() if group() is not None else 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` (any shape, equal on all ranks) over the ranks. Carries no gradient."""
    total = tensor.detach().clone()
    if group() is not None:
        dist.all_reduce(total)
    return total


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """Return the mean of `tensor` (any shape, equal on all ranks) over the ranks. Carries no gradient."""
    return all_reduce_sum(tensor) / world_size()


def all_gather_rows(rows: Tensor) -> Tensor:
    """Return the rows [n, ...] of every rank as one tensor [world_size * n, ...], in the order of the ranks.

    Every rank gives the same number of rows. Gradients of all ranks reach the rows they belong to, so the
    mean over ranks of a loss of the gathered rows has the gradient of one process holding all of them.
    """
    return rows if group() is None else _AllGatherRows.apply(rows)


class _AllGatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient).chunk(world_size())[rank()]
