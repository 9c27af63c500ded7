"""What every estimator of value is told besides the task and u."""

from __future__ import annotations

from dataclasses import dataclass

from vpt_kernels import PackedImages
from vpt_vision.learner import Learner
from vpt_vision.task import Renderer


@dataclass(frozen=True)
class Setting:
    """A learner as it stands, and the images that a task is set on.

    An estimator takes (setting, task, the task's rendered views, u) and returns
    V_k(φ) = ⟨u, ∇_{θ_S} L_k(θ; c_φ(x))⟩ as a scalar for each term k of the learner's loss, unweighted, with
    u = ∇_{θ_S} L_down (Ke & Fanti, arXiv 2601.22108). A learner's step θ - lr ∇L_k lowers L_down by lr V_k to
    first order: larger is better. V_k is differentiable in `task.masks.relaxed` where the task has it, in
    `task.targets` (the potentials that balance the teacher's targets being held), and in the views as the
    student sees them.

    The learner is expected in eval mode; no estimator changes it or writes to a `.grad`.
    """

    learner: Learner
    renderer: Renderer
    images: PackedImages  # B of them
    temperature: float  # the teacher's
    tail_blocks: int  # S is this many last blocks of the student's backbone, and its final norm
