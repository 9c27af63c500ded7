"""The designers of a run: those kept over training, and what the newest one asks of the learner beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vpt_vision.config import RunConfig, load_config
from vpt_vision.designers import Designer, FixedDesignerConfig, Refined, build_designer
from vpt_vision.errors import UserError
from vpt_vision.evaluation.pictures.images import Pictured
from vpt_vision.learner import Backbone, Learner
from vpt_vision.task import Keys
from vpt_vision.training.designer_history import kept_designers
from vpt_vision.training.schedules import scheduled_values


def patch_size_of_run(config: RunConfig) -> int:
    """The patch size of the run's backbone, pixels; no weight is made."""
    with torch.device("meta"):
        return Backbone(config.learner.backbone.model_copy(update={"weights": "none"})).patch_size


def recipe_of(config: RunConfig) -> Designer:
    """The fixed recipe that the run's designer started from."""
    return build_designer(
        FixedDesignerConfig(kind="fixed"), config.recipe, patch_size=patch_size_of_run(config)
    )


def designers_over_training(folder: Path, config: RunConfig, most: int) -> dict[int, Designer]:
    """The run's designer after each step at which it was kept; of more than `most` an even choice.

    The last is always there. Empty where the run kept none, as runs of designers that do not learn do. Raises
    `UserError` where another version of the package wrote them.
    """
    kept = list(kept_designers(folder).items())
    places = sorted(
        {round(place) for place in torch.linspace(0, len(kept) - 1, min(most, len(kept))).tolist()}
    )
    if most == 1 and kept:
        places = [len(kept) - 1]
    patch_size = patch_size_of_run(config) if kept else 0
    designers = {}
    for step, state in (kept[place] for place in places):
        designers[step] = build_designer(config.designer, config.recipe, patch_size=patch_size)
        _restore(designers[step], state, f"{folder}'s designer of step {step}")
    return designers


def _restore(module: nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Load weights; raises `UserError` where they are not those of this version's networks."""
    try:
        module.load_state_dict(state)
    except RuntimeError:
        raise UserError(
            f"{what} does not fit this version's networks: another version of vpt-vision wrote it."
        ) from None


def sets_its_task_alone(designer: Designer) -> bool:
    """Whether a task is whole as the designer draws it: neither pixels nor the learner change it."""
    return type(designer).refine is Designer.refine


def mapped_kinds(designer: Designer) -> list[str]:
    """Which heat maps of `coverage` a designer can change; all for one that does not tell its surfaces."""
    surfaces = designer.surfaces or frozenset({"crops", "masks"})
    crops = ["global", "local"] if "crops" in surfaces else []
    return crops + (["hidden"] if {"masks", "mask_ratio"} & surfaces else [])


def tasks_of(state: Mapping[str, Any], pictured: Pictured) -> dict[str, Refined]:
    """What the designer of a checkpoint asks of images, and beside it the fixed recipe where it is another.

    With the same keys: those of the checkpoint's next step. The checkpoint's own learner answers what the
    designer asks.

    Raises:
        UserError: what was read is no checkpoint, or one of another version.
    """
    missing = sorted({"config", "step", "learner", "designer"} - state.keys())
    if missing:
        raise UserError(f"this is not a checkpoint of vpt-vision: it has no '{missing[0]}' entry.")
    config = load_config(state["config"])
    learner = Learner(
        config.learner.model_copy(
            update={"backbone": config.learner.backbone.model_copy(update={"weights": "none"})}
        )
    )
    _restore(learner, state["learner"], "the checkpoint's learner")
    learner.eval()
    patch_size = learner.student.backbone.patch_size
    designer = build_designer(config.designer, config.recipe, patch_size=patch_size)
    _restore(designer, state["designer"], "the checkpoint's designer")
    step = int(state["step"])
    temperature = scheduled_values(
        config.schedule, min(step, config.steps - 1), config.steps
    ).teacher_temperature
    keys, renderer = Keys(config.seed, step, pictured.numbers), config.renderer()
    designers = {f"{config.designer.kind.replace('_', ' ')} designer, after {step:,} steps": designer}
    if config.designer.kind != "fixed":
        designers = {"fixed recipe": recipe_of(config), **designers}
    tasks = {}
    with torch.no_grad():
        for title, one in designers.items():
            task = one(pictured.images, keys)
            views = renderer(pictured.images, task)
            tasks[title] = one.refine(task, views, keys, learner, temperature)
    return tasks
