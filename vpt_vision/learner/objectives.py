"""The self-distillation losses of DINO and iBOT."""

from __future__ import annotations

import torch
from torch import Tensor

from vpt_vision.errors import UserError
from vpt_vision.learner.scores import Scores, Target, distillation_loss
from vpt_vision.task import MIXED, Masks, Targets


def dino_loss(
    student: Scores, target: Target, batch: int, student_temperature: float, versions: int = 1
) -> Tensor:
    """Return each sample's class-token loss [batch] fp32.

    Mean over all pairs (student view v, teacher global view g), v ≠ g, of the cross-entropy of
    softmax(student_v / temperature) under q_g (DINO, Caron et al. 2021, equation 3).
    `student`: V·batch rows, view by view, the G global ones first; `target`: G·batch rows in the same order.
    The student may have answered several `versions` of the global views, n·G·batch rows, version by version:
    the loss is then the mean over them.
    Raises UserError where there is no such pair: one global view and no local one.
    """
    views, globals_ = student.count // batch, target.scores.count // batch
    shown = versions * globals_  # the student's global views
    pairs = (views - shown + globals_) * globals_ - globals_
    if pairs == 0:
        raise UserError(
            "The DINO loss compares views, and the recipe has one alone; add a global or local view."
        )
    device = student.rows.device
    view, other = torch.arange(views, device=device)[:, None], torch.arange(globals_, device=device)
    sample = torch.arange(batch, device=device)[:, None]
    same = (view < shown) & (view % globals_ == other)
    partners = (other * batch + sample).where(~same[:, None], -1)  # [V, batch, G]
    losses = distillation_loss(student, target, student_temperature, partners.flatten(0, 1))
    losses = losses.view(views, batch)
    if versions > 1:
        losses = torch.cat([losses[:shown] / versions, losses[shown:]])
    return losses.sum(0) / pairs


def ibot_loss(
    student: Scores,
    target: Target,
    masks: Masks,
    student_temperature: float,
    token_weights: Tensor | None = None,
) -> Tensor:
    """Return each sample's masked-patch loss [B] fp32, the mean over its global views.

    A view's loss is the mean over its hidden tokens of the cross-entropy of softmax(student / temperature)
    under q (iBOT, Zhou et al. 2022, equation 2); it is 0 where nothing is hidden, and still counts in the
    mean, as in DINOv2. `student` and `target` have a row for each hidden token, in the order of
    `masks.index`; with relaxed masks for every token, whose weights then carry the designer's gradient.
    `token_weights` [G, B, N], of mean 1 over the hidden tokens of a view, weigh the tokens in that mean.
    """
    losses = distillation_loss(student, target, student_temperature)
    if masks.relaxed is None:
        every = losses.new_zeros(masks.hidden.numel())
        if token_weights is not None:
            losses = losses * token_weights.flatten().index_select(0, masks.index)
        weighed = every.index_add(0, masks.index, masks.weights * losses)  # padding adds 0
    else:
        relaxed = masks.relaxed if token_weights is None else masks.relaxed * token_weights
        weighed = relaxed_weights(relaxed, masks.hidden).flatten() * losses
    return weighed.view(masks.hidden.shape).sum(-1).mean(0)


def relaxed_weights(relaxed: Tensor, hidden: Tensor) -> Tensor:
    """Return relaxed / Σ relaxed over each view's tokens, [G, B, N], `relaxed` being 0 in value where shown.

    Of a mask in value 1 / (hidden tokens of the view) where hidden, else 0. A view that hides nothing has
    weights 0 and gives the designer no gradient.
    """
    hides = hidden.any(-1, keepdim=True)
    return relaxed / relaxed.sum(-1, keepdim=True).where(hides, 1.0) * hides


def sample_factors(targets: Targets, weights: dict[str, float]) -> dict[str, Tensor]:
    """Return what each image's loss [B] is multiplied by, for the terms of `MIXED` that have a weight.

    It is the image's weight times the mix's factor f_k, scaled so that Σ_k w_k f_k = Σ_k w_k over those
    terms, with the learner's weights w: none can grow but at the others' cost. Empty where the
    targets say nothing of it.
    """
    mixed = [term for term in MIXED if term in weights]
    factors: dict[str, Tensor] = {}
    if targets.mix is not None and mixed:
        shares = {term: weights[term] * targets.mix[MIXED.index(term)] for term in mixed}
        usual = torch.stack([torch.full_like(shares[term], weights[term]) for term in mixed]).sum(0)
        scale = usual / torch.stack(list(shares.values())).sum(0)
        factors = {term: scale * targets.mix[MIXED.index(term)] for term in mixed}
    if targets.sample_weights is not None:
        factors = {term: targets.sample_weights * factors.get(term, 1.0) for term in mixed}
    return factors
