"""Gram anchoring: keep the similarities between an image's patches."""

import torch.nn.functional as F
from torch import Tensor

from vpt_vision.learner.precision import full_precision, widened


def gram_loss(student: Tensor, anchor: Tensor) -> Tensor:
    """Return the mean squared difference of the Gram matrices of patches [N, T, D], as fp32 [N].

    Per image 1/T² ‖X Xᵀ − A Aᵀ‖²_F with rows of X and A L2-normalised (DINOv3, Siméoni et al. 2025,
    section 4.2, with the mean over entries in place of the sum).
    """
    with full_precision(student.device):
        own = F.normalize(widened(student), dim=-1)
        held = F.normalize(widened(anchor), dim=-1)
        return (own @ own.mT - held @ held.mT).square().mean(dim=(1, 2))
