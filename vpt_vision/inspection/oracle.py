"""`vpt value oracle`: whether value ranks tasks as they are known to be, and as short runs prove them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from vpt_vision.data import Batch
from vpt_vision.designers import Designer, FixedDesigner, Surface
from vpt_vision.errors import UserError
from vpt_vision.evaluation.result import Interval
from vpt_vision.evaluation.statistics import paired_difference
from vpt_vision.feedback import BeyondChance, Direction, FeedbackTask, all_features, inner
from vpt_vision.inspection.branch import Branch
from vpt_vision.learner.backbone import Features
from vpt_vision.task import Keys
from vpt_vision.training.schedules import scheduled_values
from vpt_vision.value.known import KnownPolicy, known_policies
from vpt_vision.value.lead import led
from vpt_vision.value.objective import valued_weights
from vpt_vision.value.oracle import Directions, Numbers, Ranking, directions, rank, term_gradients, values
from vpt_vision.value.preconditioner import adamw_step
from vpt_vision.value.setting import Setting

WHOLE = "whole"  # the weighted sum of the loss terms
# The same by `value.terms`, every term at the size that `value.normalise` gives it: a designer's goal.
CLIMBED = "climbed"
_TINY = 1e-30  # a size above 0
GROUP = 16  # examples whose mean loss is one observation of an outcome
SURFACES: tuple[Surface, ...] = ("crops", "photometrics", "masks", "targets")


@dataclass(frozen=True)
class Asked:
    """How the oracle is asked."""

    batches: int = 8  # that value is averaged over
    permutations: int = 32
    steps: int = 16  # of each short run; 0 for none
    repeats: int = 4  # short runs of each policy, on other batches each


@dataclass(frozen=True)
class Answer:
    """What value and outcome say of one known policy for one feedback task at one moment."""

    step: int
    task: str
    policy: KnownPolicy
    expected: int  # 1 good, -1 bad, 0 unknown
    rankings: dict[str, Ranking]  # by loss term, of the whole, and of what a designer climbs
    outcome: Interval | None  # fall of the best head's loss against the recipe, after short runs


@dataclass(frozen=True)
class Moment:
    """All answers at one moment, and how far u can be trusted there."""

    step: int
    directions: dict[str, Directions]  # by feedback task
    preconditioner: str
    answers: list[Answer]


@dataclass(frozen=True)
class Oracle:
    """The answers at every moment."""

    asked: Asked
    learning_rate: float
    moments: list[Moment]
    notes: list[str]  # a sentence for each surface of which nothing is known


def ask_oracle(
    branch: Branch,
    asked: Asked,
    surfaces: tuple[Surface, ...] = SURFACES,
    *,
    recipes: Sequence[KnownPolicy] = (),
    later: Callable[[], Branch] | None = None,
    progress: Callable[[str], None] = lambda doing: None,
) -> Oracle:
    """Ask where `branch` stands, and where `later` makes one stand, about known policies.

    These are two of each surface, and the other `recipes`.

    The policies are compared with the recipe on the same images and random numbers, each by batches of its
    own, so that no policy's targets are balanced with another's.

    Raises:
        UserError: no surface has a known policy.
    """
    config = branch.config
    recipe = FixedDesigner(config.recipe, branch.backbone.patch_size).to(branch.trainer.device)
    policies, notes = known_policies(
        config.recipe, branch.backbone.patch_size, branch.trainer.loader.source, surfaces
    )
    policies += recipes
    if not policies:
        raise UserError("the oracle knows no good or bad task here: " + " ".join(notes))
    for policy in policies:
        policy.designer.to(branch.trainer.device)
    moments = [_ask(branch, recipe, policies, asked, progress)]
    if later is not None:
        progress("training to the middle of a run")
        moments.append(_ask(later(), recipe, policies, asked, progress))
    return Oracle(asked, branch.learning_rate, moments, notes)


def _ask(
    branch: Branch,
    recipe: Designer,
    policies: list[KnownPolicy],
    asked: Asked,
    progress: Callable[[str], None],
) -> Moment:
    """Ask at one moment; the branch is left as it is, but for its heads."""
    feedback = branch.feedback_gradient.feedback
    tasks = {name: entry.task for name, entry in feedback.tasks.items()}
    at = f"step {branch.step}"
    progress(f"{at}: u, and {asked.permutations} of permuted labels")
    blocks = branch.config.value.tail_blocks
    tail = branch.backbone.tail_parameters(blocks)
    with led(tail, branch.trainer.optimiser.adamw if branch.config.value.lead else None):
        found = {
            name: directions(
                task, branch.backbone, blocks, asked.permutations, through_fit=feedback.through_fit
            )
            for name, task in tasks.items()
        }
    preconditioner = branch.config.value.preconditioner if branch.step else "identity"
    along = {name: [_seen(u, branch, preconditioner) for u in each.all] for name, each in found.items()}
    batches = branch.batches(asked.batches)
    progress(f"{at}: value of the recipe")
    of_recipe = _values(branch, recipe, batches, along)
    designers = [recipe, *(policy.designer for policy in policies)]
    judged = {name: task.task if isinstance(task, BeyondChance) else task for name, task in tasks.items()}
    losses = _outcomes(branch, designers, judged, asked, lambda arm: progress(f"{at}: short runs, {arm}"))
    answers = []
    for number, policy in enumerate(policies):
        progress(f"{at}: value of {policy.name}")
        of_policy = _values(branch, policy.designer, batches, along)
        for name in tasks:
            settings = branch.config.feedback.tasks[name] if branch.config.feedback else None
            rankings = _rankings(branch, of_policy[name], of_recipe[name])
            outcome = None
            if asked.steps:
                outcome = paired_difference(losses[name][0] - losses[name][1 + number]).interval
            expected = policy.expected(getattr(settings, "source", None))
            answers.append(Answer(branch.step, name, policy, expected, rankings, outcome))
    return Moment(branch.step, found, preconditioner, answers)


def _seen(u: Direction, branch: Branch, preconditioner: str) -> Direction:
    """P u, as the value step has it."""
    if preconditioner == "identity":
        return u
    tail = branch.backbone.tail_parameters(branch.config.value.tail_blocks)
    return adamw_step(u, tail, branch.trainer.optimiser.adamw)


class _Measured(NamedTuple):
    """Of one loss term of a designer's tasks, along each of U directions; [batches, U] each."""

    values: Numbers  # V = ⟨P u, ∇L⟩
    lengths: Numbers  # ‖P u‖ ‖∇L‖


