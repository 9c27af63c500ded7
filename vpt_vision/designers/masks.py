"""The law of masks: which patches of each global view are hidden."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vpt_kernels import MaskSample, PackedMasks, block_masks, pack_masks, plackett_luce_log_prob, sample_masks
from vpt_vision.designers.distributions import kl_to_equal
from vpt_vision.designers.field import sample_field
from vpt_vision.designers.mask_ratio import Counts
from vpt_vision.designers.recipe import MasksConfig, ViewKind
from vpt_vision.designers.streams import Stream, draw
from vpt_vision.errors import UserError
from vpt_vision.task import Keys, Masks, Views

_KEYS = 48  # bits that tell the views of a data set apart; those above them number candidates


@dataclass(frozen=True)
class MaskBend:
    """What a designer changes in the law of masks: which patches, never how many."""

    field: Tensor  # [B, R, C] fp32: logits of hiding what lies there in the image
    temperature: float  # of the relaxed mask of patches drawn one by one, in units of the logits
    candidates: int  # block masks drawn for each view, of which the field chooses one


class _Choice(NamedTuple):
    """Candidates for the masks of R views, and the one that was taken."""

    hidden: Tensor  # [K, R, N] bool
    log_shares: Tensor  # [R, K]: log probability of each
    taken: Tensor  # [R] int64


class MaskLaw:
    """Draws the masks of the global views, with the counts that it is given.

    Random masks are bent patch by patch: Gumbel top-k of logits, where zero logits are the recipe.

    Block masks cannot be: no noise on logits whose highest are hidden gives rectangles. Instead K masks
    are drawn from the recipe's law, and one is taken with probabilities softmax(s), s the mean logit of the
    patches that it hides less that of those it shows. Zero logits choose blindly, so the law is the
    recipe's; whatever they are, the mask is one of the recipe's, and the law tends with K to the recipe's law
    times exp(s), which of all laws has the least KL to the recipe for its mean s. Given the candidates, whose
    law does not depend on the designer, probabilities are in closed form, and so is the mean mask: what the
    relaxed mask's gradient follows. KL to the recipe cannot exceed log K a view.
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

    def draw(
        self,
        keys: Keys,
        bend: MaskBend | None,
        counts: Counts,
        views: Views,
        heights: Tensor,
        widths: Tensor,
    ) -> Masks:
        """Draw the masks [G, B, N] of `views` of images of `heights` x `widths` pixels [B].

        `keys` are on the host. Where gradients are being recorded, the relaxed mask carries the field's.
        """
        flat, shape = counts.each.flatten(), (*counts.each.shape, self.side**2)
        if self.config.kind == "random":
            logits, drawn = self._one_by_one(keys, bend, counts, views, heights, widths)
            relaxed = None
            if bend is not None and logits.requires_grad:
                relaxed = _relax(drawn.hidden, drawn.perturbed, flat, bend.temperature).view(shape)
            hidden, index, weights = drawn.hidden.view(shape), drawn.indices, drawn.weights
            return Masks(hidden, index, weights, relaxed, counts.padded)
        if bend is None:
            packed = self._blocks(keys, flat, counts.total, counts.padded, self._rows(keys, views))
            hidden, index, weights = packed.hidden.view(shape), packed.indices, packed.weights
            return Masks(hidden, index, weights, padded=counts.padded)
        choice = self._choice(keys, bend, counts, views, heights, widths)
        taken = choice.taken[None, :, None].expand(1, *choice.hidden.shape[1:])
        packed = pack_masks(choice.hidden.gather(0, taken)[0], counts.total, padded=counts.padded)
        relaxed = None
        if choice.log_shares.requires_grad:
            mean = torch.einsum("rk,krn->rn", choice.log_shares.exp(), choice.hidden.float())
            relaxed = (packed.hidden.float() + (mean - mean.detach())).view(shape)
        return Masks(packed.hidden.view(shape), packed.indices, packed.weights, relaxed, counts.padded)

    def log_prob(
        self, keys: Keys, bend: MaskBend, counts: Counts, views: Views, heights: Tensor, widths: Tensor
    ) -> Tensor:
        """Log-probability [B] of hiding what `draw` hid with the same arguments.

        Of random masks that of the patches in the order they were drawn (Plackett and Luce's: each from those
        left, in proportion to exp(logit)); of block masks that of the choice among the candidates, relative
        to the recipe's. Differentiable in the bend, what was drawn being held.
        """
        if self.config.kind == "random":
            logits, drawn = self._one_by_one(keys, bend, counts, views, heights, widths)
            log_prob = plackett_luce_log_prob(logits, drawn.perturbed, counts.each.flatten())
        else:
            choice = self._choice(keys, bend, counts, views, heights, widths)
            log_prob = choice.log_shares.gather(1, choice.taken[:, None])[:, 0] + math.log(bend.candidates)
        return log_prob.view(counts.each.shape).sum(0)

    def entropy(self, bend: MaskBend) -> Tensor:
        """Entropy [B] in nats less the recipe's, of the same stand-in as `kl`: minus that."""
        return -self.kl(bend)

    def kl(self, bend: MaskBend) -> Tensor:
        """KL [B] to the recipe of the first patch drawn from the whole image: softmax(field) to equal shares.

        A stand-in: the law of all patches drawn without replacement, and that of blocks, has no closed form,
        and the view's own crop decides which of them it shows.
        """
        return kl_to_equal(bend.field)

    def describe(self, bend: MaskBend) -> dict[str, Tensor]:
        """Batch mean of the spread of the field, in logits."""
        return {"spread": bend.field.flatten(1).std(-1, correction=0).mean()}

    def _rows(self, keys: Keys, views: Views) -> Tensor:
        """One key a view, so that two views of one image are masked differently: [G·B] on their device."""
        sample = keys.samples * self.kind.views + torch.arange(self.kind.views)[:, None]
        return sample.flatten().to(views.boxes.device, non_blocking=True)

    def _one_by_one(
        self,
        keys: Keys,
        bend: MaskBend | None,
        counts: Counts,
        views: Views,
        heights: Tensor,
        widths: Tensor,
    ) -> tuple[Tensor, MaskSample]:
        """Draw patches without replacement; return their logits [G·B, N] as well."""
        flat = counts.each.flatten()
        if bend is None:
            logits = torch.zeros(len(flat), self.side**2, device=flat.device)
        else:
            logits = self.in_views(bend.field, views, heights, widths).flatten(0, 1).flatten(1)
        drawn = sample_masks(
            logits,
            flat,
            total=counts.total,
            padded=counts.padded,
            seed=keys.seed,
            step=keys.step,
            sample=self._rows(keys, views),
        )
        return logits, drawn

    def _blocks(self, keys: Keys, counts: Tensor, total: int, padded: bool, sample: Tensor) -> PackedMasks:
        return block_masks(
            counts,
            (self.side, self.side),
            total=total,
            padded=padded,
            seed=keys.seed,
            step=keys.step,
            sample=sample,
        )

    def _choice(
        self, keys: Keys, bend: MaskBend, counts: Counts, views: Views, heights: Tensor, widths: Tensor
    ) -> _Choice:
        """Draw block masks for every view, and choose."""
        device, many = views.boxes.device, bend.candidates
        u = draw(keys, Stream.MASK_CHOICE, self.kind).flatten().to(device, non_blocking=True)
        blind = torch.zeros(len(u), many, device=device)
        # The candidate that a blind choice takes has the recipe's key: zero logits give the recipe's mask.
        number = (torch.arange(many, device=device)[:, None] - _take(blind, u)) % many
        sample = self._rows(keys, views) + (number << _KEYS)
        flat = counts.each.flatten()
        drawn = self._blocks(keys, flat.repeat(many), many * counts.total, counts.padded, sample.flatten())
        hidden = drawn.hidden.view(many, len(flat), -1)

        logits = self.in_views(bend.field, views, heights, widths).flatten(0, 1).flatten(1)
        inside = torch.einsum("krn,rn->rk", hidden.float(), logits)
        outside = logits.sum(-1, keepdim=True) - inside
        shown = self.side**2 - flat
        scores = inside / flat.clamp(min=1)[:, None] - outside / shown.clamp(min=1)[:, None]
        # A view that hides none or all of its patches has one mask, and rounding shall not tell it otherwise.
        scores = scores * ((flat > 0) & (shown > 0))[:, None]
        return _Choice(hidden, scores.log_softmax(-1), _take(scores.detach(), u))

    def in_views(self, field: Tensor, views: Views, heights: Tensor, widths: Tensor) -> Tensor:
        """Return `field` at the place in the image that each patch's centre shows, [G, B, side, side]."""
        # A box's own gradient goes through the pixels it shows; through the mask alone it would mislead.
        top, left, box_height, box_width = views.boxes.detach().unbind(-1)
        along = (torch.arange(self.side, device=field.device) + 0.5) / self.side
        across = torch.where(views.flips[..., None], 1 - along, along)
        rows = top[..., None] + along * box_height[..., None]
        columns = left[..., None] + across * box_width[..., None]
        return sample_field(field, rows / heights[:, None], columns / widths[:, None])


def _take(logits: Tensor, u: Tensor) -> Tensor:
    """Choose by uniform `u` [R] one of the last axis of `logits` [R, K], with probabilities softmax: [R]."""
    return (u[:, None] > logits.softmax(-1).cumsum(-1)[:, :-1]).sum(-1)


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
