"""Kernels of self-supervised vision: keyed randomness, views, masks, targets and losses.

Each function stands in the file of its name, beside the plain torch reference that the CPU runs; CUDA
tensors go to the Triton kernels in `triton/`. No function waits for the device. All are torch operators with
gradients and work under `torch.compile(fullgraph=True)`. Nothing but torch and Triton is imported, Triton
only when a CUDA tensor first comes, so they serve any DINO-like trainer.
"""

from .blend_views import Blend, blend_views
from .block_masks import block_masks
from .masked_distillation_loss import masked_distillation_loss
from .packed_images import PackedImages
from .packing import PackedMasks, pack_masks
from .photometrics import Photometrics
from .plackett_luce import plackett_luce_log_prob
from .prototype_loss import prototype_centre_potentials, prototype_loss, prototype_potentials
from .random import keyed_uniform
from .render_views import render_views
from .sample_masks import MaskSample, sample_masks
from .sinkhorn_potentials import Potentials, centre_potentials, sinkhorn_potentials

__all__ = [
    "Blend",
    "MaskSample",
    "PackedImages",
    "PackedMasks",
    "Photometrics",
    "Potentials",
    "blend_views",
    "block_masks",
    "centre_potentials",
    "keyed_uniform",
    "masked_distillation_loss",
    "pack_masks",
    "plackett_luce_log_prob",
    "prototype_centre_potentials",
    "prototype_loss",
    "prototype_potentials",
    "render_views",
    "sample_masks",
    "sinkhorn_potentials",
]
