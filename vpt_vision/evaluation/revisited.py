"""Instance retrieval as on revisited Oxford and Paris: easy, medium and hard, without what is junk."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field

from vpt_vision.data import SourceConfig
from vpt_vision.data.fingerprint import fingerprint
from vpt_vision.data.source import Fingerprinted, Sample, Source, UnreadableSample
from vpt_vision.errors import UserError
from vpt_vision.evaluation.features import ProbeFeatures
from vpt_vision.evaluation.ground_truth import GroundTruth, Judgement
from vpt_vision.evaluation.result import Mean, ProbeResult
from vpt_vision.schema import Config

_LOG = logging.getLogger(__name__)

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


class RetrievalConfig(Config):
    """What retrieval is judged by."""

    ground_truth: Path | None = Field(
        None,
        description="of instance retrieval: gnd_roxford5k.pkl, gnd_rparis6k.pkl, or JSON of that layout; "
        "unset: images of one class are the right ones",
    )
    images: SourceConfig | None = Field(
        None,
        description="the images that the ground truth names, database and queries together; unset: "
        "evaluation.train",
    )


PROTOCOLS = {  # what is right, and what is left out, by the fields of `Judgement`
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
    "easy": (("easy",), ("junk", "hard")),
}


def instance_retrieval(
    database: ProbeFeatures, queries: ProbeFeatures, truth: GroundTruth
) -> list[ProbeResult]:
    """Mean average precision of the medium, the hard and the easy protocol (Radenović et al. 2018).

    Images are ranked by cosine similarity of CLS features. As the authors' own code has it: images that are
    junk in a protocol leave the ranking, average precision is the area under the curve of precision over
    recall by trapezoids, and queries without a right image do not count.

    Args:
        database: features of `truth.imlist`, in its order.
        queries: features of `truth.qimlist`, in its order.
        truth: what each query should find.

    Raises:
        UserError: no query has a right image.
    """
    similarity = (F.normalize(queries.cls, dim=1) @ F.normalize(database.cls, dim=1).T).numpy()
    results = []
    for protocol, (right, junk) in PROTOCOLS.items():
        precisions = {
            query: average_precision(similarity[query], _rows(judged, right), _rows(judged, junk))
            for query, judged in enumerate(truth.gnd)
            if len(_rows(judged, right))
        }
        if not precisions:
            _LOG.warning("the %s protocol is left out: no query has a right image in it", protocol)
            continue
        results.append(
            ProbeResult(
                f"instance retrieval, {protocol}",
                {"map": Mean(torch.tensor(list(precisions.values()), dtype=torch.float64))},
                torch.tensor(list(precisions)),
                details={"database_images": len(database)},
            )
        )
    if not results:
        raise UserError("no query of the ground truth has a right image: there is nothing to judge by.")
    return results


def average_precision(
    scores: NDArray[np.float32], right: NDArray[np.int64], junk: NDArray[np.int64]
) -> float:
    """Area under precision over recall by trapezoids, of images ranked by `scores` [N] without `junk`.

    The precision before a right image is that at the rank above its own, 1 at the top.
    """
    kept = np.ones(len(scores), np.bool_)
    kept[junk] = False
    wanted = np.zeros(len(scores), np.bool_)
    wanted[right] = True
    order = np.argsort(-scores[kept], kind="stable")
    ranks = np.flatnonzero(wanted[kept][order])  # from 0
    found = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    at = (found + 1) / (ranks + 1)
    return float((before + at).sum() / 2 / len(right))


def _rows(judged: Judgement, fields: Sequence[str]) -> NDArray[np.int64]:
    return np.unique(np.concatenate([np.asarray(getattr(judged, field), np.int64) for field in fields]))


class QueryBoxes:
    """The boxes of query images, each an image of its own.

    Args:
        source: reads images in full, for boxes are in their own pixels.
        rows: whose boxes they are.
        boxes: None where a query is all of its image.
    """

    classes = None

    def __init__(self, source: Source, rows: Sequence[int], boxes: Sequence[Box | None]) -> None:
        self.source = source
        self.rows = rows
        self.boxes = boxes

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        image, box = self.source[self.rows[index]].image, self.boxes[index]
        if box is not None:
            left, top, right, bottom = (max(0, round(side)) for side in box)
            image = image[top:bottom, left:right]
        if not image.numel():
            raise UnreadableSample(self.name(index), f"nothing of it lies in the query's box {box}")
        return Sample(image.contiguous(), index)

    def name(self, index: int) -> str:
        """What the source calls the image."""
        return self.source.name(self.rows[index])

    def fingerprint(self) -> str:
        """A hash of what the source holds and of the boxes."""
        assert isinstance(self.source, Fingerprinted)  # as every source that a config names
        return fingerprint(f"boxes {self.source.fingerprint()} {self.rows} {self.boxes}")


def find_images(source: Source, names: Sequence[str]) -> list[int]:
    """Numbers in `source` of the images called `names`, without folder and extension.

    Raises `UserError` where one is missing, or two have its name.
    """
    places: dict[str, list[int]] = {}
    for index in range(len(source)):
        places.setdefault(_plain(source.name(index)), []).append(index)
    found = [places.get(_plain(name), []) for name in names]
    for name, numbers in zip(names, found, strict=True):
        if len(numbers) != 1:
            many = f"{len(numbers)} images" if numbers else "no image"
            raise UserError(
                f"evaluation.retrieval.images has {many} named {name}, which the ground truth speaks of: "
                "name the folder or the shards with all of its images, each once."
            )
    return [numbers[0] for numbers in found]


def rows_of(features: ProbeFeatures, numbers: Sequence[int], names: Sequence[str]) -> ProbeFeatures:
    """The features of images `numbers` of their source, in that order; `UserError` where one is missing."""
    place = {number: row for row, number in enumerate(features.index.tolist())}
    for number, name in zip(numbers, names, strict=True):
        if number not in place:
            raise UserError(f"{name}, which the ground truth speaks of, cannot be read: mend the image.")
    return features[torch.tensor([place[number] for number in numbers])]


def _plain(name: str) -> str:
    return PurePath(name.rpartition(": ")[2]).name.partition(".")[0]
