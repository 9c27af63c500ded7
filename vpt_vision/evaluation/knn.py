"""Weighted k-nearest-neighbour probe, as published with DINO."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from vpt_vision.errors import UserError
from vpt_vision.evaluation.features import ProbeFeatures
from vpt_vision.evaluation.result import ProbeResult

_LOG = logging.getLogger(__name__)

_SIMILARITIES = 2**26  # held at a time


def knn(
    train: ProbeFeatures,
    test: ProbeFeatures,
    *,
    neighbours: Sequence[int] = (10, 20, 100),
    temperature: float = 0.07,
    device: torch.device | None = None,
) -> list[ProbeResult]:
    """Classify each test image by its nearest train images, once for every k in `neighbours`.

    On the CLS features, as in DINO (Caron et al. 2021, section 4.1, after Wu et al. 2018): the k train
    images of highest cosine similarity s vote for their class with weight exp(s / temperature). A k above
    the number of train images is left out, which the log says; raises `UserError` where none is left.
    Similarities are computed in fp32 on `device` (the CPU where it is None).
    """
    usable = [k for k in neighbours if k <= len(train)]
    if not usable:
        raise UserError(
            f"A kNN probe with k = {min(neighbours)} needs as many train images, but there are {len(train)}: "
            "give it more, or a smaller k."
        )
    for k in set(neighbours) - set(usable):
        _LOG.warning("kNN with k = %d is left out: there are only %d train images", k, len(train))
    bank = F.normalize(train.cls.to(device), dim=1)
    queries = F.normalize(test.cls.to(device), dim=1)
    train_labels = train.labels.to(device)
    classes = int(train.labels.max()) + 1
    predicted: dict[int, list[torch.Tensor]] = {k: [] for k in usable}
    for chunk in torch.split(queries, max(1, _SIMILARITIES // len(bank))):
        similarity, nearest = (chunk @ bank.T).topk(max(usable), dim=1)
        weights = (similarity / temperature).exp()
        labels = train_labels[nearest]
        for k in usable:
            votes = weights.new_zeros(len(chunk), classes).scatter_add_(1, labels[:, :k], weights[:, :k])
            predicted[k].append(votes.argmax(1).cpu())
    return [
        ProbeResult.of_classes(f"kNN, k = {k}", torch.cat(predicted[k]) == test.labels, None, test.index)
        for k in usable
    ]
