"""Label maps in the frame in which an image is seen."""

from __future__ import annotations

import torch
from torch import Tensor


def whole_map(values: Tensor, size: int) -> Tensor:
    """Resize the largest centred square of a map [H, W] to [size, size], by the nearest neighbour.

    It lies under what `Renderer.whole` shows of the image; the dtype stays.
    """
    height, width = values.shape
    side = min(height, width)
    along = (torch.arange(size, dtype=torch.float64, device=values.device) + 0.5) * (side / size)
    rows, columns = (((full - side) / 2 + along).floor().long() for full in (height, width))
    return values[rows[:, None], columns]
