"""The fixed recipe's settings: crops, photometrics and masks of DINOv2/DINOv3 by default."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from vpt_vision.schema import Config


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower end {bounds[0]} lies above the upper end {bounds[1]}")
    return bounds


Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]
ProbabilityRange = Annotated[tuple[Probability, Probability], AfterValidator(_ordered)]
ShareRange = Annotated[tuple[Share, Share], AfterValidator(_ordered)]


class CropsConfig(Config):
    """Multi-crop: square views of two sizes, each from a random box of the source image."""

    global_size: int = Field(224, ge=1, description="side of a global view, pixels")
    global_scale: ShareRange = Field((0.32, 1.0), description="a global view's share of the source's area")
    global_views: int = Field(2, ge=1, description="global views of each image")
    local_size: int = Field(96, ge=1, description="side of a local view, pixels")
    local_scale: ShareRange = Field((0.05, 0.32), description="a local view's share of the source's area")
    local_views: int = Field(8, ge=0, description="local views of each image; 0 for none")
    ratio: PositiveRange = Field((3 / 4, 4 / 3), description="a box's width over its height; log-uniform")
    interpolation: Literal["bilinear", "bicubic"] = Field("bicubic", description="filter of the resize")


class PhotometricsConfig(Config):
    """Flip, colour jitter, grey, blur and solarise, drawn anew for every view.

    Every probability is that of *applying* the operation. DINOv2's released code hands `1 - p` to
    torchvision's `RandomApply`, so its first global view is never blurred and its second in 9 of 10
    cases; the defaults here are DINO's: always the first, 1 in 10 the second.
    """

    flip_p: Probability = Field(0.5, description="probability of a mirrored view")
    jitter_p: Probability = Field(0.8, description="probability of the colour jitter, all four parts at once")
    brightness: float = Field(0.4, ge=0, description="brightness factor within 1 ± this, and at least 0")
    contrast: float = Field(0.4, ge=0, description="contrast factor within 1 ± this, and at least 0")
    saturation: float = Field(0.2, ge=0, description="saturation factor within 1 ± this, and at least 0")
    hue: float = Field(0.1, ge=0, le=0.5, description="hue shift within ± this, turns")
    grey_p: Probability = Field(0.2, description="probability of a grey view")
    global_blur_p: tuple[Probability, ...] = Field((1.0, 0.1), description="of a blur, per global view")
    local_blur_p: Probability = Field(0.5, description="of a blur, each local view")
    blur_sigma: PositiveRange = Field((0.1, 2.0), description="the blur's sigma, pixels of the rendered view")
    global_solarize_p: tuple[Probability, ...] = Field(
        (0.0, 0.2), description="of solarising, per global view"
    )
    local_solarize_p: Probability = Field(0.0, description="of solarising, each local view")
    solarize_threshold: Probability = Field(128 / 255, description="values of this and above are inverted")


class MasksConfig(Config):
    """Which patch tokens of the global views are hidden from the student."""

    kind: Literal["block", "random"] = Field(
        "block", description="rectangles as in BEiT, or patches one by one"
    )
    probability: Probability = Field(0.5, description="probability that a global view is masked at all")
    ratio: ProbabilityRange = Field(
        (0.1, 0.5), description="share of a masked view's patches, uniform, floored"
    )


@dataclass(frozen=True)
class ViewKind:
    """What distinguishes the global views from the local ones."""

    name: Literal["global", "local"]
    index: int  # 0 for global, 1 for local: keeps their random streams apart
    views: int
    size: int  # side, pixels
    scale: tuple[float, float]  # share of the source's area
    blur_p: tuple[float, ...]  # per view
    solarize_p: tuple[float, ...]  # per view


class RecipeConfig(Config):
    """The fixed recipe: what `FixedDesigner` draws, and what a learned designer starts from.

    Defaults are the published ones of DINOv2 (arXiv 2304.07193) and DINOv3 (arXiv 2508.10104) at
    224 and 96 pixels.
    """

    crops: CropsConfig = CropsConfig()
    photometrics: PhotometricsConfig = PhotometricsConfig()
    masks: MasksConfig = MasksConfig()

    @model_validator(mode="after")
    def _one_probability_per_global_view(self) -> RecipeConfig:
        for key in ("global_blur_p", "global_solarize_p"):
            given = len(getattr(self.photometrics, key))
            if given != self.crops.global_views:
                raise ValueError(
                    f"photometrics.{key} holds {given} probabilities and crops.global_views is "
                    f"{self.crops.global_views}: give one per global view"
                )
        return self

    def shorter_side(self) -> int:
        """Return the shorter side of a source, in pixels, at which no view of any shape is enlarged.

        A box of area share s and aspect r has sides sqrt(s H W / r) and sqrt(s r H W), which are never below
        sqrt(s min(r, 1/r)) of the source's shorter side. The central box that is taken where none fits shows
        all of that side, or 1/r or r of it where every r lies above or below 1.
        """
        lowest, highest = self.crops.ratio
        drawn = min(lowest, 1 / highest)
        central = min(1, highest, 1 / lowest)
        return max(
            math.ceil(kind.size / min(math.sqrt(kind.scale[0] * drawn), central))
            for kind in self.view_kinds()
            if kind.views
        )

    def view_sizes(self) -> list[int]:
        """Return the sides in pixels of the views that there are."""
        return [kind.size for kind in self.view_kinds() if kind.views]

    def view_kinds(self) -> tuple[ViewKind, ViewKind]:
        """Return the global and the local views' share of the recipe."""
        crops, photometrics = self.crops, self.photometrics
        return (
            ViewKind(
                name="global",
                index=0,
                views=crops.global_views,
                size=crops.global_size,
                scale=crops.global_scale,
                blur_p=photometrics.global_blur_p,
                solarize_p=photometrics.global_solarize_p,
            ),
            ViewKind(
                name="local",
                index=1,
                views=crops.local_views,
                size=crops.local_size,
                scale=crops.local_scale,
                blur_p=(photometrics.local_blur_p,) * crops.local_views,
                solarize_p=(photometrics.local_solarize_p,) * crops.local_views,
            ),
        )
