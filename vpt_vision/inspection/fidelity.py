"""`vpt value probe`: real steps under many tasks, and how well value foretold what they did."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import nn

from vpt_vision.data import Batch
from vpt_vision.designers import Designer, LearnedDesigner, LearnedDesignerConfig
from vpt_vision.errors import UserError
from vpt_vision.feedback import (
    Direction,
    FeedbackTask,
    PermutedLabels,
    Split,
    all_features,
    gradients_over,
    inner,
)
from vpt_vision.inspection.branch import Branch
from vpt_vision.inspection.spread import Spread
from vpt_vision.value.correlation import Correlation, Numbers, pearson, spearman
from vpt_vision.value.fidelity import Downstream, Losses, first_share
from vpt_vision.value.preconditioner import adamw_step

Optimiser = Literal["AdamW", "SGD"]
Moved = Literal["θ_S", "all"]


class Reading(NamedTuple):
    """What is compared: whose prediction, over which parameters, and what was moved."""

    optimiser: Optimiser
    moved: Moved  # parameters of the backbone that the realised step moves
    predicted_over: Moved  # those that the prediction counts
    u: str  # CARRIED, HERE, RUNS_OWN or PERMUTED


CARRIED = "where momentum leads"  # u at the point that every step starts from, whatever its task
HERE = "here"  # u where the learner stands
RUNS_OWN = "the run's average"  # here, over past steps: what the designer has learned from
PERMUTED = "permuted labels"  # where momentum leads


@dataclass(frozen=True)
class Series:
    """Predicted and realised change of one task's L_down over every sampled task."""

    task: str
    reading: Reading
    predicted: Numbers  # [K]
    realised: dict[Split, Numbers]  # [K] each

    def pearson(self, split: Split = "meta") -> Correlation:
        """Pearson's correlation of predicted and realised change on a split."""
        return pearson(self.predicted, self.realised[split])

    def spearman(self, split: Split = "meta") -> Correlation:
        """Spearman's correlation of predicted and realised change on a split."""
        return spearman(self.predicted, self.realised[split])


@dataclass(frozen=True)
class Fidelity:
    """What the sampled tasks showed."""

    step: int  # of the run
    learning_rate: float
    tail_blocks: int
    tasks: list[str]  # feedback tasks
    series: list[Series]
    policies: int  # that set the tasks: one for each step, or 1, the run's own

    def of(self, task: str, reading: Reading) -> Series:
        """The series of one feedback task read in one way."""
        return next(series for series in self.series if (series.task, series.reading) == (task, reading))


# In the order of the table. The first is the one that value speaks of: the step that AdamW takes, on the
# parameters that u is taken in.
HEADLINE = Reading("AdamW", "θ_S", "θ_S", CARRIED)
WHOLE = Reading("AdamW", "all", "all", CARRIED)
PLAIN = Reading("SGD", "θ_S", "θ_S", HERE)
READINGS = (
    HEADLINE,
    WHOLE,
    Reading("AdamW", "all", "θ_S", CARRIED),
    Reading("AdamW", "θ_S", "θ_S", HERE),
    Reading("AdamW", "all", "all", HERE),
    Reading("AdamW", "all", "θ_S", HERE),
    PLAIN,
    Reading("SGD", "all", "all", HERE),
    Reading("SGD", "all", "θ_S", HERE),
)
RUNS_READING = Reading("AdamW", "θ_S", "θ_S", RUNS_OWN)
CONTROL = Reading("AdamW", "θ_S", "θ_S", PERMUTED)


