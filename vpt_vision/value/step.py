"""`ValueStep`: measure the value of the designer's tasks, and move the designer up its gradient."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.utils._pytree import tree_map_only

from vpt_kernels import PackedImages
from vpt_vision.collectives import all_reduce_mean
from vpt_vision.designers import Designer, LearnedDesigner, Policy, Refined
from vpt_vision.designers.ascent import ascend
from vpt_vision.errors import UserError
from vpt_vision.feedback import Direction, Feedback, FeedbackGradient, evaluating, random_direction
from vpt_vision.learner import Learner
from vpt_vision.schema import Config
from vpt_vision.task import Keys, Renderer, Task
from vpt_vision.value.estimator import Estimator, EstimatorsConfig, Occasion, Search
from vpt_vision.value.exact import exact_value
from vpt_vision.value.finite_difference import finite_difference_value
from vpt_vision.value.pathwise import opened
from vpt_vision.value.population import population
from vpt_vision.value.preconditioner import adamw_step
from vpt_vision.value.scale import RunningScale
from vpt_vision.value.score import score
from vpt_vision.value.setting import Setting


class ValueConfig(Config):
    """How often, on what and by which estimator the value of a task is measured."""

    every: int = Field(8, ge=1, description="learner steps from one value step to the next")
    burn_in: int = Field(
        0, ge=0, description="learner steps in which value is measured but the designer rests"
    )
    batch: int = Field(32, ge=2, description="images of the learner's batch that value is measured on")
    tail_blocks: int = Field(
        2, ge=1, description="last blocks of the student that u and value speak of; 2 to 4"
    )
    direction: Literal["feedback", "random"] = Field(
        "feedback",
        description="random: value is along a random direction of u's length, anew each time, a control",
    )
    estimators: EstimatorsConfig = Field(
        EstimatorsConfig(), description="how each surface's gradient is found"
    )
    follow_targets: bool = Field(
        True,
        description="derivatives of value go through the teacher's targets and their balance too; false "
        "holds these, which is cheaper, and wrong where one image's views shift the targets of others",
    )
    rho: float = Field(
        1e-3, gt=0, description="finite difference: length of the step, in lengths of the weights"
    )
    pairs: int = Field(2, ge=1, description="population search: antithetic pairs of candidate designers")
    sigma: float = Field(
        0.25, gt=0, description="population search: root mean square of what is added to a head's outputs"
    )
    draws: int = Field(4, ge=2, description="score function: batches of tasks drawn from the policy")
    preconditioner: Literal["identity", "adamw"] = Field(
        "identity",
        description="identity: value of a plain gradient step, as published; adamw: of the step that the "
        "learner's AdamW makes of it",
    )
    normalise: Literal["running", "none"] = Field(
        "running",
        description="running: each loss term's value is divided by its running size; none: as published",
    )
    scale_decay: float = Field(0.9, ge=0, lt=1, description="decay of the running size, per value step")


def build_search(name: Search, config: ValueConfig) -> Estimator:
    """Build the estimator of that name with its settings."""
    if name == "score":
        return partial(score, draws=config.draws)
    return partial(population, pairs=config.pairs, sigma=config.sigma)


class ValueStep:
    """What the trainer calls every `config.every` steps, after the learner's own step.

    The objective that the designer ascends is Σ_k w_k V_k / s_k - kl_weight · KL(designer ‖ recipe) - its own
    penalties, with the learner's weight w_k of loss term k and the running size s_k of its value (1 if not
    normalised). Each surface's gradient is found by the estimator that `config.estimators` names; the
    designer's AdamW takes the step.

    With `bf16` everything but the last blocks runs as in a bf16 run.

    Nothing here reaches the learner: it is read in eval mode, no `.grad` or buffer of it is written, and no
    number is drawn from a global generator. A designer without parameters is measured and left alone.

    Raises `UserError` where an estimator cannot find its surface's gradient.
    """

    def __init__(
        self,
        config: ValueConfig,
        *,
        learner: Learner,
        designer: Designer,
        renderer: Renderer,
        feedback: Feedback,
        learner_optimiser: torch.optim.AdamW | None = None,
        bf16: bool = False,
    ) -> None:
        if config.preconditioner == "adamw" and learner_optimiser is None:
            raise UserError(
                "value.preconditioner is adamw: give the value step the learner's optimiser, or set it to "
                "identity."
            )
        self.config = config
        self.learner_optimiser = learner_optimiser
        self.bf16 = bf16
        self.learner = learner
        self.designer = designer
        self.renderer = renderer
        self.feedback_gradient = FeedbackGradient(feedback, config.tail_blocks)
        self.scale = RunningScale(config.scale_decay)
        self.plan = config.estimators.plan(designer.surfaces)
        self.searches = [(build_search(name, config), found) for name, found in self.plan.searched.items()]
        self.kl_weight = 0.0
        self.optimiser: torch.optim.Optimizer | None = None
        if isinstance(designer, LearnedDesigner):
            self.kl_weight = designer.config.kl_weight
        if designer.learns_from == "value":
            self.optimiser = designer.optimiser()
        self.latest: dict[str, Tensor] = {}

    def due(self, step: int) -> bool:
        """Whether learner step `step`, from 0, is followed by a value step."""
        return step % self.config.every == 0

    def __call__(self, images: PackedImages, keys: Keys, temperature: float) -> dict[str, Tensor]:
        """Measure, and after the burn-in improve the designer.

        Args:
            images: those of the learner's step, on its device; the first `batch` are used.
            keys: of that step.
            temperature: the teacher's.

        Returns:
            Scalars on the device, kept as `latest`: `value` = ⟨P u, ∇L_pre⟩ and `value/TERM` of each
            unweighted term; `objective` without KL and penalties; `kl/SURFACE` in nats, mean over images;
            `penalty/NAME`; what `FeedbackGradient.update` and `Policy.describe` (under `policy/`) report; and
            where the designer was improved `designer_gradient_norm` and `designer_skipped` (1 or 0).
        """
        images = images[: self.config.batch]
        keys = keys._replace(samples=keys.samples[: self.config.batch])
        learner = self.learner
        with evaluating(learner), torch.autocast(images.device.type, enabled=False):
            setting = Setting(
                learner,
                self.renderer,
                images,
                temperature,
                self.config.tail_blocks,
                follow_targets=self.config.follow_targets,
                bf16=self.bf16,
            )
            with setting.autocast():
                report = self.feedback_gradient.update(learner.student.backbone, keys)
            u = self._direction(keys)
            optimiser = self.optimiser if keys.step >= self.config.burn_in else None
            with torch.set_grad_enabled(optimiser is not None):
                features = self.designer.features(images)
                outputs = self.designer.outputs(features)
                policy = self.designer.policy_of(images, outputs)
                task = opened(policy.sample(keys), self.plan.followed)
                refined = self._refine(setting, task, keys)
                values = self._values(setting, refined, u)
            over_ranks = {term: all_reduce_mean(value) for term, value in values.items()}
            self.scale.update(over_ranks)
            report |= self._describe(policy, over_ranks)
            report |= {f"penalty/{name}": penalty.detach() for name, penalty in refined.penalties.items()}
            report |= {f"policy/{name}": figure.detach() for name, figure in refined.figures.items()}
            if optimiser is not None:
                occasion = Occasion(
                    designer=self.designer,
                    images=images,
                    keys=keys,
                    features=features,
                    outputs=outputs,
                    policy=policy,
                    judge=lambda task: self._objective(
                        self._values(setting, self._refine(setting, task, keys), u)
                    ),
                )
                price = self.kl_weight * _total(kl.mean() for kl in policy.kl().values())
                price = price + _total(refined.penalties.values())
                searched = _total(search(occasion, surfaces) for search, surfaces in self.searches)
                report |= ascend(self.designer, optimiser, self._objective(values) + searched - price)
        self.latest = report
        return report

    def _direction(self, keys: Keys) -> Direction:
        """P u: u, or the control in its place, as the learner's steps see it."""
        u = self.feedback_gradient.u
        if self.config.direction == "random":
            u = random_direction(u, keys)
        if self.config.preconditioner == "identity" or self.learner_optimiser is None:
            return u
        tail = self.learner.student.backbone.tail_parameters(self.config.tail_blocks)
        return adamw_step(u, tail, self.learner_optimiser)

    def _refine(self, setting: Setting, task: Task, keys: Keys) -> Refined:
        """Render `task` and let the designer finish it."""
        views = setting.renderer(setting.images, task)
        with setting.autocast():
            return self.designer.refine(task, views, keys, setting.learner, setting.temperature)

    def _values(self, setting: Setting, refined: Refined, u: Direction) -> dict[str, Tensor]:
        """V_k of each loss term; with a graph where one leads back to the designer."""
        task, views = refined.task, refined.views
        pixels = (views.global_views, views.local_views)
        leads_back = task.has_gradient or any(part.requires_grad for part in pixels)
        with torch.set_grad_enabled(leads_back and torch.is_grad_enabled()):
            if self.plan.exact:
                return exact_value(setting, task, views, u)
            return finite_difference_value(setting, task, views, u, rho=self.config.rho)

    def _objective(self, values: dict[str, Tensor]) -> Tensor:
        """Σ_k w_k V_k / s_k."""
        if self.config.normalise == "none":
            return self._weighted(values)
        return self._weighted({term: value / self.scale.scale(term) for term, value in values.items()})

    def _weighted(self, terms: dict[str, Tensor]) -> Tensor:
        """Sum over the loss terms with the learner's weights."""
        weights = self.learner.config.weights
        return torch.stack([weights[term] * value for term, value in terms.items()]).sum()

    @torch.no_grad()
    def _describe(self, policy: Policy, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            "value": self._weighted(values),
            **{f"value/{term}": value for term, value in values.items()},
            "objective": self._objective(values),
            **{f"kl/{surface}": kl.mean() for surface, kl in policy.kl().items()},
            **{f"policy/{name}": scalar for name, scalar in policy.describe().items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next call depends on besides learner and designer."""
        return {
            "feedback_gradient": self.feedback_gradient.state_dict(),
            "scale": self.scale.state_dict(),
            "optimiser": None if self.optimiser is None else self.optimiser.state_dict(),
            "latest": self.latest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, onto the learner's device."""
        device = self.learner.student.backbone.mask_token.device
        state = tree_map_only(Tensor, lambda tensor: tensor.to(device), state)
        self.feedback_gradient.load_state_dict(state["feedback_gradient"])
        self.scale.load_state_dict(state["scale"])
        if self.optimiser is not None:
            self.optimiser.load_state_dict(state["optimiser"])
        self.latest = state["latest"]


def _total(numbers: Iterable[Tensor]) -> Tensor:
    """Sum of scalars; 0 for none."""
    return sum(numbers, start=torch.zeros(()))
