"""Kernels of self-supervised vision: keyed randomness, views, masks, targets and the masked loss.

Each function stands in the file of its name. All work on any device by plain torch operations and never
wait for the device; they import nothing but torch, so they serve any DINO-like trainer.
"""

from .block_masks import block_masks
from .masked_distillation_loss import masked_distillation_loss
from .photometrics import Photometrics
from .random import keyed_uniform
from .render_views import render_views
from .sample_masks import MaskSample, sample_masks
from .sinkhorn_potentials import Potentials, centre_potentials, sinkhorn_potentials

__all__ = [
    "MaskSample",
    "Photometrics",
    "Potentials",
    "block_masks",
    "centre_potentials",
    "keyed_uniform",
    "masked_distillation_loss",
    "render_views",
    "sample_masks",
    "sinkhorn_potentials",
]
