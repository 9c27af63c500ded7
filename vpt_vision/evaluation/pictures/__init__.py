"""Pictures of a run as PNG files: what the designer asks, how training went, what the features see."""

from vpt_vision.evaluation.pictures.attention import attention, attention_maps
from vpt_vision.evaluation.pictures.coverage import coverage, coverage_maps
from vpt_vision.evaluation.pictures.crops_and_masks import crops_and_masks
from vpt_vision.evaluation.pictures.curves import curves
from vpt_vision.evaluation.pictures.images import Pictured, first_images, read_images
from vpt_vision.evaluation.pictures.neighbours import neighbours, neighbours_sheet
from vpt_vision.evaluation.pictures.patch_pca import patch_pca

__all__ = [
    "Pictured",
    "attention",
    "attention_maps",
    "coverage",
    "coverage_maps",
    "crops_and_masks",
    "curves",
    "first_images",
    "neighbours",
    "neighbours_sheet",
    "patch_pca",
    "read_images",
]
