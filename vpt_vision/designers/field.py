"""A field of logits over the source image, read off at places of one's own."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_field(field: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Read `field` at the crossings of rows and columns, by bilinear interpolation.

    Args:
        field: [B, R, C], its cells tiling the image; a cell's value stands at its centre, and beyond
            the outermost centres the field is constant.
        rows: [V, B, P], heights in shares of the image, 0 at its upper edge and 1 at its lower.
        columns: [V, B, Q], likewise from left to right.

    Returns:
        [V, B, P, Q] fp32.
    """
    with torch.autocast(field.device.type, enabled=False):
        row_weights = _hat_weights(rows, field.shape[1])
        column_weights = _hat_weights(columns, field.shape[2])
        return torch.einsum("vbpr,brc,vbqc->vbpq", row_weights, field, column_weights)


def _hat_weights(places: Tensor, cells: int) -> Tensor:
    """Weights [..., cells] of linear interpolation at `places` [...] in shares of the whole."""
    position = (places * cells - 0.5).clamp(0, cells - 1)
    distance = (position[..., None] - torch.arange(cells, device=places.device)).abs()
    return (1 - distance).clamp(min=0)
