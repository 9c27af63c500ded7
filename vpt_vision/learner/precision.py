"""Losses are computed in fp32 whatever autocast says."""

import torch
from torch import Tensor


def full_precision(device: torch.device) -> torch.autocast:
    """Return a context in which autocast is off."""
    return torch.autocast(device.type, enabled=False)


def widened(tensor: Tensor) -> Tensor:
    """Return `tensor` as fp32; fp64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
