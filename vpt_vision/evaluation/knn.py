"""Weighted k-nearest-neighbour probe, as published with DINO."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from vpt_vision.errors import UserError
from vpt_vision.evaluation.features import ProbeFeatures
from vpt_vision.evaluation.result import ProbeResult

_CHUNK = 1024  # test images compared with the whole train split at a time


def knn(
    train: ProbeFeatures,
    test: ProbeFeatures,
    *,
    neighbours: Sequence[int] = (10, 20),
    temperature: float = 0.07,
) -> list[ProbeResult]:
    """Classify each test image by its nearest train images, once for every k in `neighbours`.

    On the CLS features, as in DINO (Caron et al. 2021, section 4.1, after Wu et al. 2018): the k train
    images of highest cosine similarity s vote for their class with weight exp(s / temperature). A k above
    the number of train images is left out; raises `UserError` where none is left.
    """
    usable = [k for k in neighbours if k <= len(train)]
    if not usable:
        raise UserError(
            f"A kNN probe with k = {min(neighbours)} needs as many train images, but there are {len(train)}: "
            "give it more, or a smaller k."
        )
    bank = F.normalize(train.cls, dim=1)
    queries = F.normalize(test.cls, dim=1)
    classes = int(train.labels.max()) + 1
    predicted: dict[int, list[torch.Tensor]] = {k: [] for k in usable}
    for chunk in torch.split(queries, _CHUNK):
        similarity, nearest = (chunk @ bank.T).topk(max(usable), dim=1)
        weights = (similarity / temperature).exp()
        labels = train.labels[nearest]
        for k in usable:
            votes = weights.new_zeros(len(chunk), classes).scatter_add_(1, labels[:, :k], weights[:, :k])
            predicted[k].append(votes.argmax(1))
    return [
        ProbeResult.of_classes(f"kNN, k = {k}", torch.cat(predicted[k]) == test.labels, None, test.index)
        for k in usable
    ]
