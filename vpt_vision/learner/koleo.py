"""KoLeo: keep the features of a batch spread out."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt_vision import collectives
from vpt_vision.learner.precision import full_precision, widened

_EPSILON = 1e-8


def koleo_loss(features: Tensor) -> Tensor:
    """Return the KoLeo regulariser of one view's class tokens [B, D] as an fp32 scalar.

    -1/B Σ_i log(d_i + ε), d_i the Euclidean distance of L2-normalised row i to its nearest other row
    (Sablayrolles et al. 2019; DINOv2, Oquab et al. 2023, section 4), among the rows of all ranks.
    Always fp32: in half precision two near rows are one, and the loss is not finite.
    """
    with full_precision(features.device):
        rows = F.normalize(widened(features), dim=-1, eps=_EPSILON)
        everyone = collectives.all_gather_rows(rows)
        with torch.no_grad():
            similarity = rows @ everyone.T
            similarity.diagonal(collectives.rank() * len(rows)).fill_(-2.0)  # itself: below any cosine
            nearest = similarity.argmax(dim=1)
        distance = F.pairwise_distance(rows, everyone[nearest], eps=_EPSILON)
        return -torch.log(distance + _EPSILON).mean()
