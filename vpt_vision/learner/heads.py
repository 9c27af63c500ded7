"""The projection head of DINO: from features to similarities with prototypes."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from vpt_vision.learner.precision import full_precision, widened
from vpt_vision.learner.scores import Scores, similarities
from vpt_vision.schema import Config


class HeadConfig(Config):
    """A projection head; defaults are those of DINOv2."""

    prototypes: int = Field(65536, ge=2, description="number of prototypes, the length of the prediction")
    hidden: int = Field(2048, ge=1, description="width of the MLP's hidden layers")
    bottleneck: int = Field(256, ge=1, description="width of the L2-normalised layer before the prototypes")
    layers: int = Field(3, ge=1, description="linear layers of the MLP, the bottleneck's included")
    weight_norm: bool = Field(True, description="compare with prototypes of unit length (DINO, DINOv2)")
    store_scores: bool = Field(
        True,
        description="keep the [tokens, prototypes] similarities; false makes them anew, tile by tile, where "
        "they are needed: much less memory, more arithmetic, the same result",
    )
    shared: bool = Field(False, description="one head for class token and patches, instead of one for each")


class ProjectionHead(nn.Module):
    """MLP with GELU, L2-normalised bottleneck, prototypes (DINO, Caron et al. 2021, section 3.1).

    With `weight_norm` each prototype is divided by its length: DINO's weight norm with the gain held at 1.
    The normalisation and the similarities are fp32 whatever autocast says: the loss divides them by low
    temperatures, which would magnify the rounding of half precision.
    """

    def __init__(self, dim: int, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        widths = [dim, *[config.hidden] * (config.layers - 1), config.bottleneck]
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += [nn.Linear(wide, narrow), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.prototypes = nn.Parameter(torch.empty(config.prototypes, config.bottleneck))
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, features: Tensor) -> Scores:
        """Return the scores in fp32 of `features` [M, dim]."""
        projected = self.mlp(features)
        with full_precision(projected.device):
            directions = F.normalize(widened(projected), dim=-1)
        if self.config.store_scores:
            return Scores(similarities(directions, self.prototypes, self.config.weight_norm))
        return Scores(directions, self.prototypes, self.config.weight_norm)
