"""The law of masks: how many patches of each global view are hidden, and which."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vpt_kernels import block_masks, sample_masks
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

    def draw(self, keys: Keys, bend: MaskBend | None, views: Views, height: int, width: int) -> Masks:
        """Draw the masks [G, B, N] of `views` of images of `height` x `width` pixels.

        With a bend, patches are drawn one by one without replacement (Gumbel top-k); where gradients
        are being recorded, the relaxed mask carries the field's.
        """
        seed, step, device = keys.seed, keys.step, views.boxes.device
        counts = self.counts(keys)
        total, rows = int(counts.sum()), counts.numel()
        # One key a view, so that two views of one image are masked differently.
        sample = keys.samples * self.kind.views + torch.arange(self.kind.views)[:, None]
        sample = sample.flatten().to(device, non_blocking=True)
        flat_counts = counts.flatten().to(device, non_blocking=True)
        shape = (*counts.shape, self.side**2)

        if self.config.kind == "block":
            grid = (self.side, self.side)
            packed = block_masks(flat_counts, grid, total=total, seed=seed, step=step, sample=sample)
            return Masks(packed.hidden.view(shape), packed.indices, packed.weights)
        if bend is None:
            logits = torch.zeros(rows, self.side**2, device=device)
        else:
            logits = self._logits(bend.field, views, height, width).reshape(rows, -1)
        drawn = sample_masks(logits, flat_counts, total=total, seed=seed, step=step, sample=sample)
        relaxed = None
        if bend is not None and logits.requires_grad:
            relaxed = _relax(drawn.hidden, drawn.perturbed, flat_counts, bend.temperature).view(shape)
        return Masks(drawn.hidden.view(shape), drawn.indices, drawn.weights, relaxed)

    def kl(self, bend: MaskBend) -> Tensor:
        """KL [B] to the recipe of the first patch drawn from the whole image: softmax(field) to equal shares.

        A stand-in: the law of all patches drawn without replacement has no closed form, and the view's own
        crop decides which of them it shows.
        """
        return kl_to_equal(bend.field)

    def describe(self, bend: MaskBend) -> dict[str, Tensor]:
        """Batch mean of the spread of the field, in logits."""
        return {"spread": bend.field.flatten(1).std(-1, correction=0).mean()}

    def _logits(self, field: Tensor, views: Views, height: int, width: int) -> Tensor:
        """Logits [G, B, side, side]: the field at the place in the image that each patch's centre shows."""
        # A box's own gradient goes through the pixels it shows; through the mask alone it would mislead.
        top, left, box_height, box_width = views.boxes.detach().unbind(-1)
        along = (torch.arange(self.side, device=field.device) + 0.5) / self.side
        across = torch.where(views.flips[..., None], 1 - along, along)
        rows = top[..., None] + along * box_height[..., None]
        columns = left[..., None] + across * box_width[..., None]
        return sample_field(field, rows / height, columns / width)


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
