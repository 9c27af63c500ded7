"""The law of what happens to a view's colours, and of its flip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vpt_kernels import Photometrics
from vpt_vision.designers.distributions import Kumaraswamy, OffsetBernoulli
from vpt_vision.designers.recipe import PhotometricsConfig, ViewKind
from vpt_vision.designers.streams import Stream, draw, draw_each
from vpt_vision.task import Keys

STRENGTHS = (Stream.BRIGHTNESS, Stream.CONTRAST, Stream.SATURATION, Stream.HUE, Stream.SIGMA)
EVENTS = (Stream.FLIP, Stream.JITTER, Stream.GREY, Stream.BLUR, Stream.SOLARIZE)
ORDERS = 24  # permutations of the jitter's four parts
NEVER = 2.0  # a threshold above every value: nothing is solarised


@dataclass(frozen=True)
class PhotometricBend:
    """What a designer changes in the law of one kind of view, per image."""

    strengths: Kumaraswamy  # [5, B], of the share of the recipe's range, in the order of `STRENGTHS`
    offsets: (
        Tensor  # [5, B] fp32, added to the logits of the recipe's probabilities, in the order of `EVENTS`
    )

    @classmethod
    def none(cls, batch: int, device: torch.device) -> PhotometricBend:
        """Return the recipe itself."""
        strengths = Kumaraswamy.uniform(len(STRENGTHS), batch, device=device)
        return cls(strengths, torch.zeros(len(EVENTS), batch, device=device))


class Drawn(NamedTuple):
    """What a view undergoes after its crop; all [V, B]."""

    flips: Tensor  # bool
    photometrics: Photometrics


class PhotometricLaw(nn.Module):
    """Draws flips and photometrics for one kind of view, each view anew, as DINO does.

    Strengths are uniform on their ranges; the colour jitter comes as one event, its four parts in a random
    order; flip, grey, blur and solarise are events of their own.
    """

    low: Tensor  # [5], lower ends of the strengths' ranges
    high: Tensor  # [5]
    probabilities: Tensor  # [5, V], of the events

    def __init__(self, config: PhotometricsConfig, kind: ViewKind) -> None:
        super().__init__()
        self.kind = kind
        self.threshold = config.solarize_threshold
        factors = [(max(0.0, 1 - s), 1 + s) for s in (config.brightness, config.contrast, config.saturation)]
        ranges = torch.tensor([*factors, (-config.hue, config.hue), config.blur_sigma])
        same = [[p] * kind.views for p in (config.flip_p, config.jitter_p, config.grey_p)]
        probabilities = torch.tensor([*same, kind.blur_p, kind.solarize_p])
        self.register_buffer("low", ranges[:, 0], persistent=False)
        self.register_buffer("high", ranges[:, 1], persistent=False)
        self.register_buffer("probabilities", probabilities, persistent=False)

    def draw(self, keys: Keys, bend: PhotometricBend) -> Drawn:
        """Draw what every view [V, B] undergoes."""
        shares = bend.strengths[:, None].inverse_cdf(draw_each(keys, STRENGTHS, self.kind))
        low, high = self.low[:, None, None], self.high[:, None, None]
        brightness, contrast, saturation, hue, sigma = low + (high - low) * shares
        events = self._events(bend).inverse_cdf(draw_each(keys, EVENTS, self.kind))
        flip, jitter, grey, blur, solarize = events
        order = (draw(keys, Stream.JITTER_ORDER, self.kind).squeeze(-1) * ORDERS).long()
        photometrics = Photometrics(
            brightness=torch.where(jitter, brightness, 1.0),
            contrast=torch.where(jitter, contrast, 1.0),
            saturation=torch.where(jitter, saturation, 1.0),
            hue=torch.where(jitter, hue, 0.0),
            order=order,
            grey=grey,
            sigma=torch.where(blur, sigma, 0.0),
            solarize=torch.full_like(sigma, NEVER).masked_fill(solarize, self.threshold),
        )
        return Drawn(flip, photometrics)

    def log_prob(self, keys: Keys, bend: PhotometricBend) -> Tensor:
        """Log density [B] of what `draw` drew with the same arguments.

        Strengths, relative to their uniform law, count where they are applied. Differentiable in the bend,
        what was drawn being held.
        """
        law = self._events(bend)
        events = law.inverse_cdf(draw_each(keys, EVENTS, self.kind))
        _, jitter, _, blur, _ = events
        applied = torch.stack([jitter, jitter, jitter, jitter, blur])
        strengths = bend.strengths[:, None]
        log_x = strengths.log_inverse_cdf(draw_each(keys, STRENGTHS, self.kind)).detach()
        of_strengths = (strengths.log_prob(log_x) * applied).sum((0, 1))
        return of_strengths.float() + law.log_prob(events).sum((0, 1))

    def entropy(self, bend: PhotometricBend) -> Tensor:
        """Entropy [B] in nats less the recipe's, over all quantities and views."""
        strengths = self.kind.views * bend.strengths.kl_to_uniform().sum(0)
        return self._events(bend).entropy_gain().sum((0, 1)) - strengths

    def kl(self, bend: PhotometricBend) -> Tensor:
        """KL [B] to the recipe, over all quantities and views."""
        strengths = self.kind.views * bend.strengths.kl_to_uniform().sum(0)
        return strengths + self._events(bend).kl_to_recipe().sum((0, 1))

    def describe(self, bend: PhotometricBend) -> dict[str, Tensor]:
        """Batch means of every strength where it is applied, and of every probability over the views."""
        strengths = self.low + (self.high - self.low) * bend.strengths.mean().mean(-1)
        probabilities = self._events(bend).mean().mean((-2, -1))
        named = {stream.name.lower(): value for stream, value in zip(STRENGTHS, strengths, strict=True)}
        return named | {f"{s.name.lower()}_p": p for s, p in zip(EVENTS, probabilities, strict=True)}

    def _events(self, bend: PhotometricBend) -> OffsetBernoulli:
        return OffsetBernoulli(self.probabilities[:, :, None], bend.offsets[:, None])
