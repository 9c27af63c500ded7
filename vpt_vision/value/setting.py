"""What every estimator of value is told besides the task and u."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vpt_kernels import PackedImages
from vpt_vision.learner import Learner, TeacherTargets
from vpt_vision.task import RenderedViews, Renderer, Task


@dataclass(frozen=True)
class Setting:
    """A learner as it stands, and the images that a task is set on.

    An estimator takes (setting, task, the task's rendered views, u) and returns
    V_k(φ) = ⟨u, ∇_{θ_S} L_k(θ; c_φ(x))⟩ as a scalar for each term k of the learner's loss, unweighted, with
    u = ∇_{θ_S} L_down (Ke & Fanti, arXiv 2601.22108). A learner's step θ - lr ∇L_k lowers L_down by lr V_k to
    first order: larger is better. V_k is differentiable in `task.masks.relaxed` where the task has it, in
    `task.targets`, and in the views: with `follow_targets` through the teacher's targets and their balance
    too, else as far as the student sees them.

    The learner is expected in eval mode; no estimator changes it or writes to a `.grad`.
    """

    learner: Learner
    renderer: Renderer
    images: PackedImages  # B of them
    temperature: float  # the teacher's
    tail_blocks: int  # S is this many last blocks of the student's backbone, and its final norm
    follow_targets: bool = True  # whether derivatives of V_k go through the teacher's targets
    bf16: bool = False  # whether the teacher, and the student below S, run as in a bf16 run; S never does

    def teacher_targets(self, task: Task, views: RenderedViews) -> TeacherTargets:
        """Return what the teacher sets for `task`."""
        with self.autocast():
            return self.learner.teacher_targets(
                views.for_teacher,
                task.masks,
                self.temperature,
                task.targets,
                followed=self.follow_targets,
            )

    def autocast(self) -> torch.autocast:
        """Return the precision of everything but S."""
        return torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.bf16)
