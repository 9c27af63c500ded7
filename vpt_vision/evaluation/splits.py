"""What probes of classes share: the classes, and a part of the train split for picking settings."""

from __future__ import annotations

import torch
from torch import Tensor

from vpt_vision.errors import UserError


def count_classes(train: Tensor, test: Tensor) -> int:
    """Number of classes of labels [N] of both splits; raises `UserError` where one has no train image."""
    unseen = test[~torch.isin(test, train)]
    if len(unseen):
        raise UserError(
            f"Class {int(unseen[0])} has test images but no train image, so no probe can learn it: give the "
            "train split every class of the test split."
        )
    return int(train.max()) + 1


def validation_part(labels: Tensor, share: float) -> Tensor:
    """Bool [N]: the part on which settings are picked, `share` of each class, the same at every call.

    A class keeps its first images in the fitted part, so that one too small to share is still learned.
    Raises `UserError` where no class is large enough.
    """
    held = torch.zeros(len(labels), dtype=torch.bool)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    for label in torch.unique(labels):
        of_class = order[labels[order] == label]
        number = torch.arange(1, len(of_class) + 1, dtype=torch.float64)
        held[of_class] = (number * share).floor() > ((number - 1) * share).floor()
    if not held.any():
        raise UserError(
            f"No class of the train split has the {1 / share:.0f} images that it takes to hold one out for "
            "picking settings: give the probe more labelled images."
        )
    return held
