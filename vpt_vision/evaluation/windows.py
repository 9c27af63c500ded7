"""Square windows over an image of any shape, as a sliding-window evaluation lays them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Frame(NamedTuple):
    """An image resized so that its shorter side is as long as a window."""

    height: int  # pixels
    width: int

    @classmethod
    def of(cls, height: int, width: int, size: int) -> Frame:
        """The frame of an image [height, width] for windows of `size` pixels."""
        shorter = min(height, width)
        return cls(max(size, round(height * size / shorter)), max(size, round(width * size / shorter)))

    def places(self, size: int, stride: int) -> list[tuple[int, int]]:
        """Top and left of each window: `stride` apart, the last ones moved back to end with the frame.

        As mmsegmentation's `slide_inference`.
        """
        rows, columns = (_starts(side, size, stride) for side in self)
        return [(top, left) for top in rows for left in columns]


def boxes_in_source(places: Tensor, size: int, frame: Frame, height: int, width: int) -> Tensor:
    """Windows at `places` [V, 2] of a frame as boxes [V, 4] (top, left, height, width) of its image, fp32."""
    scale = torch.tensor([height / frame.height, width / frame.width], dtype=torch.float64)
    corner = places * scale
    # Rounding must not carry a box over the border.
    sides = torch.minimum((size * scale).expand_as(corner), torch.tensor([height, width]) - corner)
    return torch.cat([corner, sides], 1).float()


def merge(windows: Tensor, places: Tensor, frame: Frame) -> Tensor:
    """Mean over windows [V, C, s, s], at `places` [V, 2] of a frame, of what covers each pixel: [C, H, W]."""
    size = windows.shape[-1]
    total = windows.new_zeros(windows.shape[1], *frame)
    count = windows.new_zeros(frame)
    for window, (top, left) in zip(windows, places.tolist(), strict=True):
        total[:, top : top + size, left : left + size] += window
        count[top : top + size, left : left + size] += 1
    return total / count


def _starts(side: int, size: int, stride: int) -> list[int]:
    steps = max(side - size + stride - 1, 0) // stride + 1
    return [min(step * stride, side - size) for step in range(steps)]
