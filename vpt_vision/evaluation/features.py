"""Frozen features of a labelled source, extracted once and read by every probe."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

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

    Each image is resized from its full box with antialiasing, by the renderer that training uses,
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
        for samples, unreadable in batches:
            for skipped in unreadable:
                _LOG.warning("Skipped an unreadable image: %s", skipped)
            if not samples:
                continue
            images = torch.stack([sample.image for sample in samples])
            features = backbone(renderer.whole(images.to(device), size))
            cls.append(features.cls.float().cpu())
            mean_patch.append(features.patches.float().mean(1).cpu())
            labels.extend(_label(sample) for sample in samples)
            index.extend(sample.index for sample in samples)
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
        read = _Read([], [])
        for index in range(first, min(first + self.batch_size, len(self.source))):
            watch.reading(index)
            try:
                read.samples.append(self.source[index])
            except UnreadableSample as error:
                read.unreadable.append(str(error))
        return read


class _Read(NamedTuple):
    """What came of some samples."""

    samples: list[Sample]
    unreadable: list[str]


def _label(sample: Sample) -> int:
    if sample.label is None:
        raise UserError(
            f"Image {sample.index} of the source has no class label, which a probe needs: name a labelled "
            "source under 'evaluation'."
        )
    return sample.label
