"""Images of noise."""

import torch

from vpt_kernels import PackedImages


def random_sizes(sizes, seed=0):
    """Uint8 noise [H, W, 3] for each (H, W) of `sizes`."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (h, w, 3), dtype=torch.uint8, generator=generator) for h, w in sizes]


def packed(sizes, seed=0):
    """Images of `random_sizes`, packed."""
    return PackedImages.pack(random_sizes(sizes, seed))


def pack(images):
    """Pack a tensor [B, 3, H, W]."""
    return PackedImages.pack(images, channels_first=True)


def blank(count, height, width):
    """`count` black images that share their pixels."""
    one = PackedImages.pack([torch.zeros(height, width, 3, dtype=torch.uint8)])
    return one[torch.zeros(count, dtype=torch.int64)]


def first_pixels(images):
    """The first pixel of every image, [B, 3]."""
    return torch.stack([image[0, 0] for image in images])
