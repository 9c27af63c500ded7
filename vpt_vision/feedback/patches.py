"""Maps in the frame that the backbone sees, cut into its patches."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def patchify(map_: Tensor, size: int, patch_size: int) -> Tensor:
    """Bring a map [H, W] of any numbers to `size` x `size` pixels and cut it into the backbone's patches.

    The whole map is stretched to the square, as `Renderer.whole` does with the image, and each pixel takes
    the nearest number: classes and depths are never mixed. Returns [T, patch_size²] of the same dtype,
    patches in the order of `Features.patches`.
    """
    square = F.interpolate(map_.double()[None, None], (size, size), mode="nearest-exact")
    columns = F.unfold(square, patch_size, stride=patch_size)[0]  # [P², T]
    return columns.T.to(map_.dtype)
