"""The designer's gradient from real steps of a copy of the learner, which value foretells one of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from pydantic import Field
from torch import Tensor

from vpt_vision.designers import Designer, Policy, Surface
from vpt_vision.learner import Learner
from vpt_vision.learner.backbone import Backbone
from vpt_vision.schema import Config
from vpt_vision.task import Keys
from vpt_vision.value.estimator import Occasion
from vpt_vision.value.population import antithetic
from vpt_vision.value.scale import RunningScale
from vpt_vision.value.setting import Setting


class RolloutConfig(Config):
    """How candidates are judged by real steps of a copy of the learner."""

    steps: int = Field(4, ge=1, description="steps that a copy of the learner takes under each candidate")
    pairs: int = Field(1, ge=1, description="antithetic pairs of candidate designers")
    sigma: float = Field(0.5, gt=0, description="root mean square of what is added to a head's outputs")


class LearnerUpdate(Protocol):
    """The learner's own update, as training makes it.

    Copied deeply together with the learner, it moves the copy and has its own moments.
    """

    def again(self, learner: Learner, loss: Tensor) -> None:
        """Move student and teacher down `loss` by the learning rate and momentum of the last step."""


@dataclass(frozen=True)
class Rollout:
    """How far downstream loss falls where a policy sets the learner's next tasks.

    The fall is L_down(θ) - L_down(θ_n), with θ_n what n updates of a copy of the learner make of θ: AdamW
    with its moments, clipping, stochastic depth, the teacher's average and the running centres. All of the
    student moves, not S alone, and later steps see the teacher that earlier ones moved. The images are the
    value step's at each of them; step k draws its task and its stochastic depth by the keys of `keys.step`
    + k, the same for every policy.
    """

    setting: Setting  # its learner is copied, and left as it is
    designer: Designer
    keys: Keys
    update: LearnerUpdate
    downstream: Callable[[Backbone], Tensor]  # L_down of a student's backbone, a scalar; its head is fixed
    before: Tensor  # L_down(θ)
    steps: int

    def __call__(self, policy: Policy) -> Tensor:
        """Return the fall under `policy`, a detached scalar; nothing global or of the learner changes."""
        setting, device = self.setting, self.setting.images.device
        learner, update = copy.deepcopy((setting.learner, self.update))
        learner.train()
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            for step in range(self.keys.step, self.keys.step + self.steps):
                keys = self.keys._replace(step=step)
                torch.manual_seed((keys.seed << 32) + step)
                with torch.no_grad():
                    task = policy.sample(keys)
                    views = setting.renderer(setting.images, task)
                with setting.autocast():
                    with torch.no_grad():
                        task, views, *_ = self.designer.refine(
                            task, views, keys, learner, setting.temperature
                        )
                    with torch.enable_grad():
                        losses = learner(views, task.masks, setting.temperature, task.targets)
                update.again(learner, losses.total)
        return self.before - self.downstream(learner.student.backbone)


def rollout(
    occasion: Occasion,
    surfaces: frozenset[Surface],
    *,
    pairs: int,
    sigma: float,
    scale: RunningScale | None,
) -> Tensor:
    """Search as `antithetic` does, by how far real steps under each candidate lower downstream loss.

    It sees what one step's value leaves out: that a task changes the teacher, the moments and the later
    tasks' worth. Every candidate costs a copy of the learner, `RolloutConfig.steps` of its steps and a look
    at the whole meta split.

    Args:
        occasion: with its `fall`.
        surfaces: those that are searched, together.
        pairs: P, at least 1.
        sigma: σ, the root mean square of a perturbation.
        scale: takes in the candidates' mean fall, as `fall`, and the search is divided by its running size;
            None leaves the search in the unit of L_down.
    """
    assert occasion.fall is not None, "rollout was planned"
    judge, falls = occasion.fall, list[Tensor]()

    def judged(policy: Policy) -> Tensor:
        falls.append(judge(policy))
        return falls[-1]

    found = antithetic(occasion, surfaces, judged, pairs=pairs, sigma=sigma)
    if scale is None:
        return found
    scale.update({"fall": torch.stack(falls).mean()})
    return found / scale.scale("fall")
