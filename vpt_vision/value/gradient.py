"""The learner's gradient itself, and a direction averaged over steps."""

from __future__ import annotations

from typing import Any

import torch

from vpt_vision.feedback import Direction
from vpt_vision.task import RenderedViews, Task
from vpt_vision.value.setting import Setting


def pretraining_gradients(setting: Setting, task: Task, views: RenderedViews) -> dict[str, Direction]:
    """Return ∇_{θ_S} L_k of each term k of the learner's loss, unweighted.

    Detached, and no `.grad` is written. Nothing leads back to the designer.
    """
    learner, task = setting.learner, task.detach()
    views = RenderedViews(*(part if part is None else part.detach() for part in views))  # type: ignore[arg-type]
    with torch.no_grad():
        teacher = setting.teacher_targets(task, views)
        with setting.autocast():
            trunk = learner.student_trunk(views, task.masks, setting.tail_blocks).widened()
    tail = learner.student.backbone.tail_parameters(setting.tail_blocks)
    with torch.enable_grad(), torch.autocast(setting.images.device.type, enabled=False):
        terms = learner.losses(learner.student_tail(trunk), teacher, task.masks, task.targets).terms
        gradients = {
            term: torch.autograd.grad(loss, list(tail.values()), retain_graph=True, materialize_grads=True)
            for term, loss in terms.items()
        }
    return {term: dict(zip(tail, gradient, strict=True)) for term, gradient in gradients.items()}


class MovingDirection:
    """An exponential average of directions, without its bias towards 0."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: Direction = {}
        self.mass = 0.0

    def update(self, direction: Direction) -> None:
        """Take in one direction; one that is not finite is left out."""
        self.mass = self.decay * self.mass + 1 - self.decay
        for name, value in direction.items():
            before = self.average.get(name, torch.zeros_like(value))
            self.average[name] = torch.lerp(value, before, self.decay).where(value.isfinite().all(), before)

    @property
    def value(self) -> Direction:
        """The average."""
        return {name: value / self.mass for name, value in self.average.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the average and its mass."""
        return {"average": dict(self.average), "mass": self.mass}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.average, self.mass = dict(state["average"]), state["mass"]
