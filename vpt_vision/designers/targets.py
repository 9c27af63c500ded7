"""The law of targets: how tokens, images and loss terms are weighed, and how sharp the teacher is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vpt_vision.designers.distributions import kl_to_equal
from vpt_vision.task import MIXED, Masks, Targets


@dataclass(frozen=True)
class TargetBend:
    """What a designer asks of the targets, per image, in logarithms; None is left alone."""

    field: Tensor | None  # [B, R, C] fp32: log weight of what lies there in the image, in iBOT's loss
    sample: Tensor | None  # [B]: log weight of the image
    temperature: Tensor | None  # [B]: log factor of the teacher's temperature
    mix: Tensor | None  # [3, B]: log factors of the terms `MIXED`


class TargetLaw:
    """Turns a bend into targets. No number is drawn: targets are a function of the image.

    So there is no density, and KL and entropy are stand-ins made of the same bends: shares against equal
    shares, and w log w - w + 1 of a factor w against 1, which is the KL between Poisson laws of these
    rates.
    """

    def draw(self, bend: TargetBend, token_logits: Tensor | None, masks: Masks) -> Targets:
        """Return the targets of a batch with these `masks`.

        Args:
            bend: of B images.
            token_logits: [G, B, N], the field where each patch of a global view lies; None without a field.
            masks: a token's weight is divided by the mean over its view's hidden tokens, so that every
                view counts as it does in the recipe, and no image depends on another.

        An image's weight is divided by the batch's mean: the one thing here that couples images. A view that
        hides nothing has its weights as they are; no loss reads them.
        """
        tokens = None
        if token_logits is not None:
            tokens = token_logits.exp()
            hidden = masks.hidden.to(tokens.dtype)
            count = hidden.sum(-1, keepdim=True)
            mean = (tokens * hidden).sum(-1, keepdim=True) / count.clamp(min=1)
            tokens = tokens / torch.where(count > 0, mean, 1.0)
        return Targets(
            token_weights=tokens,
            sample_weights=None if bend.sample is None else _mean_one(bend.sample),
            temperature=None if bend.temperature is None else bend.temperature.exp(),
            mix=None if bend.mix is None else bend.mix.exp(),
        )

    def kl(self, bend: TargetBend) -> Tensor:
        """Stand-in [B] for KL to the recipe, 0 where nothing is bent: see the class."""
        parts = []
        if bend.field is not None:
            parts.append(kl_to_equal(bend.field))
        if bend.sample is not None:
            parts.append(_distance_from_one(_mean_one(bend.sample)))
        if bend.temperature is not None:
            parts.append(_distance_from_one(bend.temperature.exp()))
        if bend.mix is not None:
            parts.append(kl_to_equal(bend.mix.T[:, None]))
        return torch.stack(parts).sum(0)

    def entropy(self, bend: TargetBend) -> Tensor:
        """Return minus `kl`, [B]."""
        return -self.kl(bend)

    def describe(self, bend: TargetBend) -> dict[str, Tensor]:
        """Spreads of log weights over the image and over the batch; batch means of the factors."""
        scalars: dict[str, Tensor] = {}
        if bend.field is not None:
            scalars["token_spread"] = bend.field.flatten(1).std(-1, correction=0).mean()
        if bend.sample is not None:
            scalars["sample_spread"] = bend.sample.std(correction=0)
        if bend.temperature is not None:
            scalars["temperature"] = bend.temperature.exp().mean()
        if bend.mix is not None:
            shares = (len(MIXED) * bend.mix.softmax(0)).mean(-1)
            scalars |= {f"mix_{term}": share for term, share in zip(MIXED, shares, strict=True)}
        return scalars


def _mean_one(logs: Tensor) -> Tensor:
    weights = logs.exp()
    return weights / weights.mean()


def _distance_from_one(factor: Tensor) -> Tensor:
    return factor * factor.log() - factor + 1
