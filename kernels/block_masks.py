"""Block-wise random masks with exact counts: the fixed recipe's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import INTEGER, expect, expect_counts
from .random import BLOCK_MASKS_STREAM, keyed_uniform
from .sample_masks import hide_highest

_ATTEMPTS = 10  # at each block, as in BEiT
_MOST_BLOCKS = 32  # of 3000 masks that hide half of a 16 x 16 grid, none asked for more than 15


def block_masks(
    counts: Tensor,
    grid: tuple[int, int],
    *,
    seed: int,
    step: int,
    sample: Tensor,
    min_patches: int = 4,
    min_aspect: float = 0.3,
) -> Tensor:
    """Hide exactly counts[n] patches of a grid in random rectangles.

    The law of BEiT (Bao et al. 2021, arXiv 2106.08254, algorithm 1) as iBOT and DINOv2 apply it, for
    each row on its own. While patches remain to be hidden, draw a rectangle: area uniform between
    `min_patches` and the number that remains, log-aspect uniform in ±log(min_aspect), sides rounded,
    position uniform. Take it if it is smaller than the grid along both sides and hides something new, but
    no more than remains; otherwise draw again, up to 10 times, and then give up. What remains then is
    hidden at uniformly random patches, as in DINOv3. A row has at most 32 rectangles.

    Args:
        counts: int64 [N], 0..h*w: patches to hide.
        grid: (h, w) in patches.
        seed: the run's.
        step: the run's.
        sample: int64 [N], the key of each row; on the device of counts or on the CPU. Rows of equal
            key get equal draws, so two views of one image need two keys, say image * views + view.
        min_patches: smallest area, at least 1.
        min_aspect: least height / width, in (0, 1]; the greatest is its inverse.

    Returns:
        bool [N, h*w], row-major, on the device of counts: True where the patch is hidden.

    Raises:
        TypeError, ValueError: an argument has another dtype or shape or is out of its range (counts
            are looked at on the CPU alone).
    """
    height, width = grid
    expect_counts("block_masks", counts, height * width)
    expect("block_masks", "sample", sample, INTEGER, (len(counts),))
    if min_patches < 1 or not 0 < min_aspect <= 1:
        raise ValueError(
            f"block_masks: min_patches must be at least 1 and min_aspect in (0, 1], "
            f"got {min_patches} and {min_aspect}."
        )
    n, device = len(counts), counts.device
    sample = sample.to(device, non_blocking=True)
    y = torch.arange(height, device=device)[:, None]
    x = torch.arange(width, device=device)
    covered = torch.zeros(n, height, width, dtype=torch.bool, device=device)
    going = torch.ones(n, dtype=torch.bool, device=device)

    for block in range(_MOST_BLOCKS):
        remaining = (counts - covered.sum((1, 2)))[:, None]  # [N, 1]
        going = going & (remaining[:, 0] > 0)
        if device.type == "cpu" and not going.any():  # elsewhere asking would wait for the device
            break
        # Until one is taken nothing changes, so all attempts can be looked at together: [N, attempts].
        skip = block * _ATTEMPTS * 4
        draws = keyed_uniform(seed, step, sample, BLOCK_MASKS_STREAM, _ATTEMPTS * 4, skip=skip)
        u_area, u_aspect, u_top, u_left = draws.view(n, _ATTEMPTS, 4).unbind(-1)
        area = min_patches + u_area * (remaining - min_patches)
        aspect = torch.exp((1 - 2 * u_aspect) * math.log(min_aspect))
        tall = (area * aspect).sqrt().round().long()
        wide = (area / aspect).sqrt().round().long()
        fits = (tall < height) & (wide < width)
        tall, wide = tall.clamp(max=height), wide.clamp(max=width)
        top = (u_top * (height - tall + 1)).long()
        left = (u_left * (width - wide + 1)).long()
        new = tall * wide - _covered_in(covered, top, left, tall, wide)
        good = fits & (new > 0) & (new <= remaining) & going[:, None]

        going = good.any(1)
        first = good.long().argmax(1, keepdim=True)
        top, left, tall, wide = (
            side.gather(1, first)[..., None] for side in (top, left, tall, wide)
        )  # [N, 1, 1]
        rectangle = (y >= top) & (y < top + tall) & (x >= left) & (x < left + wide)
        covered = covered | (rectangle & going[:, None, None])

    skip = _MOST_BLOCKS * _ATTEMPTS * 4
    scores = keyed_uniform(seed, step, sample, BLOCK_MASKS_STREAM, height * width, skip=skip)
    return hide_highest(scores + covered.flatten(1), counts)


def _covered_in(covered: Tensor, top: Tensor, left: Tensor, tall: Tensor, wide: Tensor) -> Tensor:
    """Count the True cells of covered [N, h, w] in rectangles [N, attempts], by a summed-area table."""
    table = F.pad(covered.cumsum(1).cumsum(2), (1, 0, 1, 0))  # [N, h + 1, w + 1]
    stride, table = table.shape[2], table.flatten(1)

    def above_left_of(y: Tensor, x: Tensor) -> Tensor:
        return table.gather(1, y * stride + x)

    bottom, right = top + tall, left + wide
    lower = above_left_of(bottom, right) - above_left_of(bottom, left)
    upper = above_left_of(top, right) - above_left_of(top, left)
    return lower - upper
