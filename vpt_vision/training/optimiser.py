"""The learner's AdamW: DINOv2's parameter groups, and a step that a NaN cannot reach."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from timm.models import group_parameters
from torch import Tensor, nn

from vpt_vision.learner.student_teacher import Learner
from vpt_vision.schema import Config
from vpt_vision.training.schedules import ScheduledValues

Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimiserConfig(Config):
    """AdamW as DINOv2 sets it up."""

    betas: tuple[Decay, Decay] = Field((0.9, 0.999), description="AdamW's decay rates of the two moments")
    clip_gradient: float = Field(3.0, gt=0, description="largest norm of the student's gradient")
    layer_decay: float = Field(
        0.9, gt=0, le=1, description="factor on the learning rate from each block to the one below it"
    )
    patch_embed_multiplier: float = Field(
        0.2, ge=0, description="further factor on the patch embedding's learning rate"
    )


class LearnerOptimiser:
    """AdamW over the student, with its schedules applied per parameter group.

    Learning rates fall as in DINOv2: the final norm and the heads have the full one, the last block
    `layer_decay` of it, the embeddings and the mask token `layer_decay` to the power of depth + 1. Biases,
    norms and other vectors carry no weight decay. The prototypes stand apart, to be frozen at first.
    """

    def __init__(self, learner: Learner, config: OptimiserConfig) -> None:
        self.config = config
        self.parameters = [p for p in learner.student.parameters() if p.requires_grad]
        self.backbone = list(learner.student.backbone.parameters())
        self.adamw = torch.optim.AdamW(_groups(learner, config), lr=0.0, betas=config.betas, fused=True)
        self.latest: ScheduledValues | None = None  # of the last step

    def step(self, loss: Tensor, scheduled: ScheduledValues) -> dict[str, Tensor]:
        """Backpropagate `loss`, clip, and step, unless the loss or a gradient is not finite.

        The check stays on the device: fused AdamW reads `found_inf` as torch's GradScaler gives it,
        and leaves parameters, moments and step counts alone where it is 1.
        Returns `gradient_norm` (before clipping) and `skipped` (1 or 0), scalars on the device.
        """
        self.latest = scheduled
        for group in self.adamw.param_groups:
            frozen = scheduled.prototypes_frozen and group["prototypes"]
            group["lr"] = 0.0 if frozen else scheduled.learning_rate * group["lr_scale"]
            group["weight_decay"] = scheduled.weight_decay if group["decayed"] else 0.0
        self.adamw.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if scheduled.backbone_frozen:
            for parameter in self.backbone:
                parameter.grad = None  # AdamW passes over it: neither its weight nor its moments change
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip_gradient, foreach=True)
        skipped = 1.0 - (norm.isfinite() & loss.detach().isfinite()).float()
        self.adamw.grad_scale, self.adamw.found_inf = None, skipped  # type: ignore[attr-defined]
        self.adamw.step()
        return {"gradient_norm": norm, "skipped": skipped}

    def again(self, learner: Learner, loss: Tensor) -> None:
        """Step down `loss` as at the last step, and let the teacher of `learner` follow."""
        assert self.latest is not None, "a step has been taken"
        self.step(loss, self.latest)
        learner.update_teacher(self.latest.momentum)


def _groups(learner: Learner, config: OptimiserConfig) -> list[dict[str, object]]:
    """Sort the student's parameters by (learning-rate factor, decayed or not, prototypes or not)."""
    vit = learner.student.backbone.vit
    layer_of = group_parameters(vit, vit.group_matcher(coarse=False), reverse=True)
    last_layer = max(layer_of.values())
    scale_of = {learner.student.backbone.mask_token: config.layer_decay ** (last_layer + 1)}
    for name, parameter in vit.named_parameters():
        above = 0 if name.startswith(("norm.", "fc_norm.")) else last_layer + 1 - layer_of[name]
        scale = config.layer_decay**above
        if name.startswith("patch_embed."):
            scale *= config.patch_embed_multiplier
        scale_of[parameter] = scale
    prototypes = set(learner.prototype_parameters())
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in learner.student.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and not name.endswith(("_token", "pos_embed"))
            key = (scale_of.get(parameter, 1.0), decayed, parameter in prototypes)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": members, "lr_scale": scale, "decayed": decayed, "prototypes": is_prototypes}
        for (scale, decayed, is_prototypes), members in groups.items()
    ]
