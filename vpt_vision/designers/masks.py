"""The law of masks: how many patches of each global view are hidden, and which."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vpt_kernels import MaskSample, block_masks, plackett_luce_log_prob, sample_masks
from vpt_vision.designers.distributions import kl_to_equal
from vpt_vision.designers.field import sample_field
from vpt_vision.designers.recipe import MasksConfig, ViewKind
from vpt_vision.designers.streams import Stream, draw
from vpt_vision.errors import UserError
from vpt_vision.task import Keys, Masks, Views


@dataclass(frozen=True)
class MaskBend:
    """What a designer changes in the law of masks: which patches, never how many."""

    field: Tensor  # [B, R, C] fp32: logits of hiding what lies there in the image
    temperature: float  # of the relaxed mask, in units of the logits


class MaskLaw:
    """Draws the masks of the global views.

    A view is masked with the recipe's probability, else not at all; a masked one hides
    floor(ratio * patches) of them, the ratio uniform on its range. DINOv2 fixes the number of masked
    views per batch; here each view decides for itself, so that its mask depends on its own key alone. The
    counts are drawn on the host: their sum is known there without waiting for the device.
    """

    def __init__(self, config: MasksConfig, kind: ViewKind, patch_size: int) -> None:
        if kind.size % patch_size:
            nearest = max(1, round(kind.size / patch_size)) * patch_size
            raise UserError(
                f"recipe.crops.{kind.name}_size {kind.size} is not a multiple of the backbone's patch size "
                f"{patch_size}: choose one that is, such as {nearest}."
            )
        self.config = config
        self.kind = kind
        self.side = kind.size // patch_size  # patches along each side of a view

    def counts(self, keys: Keys) -> Tensor:
        """Draw the number of hidden patches of every view, [G, B] int64 on the CPU, `keys` being there."""
        low, high = self.config.ratio
        masked = draw(keys, Stream.MASKED, self.kind) < self.config.probability
        ratio = low + (high - low) * draw(keys, Stream.MASK_RATIO, self.kind)
        return (masked * (ratio * self.side**2).floor()).long().squeeze(-1)

    def draw(self, keys: Keys, bend: MaskBend | None, views: Views, heights: Tensor, widths: Tensor) -> Masks:
        """Draw the masks [G, B, N] of `views` of images of `heights` x `widths` pixels [B].

        With a bend, patches are drawn one by one without replacement (Gumbel top-k); where gradients
        are being recorded, the relaxed mask carries the field's.
        """
        counts = self.counts(keys)
        shape = (*counts.shape, self.side**2)
        if self.config.kind == "block":
            packed = block_masks(
                self._flat(counts, views),
                (self.side, self.side),
                total=int(counts.sum()),
                seed=keys.seed,
                step=keys.step,
                sample=self._rows(keys, views),
            )
            return Masks(packed.hidden.view(shape), packed.indices, packed.weights)
        logits, drawn = self._one_by_one(keys, bend, counts, views, heights, widths)
        relaxed = None
        if bend is not None and logits.requires_grad:
            flat = self._flat(counts, views)
            relaxed = _relax(drawn.hidden, drawn.perturbed, flat, bend.temperature).view(shape)
        return Masks(drawn.hidden.view(shape), drawn.indices, drawn.weights, relaxed)

    def log_prob(self, keys: Keys, bend: MaskBend, views: Views, heights: Tensor, widths: Tensor) -> Tensor:
        """Log-probability [B] of hiding what `draw` hid with the same arguments, in the order it did.

        Plackett and Luce's: each patch is drawn from those left, in proportion to exp(logit). Differentiable
        in the bend, what was drawn being held.
        """
        counts = self.counts(keys)
        logits, drawn = self._one_by_one(keys, bend, counts, views, heights, widths)
        flat = self._flat(counts, views)
        return plackett_luce_log_prob(logits, drawn.perturbed, flat).view(counts.shape).sum(0)

    def entropy(self, bend: MaskBend) -> Tensor:
        """Entropy [B] in nats less the recipe's, of the same stand-in as `kl`: minus that."""
        return -self.kl(bend)

    def kl(self, bend: MaskBend) -> Tensor:
        """KL [B] to the recipe of the first patch drawn from the whole image: softmax(field) to equal shares.

        A stand-in: the law of all patches drawn without replacement has no closed form, and the view's own
        crop decides which of them it shows.
        """
        return kl_to_equal(bend.field)

    def describe(self, bend: MaskBend) -> dict[str, Tensor]:
        """Batch mean of the spread of the field, in logits."""
        return {"spread": bend.field.flatten(1).std(-1, correction=0).mean()}

    def _rows(self, keys: Keys, views: Views) -> Tensor:
        """One key a view, so that two views of one image are masked differently: [G·B] on their device."""
        sample = keys.samples * self.kind.views + torch.arange(self.kind.views)[:, None]
        return sample.flatten().to(views.boxes.device, non_blocking=True)

    def _flat(self, counts: Tensor, views: Views) -> Tensor:
        return counts.flatten().to(views.boxes.device, non_blocking=True)

    def _one_by_one(
        self, keys: Keys, bend: MaskBend | None, counts: Tensor, views: Views, heights: Tensor, widths: Tensor
    ) -> tuple[Tensor, MaskSample]:
        """Draw `counts` [G, B] patches without replacement; return their logits [G·B, N] as well."""
        if bend is None:
            logits = torch.zeros(counts.numel(), self.side**2, device=views.boxes.device)
        else:
            logits = self.in_views(bend.field, views, heights, widths).flatten(0, 1).flatten(1)
        drawn = sample_masks(
            logits,
            self._flat(counts, views),
            total=int(counts.sum()),
            seed=keys.seed,
            step=keys.step,
            sample=self._rows(keys, views),
        )
        return logits, drawn

    def in_views(self, field: Tensor, views: Views, heights: Tensor, widths: Tensor) -> Tensor:
        """Return `field` at the place in the image that each patch's centre shows, [G, B, side, side]."""
        # A box's own gradient goes through the pixels it shows; through the mask alone it would mislead.
        top, left, box_height, box_width = views.boxes.detach().unbind(-1)
        along = (torch.arange(self.side, device=field.device) + 0.5) / self.side
        across = torch.where(views.flips[..., None], 1 - along, along)
        rows = top[..., None] + along * box_height[..., None]
        columns = left[..., None] + across * box_width[..., None]
        return sample_field(field, rows / heights[:, None], columns / widths[:, None])


def _relax(hidden: Tensor, perturbed: Tensor, counts: Tensor, temperature: float) -> Tensor:
    """Return the mask [N, T] in value, with the gradient of a soft threshold (straight-through).

    soft = sigmoid((perturbed - threshold) / temperature), the threshold half-way between the last patch
    hidden and the first one shown; it moves with the logits, so a shift of all of them changes nothing. A row
    that hides none or all of its patches has no such threshold and no gradient.
    """
    patches = perturbed.shape[-1]
    ranked = perturbed.sort(dim=-1, descending=True).values
    last_hidden = ranked.gather(-1, (counts[:, None] - 1).clamp(min=0))
    first_shown = ranked.gather(-1, counts[:, None].clamp(max=patches - 1))
    soft = torch.sigmoid((perturbed - (last_hidden + first_shown) / 2) / temperature)
    soft = soft * ((counts > 0) & (counts < patches))[:, None]
    return hidden.float() + (soft - soft.detach())
