"""`Learner`: student and EMA teacher, and the losses of the task they are set."""

from __future__ import annotations

import copy
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from vpt_vision.learner.backbone import Backbone, BackboneConfig, Features, TailInput
from vpt_vision.learner.centring import Centre, sinkhorn_target
from vpt_vision.learner.gram import gram_loss
from vpt_vision.learner.heads import HeadConfig, ProjectionHead
from vpt_vision.learner.koleo import koleo_loss
from vpt_vision.learner.objectives import dino_loss, ibot_loss, sample_factors
from vpt_vision.learner.scores import Scores, Target, distillation_loss
from vpt_vision.schema import Config
from vpt_vision.task import Masks, RenderedViews, Targets

_NEUTRAL = Targets()


class LearnerConfig(Config):
    """Student, teacher and objective; defaults are those of DINOv2."""

    backbone: BackboneConfig = Field(BackboneConfig(), description="the ViT of student and teacher")
    head: HeadConfig = Field(HeadConfig(), description="the projection heads")
    dino_weight: float = Field(1.0, ge=0, description="weight of the class-token loss (0: left out)")
    ibot_weight: float = Field(1.0, ge=0, description="weight of the masked-patch loss (0: left out)")
    koleo_weight: float = Field(
        0.1, ge=0, description="weight of KoLeo, summed over global views (0: left out)"
    )
    gram_weight: float = Field(
        0.0, ge=0, description="weight of Gram anchoring to the starting teacher (0: left out)"
    )
    centring: Literal["sinkhorn", "ema"] = Field("sinkhorn", description="how teacher targets are balanced")
    centre_momentum: float = Field(
        0.9, ge=0, le=1, description="momentum of the running centre (centring: ema)"
    )
    student_temperature: float = Field(0.1, gt=0, description="temperature of the student's predictions")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term that is computed."""
        weights = {
            "dino": self.dino_weight,
            "ibot": self.ibot_weight,
            "koleo": self.koleo_weight,
            "gram": self.gram_weight,
        }
        return {term: weight for term, weight in weights.items() if weight > 0}

    @model_validator(mode="after")
    def _has_a_term(self) -> LearnerConfig:
        if not self.weights:
            raise ValueError("every loss has weight 0; give one a positive weight")
        return self


class Network(nn.Module):
    """A backbone and its heads. `patch_head` is None where patches use the class token's head, or none."""

    def __init__(self, config: LearnerConfig) -> None:
        super().__init__()
        self.backbone = Backbone(config.backbone)
        self.cls_head = ProjectionHead(self.backbone.dim, config.head)
        separate = config.ibot_weight > 0 and not config.head.shared
        self.patch_head = ProjectionHead(self.backbone.dim, config.head) if separate else None

    def project(self, cls: Tensor, patches: Tensor | None) -> tuple[Scores, Scores | None]:
        """Return the scores of class tokens [M, D] and, where given, of patches [P, D]."""
        if patches is None:
            return self.cls_head(cls), None
        if self.patch_head is not None:
            return self.cls_head(cls), self.patch_head(patches)
        both = self.cls_head(torch.cat([cls, patches]))
        return both.part(slice(len(cls))), both.part(slice(len(cls), None))


class TeacherTargets(NamedTuple):
    """What the teacher sets for one batch; with a graph as `Learner.teacher_targets` says."""

    cls: Target  # G·B rows, view by view
    patches: Target | None  # rows as in Outputs.patches
    gram: Tensor | None  # [G·B, N, D]: patches of the anchor
    features: Tensor  # [G·B, D]: the teacher's class tokens, before the head


class Outputs(NamedTuple):
    """What the student answers."""

    cls: Scores  # of V·B class tokens, view by view, the G global ones first
    patches: Scores | None  # of M hidden tokens, or of all G·B·N with relaxed masks
    global_features: Features  # cls [G·B, D], patches [G·B, N, D] of the global views


