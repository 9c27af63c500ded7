"""What the built-in feedback tasks share: examples in memory, and a linear head on frozen features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from vpt_vision.data import SourceConfig
from vpt_vision.errors import UserError
from vpt_vision.feedback.examples import Examples, Splits
from vpt_vision.feedback.task import Split
from vpt_vision.feedback.through_fit import loss_through_fit
from vpt_vision.learner.backbone import Features
from vpt_vision.linear_fit import LinearMap
from vpt_vision.schema import Config
from vpt_vision.task import Renderer


class LinearTaskConfig(Config):
    """Labelled examples that tell which tasks help; they shape the task, never the learner's weights."""

    source: SourceConfig = Field(description="labelled images, disjoint from those of the probes' test")
    weight: float = Field(1.0, gt=0, description="share of u, relative to that of other tasks")
    head_size: int = Field(1024, ge=1, description="examples that the head is fitted on")
    meta_size: int = Field(1024, ge=2, description="examples whose loss the designer tries to lower")
    heldout_size: int = Field(512, ge=1, description="examples whose loss is only reported")
    batch: int = Field(
        256,
        ge=2,
        multiple_of=2,
        description="meta examples per feedback gradient, half from each half of `meta`",
    )
    l2: float = Field(1e-2, gt=0, description="weight decay of the head on standardised features")
    folds: int = Field(
        1,
        ge=1,
        description="1: the head learns from `head` alone. More: head and meta examples are pooled and cut "
        "in so many folds, and each fold is judged by a head that learned from the others",
    )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Examples of each split, before any are pooled."""
        return self.head_size, self.meta_size, self.heldout_size


class LinearTask(ABC):
    """A `FeedbackTask` on examples in memory, with a linear head per patch or image, fitted to convergence.

    Images are seen whole at `size` pixels, without photometric change.

    Args:
        config: `splits` have its sizes.
        splits: the examples, their labels as the subclass reads them.
        renderer: makes of source images what the backbone reads.
        size: side of that, pixels.

    Raises:
        UserError: the meta split is smaller than the batch drawn from it, or there are fewer examples than
            folds.
    """

    def __init__(self, config: LinearTaskConfig, splits: Splits, *, renderer: Renderer, size: int) -> None:
        if config.folds > 1:
            pool = splits.head + splits.meta
            splits = Splits(pool, pool, splits.heldout)
        if len(splits.meta) < config.batch:
            raise UserError(
                f"the feedback's meta split holds {len(splits.meta)} examples, fewer than its batch of "
                f"{config.batch}: raise meta_size or lower batch"
            )
        if config.folds > len(splits.meta):
            raise UserError(f"feedback of {len(splits.meta)} examples cannot be cut in {config.folds} folds")
        self.config = config
        self.splits = splits
        self.renderer = renderer
        self.size = size
        # One head, or one for each fold, fitted on the others, and a last one fitted on all: [heads, K, D].
        self.heads: LinearMap | None = None

    @abstractmethod
    def read(self, features: Features) -> Tensor:
        """What the head reads of n images: fp32 [n, R, D], a row an answer."""

    @abstractmethod
    def fit_head(self, rows: Tensor, labels: Tensor, start: LinearMap | None) -> LinearMap:
        """Fit a head to `rows` [n, R, D] of examples with `labels` [n, ...], from `start`."""

    @abstractmethod
    def loss_of(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of the head's `answers` [n, R, K] to examples with `labels`."""

    def count(self, split: Split) -> int:
        """Count the examples of a split."""
        return len(self._examples(split))

    def images(self, split: Split, index: Tensor, device: torch.device) -> Tensor:
        """Return whole images, normalised fp32 [n, 3, size, size] on `device`."""
        chosen = self._examples(split)[index].images
        return self.renderer.whole(chosen.to(device, non_blocking=True), self.size)

    def fit(self, features: Features) -> None:
        """Fit every head to the features of all of `head`, beginning from the last fit."""
        rows = self.read(features)
        labels = self.splits.head.labels.to(rows.device)
        heads = []
        for number, members in enumerate(self.fitted_on()):
            there = members.to(rows.device)
            start = None if self.heads is None else LinearMap(*(part[number] for part in self.heads))
            heads.append(self.fit_head(rows[there], labels[there], start))
        self.heads = LinearMap(*(torch.stack(parts) for parts in zip(*heads, strict=True)))

    def loss(self, features: Features, split: Split, index: Tensor) -> Tensor:
        """Mean loss of examples `index`; in folds, each by the head that has not learned from it."""
        if self.heads is None:
            raise RuntimeError("the feedback's head is not fitted yet: call fit first")
        rows = self.read(features)
        labels = self._examples(split).labels[index].to(rows.device, non_blocking=True)
        if split == "heldout" or self.config.folds == 1:
            weight, bias = (part[-1:] for part in self.heads)
        else:
            fold = (index % self.config.folds).to(rows.device, non_blocking=True)
            weight, bias = (part[fold] for part in self.heads)
        return self.loss_of(rows @ weight.mT + bias[:, None], labels)

    def loss_through_fit(self, features: Features, index: Tensor, judged: Tensor) -> Tensor:
        """Return the loss of `judged` of meta examples `index`, its gradient through the fit of the heads.

        See `through_fit.loss_through_fit`. The heads learn from those of `index` in other folds.

        Args:
            features: of all of `index`.
            index: int64 [n], on the CPU.
            judged: bool [n], on the CPU.

        Raises:
            UserError: there are no folds, so that no meta example is learned from.
        """
        if self.heads is None:
            raise RuntimeError("the feedback's head is not fitted yet: call fit first")
        if self.config.folds == 1:
            raise UserError(
                "feedback.through_fit follows the heads by the meta examples that they learn from, and with "
                "one fold there are none: set folds to 2 or more"
            )
        rows = self.read(features)
        return loss_through_fit(
            self.loss_of,
            rows,
            self.splits.meta.labels[index].to(rows.device),
            (index % self.config.folds).to(rows.device),
            judged.to(rows.device),
            self.heads,
            self.config.l2,
        )

    def fitted_on(self) -> list[Tensor]:
        """Bool [head examples] for each head: whom it learns from."""
        everyone = torch.ones(len(self.splits.head), dtype=torch.bool)
        if self.config.folds == 1:
            return [everyone]
        fold = torch.arange(len(everyone)) % self.config.folds
        return [*(fold != number for number in range(self.config.folds)), everyone]

    def state_dict(self) -> dict[str, Any]:
        """Return the heads."""
        return {"heads": None if self.heads is None else self.heads._asdict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.heads = None if state["heads"] is None else LinearMap(**state["heads"])

    def _examples(self, split: Split) -> Examples:
        return getattr(self.splits, split)
