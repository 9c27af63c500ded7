"""A small U-Net from a view to a map of the same size."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 8  # of channels that are normalised together, within an image
_MIDDLE = 128  # width of the layers that see the whole view


class UNet(nn.Module):
    """Convolutions down to a small map and up again, with skips (Ronneberger et al. 2015).

    The shape is that of ADIOS's masking network (Shi et al. 2022, arXiv 2201.13100): 3 x 3 convolutions with
    group norm, a level for every halving down to 4 to 7 pixels, `width` channels and twice as many on the
    lowest three levels, nearest-neighbour resizing. With `whole_view` an MLP stands at the bottom, through
    which every pixel sees every other, and the network takes views of `size` pixels alone.
    """

    def __init__(self, size: int, width: int, outputs: int, *, whole_view: bool) -> None:
        super().__init__()
        levels = min(6, max(2, int(math.log2(size)) - 1))
        widths = [width if level == 0 or level < levels - 3 else 2 * width for level in range(levels)]
        self.down = nn.ModuleList(_convolution(wide, narrow) for wide, narrow in pairwise([3, *widths]))
        self.up = nn.ModuleList()
        below = widths[-1]
        for level in reversed(range(levels)):
            above = widths[max(level - 1, 0)]
            self.up.append(_convolution(below + widths[level], above))
            below = above
        self.out = nn.Conv2d(below, outputs, 1)
        self.middle: nn.Module = nn.Identity()
        if whole_view:
            side = size
            for _ in range(levels - 1):
                side = _half(side)
            flat = widths[-1] * side**2
            self.middle = nn.Sequential(
                nn.Flatten(),
                nn.Linear(flat, _MIDDLE),
                nn.ReLU(),
                nn.Linear(_MIDDLE, _MIDDLE),
                nn.ReLU(),
                nn.Linear(_MIDDLE, flat),
                nn.ReLU(),
                nn.Unflatten(1, (widths[-1], side, side)),
            )

    def forward(self, views: Tensor) -> Tensor:
        """Map `views` [N, 3, S, S] to [N, outputs, S, S]."""
        skips: list[Tensor] = []
        x = views
        for block in self.down:
            if skips:
                x = functional.interpolate(x, size=(_half(x.shape[-2]), _half(x.shape[-1])))
            x = block(x)
            skips.append(x)
        x = self.middle(x)
        for number, (block, skip) in enumerate(zip(self.up, reversed(skips), strict=True)):
            if number:
                x = functional.interpolate(x, size=skip.shape[-2:])
            x = block(torch.cat([x, skip], dim=1))
        result: Tensor = self.out(x)
        return result


def _half(side: int) -> int:
    return (side + 1) // 2


def _convolution(wide: int, narrow: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(wide, narrow, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, narrow), nn.ReLU()
    )
