"""`ValueStep`: measure the value of the designer's tasks, and move the designer up its gradient."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from vpt_kernels import PackedImages
from vpt_vision.collectives import all_reduce_mean
from vpt_vision.designers import Designer, Policy, Refined
from vpt_vision.designers.ascent import ascend
from vpt_vision.errors import UserError
from vpt_vision.feedback import (
    Direction,
    Feedback,
    FeedbackGradient,
    cosine,
    evaluating,
    inner,
    random_direction,
)
from vpt_vision.learner import Learner
from vpt_vision.task import Keys, Renderer, Task
from vpt_vision.value.config import ValueConfig
from vpt_vision.value.estimator import Estimator, Occasion, Search
from vpt_vision.value.gradient import MovingDirection, pretraining_gradients
from vpt_vision.value.guard import Guard
from vpt_vision.value.lead import led
from vpt_vision.value.leash import Leash
from vpt_vision.value.objective import Measured, Objective, leads_back, valued_weights
from vpt_vision.value.pathwise import opened
from vpt_vision.value.population import population
from vpt_vision.value.preconditioner import adamw_step
from vpt_vision.value.rollout import LearnerUpdate, Rollout, rollout
from vpt_vision.value.scale import RunningScale
from vpt_vision.value.score import score
from vpt_vision.value.setting import Setting

WATCHED = ("cosine", "heldout/", "guard/")  # what figures of a look at the held-out examples begin with


class ValueStep:
    """What the trainer calls every `config.every` steps, after the learner's own step.

    The objective that the designer ascends is Σ_k w_k V_k / s_k, less the leash's price and the designer's
    own penalties, with the weight w_k of loss term k in value and the running size s_k of its value (1 if
    not normalised). Each surface's gradient is found by the estimator that `config.estimators` names; the
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
        learner_update: LearnerUpdate | None = None,
        bf16: bool = False,
    ) -> None:
        if config.preconditioner == "adamw" and learner_optimiser is None:
            raise UserError(
                "value.preconditioner is adamw: give the value step the learner's optimiser, or set it to "
                "identity."
            )
        if config.lead and learner_optimiser is None:
            raise UserError(
                "value.lead is true: give the value step the learner's optimiser, or set it to false."
            )
        self.config = config
        self.learner_optimiser = learner_optimiser
        self.learner_update = learner_update
        self.bf16 = bf16
        self.learner = learner
        self.designer = designer
        self.renderer = renderer
        self.feedback_gradient = FeedbackGradient(feedback, config.tail_blocks)
        self.plan = config.estimators.plan(designer.surfaces)
        repeatable = self.plan.searched.keys() <= {"population", "score"} and not self.plan.followed
        if config.repeats > 1 and designer.learns_from == "value" and not (repeatable and self.plan.searched):
            raise UserError(
                f"value.repeats is {config.repeats}, and only these searches repeat: take population or "
                "score for every surface in value.estimators, or set it to 1."
            )
        weights = valued_weights(config.terms, learner.config.weights)
        self.objective = Objective(config, weights, exact=self.plan.exact)
        if "rollout" in self.plan.searched:
            if learner_update is None:
                raise UserError(
                    "value.estimators asks for rollout: give the value step the learner's update, or choose "
                    "population."
                )
            if config.direction == "random":
                raise UserError(
                    "value.direction is random, and rollout judges by downstream loss, not along a "
                    "direction: choose population in value.estimators."
                )
        self.rollout_scale = RunningScale(config.scale_decay)
        self.searches = [(self._search(name), found) for name, found in self.plan.searched.items()]
        self.guard = Guard(config.guard)
        self.heldout_u = MovingDirection(feedback.ema)
        self.count = 0
        self.leash = Leash(config.leash, designer.kl_weight, bends=bool(designer.surfaces))
        self.optimiser: torch.optim.Optimizer | None = None
        if designer.learns_from == "value":
            self.optimiser = designer.optimiser()
        self.latest: dict[str, Tensor] = {}

    def due(self, step: int) -> bool:
        """Whether learner step `step`, from 0, is followed by a value step."""
        after = step - self.config.since
        return after >= 0 and after % self.config.every == 0 and not self.over(step)

    def over(self, step: int) -> bool:
        """Whether at learner step `step` the time of value is over, see `ValueConfig.until`."""
        return self.config.until is not None and step >= self.config.until

    def rest(self) -> None:
        """Keep of `latest` only the designer's law as last told: nothing else is measured any more."""
        law = ("kl/", "entropy/", "policy/")
        self.latest = {name: figure for name, figure in self.latest.items() if name.startswith(law)}

    def __call__(
        self,
        images: PackedImages,
        keys: Keys,
        temperature: float,
        others: Iterable[tuple[PackedImages, Tensor]] = (),
    ) -> dict[str, Tensor]:
        """Measure, and after the burn-in improve the designer.

        Args:
            images: those of the learner's step, on its device; the first `batch` are used.
            keys: of that step.
            temperature: the teacher's.
            others: images for the repeats after the first, at least 2 a batch, each with their numbers in
                the source, int64 on the CPU; taken as they are needed.

        Returns:
            Scalars on the device, kept as `latest`: `value` = ⟨P u, ∇L_pre⟩, with the loss terms' weights in
            value, and `value/TERM` of each unweighted term; `objective` without KL and penalties;
            `kl/SURFACE` and `entropy/SURFACE` (over the recipe's) in nats, means over images, before the
            designer's step, and after it where that was the last or one of several; `penalty/NAME`; what
            `FeedbackGradient.update` and `Policy.describe` (under `policy/`) report; and where the designer
            was improved `designer_gradient_norm`, `designer_skipped` (1 or 0), `pace` (the share of the step
            that was taken) and what `Leash` reports. Every `guard.every` times also `cosine` of P u with
            ∇L_pre, `cosine/TERM`, `heldout/value`, `heldout/cosine` and `heldout/cosine/TERM`, the same with
            u on held-out examples, and after the burn-in what `Guard.look` reports; between these the last
            of them stand.
        """
        everyone, images = images, images[: self.config.batch]
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
            with self._where_u_is_taken(), setting.autocast():
                report = self.feedback_gradient.update(learner.student.backbone, keys)
            u = self._direction(keys)
            optimiser = self.optimiser if keys.step >= self.config.burn_in else None
            with torch.set_grad_enabled(optimiser is not None):
                features = self.designer.features(images)
                outputs = self.designer.outputs(features)
                policy = self.designer.policy_of(images, outputs)
                task = opened(policy.sample(keys), self.plan.followed)
                refined = self._refine(setting, task, keys)
                measured = self.objective.measure(setting, refined, u, first=True)
            if (
                optimiser is not None
                and self.config.repeats > 1
                and (refined.penalties or leads_back(refined))
            ):
                raise UserError(
                    f"value.repeats is {self.config.repeats}, and what {type(self.designer).__name__} "
                    "changes in rendered views has a gradient or a penalty of its own, which a search leaves "
                    "out: set it to 1."
                )
            report |= self._describe(measured) | self._law(policy)
            report |= {f"penalty/{name}": penalty.detach() for name, penalty in refined.penalties.items()}
            report |= {f"policy/{name}": figure.detach() for name, figure in refined.figures.items()}
            if optimiser is not None:
                searched = self._search_goal(setting, keys, u, features, outputs, policy)
                price = self.leash.price(policy) + _total(refined.penalties.values())
                goal = measured.objective + searched - price
                report |= self._step(optimiser, everyone, goal, report["u_reliability"])
                if self.config.repeats > 1:
                    report |= self._search_on(optimiser, others, setting, keys, u, report)
                    with torch.no_grad():
                        refined = self._refine(setting, self.designer.policy(images).sample(keys), keys)
                if self.over(keys.step + self.config.every):  # the last that is told of the designer
                    report |= self._law(self.designer.policy(images))
            if self.config.guard.every and self.count % self.config.guard.every == 0:
                recipe = None if optimiser is None else self._recipe(images, outputs)
                report |= self._look(setting, refined, keys, u, recipe=recipe)
            else:
                report |= {k: figure for k, figure in self.latest.items() if k.startswith(WATCHED)}
        self.count += 1
        self.latest = report
        return report

    def _search_goal(
        self,
        setting: Setting,
        keys: Keys,
        u: Direction,
        features: dict[str, Tensor],
        outputs: dict[str, Tensor],
        policy: Policy,
    ) -> Tensor:
        """What the estimators find that search: a scalar with their gradient."""
        occasion = Occasion(
            designer=self.designer,
            images=setting.images,
            keys=keys,
            features=features,
            outputs=outputs,
            policy=policy,
            judge=lambda task: (
                self.objective.measure(setting, self._refine(setting, task, keys), u).objective
            ),
            fall=self._fall(setting, keys),
        )
        return _total(search(occasion, surfaces) for search, surfaces in self.searches)

    def _search_on(
        self,
        optimiser: torch.optim.Optimizer,
        others: Iterable[tuple[PackedImages, Tensor]],
        setting: Setting,
        keys: Keys,
        u: Direction,
        report: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """Take the other repeats' steps at the same learner and u, on other images, by later random numbers.

        On the same images all repeats would climb what is peculiar to them.

        Returns what the last of them reports, with `designer_skipped` 1 where any was skipped, and the law
        that the designer is left with on the last images.
        """
        images, reliability = setting.images, report["u_reliability"]
        skipped, upcoming = report["designer_skipped"], iter(others)
        for repeat in range(1, self.config.repeats):
            given = next(upcoming, None)
            if given is None:
                raise UserError(
                    f"value.repeats is {self.config.repeats}, and images for {repeat} of them were given: "
                    "give the value step `others` for each after the first."
                )
            images, samples = given
            setting = replace(setting, images=images)
            features = self.designer.features(images)
            outputs = self.designer.outputs(features)
            policy = self.designer.policy_of(images, outputs)
            later = keys._replace(step=keys.step + repeat, samples=samples)
            found = self._search_goal(setting, later, u, features, outputs, policy)
            report = self._step(optimiser, images, found - self.leash.price(policy), reliability)
            skipped = torch.maximum(skipped, report["designer_skipped"])
        return report | {"designer_skipped": skipped} | self._law(self.designer.policy(images))

    def _step(
        self, optimiser: torch.optim.Optimizer, images: PackedImages, goal: Tensor, reliability: Tensor
    ) -> dict[str, Tensor]:
        """Move the designer up the gradient of `goal`, as far as u can be trusted and the leash allows."""
        before = [parameter.detach().clone() for parameter in self.designer.parameters()]
        report = ascend(self.designer, optimiser, goal)
        pace = self.guard.factor.to(images.device)
        if self.config.pace == "reliability":
            pace = pace * agreement(reliability)
        with torch.no_grad():
            for parameter, then in zip(self.designer.parameters(), before, strict=True):
                parameter.copy_(torch.lerp(then, parameter, pace))
            outputs = list(self.designer.outputs(self.designer.features(images)).values())
            if outputs:  # a step so long that the network overflows is taken back
                sound = torch.stack([output.isfinite().all() for output in outputs]).all()
                for parameter, then in zip(self.designer.parameters(), before, strict=True):
                    parameter.copy_(torch.where(sound, parameter, then))
                report["designer_skipped"] = torch.maximum(report["designer_skipped"], (~sound).float())
        return report | {"pace": pace, **self.leash.pull_back(self.designer, images), **self.leash.report()}

    def _look(
        self,
        setting: Setting,
        refined: Refined,
        keys: Keys,
        u: Direction,
        *,
        recipe: Policy | None,
    ) -> dict[str, Tensor]:
        """Measure value on held-out examples beside value on meta; the guard judges gains over `recipe`."""
        with self._where_u_is_taken(), setting.autocast():
            heldout = self.feedback_gradient.heldout(self.learner.student.backbone, keys)
        self.heldout_u.update(self.feedback_gradient.combine(heldout))
        other = self._preconditioned(self.heldout_u.value)
        terms = pretraining_gradients(setting, refined.task, refined.views)
        whole = self.objective.whole(terms)
        report = {
            "cosine": cosine(u, whole),
            "heldout/value": inner(other, whole),
            "heldout/cosine": cosine(other, whole),
            **{f"cosine/{term}": cosine(u, gradient) for term, gradient in terms.items()},
            **{f"heldout/cosine/{term}": cosine(other, gradient) for term, gradient in terms.items()},
        }
        if recipe is None:
            return report
        with torch.no_grad():
            task = recipe.sample(keys)
            views = setting.renderer(setting.images, task)
        usual = pretraining_gradients(setting, task, views)
        aligned = self.objective.aligned
        gains = [all_reduce_mean(aligned(terms, along) - aligned(usual, along)) for along in (u, other)]
        return report | self.guard.look(*gains)

    def _where_u_is_taken(self) -> AbstractContextManager[None]:
        """Where momentum leads the last blocks, or where the learner stands."""
        tail = self.learner.student.backbone.tail_parameters(self.config.tail_blocks)
        return led(tail, self.learner_optimiser if self.config.lead else None)

    def _direction(self, keys: Keys) -> Direction:
        """P u: u, or the control in its place, as the learner's steps see it."""
        u = self.feedback_gradient.u
        if self.config.direction == "random":
            u = random_direction(u, keys)
        return self._preconditioned(u)

    def _preconditioned(self, u: Direction) -> Direction:
        if self.config.preconditioner == "identity" or self.learner_optimiser is None:
            return u
        tail = self.learner.student.backbone.tail_parameters(self.config.tail_blocks)
        return adamw_step(u, tail, self.learner_optimiser)

    def _recipe(self, images: PackedImages, outputs: dict[str, Tensor]) -> Policy:
        """The law of the recipe's tasks: zero outputs are the recipe."""
        return self.designer.policy_of(images, {name: torch.zeros_like(o) for name, o in outputs.items()})

    def _refine(self, setting: Setting, task: Task, keys: Keys) -> Refined:
        """Render `task` and let the designer finish it."""
        views = setting.renderer(setting.images, task)
        with setting.autocast():
            return self.designer.refine(task, views, keys, setting.learner, setting.temperature)

    def _fall(self, setting: Setting, keys: Keys) -> Rollout | None:
        """Return what real steps are judged by, where a surface asks for it."""
        if "rollout" not in self.plan.searched or self.learner_update is None:
            return None
        downstream = self.feedback_gradient.meta_loss
        return Rollout(
            setting,
            self.designer,
            keys,
            self.learner_update,
            downstream,
            before=downstream(setting.learner.student.backbone),
            steps=self.config.rollout.steps,
        )

    def _search(self, name: Search) -> Estimator:
        """Return the estimator of that name with its settings."""
        if name == "rollout":
            config = self.config.rollout
            scale = None if self.config.normalise == "none" else self.rollout_scale
            return partial(rollout, pairs=config.pairs, sigma=config.sigma, scale=scale)
        if name == "score":
            return partial(score, draws=self.config.draws)
        return partial(population, pairs=self.config.pairs, sigma=self.config.sigma)

    @torch.no_grad()
    def _describe(self, measured: Measured) -> dict[str, Tensor]:
        return {
            "value": self.objective.weighted(measured.values),
            **{f"value/{term}": value.detach() for term, value in measured.values.items()},
            "objective": measured.objective.detach(),
        }

    @torch.no_grad()
    def _law(self, policy: Policy) -> dict[str, Tensor]:
        return {
            **{f"kl/{surface}": kl.mean() for surface, kl in policy.kl().items()},
            **{f"entropy/{surface}": nats.mean() for surface, nats in policy.entropy().items()},
            **{f"policy/{name}": scalar for name, scalar in policy.describe().items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next call depends on besides learner and designer."""
        return {
            "feedback_gradient": self.feedback_gradient.state_dict(),
            "objective": self.objective.state_dict(),
            "rollout_scale": self.rollout_scale.state_dict(),
            "leash": self.leash.state_dict(),
            "guard": self.guard.state_dict(),
            "heldout_u": self.heldout_u.state_dict(),
            "count": self.count,
            "optimiser": None if self.optimiser is None else self.optimiser.state_dict(),
            "latest": self.latest,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave, onto the learner's device."""
        device = self.learner.student.backbone.mask_token.device
        state = tree_map_only(Tensor, lambda tensor: tensor.to(device), state)
        self.feedback_gradient.load_state_dict(state["feedback_gradient"])
        self.objective.load_state_dict(state["objective"])
        if "rollout_scale" in state:  # a checkpoint of before there was rollout cannot have used it
            self.rollout_scale.load_state_dict(state["rollout_scale"])
        self.leash.load_state_dict(state["leash"])
        self.guard.load_state_dict(state["guard"])
        self.heldout_u.load_state_dict(state["heldout_u"])
        self.count = state["count"]
        if self.optimiser is not None:
            self.optimiser.load_state_dict(state["optimiser"])
        self.latest = state["latest"]


def _total(numbers: Iterable[Tensor]) -> Tensor:
    """Sum of scalars; 0 for none."""
    return sum(numbers, start=torch.zeros(()))


def agreement(reliability: Tensor) -> Tensor:
    """Return the share of u that is signal, from the cosine r of its two halves: 2 r / (1 + r), 0 for r < 0.

    With independent noise of one size in both halves r is the signal's share in either, and this that in
    their mean (Spearman 1910, Brown 1910): the factor that makes a noisy u the best estimate of the true
    one. A designer's optimiser divides by the gradient's own size, so it is the step that is scaled.
    Directions in which no label agrees with another then move the designer nowhere.
    """
    r = reliability.nan_to_num(0.0).clamp(0, 1)
    return 2 * r / (1 + r)
