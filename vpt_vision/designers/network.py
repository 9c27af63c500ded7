"""The small network that reads a source image once, and what stands in its place where none is read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vpt_kernels import PackedImages
from vpt_vision.task import Views

STRIDE = 4  # of the feature map, in pixels of the thumbnail


class ThumbnailNetwork(nn.Module):
    """Features of an image's thumbnail, pooled and as a map.

    Two strided convolutions and residual blocks; a cell of the map sees 7 + 16 · blocks pixels of the
    thumbnail along each side. Normalisation is by groups of channels within an image, never over the batch:
    an image's features do not depend on its neighbours. It stands inside the residual branches and before
    the map, so that overall brightness and colour reach the pooled features.
    """

    def __init__(self, thumbnail: int, width: int, blocks: int) -> None:
        super().__init__()
        self.thumbnail = thumbnail
        self.features = 2 * width
        groups = width // 4  # of eight channels each
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width, self.features, 3, stride=2, padding=1),
            nn.GELU(),
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(groups, self.features),
                nn.Conv2d(self.features, self.features, 3, padding=1),
                nn.GELU(),
                nn.Conv2d(self.features, self.features, 3, padding=1),
            )
            for _ in range(blocks)
        )
        self.map_norm = nn.GroupNorm(groups, self.features)
        self.pool = nn.Sequential(
            nn.LayerNorm(self.features), nn.Linear(self.features, self.features), nn.GELU()
        )

    def forward(self, images: PackedImages) -> tuple[Tensor, Tensor]:
        """Return pooled features [B, D] and their map [B, D, R, C], fp32, of whole `images`."""
        with torch.autocast(images.device.type, enabled=False):
            x = self.stem(self._thumbnails(images))
            for block in self.blocks:
                x = x + block(x)
            return self.pool(x.mean((-2, -1))), self.map_norm(x)

    def _thumbnails(self, images: PackedImages) -> Tensor:
        """Each image squeezed into a square [B, 3, S, S], values in [-1, 1]."""
        corner = torch.zeros_like(images.heights)
        boxes = torch.stack([corner, corner, images.heights, images.widths], -1).float()
        half = torch.full((3,), 0.5, device=images.device)
        views = Views.unchanged(boxes, self.thumbnail)
        return views.render(images, mean=half, std=half, interpolation="bilinear")[0]


class NoNetwork(nn.Module):
    """Features of no image: none at all."""

    features = 0

    def forward(self, images: PackedImages) -> tuple[Tensor, Tensor]:
        """Return pooled features [B, 0] and their map [B, 0, 1, 1]."""
        none = torch.zeros(len(images), 0, device=images.device)
        return none, none[..., None, None]


class Constant(nn.Module):
    """A head that says the same `says` numbers of every image."""

    def __init__(self, says: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(says))

    def forward(self, features: Tensor) -> Tensor:
        """Return [B, says] for features of B images."""
        return self.bias.expand(len(features), -1)
