"""Frozen features of a labelled source, extracted once and read by every probe."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vpt_vision.data.source import Sample, Source, UnreadableSample
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

    Raises `UserError` where an image has no label or the source has no readable image. An unreadable
    image is skipped and named in the log.
    """
    device = next(backbone.parameters()).device
    loader = DataLoader(_Readable(source), batch_size, num_workers=workers, collate_fn=_readable_batch)
    cls: list[Tensor] = []
    mean_patch: list[Tensor] = []
    labels: list[int] = []
    index: list[int] = []
    with evaluating(backbone), torch.no_grad():
        for samples in loader:
            if not samples:
                continue
            images = torch.stack([sample.image for sample in samples])
            features = backbone(renderer.whole(images.to(device), size))
            cls.append(features.cls.float().cpu())
            mean_patch.append(features.patches.float().mean(1).cpu())
            labels.extend(_label(sample) for sample in samples)
            index.extend(sample.index for sample in samples)
    unreadable = len(source) - len(labels)
    if not labels or unreadable > max_unreadable * len(source):
        raise UserError(
            f"{unreadable} of the {len(source)} images to probe on cannot be read: mend them (the log names "
            "each), or raise evaluation.max_unreadable."
        )
    return ProbeFeatures(
        cls=torch.cat(cls),
        mean_patch=torch.cat(mean_patch),
        labels=torch.tensor(labels),
        index=torch.tensor(index),
    )


class _Readable(Dataset[Sample | None]):
    """A source as a map-style data set, with None in the place of an unreadable image."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample | None:
        try:
            return self.source[index]
        except UnreadableSample as error:
            _LOG.warning("Skipped an unreadable image: %s", error)
            return None


def _readable_batch(samples: Sequence[Sample | None]) -> list[Sample]:
    return [sample for sample in samples if sample is not None]


def _label(sample: Sample) -> int:
    if sample.label is None:
        raise UserError(
            f"Image {sample.index} of the source has no class label, which a probe needs: name a labelled "
            "source under 'evaluation'."
        )
    return sample.label
