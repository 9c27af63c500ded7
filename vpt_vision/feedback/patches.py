"""Maps in the frame that the backbone sees, cut into its patches."""

from __future__ import annotations

from torch import Tensor

from vpt_vision.data.maps import whole_map


def patchify(map_: Tensor, size: int, patch_size: int) -> Tensor:
    """Bring a map [H, W] of any numbers to what `Renderer.whole` shows, cut into the backbone's patches.

    Each pixel takes the nearest number: classes and depths are never mixed. Returns [T, patch_size²] of the
    same dtype, patches in the order of `Features.patches`.
    """
    rows = whole_map(map_, size).unfold(0, patch_size, patch_size)
    return rows.unfold(1, patch_size, patch_size).flatten(0, 1).flatten(1)
