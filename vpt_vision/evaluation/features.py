"""Frozen features of a labelled source, extracted once and read by every probe."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vpt_vision.data.batch import Batch, Unreadable
from vpt_vision.data.source import Sample, Source, UnreadableSample
from vpt_vision.data.workers import Watch, read_ahead
from vpt_vision.errors import UserError
from vpt_vision.feedback.evaluating import evaluating
from vpt_vision.learner.backbone import Backbone
from vpt_vision.task import Renderer

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeFeatures:
    """What a probe reads: features and labels of N images, on the CPU."""

    cls: Tensor  # [N, D] fp32: CLS token after the final norm
    mean_patch: Tensor  # [N, D] fp32: mean of the patch tokens after the final norm
    labels: Tensor  # [N] int64
    index: Tensor  # [N] int64: each image's number in its source

    def __len__(self) -> int:
        return len(self.labels)


def extract(
    backbone: Backbone,
    source: Source,
    renderer: Renderer,
    size: int,
    *,
    batch_size: int = 256,
    workers: int = 0,
    max_unreadable: float = 0.01,
) -> ProbeFeatures:
    """Features of every readable image of `source`, seen whole at `size` pixels.

    The largest centred square of each is resized with antialiasing, by the renderer that training uses,
    without photometric change. The backbone runs in eval mode, in fp32, where its parameters lie;
    its mode is put back afterwards. `workers` processes decode the images (0: this one).

    Raises `UserError` where an image has no label, the source has no readable image, or a worker died. An
    unreadable image is skipped and named in the log.
    """
    device = next(backbone.parameters()).device
    batches = read_ahead(
        _Reader(source, batch_size), range(0, len(source), batch_size), workers=workers, name=source.name
    )
    cls: list[Tensor] = []
    mean_patch: list[Tensor] = []
    labels: list[int] = []
    index: list[int] = []
    with evaluating(backbone), torch.no_grad():
        for batch, batch_labels in batches:
            for skipped in batch.unreadable:
                _LOG.warning("Skipped an unreadable image: %s", skipped)
            if not batch.size:
                continue
            features = backbone(renderer.whole(batch.images.to(device), size))
            cls.append(features.cls.float().cpu())
            mean_patch.append(features.patches.float().mean(1).cpu())
            labels.extend(batch_labels)
            index.extend(batch.index.tolist())
    lost = len(source) - len(labels)
    if not labels or lost > max_unreadable * len(source):
        raise UserError(
            f"{lost} of the {len(source)} images to probe on cannot be read: mend them (the log names "
            "each), or raise evaluation.max_unreadable."
        )
    return ProbeFeatures(
        cls=torch.cat(cls),
        mean_patch=torch.cat(mean_patch),
        labels=torch.tensor(labels),
        index=torch.tensor(index),
    )


class _Reader:
    """Reads some of a source's samples, in whatever process."""

    def __init__(self, source: Source, batch_size: int) -> None:
        self.source = source
        self.batch_size = batch_size

    def __call__(self, first: int, watch: Watch) -> _Read:
        samples: list[Sample] = []
        unreadable: list[Unreadable] = []
        for index in range(first, min(first + self.batch_size, len(self.source))):
            watch.reading(index)
            try:
                samples.append(self.source[index])
            except UnreadableSample as error:
                unreadable.append(Unreadable(error.name, error.reason, error.shard))
        return _Read(Batch.of(samples, unreadable), [_label(sample) for sample in samples])


class _Read(NamedTuple):
    """What came of some samples."""

    batch: Batch
    labels: list[int]


def _label(sample: Sample) -> int:
    if sample.label is None:
        raise UserError(
            f"Image {sample.index} of the source has no class label, which a probe needs: name a labelled "
            "source under 'evaluation'."
        )
    return sample.label
