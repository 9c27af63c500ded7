"""Scores: how similar tokens are to the prototypes, stored or as the factors they are made of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt_kernels import (
    Potentials,
    centre_potentials,
    masked_distillation_loss,
    prototype_centre_potentials,
    prototype_loss,
    prototype_potentials,
    sinkhorn_potentials,
)
from vpt_vision import collectives
from vpt_vision.learner.followed import followed_centre, followed_loss, followed_sinkhorn
from vpt_vision.learner.precision import full_precision


@dataclass(frozen=True)
class Scores:
    """Similarities of M tokens with K prototypes: all M·K of them, or their two factors.

    Either form gives the same targets and losses, to rounding.
    """

    rows: Tensor  # [M, K] similarities; where there are prototypes, [M, D] unit vectors
    prototypes: Tensor | None = None  # [K, D], of any length with weight_norm, else as they are compared
    weight_norm: bool = False

    @property
    def count(self) -> int:
        """M, the number of tokens."""
        return len(self.rows)

    def part(self, part: slice) -> Scores:
        """Return the scores of some of the tokens."""
        return replace(self, rows=self.rows[part])

    def total(self, counted: Tensor | None = None) -> Tensor:
        """Return the similarities' sum over the tokens [K]: that of the tokens' sum, for they are linear.

        Of each token `counted` [M] times, where that is given.
        """
        if counted is None:
            total = self.rows.sum(0)
        else:
            with full_precision(self.rows.device):
                total = counted.to(self.rows.dtype) @ self.rows
        return total if self.prototypes is None else similarities(total, self.prototypes, self.weight_norm)

    def scaled(self, temperature: float | Tensor) -> Tensor:
        """Return all similarities [M, K] over the temperature, one for all tokens or [M]."""
        each = temperature[:, None] if isinstance(temperature, Tensor) else temperature
        with full_precision(self.rows.device):
            if self.prototypes is None:
                return self.rows / each
            return similarities(self.rows, self.prototypes, self.weight_norm) / each

    def balanced(self, temperature: float | Tensor, weights: Tensor | None) -> Potentials:
        """Return Sinkhorn-Knopp's potentials over the tokens of all ranks, weighed by `weights` [M].

        `temperature` is one for all tokens or [M]. Where a graph is recorded and leads to any of these, so do
        the potentials.
        """
        if _followed(self.rows, temperature, weights):
            with full_precision(self.rows.device):
                return followed_sinkhorn(self.scaled(temperature), weights)
        group = collectives.group()
        if self.prototypes is None:
            return sinkhorn_potentials(self.rows, temperature, weights=weights, group=group)
        return prototype_potentials(
            self.rows,
            self.prototypes,
            temperature,
            weights=weights,
            group=group,
            weight_norm=self.weight_norm,
        )

    def centred(self, temperature: float | Tensor, centre: Tensor, usual: float) -> Potentials:
        """Return the potentials of softmax(scores / temperature - centre [K] / usual temperature).

        `temperature` is one for all tokens or [M]. With a graph as above.
        """
        if _followed(self.rows, temperature):
            with full_precision(self.rows.device):
                return followed_centre(self.scaled(temperature), -centre / usual)
        if self.prototypes is None:
            return centre_potentials(self.rows, temperature, centre, centre_temperature=usual)
        return prototype_centre_potentials(
            self.rows,
            self.prototypes,
            temperature,
            centre,
            centre_temperature=usual,
            weight_norm=self.weight_norm,
        )


def _followed(*inputs: Tensor | float | None) -> bool:
    """Whether a graph is being recorded that leads to one of these."""
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)


def similarities(directions: Tensor, prototypes: Tensor, weight_norm: bool) -> Tensor:
    """Return [..., K] fp32, whatever autocast says: a loss divides them by low temperatures."""
    with full_precision(directions.device):
        return F.linear(directions, F.normalize(prototypes, dim=-1) if weight_norm else prototypes)


class Target(NamedTuple):
    """Soft targets q = exp(scores / temperature + row + column) of M tokens; each row of q sums to 1."""

    scores: Scores  # the teacher's
    potentials: Potentials  # row [M] and column [K], fp32
    temperature: float | Tensor  # of all tokens, or [M]; may carry the designer's gradient


def distillation_loss(
    student: Scores, target: Target, student_temperature: float, partners: Tensor | None = None
) -> Tensor:
    """Return the cross-entropy [M] fp32 of each of the student's tokens under its target, or targets.

    `partners` int64 [M, P] names the target's rows, -1 for none; left out, each token has the row of its
    number. Both sides are scores of one form. Where the target's potentials carry a graph, the gradient
    reaches all that the target is made of; else it takes them as they are.
    """
    if _followed(target.potentials.row):
        with full_precision(student.rows.device):
            return followed_loss(
                student.scaled(student_temperature),
                target.scores.scaled(target.temperature),
                target.potentials,
                partners,
            )
    theirs = target.scores.prototypes
    if student.prototypes is None or theirs is None:
        return masked_distillation_loss(
            student.rows,
            target.scores.rows,
            target.potentials,
            student_temperature=student_temperature,
            teacher_temperature=target.temperature,
            rows=partners,
        )
    return prototype_loss(
        student.rows,
        student.prototypes,
        target.scores.rows,
        theirs,
        target.potentials,
        student_temperature=student_temperature,
        teacher_temperature=target.temperature,
        rows=partners,
        weight_norm=student.weight_norm,
    )