def _rankings(
    branch: Branch, of_policy: dict[str, _Measured], of_recipe: dict[str, _Measured]
) -> dict[str, Ranking]:
    """Rank each term, and their sums with the learner's and with value's weights, for one feedback task.

    The running size of a term's value, that a run divides by, is that over the batches of the recipe: a
    designer starts there.
    """
    normalise = branch.config.value.normalise

    weights = branch.learner.config.weights
    climbed = valued_weights(branch.config.value.terms, weights)

    def total(measured: dict[str, _Measured], *, sized: bool) -> Numbers:
        sums = []
        for term, (found, lengths) in measured.items():
            weight = (climbed if sized else weights)[term]
            if not weight:
                continue
            size: Numbers | float = 1.0
            if sized and normalise == "cosine":
                size = np.maximum(lengths, _TINY)
            elif sized and normalise == "running":
                size = max(float(np.sqrt((of_recipe[term].values[:, 0] ** 2).mean())), _TINY)
            sums.append(weight * found / size)
        return np.sum(sums, axis=0)

    rankings = {term: rank(of_policy[term].values, of_recipe[term].values) for term in of_policy}
    for name, sized in ((WHOLE, False), (CLIMBED, True)):
        rankings[name] = rank(total(of_policy, sized=sized), total(of_recipe, sized=sized))
    return rankings


def _values(
    branch: Branch, designer: Designer, batches: list[Batch], along: dict[str, list[Direction]]
) -> dict[str, dict[str, _Measured]]:
    """Value of a designer's tasks, by feedback task and loss term."""
    config, learner = branch.config, branch.learner
    u_lengths = {name: [float(inner(u, u).sqrt()) for u in directed] for name, directed in along.items()}
    scheduled = scheduled_values(config.schedule, branch.step, config.steps)
    rows: dict[str, dict[str, list[tuple[Numbers, Numbers]]]] = {name: {} for name in along}
    for batch in batches:
        setting = Setting(
            learner,
            branch.trainer.renderer,
            batch.images,
            scheduled.teacher_temperature,
            config.value.tail_blocks,
            bf16=config.precision == "bf16",
        )
        gradients = term_gradients(setting, designer, Keys(config.seed, branch.step, batch.index))
        own = {term: float(inner(gradient, gradient).sqrt()) for term, gradient in gradients.items()}
        for name, directed in along.items():
            for term, value in values(gradients, directed).items():
                row = value.double().cpu().numpy(), own[term] * np.array(u_lengths[name])
                rows[name].setdefault(term, []).append(row)
    return {
        name: {term: _Measured(*map(np.stack, zip(*found, strict=True))) for term, found in of_task.items()}
        for name, of_task in rows.items()
    }


def _outcomes(
    branch: Branch,
    designers: list[Designer],
    tasks: dict[str, FeedbackTask],
    asked: Asked,
    progress: Callable[[str], None],
) -> dict[str, Numbers]:
    """Best head's losses after short runs, [designers, repeats, groups of examples], by feedback task.

    Every run starts where the branch stands; the runs of one repeat see the same batches and random numbers.
    Judged is the student, of which value speaks, on all examples that the head was not fitted on.
    """
    if not asked.steps:
        return {}
    batches = branch.batches(asked.steps * asked.repeats)
    heads = {name: task.state_dict() for name, task in tasks.items()}
    losses: dict[str, list[list[Numbers]]] = {name: [] for name in tasks}
    for number, designer in enumerate(designers):
        progress(f"{number + 1} of {len(designers)} policies")
        of_designer: dict[str, list[Numbers]] = {name: [] for name in tasks}
        for repeat in range(asked.repeats):
            with branch.undone():
                for batch in batches[repeat * asked.steps : (repeat + 1) * asked.steps]:
                    branch.take(batch, designer)
                for name, task in tasks.items():
                    task.load_state_dict(heads[name])
                    of_designer[name].append(_best_head_losses(task, branch))
        for name, found in of_designer.items():
            losses[name].append(found)
    for name, task in tasks.items():
        task.load_state_dict(heads[name])
    return {name: np.array(found) for name, found in losses.items()}


@torch.no_grad()
def _best_head_losses(task: FeedbackTask, branch: Branch) -> Numbers:
    """Fit the head, and take the mean loss of each small group of examples that it has not seen."""
    task.fit(all_features(task, branch.backbone, "head"))
    losses = []
    for split in ("meta", "heldout"):
        features = all_features(task, branch.backbone, split)
        for index in torch.split(torch.arange(task.count(split)), GROUP):
            there = index.to(features.cls.device)
            of_group = Features(features.cls[there], features.patches[there])
            losses.append(task.loss(of_group, split, index).double())
    return np.array([float(loss) for loss in losses])
