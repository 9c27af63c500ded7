"""The law of crop boxes: torchvision's `RandomResizedCrop` on batched, keyed, bendable uniforms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vpt_vision.designers.distributions import GridPosition, Kumaraswamy
from vpt_vision.designers.recipe import CropsConfig, ViewKind
from vpt_vision.designers.streams import Stream, draw
from vpt_vision.task import Keys

ATTEMPTS = 10  # boxes tried before the central one is taken, as in torchvision


@dataclass(frozen=True)
class CropBend:
    """What a designer changes in the law of one kind of view, per image."""

    area: Kumaraswamy  # [B], of the share of the recipe's range of area
    aspect: Kumaraswamy  # [B], of the share of the recipe's range of log aspect ratio
    field: Tensor  # [B, R, C] fp32: logits, over the image, of the place that the box is drawn to

    @classmethod
    def none(cls, batch: int, device: torch.device) -> CropBend:
        """Return the recipe itself."""
        uniform = Kumaraswamy.uniform(batch, device=device)
        return cls(uniform, uniform, torch.zeros(batch, 1, 1, device=device))


class CropLaw:
    """Draws boxes for one kind of view.

    Area and log aspect ratio are uniform on their ranges; of `ATTEMPTS` pairs the first whose box fits
    in the image is taken, and its position is uniform among those inside the image. Where none fits, the
    central box of the nearest admissible aspect ratio is taken whole. Boxes are real-valued:
    torchvision rounds them to pixels.

    A position is a place in the unit square, uniform in the recipe: the box shows the image's point at that
    share of its height and width at the same share of its own. So a box drawn to a place shows it, whatever
    the box's size and however near the image's edge the place lies.
    """

    def __init__(self, config: CropsConfig, kind: ViewKind) -> None:
        self.kind = kind
        self.ratio = config.ratio

    def draw(self, keys: Keys, bend: CropBend, heights: Tensor, widths: Tensor) -> Tensor:
        """Draw boxes [V, B, 4] (top, left, height, width), fp32, in images of `heights` x `widths`."""
        tall, wide = self._attempts(keys, bend, heights, widths)
        first, any_fits = _first_fitting(tall, wide, heights, widths)
        central_height, central_width = self._central_sides(heights, widths)
        box_height = torch.where(any_fits, tall.gather(-1, first).squeeze(-1), central_height)
        box_width = torch.where(any_fits, wide.gather(-1, first).squeeze(-1), central_width)

        row, column = self._position(bend).inverse_cdf(*self._place_uniforms(keys))
        top = torch.where(any_fits, row, 0.5) * (heights - box_height)
        left = torch.where(any_fits, column, 0.5) * (widths - box_width)
        return torch.stack([top, left, box_height, box_width], dim=-1)

    def log_prob(self, keys: Keys, bend: CropBend, heights: Tensor, widths: Tensor) -> Tensor:
        """Log density [B] of what `draw` drew with the same arguments, relative to the recipe's uniform law.

        It is that of all that was drawn for a view: area and aspect of every attempt up to the one that
        was taken (of all of them where none fits), and then the position. Differentiable in the bend, what
        was drawn being held. The score of this density has the expectation that the box's own has.
        """
        with torch.no_grad():
            first, any_fits = _first_fitting(*self._attempts(keys, bend, heights, widths), heights, widths)
            last = torch.where(any_fits[..., None], first, ATTEMPTS - 1)
            heeded = torch.arange(ATTEMPTS, device=last.device) <= last  # [V, B, ATTEMPTS]
            row, column = self._position(bend).inverse_cdf(*self._place_uniforms(keys))
        drawn = self._position(bend).log_prob(row, column) * any_fits
        for law, stream in ((bend.area, Stream.AREA), (bend.aspect, Stream.ASPECT)):
            log_x = law[:, None].log_inverse_cdf(draw(keys, stream, self.kind, ATTEMPTS)).detach()
            drawn = drawn + (law[:, None].log_prob(log_x) * heeded).sum(-1)
        return drawn.sum(0).float()

    def entropy(self, bend: CropBend) -> Tensor:
        """Entropy [B] in nats less the recipe's: minus `kl`, for what the recipe draws is uniform."""
        return -self.kl(bend)

    def kl(self, bend: CropBend) -> Tensor:
        """KL [B] to the recipe of one attempt's area and aspect and of the position, over all views.

        It is the box's own where every attempt fits; what turning attempts down does is not counted.
        """
        position = GridPosition(bend.field).kl_to_uniform()
        return self.kind.views * (bend.area.kl_to_uniform() + bend.aspect.kl_to_uniform() + position)

    def describe(self, bend: CropBend) -> dict[str, Tensor]:
        """Batch means of an attempt's share of the area and of its log aspect ratio; spread of the field."""
        low, high = self.kind.scale
        low_log, high_log = (math.log(ratio) for ratio in self.ratio)
        return {
            "scale": low + (high - low) * bend.area.mean().mean(),
            "log_aspect": low_log + (high_log - low_log) * bend.aspect.mean().mean(),
            "position_spread": bend.field.flatten(1).std(-1, correction=0).mean(),
        }

    def _attempts(self, keys: Keys, bend: CropBend, heights: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
        """Heights and widths in pixels of the boxes that are tried, each [V, B, ATTEMPTS]."""
        area = bend.area[:, None].inverse_cdf(draw(keys, Stream.AREA, self.kind, ATTEMPTS))
        aspect = bend.aspect[:, None].inverse_cdf(draw(keys, Stream.ASPECT, self.kind, ATTEMPTS))
        return self._sides(area, aspect, heights[:, None], widths[:, None])

    def _place_uniforms(self, keys: Keys) -> tuple[Tensor, Tensor]:
        row, column = (draw(keys, stream, self.kind).squeeze(-1) for stream in (Stream.ROW, Stream.COLUMN))
        return row, column

    def _position(self, bend: CropBend) -> GridPosition:
        return GridPosition(bend.field.expand(self.kind.views, *bend.field.shape))

    def _sides(self, area: Tensor, aspect: Tensor, heights: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
        """Box heights and widths in pixels of shares in [0, 1] of the ranges of area and log aspect."""
        low, high = self.kind.scale
        low_log, high_log = (math.log(ratio) for ratio in self.ratio)
        side = torch.sqrt((low + (high - low) * area) * (heights * widths))
        stretch = torch.exp(0.5 * (low_log + (high_log - low_log) * aspect))
        return side / stretch, side * stretch

    def _central_sides(self, heights: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
        narrowest, widest = self.ratio
        tall, wide = heights.double(), widths.double()
        return torch.minimum(tall, wide / narrowest).float(), torch.minimum(wide, tall * widest).float()


def _first_fitting(tall: Tensor, wide: Tensor, heights: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
    """Find which of the boxes tried [V, B, ATTEMPTS] fits first, [V, B, 1], and whether any does, [V, B]."""
    fits = (tall <= heights[:, None]) & (wide <= widths[:, None])
    return fits.int().argmax(-1, keepdim=True), fits.any(-1)  # the first of equal maxima
