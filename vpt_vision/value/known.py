"""Tasks known to be good or bad: what value must tell apart before any designer is trained by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt_kernels import PackedImages
from vpt_vision.data import FashionScenes, FashionScenesConfig, Source, SourceConfig, UnreadableSample
from vpt_vision.designers import (
    Designer,
    LearnedDesigner,
    LearnedDesignerConfig,
    Policy,
    RecipeConfig,
    Surface,
)
from vpt_vision.designers.photometrics import EVENTS, STRENGTHS
from vpt_vision.designers.streams import Stream
from vpt_vision.task import Keys, Task

GROUND = (0, 255)  # values of a segmentation map that are no object
FAR = 20.0  # an output so large that its bound is reached
CERTAIN = 10.0  # bound of a probability's logit: an event happens always or never
OBJECT_HEADS: dict[Surface, tuple[str, ...]] = {
    "crops": ("crop_fields",),
    "masks": ("masks",),
    "targets": ("token_weights",),
}
_SAYS: dict[Surface, tuple[str, str]] = {
    "crops": ("crops at the object", "crops far from the object"),
    "masks": ("masks on the object", "masks on the ground"),
    "targets": ("weight on the object", "weight on the ground"),
    "photometrics": ("colour always changed", "colour never changed"),
}


@dataclass(frozen=True)
class KnownPolicy:
    """A policy that differs from the recipe in a direction whose worth is known."""

    surface: Surface | Literal["recipe"]  # the one it differs on; recipe: it is another recipe
    name: str
    designer: Designer
    towards: int  # 1: to the object, more change of colour, a good recipe; -1: away from that, a bad one

    def expected(self, source: SourceConfig | None) -> int:
        """1 where it is good for labels of `source`, -1 where bad, 0 where that is not known.

        What labels speak of lies on the object. Colour says nothing of a scene's classes, maps and depth, and
        all of its label where the goal is colour.
        """
        if self.surface != "photometrics":
            return self.towards
        if not isinstance(source, FashionScenesConfig):
            return 0
        return -self.towards if source.goal == "colour" else self.towards


def known_policies(
    recipe: RecipeConfig, patch_size: int, source: Source, surfaces: tuple[Surface, ...]
) -> tuple[list[KnownPolicy], list[str]]:
    """Make the known policies of each of `surfaces` over `recipe`, two for each surface, where there are any.

    Args:
        recipe: what they differ from.
        patch_size: of the backbone, pixels.
        source: the images that tasks are set on, in which the object is looked up.
        surfaces: those of interest.

    Returns:
        The policies, and a sentence for each surface without any.
    """
    policies: list[KnownPolicy] = []
    notes: list[str] = []
    has_objects = _shows_objects(source)
    for surface in surfaces:
        if surface not in _SAYS:
            notes.append(f"{surface}: nothing is known to be good or bad.")
            continue
        if surface != "photometrics" and not has_objects:
            notes.append(
                f"{surface}: where the object lies is not known, for the training images have no "
                "segmentation maps, or maps that do not tell it from the ground."
            )
            continue
        config = LearnedDesignerConfig(kind="learned", surfaces=(surface,), width=8, logit_bound=CERTAIN)
        bent = LearnedDesigner(config, recipe, patch_size)
        for says, towards in zip(_SAYS[surface], (1, -1), strict=True):
            designer = (
                _ColourDesigner(bent, towards)
                if surface == "photometrics"
                else _ObjectDesigner(bent, source, OBJECT_HEADS[surface], towards)
            )
            policies.append(KnownPolicy(surface, says, designer, towards))
    return policies, notes


class _KnownDesigner(Designer):
    """A learned designer at the recipe, with some of its outputs given."""

    def __init__(self, bent: LearnedDesigner) -> None:
        super().__init__()
        self.bent = bent
        self.surfaces = bent.surfaces

    def policy_of(self, images: PackedImages, outputs: dict[str, Tensor]) -> Policy:
        """Return the recipe, bent by `outputs` where they are given."""
        at_the_recipe = self.bent.outputs(self.bent.features(images))  # zeros: it has not learned
        return self.bent.policy_of(images, at_the_recipe | outputs)


class _ColourDesigner(_KnownDesigner):
    """Jitters colour always (`towards` 1), or never while no view is grey (-1)."""

    def __init__(self, bent: LearnedDesigner, towards: int) -> None:
        super().__init__(bent)
        self.towards = towards

    def policy_of(self, images: PackedImages, outputs: dict[str, Tensor]) -> Policy:
        """Return the recipe with other probabilities of jitter and grey."""
        of_kind = torch.zeros(2 * len(STRENGTHS) + len(EVENTS), device=images.device)
        first = 2 * len(STRENGTHS)
        of_kind[first + EVENTS.index(Stream.JITTER)] = self.towards * FAR
        if self.towards < 0:
            of_kind[first + EVENTS.index(Stream.GREY)] = -FAR
        return super().policy_of(images, {"photometrics": of_kind.repeat(2).expand(len(images), -1)})


class _ObjectDesigner(_KnownDesigner):
    """Draws crops, masks or weights to where an image's object lies (`towards` 1), or away from it (-1)."""

    def __init__(self, bent: LearnedDesigner, source: Source, heads: tuple[str, ...], towards: int) -> None:
        super().__init__(bent)
        self.source = source
        self.heads = heads
        self.towards = towards

    def forward(self, images: PackedImages, keys: Keys) -> Task:
        """Draw one task for `images`, which `keys.samples` names in the source."""
        given = {}
        for name in self.heads:
            like = self.bent.outputs(self.bent.features(images))[name]
            fields = torch.stack([self._field(int(index), like.shape[-1]) for index in keys.samples])
            given[name] = (self.towards * FAR * fields.to(like.device))[:, None].expand_as(like)
        return self.policy_of(images, given).sample(keys)

    def _field(self, index: int, side: int) -> Tensor:
        """1 where (near) the object and -1 elsewhere, on a grid over the image; 0 where none can be told."""
        share = object_share(self.source, index, side)
        if share is None:
            return torch.zeros(side, side)
        if self.towards < 0 and "crops" in self.surfaces:  # boxes are large: ground beside it would show it
            near = F.avg_pool2d(share[None], 5, stride=1, padding=2)[0]
            return torch.where(near > near.quantile(1 / 3), 1.0, -1.0)
        return torch.where(share > 0.5 * share.max(), 1.0, -1.0)


def object_share(source: Source, index: int, side: int) -> Tensor | None:
    """How much of each cell of a `side` x `side` grid over an image its object covers; None without one.

    The object is the salient garment of a scene, the class that most of its pixels which are not ground
    belong to; elsewhere all that is not ground.
    """
    try:
        map_ = source[index].segmentation
    except UnreadableSample:
        return None
    if map_ is None:
        return None
    objects = ~torch.isin(map_.long(), torch.tensor(GROUND))
    if isinstance(source, FashionScenes) and objects.any():
        objects = map_ == map_[objects].long().bincount().argmax()
    share = F.adaptive_avg_pool2d(objects.float()[None], side)[0]
    return share if 0 < objects.float().mean() < 0.95 else None


def _shows_objects(source: Source, tried: int = 16) -> bool:
    """Whether most of the first images have an object that can be told from the ground."""
    looked = range(min(tried, len(source)))
    return 2 * sum(object_share(source, index, 4) is not None for index in looked) > len(looked)
