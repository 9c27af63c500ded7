"""Value and its gradient by double backward: the oracle that the other estimators are tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vpt_vision.feedback import Direction
from vpt_vision.task import RenderedViews, Task
from vpt_vision.value.setting import Setting


def exact_value(setting: Setting, task: Task, views: RenderedViews, u: Direction) -> dict[str, Tensor]:
    """V_k = ⟨u, ∇_{θ_S} L_k⟩ with the graph of ∇_{θ_S} L_k kept, so that it can be differentiated again.

    See `Setting` for what comes in and goes out. Attention runs by plain matrix products ("math"), the
    only backend with a double backward.
    """
    learner = setting.learner
    teacher = setting.teacher_targets(task, views)
    tail = learner.student.backbone.tail_parameters(setting.tail_blocks)
    along_u = [u[name] for name in tail]
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        outputs = learner.student_outputs(views, task.masks)
        losses = learner.losses(outputs, teacher, task.masks, task.targets)
        values = {}
        for term, loss in losses.terms.items():
            gradient = torch.autograd.grad(
                loss, list(tail.values()), create_graph=True, materialize_grads=True
            )
            values[term] = torch.stack([(g * d).sum() for g, d in zip(gradient, along_u, strict=True)]).sum()
    return values
