"""Segmentation feedback: the class of each pixel, by logistic regression on its patch."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from vpt_vision.data import Sample, Source
from vpt_vision.errors import UserError
from vpt_vision.feedback.examples import Examples, Splits, read_splits
from vpt_vision.feedback.linear import LinearTask, LinearTaskConfig
from vpt_vision.feedback.patches import patchify
from vpt_vision.learner.backbone import Features
from vpt_vision.linear_fit import LinearMap
from vpt_vision.logistic import cross_entropy, fit_logistic
from vpt_vision.task import Renderer

_LOG = logging.getLogger(__name__)


class SegmentationConfig(LinearTaskConfig):
    """The class of each pixel."""

    kind: Literal["segmentation"] = Field(description="the class of each pixel")
    ignore: tuple[int, ...] = Field(
        (255,), description="values of the maps that are no class, such as 255, or 0 in ADE20K"
    )


class SegmentationFeedback(LinearTask):
    """L_down: cross-entropy over pixels, in nats, of a head that gives all pixels of a patch one answer.

    Only the shares of the classes among a patch's pixels then matter, and the loss is that of every pixel
    without a map of logits. Pixels to ignore do not count, nor do those of classes that no head learns: these
    are named in the log.

    Labels are integers [N, T, P²]: the pixels of each patch.

    Raises:
        UserError: as `LinearTask`; a label is negative and not ignored; no pixel is left to learn from.
    """

    config: SegmentationConfig

    def __init__(self, config: SegmentationConfig, splits: Splits, *, renderer: Renderer, size: int) -> None:
        super().__init__(config, splits, renderer=renderer, size=size)
        learned = [
            set(torch.unique(self.splits.head.labels[members]).tolist()) for members in self.fitted_on()
        ]
        self.classes = sorted(set.intersection(*learned) - set(config.ignore))
        if not self.classes:
            raise UserError(
                f"no pixel of the feedback's head split has a class besides those ignored, {config.ignore}"
            )
        if self.classes[0] < 0:
            raise UserError(
                f"a segmentation map holds {self.classes[0]}: classes are 0 or above, and what is none "
                "belongs into 'ignore'"
            )
        present = set().union(*(torch.unique(split.labels).tolist() for split in self.splits))
        if missed := sorted(present - set(self.classes) - set(config.ignore)):
            _LOG.warning("segmentation feedback: no head learns the classes %s; they do not count", missed)
        numbers = torch.full((1 + max(present),), len(self.classes), dtype=torch.int16)
        numbers[self.classes] = torch.arange(len(self.classes), dtype=torch.int16)
        self.splits = Splits(*(_renumber(split, numbers) for split in self.splits))

    @classmethod
    def from_source(
        cls,
        config: SegmentationConfig,
        source: Source,
        *,
        renderer: Renderer,
        size: int,
        patch_size: int,
        seed: int,
    ) -> SegmentationFeedback:
        """Read examples of `source`; raises `UserError` where it has too few images or no maps."""

        def label(sample: Sample) -> Tensor:
            if sample.segmentation is None:
                raise UserError(
                    f"image {sample.index} of its source has no segmentation map: name a source that has "
                    "them, such as a folder with x.seg.png beside x.jpg"
                )
            return patchify(sample.segmentation.to(torch.int16), size, patch_size)

        splits = read_splits(source, config.sizes, seed, label)
        return cls(config, splits, renderer=renderer, size=size)

    def read(self, features: Features) -> Tensor:
        """Patch tokens, [n, T, D]."""
        return features.patches.float()

    def fit_head(self, rows: Tensor, labels: Tensor, start: LinearMap | None) -> LinearMap:
        """Logistic regression of patches on their shares."""
        shares = self._shares(labels).flatten(0, 1)
        return fit_logistic(rows.flatten(0, 1), shares, len(self.classes), l2=self.config.l2, start=start)

    def loss_of(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy over the pixels that count."""
        return cross_entropy(answers.flatten(0, 1), self._shares(labels).flatten(0, 1))

    def _shares(self, labels: Tensor) -> Tensor:
        """Share of each class among the pixels of a patch, fp32 [n, T, C]; they sum to 1 or less."""
        shares = torch.zeros(*labels.shape[:2], len(self.classes) + 1, device=labels.device)
        one = shares.new_full((1, 1, 1), 1 / labels.shape[2]).expand(labels.shape)
        return shares.scatter_add_(2, labels.long(), one)[..., :-1]


def _renumber(examples: Examples, numbers: Tensor) -> Examples:
    """Number the classes that count from 0 in their order; all other values become their number."""
    return Examples(examples.images, numbers[examples.labels.long()])
