"""Images of different sizes in one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .checks import expect


@dataclass(frozen=True, eq=False)
class PackedImages:
    """B images of different sizes, end to end, each [H, W, 3] as decoders give them.

    `len(images)` is B, and `images[some]`, for a slice or a tensor of numbers, shares the pixels.
    """

    pixels: Tensor  # uint8 [total]
    offsets: Tensor  # int64 [B]: where in pixels each image starts
    heights: Tensor  # int64 [B]
    widths: Tensor  # int64 [B]

    @classmethod
    def pack(cls, images: Sequence[Tensor] | Tensor, *, channels_first: bool = False) -> PackedImages:
        """Copy uint8 images [H, W, 3], or [3, H, W] with `channels_first`, of one device into one tensor.

        Raises:
            TypeError, ValueError: an image has another dtype, shape or device than the first, or is empty.
        """
        images = list(images)
        if channels_first:
            for image in images:
                expect(
                    "PackedImages.pack", "each image", image, (torch.uint8,), (3, "H", "W"), images[0].device
                )
            images = [image.permute(1, 2, 0) for image in images]
        for image in images:
            expect("PackedImages.pack", "each image", image, (torch.uint8,), ("H", "W", 3), images[0].device)
            if image.numel() == 0:
                raise ValueError(f"PackedImages.pack: an image must not be empty, got {list(image.shape)}.")
        device = images[0].device if images else None
        heights = torch.tensor([image.shape[0] for image in images], dtype=torch.int64)
        widths = torch.tensor([image.shape[1] for image in images], dtype=torch.int64)
        lengths = 3 * heights * widths
        flat = [image.reshape(-1) for image in images]
        pixels = torch.cat(flat) if flat else torch.empty(0, dtype=torch.uint8)
        return cls(pixels, *(field.to(device) for field in (lengths.cumsum(0) - lengths, heights, widths)))

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.pixels.device

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Pixels, offsets, heights and widths, as the operators take them."""
        return self.pixels, self.offsets, self.heights, self.widths

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, some: slice | Tensor) -> PackedImages:
        return replace(self, offsets=self.offsets[some], heights=self.heights[some], widths=self.widths[some])

    def __iter__(self) -> Iterator[Tensor]:
        """Give each image [H, W, 3], a view of the pixels; waits for the device."""
        sizes = zip(self.offsets.tolist(), self.heights.tolist(), self.widths.tolist(), strict=True)
        for offset, height, width in sizes:
            yield self.pixels[offset : offset + 3 * height * width].view(height, width, 3)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedImages:
        """Give the same images on `device`; from the CPU only pixels that belong to them are copied."""
        device = torch.device(device)
        images = self._compact() if self.device.type == "cpu" and device.type != "cpu" else self
        return PackedImages(*(tensor.to(device, non_blocking=non_blocking) for tensor in images.tensors))

    def _compact(self) -> PackedImages:
        """Give these images with no pixel of others between or around them."""
        used = int((3 * self.heights * self.widths).sum())
        return self if used == len(self.pixels) else PackedImages.pack(list(self))
