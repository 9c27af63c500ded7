"""The law of how many patches of each global view are hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vpt_vision.designers.distributions import Kumaraswamy
from vpt_vision.designers.recipe import MasksConfig, ViewKind
from vpt_vision.designers.streams import Stream, draw
from vpt_vision.task import Keys

_LARGEST = 1 - 2.0**-24  # of `keyed_uniform`: at 1 itself a count would leave the recipe's range


@dataclass(frozen=True)
class RatioBend:
    """What a designer changes in the law of the mask ratio, per image."""

    share: Kumaraswamy  # [B], of the share of the recipe's range of ratios
    bound: float  # that no |log a| or |log b| exceeds, known on the host


class Counts(NamedTuple):
    """How many patches each view hides, and how long their list must be."""

    each: Tensor  # [G, B] int64, on the device
    total: int  # the sum of `each`, known without waiting for the device; if padded an upper bound of it
    padded: bool


class RatioLaw:
    """Draws the number of hidden patches.

    A view is masked with the recipe's probability, else not at all; a masked one hides
    floor(ratio * patches) of them, the ratio uniform on its range. DINOv2 fixes the number of masked
    views per batch; here each view decides for itself, so that its mask depends on its own key alone.

    The learner packs hidden patches in a list, whose length the host must know. The recipe's counts are drawn
    on the host, so their sum is known there. A bent ratio comes from the designer's network, on the device,
    and to ask for it would stop the step. But the host knows the uniform number that it is made of, and how
    far the bend can go: so it knows the largest count that the view can have. The list is as long as the sum
    of these, and ends in padding of weight 0. Every count is exact; the price is rows in iBOT's head: with
    ratios from 0.1 to 0.5 and a bound of 0.7 the list is 1.4 times as long as what the recipe hides on
    average. The alternatives were worse: parameters of an earlier step would tie a task to another batch's
    images, and dealing out the recipe's counts anew among the images could not change their mean.
    """

    def __init__(self, config: MasksConfig, kind: ViewKind, patches: int) -> None:
        self.config = config
        self.kind = kind
        self.patches = patches  # of a view

    def draw(self, keys: Keys, bend: RatioBend | None, device: torch.device) -> Counts:
        """Draw counts [G, B], `keys` being on the host; without a bend the recipe's."""
        masked = self._masked(keys)
        u = draw(keys, Stream.MASK_RATIO, self.kind).squeeze(-1)
        if bend is None:
            counts = masked * self._count(u)
            return Counts(counts.to(device, non_blocking=True), int(counts.sum()), padded=False)
        extreme = Kumaraswamy(torch.tensor(bend.bound), torch.tensor(-bend.bound))
        most = masked * self._count(torch.maximum(extreme.inverse_cdf(u), u).clamp(max=_LARGEST))
        total = int(most.sum())
        most, masked, u = (values.to(device, non_blocking=True) for values in (most, masked, u))
        share = bend.share.inverse_cdf(u).clamp(max=_LARGEST)
        # The inverse of the uniform law gives u to a last digit or two, and a count may hang on that.
        share = torch.where((bend.share.log_a == 0) & (bend.share.log_b == 0), u, share)
        return Counts(torch.minimum(masked * self._count(share), most), total, padded=True)

    def log_prob(self, keys: Keys, bend: RatioBend) -> Tensor:
        """Log density [B] of the masked views' ratios, relative to the recipe's uniform law.

        `keys` are on the bend's device. Differentiable in the bend, what was drawn being held.
        """
        log_x = bend.share.log_inverse_cdf(draw(keys, Stream.MASK_RATIO, self.kind).squeeze(-1)).detach()
        return (bend.share.log_prob(log_x) * self._masked(keys)).sum(0).float()

    def kl(self, bend: RatioBend) -> Tensor:
        """KL [B] to the recipe of the ratios, over all views; no less than that of the counts."""
        return self.kind.views * self.config.probability * bend.share.kl_to_uniform()

    def entropy(self, bend: RatioBend) -> Tensor:
        """Entropy [B] in nats less the recipe's: minus `kl`, for what the recipe draws is uniform."""
        return -self.kl(bend)

    def describe(self, bend: RatioBend) -> dict[str, Tensor]:
        """Batch mean of a masked view's ratio."""
        low, high = self.config.ratio
        return {"ratio": low + (high - low) * bend.share.mean().mean()}

    def _masked(self, keys: Keys) -> Tensor:
        return draw(keys, Stream.MASKED, self.kind).squeeze(-1) < self.config.probability

    def _count(self, share: Tensor) -> Tensor:
        low, high = self.config.ratio
        return ((low + (high - low) * share) * self.patches).floor().long()
