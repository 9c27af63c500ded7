"""Pictures of a run as PNG files: what the designer asks, how training went, what the features see."""

from vpt_vision.evaluation.pictures.crops_and_masks import crops_and_masks
from vpt_vision.evaluation.pictures.curves import curves
from vpt_vision.evaluation.pictures.patch_pca import patch_pca

__all__ = ["crops_and_masks", "curves", "patch_pca"]
