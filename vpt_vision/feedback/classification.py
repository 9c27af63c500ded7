"""Classification feedback: a linear head on frozen features, and its loss."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from vpt_vision.data import SourceConfig
from vpt_vision.errors import UserError
from vpt_vision.feedback.evaluating import evaluating
from vpt_vision.feedback.examples import Examples, Splits
from vpt_vision.learner.backbone import Backbone, Features
from vpt_vision.logistic import Logistic, fit_logistic
from vpt_vision.schema import Config
from vpt_vision.task import Renderer


class FeedbackConfig(Config):
    """Labelled examples that tell which tasks help; they shape the task, never the learner's weights."""

    source: SourceConfig = Field(description="labelled images, disjoint from those of the probes' test")
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
    refit_every: int = Field(1, ge=1, description="feedback gradients taken between two fits of the head")
    ema: float = Field(0.9, ge=0, lt=1, description="decay of the feedback gradient's moving average")
    features: Literal["cls", "cls+mean_patch"] = Field(
        "cls",
        description="what the head reads: CLS token alone, or CLS token and mean patch token side by side",
    )


class ClassificationFeedback:
    """Downstream loss L_down: cross-entropy of a logistic regression on the backbone's features.

    The head is fitted to convergence on the `head` split. At its optimum the gradient of L_down with
    respect to the backbone alone is that of the best head's loss (envelope theorem), which a
    half-trained head does not give.

    Images are seen whole at `size` pixels, without photometric change, by a backbone in eval mode.

    Raises:
        UserError: the meta split is smaller than the batch drawn from it.
    """

    def __init__(
        self, config: FeedbackConfig, splits: Splits, classes: int, *, renderer: Renderer, size: int
    ) -> None:
        if len(splits.meta) < config.batch:
            raise UserError(
                f"the feedback's meta split holds {len(splits.meta)} examples, fewer than its batch of "
                f"{config.batch}: raise meta_size or lower batch"
            )
        self.config = config
        self.splits = splits
        self.classes = classes
        self.renderer = renderer
        self.size = size
        self.head: Logistic | None = None

    def fit_head(self, backbone: Backbone) -> None:
        """Fit the head to `backbone` as it stands, beginning from the last fit (waits for the device)."""
        features = self._features(backbone, self.splits.head)
        labels = self.splits.head.labels.to(features.device)
        self.head = fit_logistic(features, labels, self.classes, l2=self.config.l2, start=self.head)

    def heldout_loss(self, backbone: Backbone) -> Tensor:
        """Mean cross-entropy of the head on the `heldout` split; a scalar on the device."""
        return self.loss(self._features(backbone, self.splits.heldout), self.splits.heldout.labels)

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of the head on pooled `features` [N, D']; differentiable in them."""
        if self.head is None:
            raise RuntimeError("the feedback's head is not fitted yet: call fit_head first")
        return F.cross_entropy(self.head(features), labels.to(features.device, non_blocking=True))

    def pool(self, features: Features) -> Tensor:
        """Reduce a backbone's output to what the head reads: [N, D] or [N, 2 D], fp32."""
        cls = features.cls.float()
        if self.config.features == "cls":
            return cls
        return torch.cat([cls, features.patches.float().mean(1)], dim=1)

    def render(self, images: Tensor, device: torch.device) -> Tensor:
        """Whole uint8 `images` [N, 3, H, W] as normalised fp32 [N, 3, size, size] on `device`."""
        return self.renderer.whole(images.to(device, non_blocking=True), self.size)

    def _features(self, backbone: Backbone, examples: Examples) -> Tensor:
        """Pooled features [N, D'] of `examples`, without gradient."""
        device = backbone.mask_token.device
        with torch.no_grad(), evaluating(backbone):
            return torch.cat(
                [
                    self.pool(backbone(self.render(images, device), None))
                    for images in torch.split(examples.images, self.config.batch)
                ]
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the head."""
        return {"head": None if self.head is None else self.head._asdict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.head = None if state["head"] is None else Logistic(**state["head"])
