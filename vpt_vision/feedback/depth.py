"""Depth feedback: the distance of each patch, by linear regression."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from vpt_vision.data import Sample, Source
from vpt_vision.errors import UserError
from vpt_vision.feedback.examples import Splits, read_splits
from vpt_vision.feedback.linear import LinearTask, LinearTaskConfig
from vpt_vision.feedback.patches import patchify
from vpt_vision.learner.backbone import Features
from vpt_vision.linear_fit import LinearMap
from vpt_vision.regression import fit_scale_invariant, fit_smooth_l1, scale_invariant_error, smooth_l1
from vpt_vision.task import Renderer

SHARE = 0.5  # λ of the scale-invariant error (Eigen et al. 2014)
BETA = 0.1  # metres: below it the absolute error is a parabola, so that it has a gradient

Metres = Annotated[float, Field(gt=0)]


class DepthConfig(LinearTaskConfig):
    """The depth of each pixel."""

    kind: Literal["depth"] = Field(description="the depth of each pixel")
    loss: Literal["silog", "l1"] = Field(
        "silog",
        description="silog: scale-invariant error of log depth (Eigen et al. 2014, λ = 0.5); l1: absolute "
        "error in metres, smooth below 0.1",
    )
    depth_range: tuple[Metres, Metres] = Field(
        (1e-3, 1e3), description="metres; what lies outside is unknown, such as (0.001, 10) for NYU Depth v2"
    )


class DepthFeedback(LinearTask):
    """L_down: error of a linear head on a patch, against the mean over the patch's pixels of known depth.

    With `silog` both are of log depth, with `l1` in metres; a patch counts by its share of known pixels.

    Labels are fp32 [N, T, 2]: that mean and that share.

    Raises:
        UserError: as `LinearTask`; no pixel of the head split has a known depth.
    """

    config: DepthConfig

    def __init__(self, config: DepthConfig, splits: Splits, *, renderer: Renderer, size: int) -> None:
        super().__init__(config, splits, renderer=renderer, size=size)
        for members in self.fitted_on():
            if not self.splits.head.labels[members][..., 1].any():
                raise UserError(
                    "no pixel of the feedback's head split has a depth within {} to {} metres: look at the "
                    "maps' unit, or widen depth_range".format(*config.depth_range)
                )

    @classmethod
    def from_source(
        cls,
        config: DepthConfig,
        source: Source,
        *,
        renderer: Renderer,
        size: int,
        patch_size: int,
        seed: int,
    ) -> DepthFeedback:
        """Read examples of `source`; raises `UserError` where it has too few images or no maps."""

        def label(sample: Sample) -> Tensor:
            if sample.depth is None:
                raise UserError(
                    f"image {sample.index} of its source has no depth map: name a source that has them, "
                    "such as a folder with x.depth.png beside x.jpg"
                )
            return patch_depths(patchify(sample.depth, size, patch_size), config)

        splits = read_splits(source, config.sizes, seed, label)
        return cls(config, splits, renderer=renderer, size=size)

    def read(self, features: Features) -> Tensor:
        """Patch tokens, [n, T, D]."""
        return features.patches.float()

    def fit_head(self, rows: Tensor, labels: Tensor, start: LinearMap | None) -> LinearMap:
        """Linear regression of patches."""
        targets, weights = labels.unbind(-1)
        if self.config.loss == "silog":
            return fit_scale_invariant(rows, targets, weights, share=SHARE, l2=self.config.l2)
        return fit_smooth_l1(rows, targets, weights, beta=BETA, l2=self.config.l2, start=start)

    def loss_of(self, answers: Tensor, labels: Tensor) -> Tensor:
        """Mean error of the patches."""
        targets, weights = labels.unbind(-1)
        if self.config.loss == "silog":
            return scale_invariant_error(answers[..., 0], targets, weights, share=SHARE)
        return smooth_l1(answers[..., 0], targets, weights, beta=BETA)


def patch_depths(depths: Tensor, config: DepthConfig) -> Tensor:
    """Reduce `depths` [T, P²] in metres to each patch's mean and known share, [T, 2].

    For `silog` the mean is of logarithms. What is 0, not finite or outside `depth_range` is unknown; a patch
    without known pixels has mean 0.
    """
    low, high = config.depth_range
    known = (depths >= low) & (depths <= high)
    values = torch.where(known, depths, 1.0)
    if config.loss == "silog":
        values = values.log()
    count = known.sum(1)
    return torch.stack([(known * values).sum(1) / count.clamp(min=1), count / depths.shape[1]], dim=1)
