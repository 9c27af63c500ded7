"""The self-distillation losses of DINO and iBOT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt_kernels import masked_distillation_loss
from vpt_vision.errors import UserError
from vpt_vision.learner.centring import Target
from vpt_vision.learner.precision import full_precision, widened
from vpt_vision.task import Masks


def dino_loss(student: Tensor, target: Target, student_temperature: float) -> Tensor:
    """Return each sample's class-token loss [B] fp32.

    Mean over all pairs (student view v, teacher global view g), v ≠ g, of the cross-entropy of
    softmax(student_v / temperature) under q_g (DINO, Caron et al. 2021, equation 3).
    `student` [V, B, K]: logits of all views, the G global ones first; `target`: G·B rows, view by view.
    Raises UserError where there is no such pair: one global view and no local one.
    """
    views, batch, _ = student.shape
    globals_ = len(target.logits) // batch
    pairs = views * globals_ - globals_
    if pairs == 0:
        raise UserError(
            "The DINO loss compares views, and the recipe has one alone; add a global or local view."
        )
    with full_precision(student.device):
        predicted = F.log_softmax(widened(student) / student_temperature, dim=-1)
        expected = target.probabilities().view(globals_, batch, -1)
        entropies = -torch.einsum("vbk,gbk->vgb", predicted, expected)
    same = torch.eye(views, globals_, dtype=torch.bool, device=student.device)[..., None]
    return entropies.masked_fill(same, 0.0).sum(dim=(0, 1)) / pairs


def ibot_loss(
    student: Tensor, target: Target, index: Tensor | None, masks: Masks, student_temperature: float
) -> Tensor:
    """Return each sample's masked-patch loss [B] fp32, the mean over its global views.

    A view's loss is the mean over its hidden tokens of the cross-entropy of softmax(student / temperature)
    under q (iBOT, Zhou et al. 2022, equation 2); it is 0 where nothing is hidden, and still counts in the
    mean, as in DINOv2. `student` and `target` have rows for the tokens `index` [M] of `masks.hidden`
    flattened, or for all tokens where it is None.
    """
    losses = masked_distillation_loss(
        student,
        target.logits,
        target.potentials,
        student_temperature=student_temperature,
        teacher_temperature=target.temperature,
    )
    if index is not None:
        losses = losses.new_zeros(masks.hidden.numel()).index_copy(0, index, losses)
    return (token_weights(masks) * losses.view(masks.hidden.shape)).sum(-1).mean(0)


def token_weights(masks: Masks) -> Tensor:
    """Return fp32 weights [G, B, N]: 1 / (hidden tokens of the view) where hidden, else 0.

    Relaxed masks give relaxed / Σ relaxed, equal in value, with the designer's gradient; a view that
    hides nothing gives it none.
    """
    shares = masks.hidden.float() if masks.relaxed is None else masks.relaxed
    hides = masks.hidden.any(-1, keepdim=True)
    return shares / shares.sum(-1, keepdim=True).where(hides, 1.0) * hides
