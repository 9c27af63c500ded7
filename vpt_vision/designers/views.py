"""The law of one kind of view: its crops, flips and photometrics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vpt_vision.designers.crops import CropBend, CropLaw
from vpt_vision.designers.photometrics import PhotometricBend, PhotometricLaw
from vpt_vision.designers.recipe import RecipeConfig, ViewKind
from vpt_vision.task import Keys, Views


@dataclass(frozen=True)
class ViewBend:
    """What a designer changes in the law of one kind of view."""

    crops: CropBend
    photometrics: PhotometricBend

    @classmethod
    def none(cls, batch: int, device: torch.device) -> ViewBend:
        """Return the recipe itself."""
        return cls(CropBend.none(batch, device), PhotometricBend.none(batch, device))


class ViewLaw(nn.Module):
    """Draws the global or the local views of a batch."""

    def __init__(self, recipe: RecipeConfig, kind: ViewKind) -> None:
        super().__init__()
        self.kind = kind
        self.crops = CropLaw(recipe.crops, kind)
        self.photometrics = PhotometricLaw(recipe.photometrics, kind)

    def draw(self, keys: Keys, bend: ViewBend, heights: Tensor, widths: Tensor) -> Views:
        """Draw V views of each of B images of `heights` x `widths` pixels, all on one device."""
        boxes = self.crops.draw(keys, bend.crops, heights, widths)
        drawn = self.photometrics.draw(keys, bend.photometrics)
        return Views(self.kind.size, boxes, drawn.flips, drawn.photometrics)
