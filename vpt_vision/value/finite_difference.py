"""Value and its gradient from two ordinary passes through the last blocks, along ±u."""

from __future__ import annotations

import torch
from torch import Tensor

from vpt_vision.feedback import Direction, inner
from vpt_vision.task import RenderedViews, Task
from vpt_vision.value.setting import Setting


def finite_difference_value(
    setting: Setting, task: Task, views: RenderedViews, u: Direction, *, rho: float
) -> dict[str, Tensor]:
    """V_k ≈ [L_k(θ_S + εu) - L_k(θ_S - εu)] / 2ε with ε = ρ ‖θ_S‖ / ‖u‖.

    The error is O(ε²) in V and in its gradient, and rounding grows as ε falls: the tail runs in fp32
    whatever the run's precision. See `Setting` for what comes in and goes out.

    The blocks below S see the same input in both passes, so they run once and both tails read their
    output. The backward pass through the result then needs no second derivative: it takes the difference
    of the two tails' gradients, with respect to the trunk's output and to the masks' weights in the loss,
    and sends it through the trunk once, down to the pixels if they lead back to the designer.
    """
    learner = setting.learner
    with torch.no_grad():
        tail = learner.student.backbone.tail_parameters(setting.tail_blocks)
        theta = {name: parameter.detach() for name, parameter in tail.items()}
        u_norm = inner(u, u).sqrt().clamp(min=1e-12)  # u = 0 gives V = 0, not 0/0
        epsilon = rho * inner(theta, theta).sqrt() / u_norm

    teacher = setting.teacher_targets(task, views)
    with setting.autocast():
        trunk = learner.student_trunk(views, task.masks, setting.tail_blocks).widened()

    def terms_at(step: Tensor) -> dict[str, Tensor]:
        moved = {name: theta[name] + step * u[name] for name in theta}
        with torch.autocast(setting.images.device.type, enabled=False):
            outputs = learner.student_tail(trunk, moved)
            return learner.losses(outputs, teacher, task.masks, task.targets).terms

    above, below = terms_at(epsilon), terms_at(-epsilon)
    return {term: (above[term] - below[term]) / (2 * epsilon) for term in above}
