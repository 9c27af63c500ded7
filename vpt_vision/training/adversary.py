"""`AdversarialStep`: move a designer up the learner's own loss. No label has a part in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vpt_kernels import PackedImages
from vpt_vision.designers import Designer
from vpt_vision.designers.ascent import ascend
from vpt_vision.errors import UserError
from vpt_vision.feedback import evaluating
from vpt_vision.learner import Learner
from vpt_vision.task import Keys, Renderer


class AdversarialStep:
    """What the trainer calls after each step of a learner whose designer learns from the learner's loss.

    The two take turns on one batch, as in ADIOS (Shi et al. 2022): the learner has descended its loss, and
    now the designer ascends that of the learner as it stands, less its own penalties. The learner is read in
    eval mode: no weight, `.grad` or buffer of it is written, and no number is drawn from a global generator.
    It costs a forward pass of teacher and student and a backward pass to the pixels.
    """

    def __init__(self, *, learner: Learner, designer: Designer, renderer: Renderer) -> None:
        optimiser = designer.optimiser()
        if optimiser is None:
            raise UserError("a designer that learns from the learner's loss needs parameters, and has none.")
        self.learner = learner
        self.designer = designer
        self.renderer = renderer
        self.optimiser = optimiser

    def __call__(self, images: PackedImages, keys: Keys, temperature: float) -> dict[str, Tensor]:
        """Take one step on the images of the learner's step, with its keys.

        `temperature` is the teacher's. Returns scalars on the device: `adversary_loss`, the loss it ascends,
        `penalty/NAME`, `policy/NAME`, `designer_gradient_norm` and `designer_skipped` (1 or 0).
        """
        with evaluating(self.learner):
            task = self.designer(images, keys)
            refined = self.designer.refine(task, self.renderer(images, task), keys, self.learner, temperature)
            loss = self.learner(refined.views, refined.task.masks, temperature, refined.task.targets).total
            price = sum(refined.penalties.values(), start=loss.new_zeros(()))
            with torch.autocast(images.device.type, enabled=False):
                report = ascend(self.designer, self.optimiser, loss - price)
        return {
            "adversary_loss": loss.detach(),
            **{f"penalty/{name}": penalty.detach() for name, penalty in refined.penalties.items()},
            **{f"policy/{name}": figure.detach() for name, figure in refined.figures.items()},
            **report,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state; the designer's weights are saved with the designer."""
        return {"optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.optimiser.load_state_dict(state["optimiser"])
