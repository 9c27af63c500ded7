"""Features of images that one window shows whole."""

import torch

from vpt_vision.evaluation.dense import DenseFeatures


def one_window_each(patches, maps, size):
    """Patches [N, T, D] of N windows of `size` pixels, one for each of N maps."""
    count = len(maps)
    return DenseFeatures(
        patches=patches.half(),
        cls=torch.zeros(count, 2).half(),
        owner=torch.arange(count),
        places=torch.zeros(count, 2, dtype=torch.int64),
        frames=torch.full((count, 2), size),
        map_sizes=torch.tensor([list(map_.shape) for map_ in maps]),
        map_values=torch.cat([map_.flatten() for map_ in maps]),
        index=torch.arange(count),
    )