def measure_fidelity(
    branch: Branch,
    *,
    count: int,
    spread: float,
    examples: int,
    permutations: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Fidelity:
    """Take `count` real steps from where `branch` stands, each under a policy and on a batch of its own.

    Heads are fitted once, before, and stay: a prediction and what it is held against are of the same loss on
    the same examples. u is its gradient on all of them, where the learner stands or where momentum and weight
    decay carry it: AdamW's step is -lr (momentum + P g + decay θ), and of that the task decides P g alone, so
    the loss changes with the task as it does around that point. All of it is known before the step: u and P
    are taken once, before any task is sampled, and the prediction of a step adds its gradient alone, not
    where it led.

    Args:
        branch: left as it is, but for its heads.
        count: sampled tasks, at least 3.
        spread: root mean square of what is added to the designer's outputs to sample a policy; a designer
            without outputs sets every task by its own policy.
        examples: the most of each split that losses are taken over.
        permutations: permuted-label u's, a control.
        progress: told how many steps are done.
    """
    if branch.feedback_gradient.feedback.through_fit:
        raise UserError(
            "fidelity holds value against the loss of held heads, and feedback.through_fit takes value to "
            "foretell that of heads fitted anew: probe a run without it."
        )
    if branch.step == 0:
        raise UserError("AdamW has no moments before the first step: probe a run that has begun.")
    backbone, tail_blocks = branch.backbone, branch.config.value.tail_blocks
    tail = list(backbone.tail_parameters(tail_blocks))
    parameters = dict(backbone.vit.named_parameters())
    tasks = {name: entry.task for name, entry in branch.feedback_gradient.feedback.tasks.items()}
    own = branch.feedback_gradient.by_task  # before the heads are fitted anew
    directions = {
        name: _directions(task, branch, tail, examples, permutations) for name, task in tasks.items()
    }
    for name, direction in own.items():
        directions[name][RUNS_OWN, "θ_S"] = [direction]
    downstream = Downstream(tasks, backbone, tail_blocks, examples)
    start = downstream.losses()
    moved_along = {
        name: {at: [_moved_along(each, branch, parameters) for each in found] for at, found in of_it.items()}
        for name, of_it in directions.items()
    }
    predicted: dict[tuple[str, Reading], list[list[float]]] = {}
    realised: dict[tuple[Optimiser, Moved], list[Losses]] = {}
    base, batches = _base(branch), branch.batches(count)
    for number, batch in enumerate(batches):
        designer = Spread(base, spread, branch.config.seed, number)
        taken = _step(branch, batch, designer, parameters, tail, downstream)
        for way, losses in taken.losses.items():
            realised.setdefault(way, []).append({key: losses[key] - start[key] for key in losses})
        for name in tasks:
            for reading in (
                *READINGS,
                *([RUNS_READING] if own else []),
                *([CONTROL] if permutations else []),
            ):
                over = parameters if reading.predicted_over == "all" else tail
                predicted.setdefault((name, reading), []).append(
                    [
                        -float(inner({key: along[reading.optimiser][key] for key in over}, taken.gradient))
                        for along in moved_along[name][reading.u, reading.moved]
                    ]
                )
        progress(number + 1)

    series = []
    for (name, reading), foretold in predicted.items():
        changes = realised[reading.optimiser, reading.moved]
        watched: dict[Split, Numbers] = {
            split: np.array([losses[name, split] for losses in changes]) for split in ("meta", "heldout")
        }
        series += [Series(name, reading, each, watched) for each in np.array(foretold).T]
    with torch.no_grad():
        has_outputs = bool(base.outputs(base.features(batches[0].images)))
    policies = count if has_outputs and spread > 0 else 1
    return Fidelity(branch.step, branch.learning_rate, tail_blocks, list(tasks), series, policies)


def _base(branch: Branch) -> Designer:
    """The run's designer, or a learned one at the recipe where that is the recipe itself."""
    if branch.config.designer.kind != "fixed":
        return branch.designer
    config = LearnedDesignerConfig(kind="learned")
    return LearnedDesigner(config, branch.config.recipe, branch.backbone.patch_size).to(branch.trainer.device)


def _directions(
    task: FeedbackTask, branch: Branch, tail: list[str], examples: int, permutations: int
) -> dict[tuple[str, Moved], list[Direction]]:
    """Fit one task's head, and take its u's, by where they are taken and by what the step moves.

    In all parameters, but with permuted labels in θ_S alone.
    """
    backbone = branch.backbone
    parameters = dict(backbone.vit.named_parameters())
    index = torch.arange(min(examples, task.count("meta")))
    features = all_features(task, backbone, "head")
    controls = [PermutedLabels(task, seed) for seed in range(permutations)]
    for each in (task, *controls):
        each.fit(features)

    def u(some: Sequence[FeedbackTask], names: Iterable[str]) -> list[Direction]:
        into = {name: parameters[name] for name in names}
        found = gradients_over(some, backbone, "meta", index, into) if some else []
        return [each.gradient for each in found]

    directions: dict[tuple[str, Moved], list[Direction]] = {}
    directions[HERE, "all"] = directions[HERE, "θ_S"] = u([task], parameters)
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with branch.carried():
        directions[CARRIED, "all"] = u([task], parameters)
        with torch.no_grad():
            for name in parameters.keys() - set(tail):
                parameters[name].copy_(start[name])
        directions[CARRIED, "θ_S"] = u([task], parameters)
        directions[PERMUTED, "θ_S"] = u(controls, tail)
    return directions


def _moved_along(
    u: Direction, branch: Branch, parameters: Mapping[str, nn.Parameter]
) -> dict[Optimiser, Direction]:
    """Lr P u of the next step, by each optimiser: its product with the gradient is the fall of L_down."""
    adamw, rate = branch.trainer.optimiser.adamw, branch.learning_rate
    scale_of = {id(p): group["lr_scale"] for group in adamw.param_groups for p in group["params"]}
    whole, share = adamw_step(u, parameters, adamw), first_share(adamw)
    return {
        "AdamW": {name: rate * share * value for name, value in whole.items()},
        "SGD": {name: rate * scale_of[id(parameters[name])] * value for name, value in u.items()},
    }


class _Taken(NamedTuple):
    """A step that was taken, and taken back."""

    gradient: Direction  # as the optimiser got it, of the backbone's parameters
    losses: dict[tuple[Optimiser, Moved], Losses]


def _step(
    branch: Branch,
    batch: Batch,
    designer: Designer,
    parameters: Mapping[str, nn.Parameter],
    tail: list[str],
    downstream: Downstream,
) -> _Taken:
    """Take one step of AdamW and one of SGD on the same gradient, of all parameters and of θ_S alone."""
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    losses: dict[tuple[Optimiser, Moved], Losses] = {}

    def look(optimiser: Optimiser) -> None:
        losses[optimiser, "all"] = downstream.losses()
        losses[optimiser, "θ_S"] = downstream.losses_with({name: parameters[name].detach() for name in tail})

    with branch.undone():
        branch.take(batch, designer)
        look("AdamW")
        gradient = {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            for name, parameter in parameters.items()
        }
        with torch.no_grad():
            for group in branch.trainer.optimiser.adamw.param_groups:
                rate_of = {id(parameter): group["lr"] for parameter in group["params"]}
                for name, parameter in parameters.items():
                    if id(parameter) in rate_of:
                        parameter.copy_(before[name] - rate_of[id(parameter)] * gradient[name])
        look("SGD")
    return _Taken(gradient, losses)
