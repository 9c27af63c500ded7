"""Retrieval: rank a database by similarity to each query, and judge the rankings."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vpt_vision.errors import UserError
from vpt_vision.evaluation.features import ProbeFeatures
from vpt_vision.evaluation.result import Mean, ProbeResult

_AT_ONCE = 512  # queries ranked at a time


def retrieval(database: ProbeFeatures, queries: ProbeFeatures) -> ProbeResult:
    """Mean average precision where the images of a query's class are the right ones.

    Where a class is one object or place, that is instance retrieval; of CIFAR-10's classes it is not.
    Images are ranked by cosine similarity of CLS features. Average precision is the mean of the precision at
    each right image's rank (scikit-learn's). Queries whose class the database lacks do not count; raises
    `UserError` where none is left.
    """
    counts = torch.isin(queries.labels, database.labels)
    if not counts.any():
        raise UserError("no query's class occurs in the database: name sources of the same classes.")
    asked = queries[counts]
    right = {label: (database.labels == label).numpy() for label in torch.unique(asked.labels).tolist()}
    precisions = []
    for rows in torch.split(torch.arange(len(asked)), _AT_ONCE):
        similarity = _similarity(asked.cls[rows], database.cls).numpy()
        for scores, label in zip(similarity, asked.labels[rows].tolist(), strict=True):
            precisions.append(average_precision(scores, right[label]))
    return ProbeResult(
        "class retrieval",
        {"map": Mean(torch.tensor(precisions, dtype=torch.float64))},
        asked.index,
        details={"database_images": len(database)},
    )


def average_precision(scores: NDArray[np.float32], right: NDArray[np.bool_]) -> float:
    """Mean precision at each right image's rank, among images of `scores` [N] of which some are `right` [N].

    As scikit-learn's `average_precision_score`: images of one score are retrieved together. At least one
    image must be right.
    """
    every, hits = np.sort(scores), np.sort(scores[right])
    retrieved = len(every) - np.searchsorted(every, hits)  # at or above each hit's score
    found = len(hits) - np.searchsorted(hits, hits)
    return float((found / retrieved).mean())


def _similarity(queries: Tensor, database: Tensor) -> Tensor:
    return F.normalize(queries, dim=1) @ F.normalize(database, dim=1).T
