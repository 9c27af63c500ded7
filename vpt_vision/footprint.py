"""How large a run's networks are, and what a step of each costs: counted, not measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vpt_kernels import PackedImages
from vpt_vision.config import RunConfig
from vpt_vision.designers import Designer, RecipeConfig, build_designer
from vpt_vision.learner import Learner
from vpt_vision.learner.student_teacher import TeacherTargets
from vpt_vision.task import Keys, Masks, RenderedViews

Result = TypeVar("Result")
_BATCH = 2  # images that are counted; all but KoLeo's products grow with the batch


@dataclass(frozen=True)
class Footprint:
    """Parameters, and floating-point operations of one step per image.

    Matrix products, convolutions and attention count, a multiply-add as 2; what is computed a second time
    to save memory, and what has no product (rendering, drawing, Sinkhorn, optimiser), does not. Of the
    recipe's masks the expected number of hidden patches is taken.
    """

    backbone: int  # parameters of the student's backbone
    heads: int  # of its heads
    designer: int
    teacher: float  # FLOPs: forward on the global views
    student: float  # forward and backward on all views, and the losses
    designing: float  # the designer's: its network, and what it asks of the learner

    @property
    def share(self) -> float:
        """The designer's FLOPs over those of the learner's step."""
        return self.designing / (self.teacher + self.student)

    def lines(self, config: RunConfig) -> list[str]:
        """The figures in words."""
        step = config.batch_size * (self.teacher + self.student)
        lines = [
            f"parameters: backbone {_parameters(self.backbone)}, heads {_parameters(self.heads)}, "
            f"designer {_parameters(self.designer)}",
            f"learner, per image and step: teacher {_flops(self.teacher)}, student forward and backward "
            f"{_flops(self.student)}; a step of {config.batch_size} images {_flops(step)}",
            f"designer, per image and step: {_flops(self.designing)}"
            + (f", {100 * self.share:.2g} % of the learner's" if self.designing else ""),
        ]
        if config.feedback is not None:
            lines.append(f"not counted: feedback and the value step, every {config.value.every} steps")
        return lines


def footprint(config: RunConfig) -> Footprint:
    """Count the networks of `config` and one step: no learner's weights are made, nothing is trained.

    The global random number generator is left as it was. Raises `UserError` where something cannot be built.
    """
    head = config.learner.head.model_copy(update={"store_scores": True})  # the same products, but once each
    backbone = config.learner.backbone.model_copy(update={"weights": "none"})
    settings = config.learner.model_copy(update={"head": head, "backbone": backbone})
    with torch.device("meta"):
        made = Learner(settings)
    for size in config.recipe.view_sizes():
        made.student.backbone.grid(size)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        learner = made.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
        designer = build_designer(
            config.designer, config.recipe, patch_size=learner.student.backbone.patch_size
        )
        asked = _Asked(learner.student.backbone.grid(config.recipe.crops.global_size))
        given, views, designing = _design(designer, asked)
        masks = _expected_masks(config.recipe, views, asked.side**2)
        with fake:
            shown = _as_fake(fake, views)
            targets, teacher = _counted(lambda: learner.teacher_targets(shown.for_teacher, masks, 1.0))
            _, student = _counted(lambda: _learn(learner, shown, masks, targets))
            if asked.questions:
                candidates = _as_fake(fake, given)
                _, answering = _counted(lambda: asked.repeat(learner, candidates))
                _, again = _counted(lambda: learner.teacher_targets(shown.for_teacher, masks, 1.0))
                designing += answering + again - teacher  # the teacher need not say twice what it was asked
    return Footprint(
        backbone=_size(learner.student.backbone),
        heads=_size(learner.student) - _size(learner.student.backbone),
        designer=_size(designer),
        teacher=teacher / _BATCH,
        student=student / _BATCH,
        designing=designing / _BATCH,
    )


class _Asked:
    """Stands in for the learner that a designer asks: answers anything, and remembers what was asked."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.questions: list[Callable[[Learner, RenderedViews], object]] = []

    def cls_attention(self, global_views: Tensor) -> Tensor:
        self.questions.append(lambda learner, views: learner.cls_attention(views.global_views))
        return torch.zeros(*global_views.shape[:2], self.side**2)

    def cross_entropies(self, views: RenderedViews, temperature: float) -> Tensor:
        self.questions.append(lambda learner, views: learner.cross_entropies(views, temperature))
        globals_, batch = views.global_views.shape[:2]
        return torch.zeros(globals_ + len(views.local_views), globals_, batch)

    def repeat(self, learner: Learner, views: RenderedViews) -> None:
        """Ask `learner` the same of `views`."""
        for question in self.questions:
            question(learner, views)


def _design(designer: Designer, asked: _Asked) -> tuple[RenderedViews, RenderedViews, float]:
    """Let the designer set a task for black images: views before and after `refine`, and its FLOPs."""
    black = torch.zeros(32, 32, 3, dtype=torch.uint8)
    images = PackedImages.pack([black] * _BATCH)
    keys = Keys(0, 0, torch.arange(_BATCH))
    with torch.no_grad():
        task, drawing = _counted(lambda: designer(images, keys))
        kinds = (task.global_views, task.local_views)
        given = RenderedViews(
            *(torch.zeros(len(kind.boxes), _BATCH, 3, kind.size, kind.size) for kind in kinds)
        )
        refined, refining = _counted(lambda: designer.refine(task, given, keys, asked, 1.0))
    return given, refined.views, drawing + refining


def _expected_masks(recipe: RecipeConfig, views: RenderedViews, patches: int) -> Masks:
    """Masks of as many hidden patches as the recipe hides on average; only their shapes matter."""
    low, high = recipe.masks.ratio
    shown = len(views.global_views)
    hidden = torch.zeros(shown, _BATCH, patches, dtype=torch.bool)
    total = round(shown * _BATCH * recipe.masks.probability * (low + high) / 2 * patches)
    return Masks(hidden, torch.zeros(total, dtype=torch.int64), torch.zeros(total))


def _learn(learner: Learner, views: RenderedViews, masks: Masks, targets: TeacherTargets) -> None:
    torch.autograd.backward(learner.losses(learner.student_outputs(views, masks), targets, masks).total)


def _as_fake(fake: FakeTensorMode, views: RenderedViews) -> RenderedViews:
    """The same views without values; one tensor is always the same fake one."""
    teacher = None if views.teacher_views is None else fake.from_tensor(views.teacher_views)
    return RenderedViews(fake.from_tensor(views.global_views), fake.from_tensor(views.local_views), teacher)


def _counted(step: Callable[[], Result]) -> tuple[Result, float]:
    """What `step` returns, and its FLOPs."""
    with FlopCounterMode(display=False) as counter:
        result = step()
    return result, float(counter.get_total_flops())


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _parameters(count: int) -> str:
    return f"{count / 1e6:.3g} M" if count else "none"


def _flops(count: float) -> str:
    if not count:
        return "nothing"
    return f"{count / 1e12:.3g} TFLOPs" if count >= 1e12 else f"{count / 1e9:.3g} GFLOPs"
