"""Classification feedback: the image's class, by logistic regression on its features."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from vpt_vision.data import Sample, Source
from vpt_vision.errors import UserError
from vpt_vision.feedback.examples import Splits, read_splits
from vpt_vision.feedback.linear import LinearTask, LinearTaskConfig
from vpt_vision.learner.backbone import Features
from vpt_vision.linear_fit import LinearMap
from vpt_vision.logistic import check_labels, cross_entropy, fit_logistic
from vpt_vision.task import Renderer


class ClassificationConfig(LinearTaskConfig):
    """The class of each image."""

    kind: Literal["classification"] = Field("classification", description="the class of each image")
    features: Literal["cls", "cls+mean_patch"] = Field(
        "cls",
        description="what the head reads: CLS token alone, or CLS token and mean patch token side by side",
    )


class ClassificationFeedback(LinearTask):
    """L_down: cross-entropy of a logistic regression, in nats. Labels are int64 [N].

    Raises:
        UserError: as `LinearTask`; a label is out of range; a class has no example that its head learns from.
    """

    config: ClassificationConfig

    def __init__(
        self, config: ClassificationConfig, splits: Splits, classes: int, *, renderer: Renderer, size: int
    ) -> None:
        super().__init__(config, splits, renderer=renderer, size=size)
        self.classes = classes
        for split in self.splits:
            check_labels(split.labels, classes, "the feedback examples")
        for members in self.fitted_on():
            learned = self.splits.head.labels[members]
            absent = (torch.bincount(learned, minlength=classes) == 0).nonzero()
            if len(absent):
                raise UserError(
                    f"class {int(absent[0])} has no example among the {len(learned)} of the feedback's head "
                    "split: raise head_size, or give more examples of that class"
                )

    @classmethod
    def from_source(
        cls, config: ClassificationConfig, source: Source, *, renderer: Renderer, size: int, seed: int
    ) -> ClassificationFeedback:
        """Read examples of `source`; raises `UserError` where it has no class labels or too few images."""
        if source.classes is None:
            raise UserError("its source has no class labels: name a labelled source for the feedback")
        splits = read_splits(source, config.sizes, seed, _label)
        return cls(config, splits, len(source.classes), renderer=renderer, size=size)

    def read(self, features: Features) -> Tensor:
        """Class token, with the mean patch beside it if configured: [n, 1, D]."""
        cls = features.cls.float()
        if self.config.features == "cls+mean_patch":
            cls = torch.cat([cls, features.patches.float().mean(1)], dim=1)
        return cls[:, None]

    def fit_head(self, rows: Tensor, labels: Tensor, start: LinearMap | None) -> LinearMap:
        """Logistic regression."""
        return fit_logistic(rows[:, 0], labels, self.classes, l2=self.config.l2, start=start)

    def loss_of(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy."""
        return cross_entropy(answers[:, 0], labels)


def _label(sample: Sample) -> Tensor:
    if sample.label is None:
        raise UserError(f"image {sample.index} of its source has no label: label it or take it out")
    return torch.tensor(sample.label)