class TrunkState(NamedTuple):
    """The student stopped before its last blocks."""

    global_views: TailInput  # of G·B images
    local_views: TailInput | None  # of L·B images
    masks: Masks

    def widened(self) -> TrunkState:
        """Return it in fp32, for last blocks outside autocast."""
        local_views = None if self.local_views is None else self.local_views.widened()
        return self._replace(global_views=self.global_views.widened(), local_views=local_views)


class Losses(NamedTuple):
    """One batch's losses."""

    total: Tensor  # fp32 scalar: the terms' sum with the learner's weights
    terms: dict[str, Tensor]  # fp32 scalars, as the task weighs them: of the terms that the learner has
    per_sample: dict[str, Tensor]  # [B] fp32 for dino and ibot; their means are the terms
    teacher: TeacherTargets  # what they were taken against


class Learner(nn.Module):
    """Student, EMA teacher and objective of DINOv2 (Oquab et al. 2023, section 4).

    Student and teacher start equal. The teacher has no stochastic depth, is always in eval mode and sees
    unmasked views. With `gram_weight` a copy of the starting teacher's backbone stays as the anchor of
    the patch similarities (DINOv3, Siméoni et al. 2025, section 4).
    """

    def __init__(self, config: LearnerConfig) -> None:
        super().__init__()
        self.config = config
        self.weights = config.weights
        self.student = Network(config)
        as_teacher = config.backbone.model_copy(update={"weights": "none", "drop_path": 0.0})
        self.teacher = Network(config.model_copy(update={"backbone": as_teacher}))
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.anchor = copy.deepcopy(self.teacher.backbone) if config.gram_weight > 0 else None
        by_centre = config.centring == "ema"
        self.cls_centre = Centre(config.head.prototypes, config.centre_momentum) if by_centre else None
        self.patch_centre = Centre(config.head.prototypes, config.centre_momentum) if by_centre else None
        self._encoded: tuple[Tensor, Features] | None = None  # views that the teacher has seen in advance
        self.train()

    def train(self, mode: bool = True) -> Learner:
        """Set the student's mode; the teacher and the anchor stay in eval mode."""
        super().train(mode)
        self.teacher.eval()
        if self.anchor is not None:
            self.anchor.eval()
        return self

    def forward(
        self, views: RenderedViews, masks: Masks, temperature: float, targets: Targets = _NEUTRAL
    ) -> Losses:
        """Return the losses of one batch; in training mode the running centres then move.

        `temperature` is the teacher's, `targets` those of the task.
        """
        teacher = self.teacher_targets(views.for_teacher, masks, temperature, targets)
        losses = self.losses(self.student_outputs(views, masks), teacher, masks, targets)
        if self.training:
            self.update_centre(teacher, masks)
        return losses

    def teacher_targets(
        self,
        global_views: Tensor,
        masks: Masks,
        temperature: float,
        targets: Targets = _NEUTRAL,
        *,
        followed: bool = False,
    ) -> TeacherTargets:
        """Return the teacher's targets for the unmasked `global_views` [G, B, 3, S, S].

        Patch targets are those of the hidden tokens; with relaxed masks those of every token, balanced
        over the hidden ones. `targets.temperature` multiplies `temperature`, image by image. Masks without
        relaxation may be those of several versions of these views.

        A gradient leads back from here to `targets.temperature`, the balance of the targets being held. With
        `followed` it leads to the views as well, and through the balance to the temperatures and to the
        relaxed masks.
        """
        of_views, of_patches = _temperatures(temperature, targets.temperature, masks, len(global_views))
        with torch.set_grad_enabled(followed and torch.is_grad_enabled()):
            features = self._teacher_features(global_views)
            cls, patches = self.teacher.project(features.cls, self._patch_rows(features, masks))
            gram = None if self.anchor is None else self.anchor(global_views.flatten(0, 1)).patches
        patch_target = None
        if patches is not None:
            patch_target = self._target(
                patches,
                of_patches,
                temperature,
                self.patch_centre,
                followed=followed,
                fitted=masks.counted,
            )
        return TeacherTargets(
            cls=self._target(cls, of_views, temperature, self.cls_centre, followed=followed),
            patches=patch_target,
            gram=gram,
            features=features.cls,
        )

    @torch.no_grad()
    def cls_attention(self, global_views: Tensor) -> Tensor:
        """Return how much the teacher's last class token attends to each patch, [G, B, N] fp32.

        See `Backbone.attend`. What the teacher says of `global_views` [G, B, 3, S, S] is kept for
        `teacher_targets`, so that a step in which both are asked runs the teacher once.
        """
        features, attention = self.teacher.backbone.attend(global_views.flatten(0, 1))
        self._encoded = (global_views, features)
        return attention.view(*global_views.shape[:2], -1)

    @torch.no_grad()
    def cross_entropies(self, views: RenderedViews, temperature: float) -> Tensor:
        """Return DINO's loss of each view under each global view, [G + L, G, B] fp32; no view is masked.

        Entry (v, g) is the cross-entropy of the student's class token of view v, the global ones first, under
        the teacher's target for global view g. `temperature` is the teacher's.
        """
        globals_, batch = views.global_views.shape[:2]
        kinds = [kind.flatten(0, 1) for kind in (views.global_views, views.local_views) if len(kind)]
        student, _ = self.student.project(
            torch.cat([self.student.backbone(kind).cls for kind in kinds]), None
        )
        teacher, _ = self.teacher.project(self._teacher_features(views.global_views).cls, None)
        target = self._target(teacher, temperature, temperature, self.cls_centre)
        image = torch.arange(student.count, device=student.rows.device) % batch
        losses = [
            distillation_loss(
                student, target, self.config.student_temperature, (number * batch + image)[:, None]
            )
            for number in range(globals_)
        ]
        return torch.stack(losses).view(globals_, -1, batch).transpose(0, 1)

    def student_outputs(self, views: RenderedViews, masks: Masks) -> Outputs:
        """Return the student's answers: global views with hidden tokens, local views whole."""
        backbone = self.student.backbone
        global_features = backbone(views.global_views.flatten(0, 1), _hidden_shares(masks))
        local_features = backbone(views.local_views.flatten(0, 1)) if len(views.local_views) else None
        return self._answer(global_features, local_features, masks)

    def student_trunk(self, views: RenderedViews, masks: Masks, tail_blocks: int) -> TrunkState:
        """Run the student up to its last `tail_blocks` blocks."""
        backbone = self.student.backbone
        global_views = backbone.trunk(views.global_views.flatten(0, 1), _hidden_shares(masks), tail_blocks)
        local_views = None
        if len(views.local_views):
            local_views = backbone.trunk(views.local_views.flatten(0, 1), None, tail_blocks)
        return TrunkState(global_views, local_views, masks)

    def student_tail(self, state: TrunkState, parameters: dict[str, Tensor] | None = None) -> Outputs:
        """Finish what `student_trunk` began; the two together equal `student_outputs`.

        `parameters` stand in for those of `student.backbone.tail_parameters`, for this call alone.
        """
        backbone = self.student.backbone
        local_features = None if state.local_views is None else backbone.tail(state.local_views, parameters)
        return self._answer(backbone.tail(state.global_views, parameters), local_features, state.masks)

    def losses(
        self, outputs: Outputs, teacher: TeacherTargets, masks: Masks, targets: Targets = _NEUTRAL
    ) -> Losses:
        """Return the losses of the student's answers, weighed as the task's `targets` say."""
        temperature = self.config.student_temperature
        batch = masks.hidden.shape[1]
        versions = masks.hidden.shape[:2].numel() // teacher.cls.scores.count  # of the global views
        terms, per_sample = {}, {}
        if "dino" in self.weights:
            per_sample["dino"] = dino_loss(outputs.cls, teacher.cls, batch, temperature, versions)
        if outputs.patches is not None and teacher.patches is not None:
            per_sample["ibot"] = ibot_loss(
                outputs.patches, teacher.patches, masks, temperature, targets.token_weights
            )
        factors = sample_factors(targets, self.weights)
        for term in per_sample.keys() & factors.keys():
            per_sample[term] = per_sample[term] * factors[term]
        terms.update({term: losses.mean() for term, losses in per_sample.items()})
        if "koleo" in self.weights:
            views = outputs.global_features.cls.view(-1, batch, self.student.backbone.dim)
            terms["koleo"] = torch.stack([koleo_loss(view) for view in views]).sum() / versions
        if teacher.gram is not None:
            gram = gram_loss(outputs.global_features.patches, teacher.gram.repeat(versions, 1, 1))  # [n·G·B]
            terms["gram"] = (gram * factors["gram"].repeat(len(masks.hidden)) if factors else gram).mean()
        total = torch.stack([weight * terms[term] for term, weight in self.weights.items()]).sum()
        return Losses(total, terms, per_sample, teacher)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the teacher towards the student: teacher ← momentum · teacher + (1 - momentum) · student."""
        teacher: list[Tensor] = list(self.teacher.parameters())
        student: list[Tensor] = list(self.student.parameters())
        torch._foreach_lerp_(teacher, student, 1 - momentum)

    def update_centre(self, teacher: TeacherTargets, masks: Masks) -> None:
        """Move the running centres, if any, after a training step on `masks`."""
        if self.cls_centre is not None:
            self.cls_centre.update(teacher.cls.scores)
        if self.patch_centre is not None and teacher.patches is not None:
            self.patch_centre.update(teacher.patches.scores, masks.counted)

    def prototype_parameters(self) -> list[nn.Parameter]:
        """Return the student's prototypes, which the first steps of a run leave frozen."""
        heads = (self.student.cls_head, self.student.patch_head)
        return [head.prototypes for head in heads if head is not None]

    def _patch_rows(self, features: Features, masks: Masks) -> Tensor | None:
        """Return the tokens that the iBOT loss compares: the hidden ones [M, D], or all with relaxed masks.

        None where the loss is left out.
        """
        if "ibot" not in self.weights:
            return None
        rows = features.patches.flatten(0, 1)
        if masks.relaxed is not None:
            return rows
        # The teacher has seen one version of what the student may see several of.
        return rows.index_select(
            0, masks.index if len(rows) == masks.hidden.numel() else masks.index % len(rows)
        )

    def _teacher_features(self, global_views: Tensor) -> Features:
        encoded, self._encoded = self._encoded, None
        followed = torch.is_grad_enabled() and global_views.requires_grad
        if encoded is not None and encoded[0] is global_views and not followed:  # kept without a graph
            return encoded[1]
        return self.teacher.backbone(global_views.flatten(0, 1))

    def _answer(self, global_features: Features, local_features: Features | None, masks: Masks) -> Outputs:
        views = [global_features] if local_features is None else [global_features, local_features]
        rows = self._patch_rows(global_features, masks)
        cls, patches = self.student.project(torch.cat([features.cls for features in views]), rows)
        return Outputs(cls, patches, global_features)

    def _target(
        self,
        scores: Scores,
        temperature: float | Tensor,
        usual: float,
        centre: Centre | None,
        *,
        followed: bool = False,
        fitted: Tensor | None = None,
    ) -> Target:
        if centre is not None:
            return centre.target(scores, temperature, usual, followed=followed)
        return sinkhorn_target(scores, temperature, fitted, followed=followed)


def _hidden_shares(masks: Masks) -> Tensor:
    """Return how far each token of each global view is hidden, [G·B, N]: bool, or relaxed fp32."""
    return (masks.hidden if masks.relaxed is None else masks.relaxed).flatten(0, 1)


def _temperatures(
    usual: float, factor: Tensor | None, masks: Masks, globals_: int
) -> tuple[float | Tensor, float | Tensor]:
    """Return the teacher's temperature of each of its views [G·B] and of each patch that iBOT compares.

    `factor` is [B]; where there is none both are the usual one. `masks` may be of several versions of them.
    """
    if factor is None:
        return usual, usual
    views, batch, tokens = masks.hidden.shape
    each = usual * factor
    of_views = each.repeat(globals_)
    if masks.relaxed is None:
        return of_views, each.index_select(0, masks.index // tokens % batch)
    return of_views, each[:, None].expand(views, batch, tokens).flatten()
