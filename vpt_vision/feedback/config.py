"""The feedback that a config describes: one task or several, read and ready."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from vpt_vision.data import build_source
from vpt_vision.errors import UserError
from vpt_vision.factory import Factory, import_factory
from vpt_vision.feedback.beyond_chance import BeyondChance
from vpt_vision.feedback.classification import ClassificationConfig, ClassificationFeedback
from vpt_vision.feedback.depth import DepthConfig, DepthFeedback
from vpt_vision.feedback.permuted import PermutedLabels
from vpt_vision.feedback.segmentation import SegmentationConfig, SegmentationFeedback
from vpt_vision.feedback.task import Feedback, FeedbackTask, WeightedTask
from vpt_vision.schema import Config
from vpt_vision.task import Renderer


class CustomTaskConfig(Config):
    """A task of your own."""

    kind: Literal["custom"] = Field(description="a task of your own")
    factory: Factory = Field(
        description="package.module:callable, called with renderer, size (of the images in pixels), seed and "
        "`options`; returns a FeedbackTask",
    )
    options: dict[str, Any] = Field({}, description="further arguments of the callable")
    weight: float = Field(1.0, gt=0, description="share of u, relative to that of other tasks")
    batch: int = Field(
        256,
        ge=2,
        multiple_of=2,
        description="meta examples per feedback gradient, half from each half of `meta`",
    )


def _kind(settings: Any) -> Any:
    """Classification where no kind is named."""
    if isinstance(settings, dict):
        return settings.get("kind", "classification")
    return getattr(settings, "kind", None)


TaskConfig = Annotated[
    Annotated[ClassificationConfig, Tag("classification")]
    | Annotated[SegmentationConfig, Tag("segmentation")]
    | Annotated[DepthConfig, Tag("depth")]
    | Annotated[CustomTaskConfig, Tag("custom")],
    Discriminator(
        _kind,
        custom_error_type="unknown_kind",
        custom_error_message="kind is none of classification, segmentation, depth and custom",
    ),
]
TaskName = Annotated[str, Field(pattern=r"^[\w-]+$")]


class FeedbackConfig(Config):
    """Labelled examples that tell which tasks help.

    A single task may stand here by itself, its settings beside those of this class; it is then called by
    its kind.
    """

    tasks: dict[TaskName, TaskConfig] = Field(min_length=1, description="the tasks, by names of your choice")
    normalise: bool = Field(
        True,
        description="several tasks: bring their gradients to one length before weighing them; false: u is "
        "the gradient of the losses' weighted mean",
    )
    labels: Literal["given", "permuted"] = Field(
        "given", description="permuted: a control, labels are dealt anew among the images of each split"
    )
    null_heads: int = Field(
        0,
        ge=0,
        description="heads fitted to labels dealt at random, whose mean loss is taken off each task's: u "
        "then leaves out what any labels would ask for. 0: as published",
    )
    through_fit: bool = Field(
        False,
        description="u sees that the heads will be fitted to the features that a step makes, by implicit "
        "differentiation of their fit; needs folds. false: heads are held, as published",
    )
    every: int = Field(
        1,
        ge=1,
        description="value steps from one feedback gradient to the next; the heads are fitted anew for each, "
        "and u is held between",
    )
    heldout_every: int = Field(
        1, ge=1, description="fits of the heads from one look at the loss of all of `heldout` to the next"
    )
    ema: float = Field(0.9, ge=0, lt=1, description="decay of the feedback gradients' moving averages")

    @model_validator(mode="before")
    @classmethod
    def _one_task(cls, settings: Any) -> Any:
        if not isinstance(settings, dict) or "tasks" in settings:
            return settings
        own = {key: value for key, value in settings.items() if key in cls.model_fields}
        task = {key: value for key, value in settings.items() if key not in own}
        return {"tasks": {str(_kind(task)): task}, **own}


def build_feedback(
    config: FeedbackConfig,
    *,
    renderer: Renderer,
    size: int,
    patch_size: int,
    seed: int,
) -> Feedback:
    """Read and split the examples of every task that `config` names.

    Args:
        config: the tasks.
        renderer: makes of them what the backbone reads.
        size: side of that, pixels.
        patch_size: of the backbone, pixels.
        seed: of the draw of examples and of their splits.

    Raises:
        UserError: a source lacks labels or maps or has too few of them, a split does not suffice, or a task
            of the user's own cannot be made.
    """

    def build(task: Any) -> FeedbackTask:
        if isinstance(task, CustomTaskConfig):
            make: Callable[..., FeedbackTask] = import_factory(task.factory)
            return make(renderer=renderer, size=size, seed=seed, **task.options)
        source = build_source(task.source, 2 * size)  # the renderer halves what is larger
        match task:
            case SegmentationConfig():
                return SegmentationFeedback.from_source(
                    task, source, renderer=renderer, size=size, patch_size=patch_size, seed=seed
                )
            case DepthConfig():
                return DepthFeedback.from_source(
                    task, source, renderer=renderer, size=size, patch_size=patch_size, seed=seed
                )
            case _:
                return ClassificationFeedback.from_source(
                    task, source, renderer=renderer, size=size, seed=seed
                )

    tasks = {}
    for name, task in config.tasks.items():
        try:
            built = build(task)
            if config.labels == "permuted":
                built = PermutedLabels(built, seed)
            if config.null_heads:
                built = BeyondChance(built, config.null_heads, seed)
            tasks[name] = WeightedTask(built, task.weight, task.batch)
        except UserError as error:
            raise UserError(f"feedback task '{name}': {error}") from error
    return Feedback(
        tasks,
        normalise=config.normalise,
        ema=config.ema,
        through_fit=config.through_fit,
        every=config.every,
        heldout_every=config.heldout_every,
    )
