from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from images import pack
from torch import Tensor

from vpt_kernels import PackedImages
from vpt_vision.data import FashionScenesConfig
from vpt_vision.designers import LearnedDesigner, LearnedDesignerConfig, RecipeConfig
from vpt_vision.feedback import (
    ClassificationConfig,
    ClassificationFeedback,
    Examples,
    Feedback,
    Splits,
    WeightedTask,
    split_examples,
)
from vpt_vision.learner import BackboneConfig, HeadConfig, Learner, LearnerConfig
from vpt_vision.task import Keys, RenderedViews, Renderer, Task
from vpt_vision.value import LearnerUpdate, Setting, ValueConfig, ValueStep

BATCH = 6
CLASSES = 3
TEMPERATURE = 0.07


@pytest.fixture
def images() -> PackedImages:
    generator = torch.Generator().manual_seed(0)
    return pack(torch.randint(0, 256, (BATCH, 3, 40, 40), dtype=torch.uint8, generator=generator))


@pytest.fixture
def keys() -> Keys:
    return Keys(seed=1, step=4, samples=torch.arange(BATCH))


@pytest.fixture
def make_learner() -> Callable[..., Learner]:
    """Return a maker of four-block learners in eval mode whose student has moved away from its teacher."""

    def make(**settings: object) -> Learner:
        torch.manual_seed(0)
        of_head = {key: settings.pop(key) for key in ("shared", "store_scores") if key in settings}
        options = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 32}
        backbone = BackboneConfig(name="vit_tiny_patch16_224", options=options, drop_path=0.3)
        head = HeadConfig(prototypes=32, hidden=32, bottleneck=16, **of_head)
        learner = Learner(LearnerConfig(backbone=backbone, head=head, **settings)).eval()
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return learner

    return make


@pytest.fixture
def recipe() -> RecipeConfig:
    return RecipeConfig.model_validate(
        {
            "crops": {"global_size": 32, "local_size": 16, "local_views": 2},
            "masks": {"kind": "random", "probability": 0.8},
        }
    )


@pytest.fixture
def make_designer(recipe: RecipeConfig) -> Callable[..., LearnedDesigner]:
    """Return a maker of small designers whose last layers are off their zero start by `apart`."""

    def make(*, apart: float = 0.1, **settings: object) -> LearnedDesigner:
        torch.manual_seed(1)
        config = LearnedDesignerConfig(kind="learned", thumbnail=32, width=8, blocks=1, **settings)
        designer = LearnedDesigner(config, recipe, 8)
        with torch.no_grad():
            for parameter in designer.heads.parameters():
                parameter.normal_(0, apart)
        return designer

    return make


@pytest.fixture
def make_setting(images: PackedImages) -> Callable[..., Setting]:
    def make(learner: Learner, tail_blocks: int = 2) -> Setting:
        dtype = learner.student.backbone.mask_token.dtype

        def render(images: PackedImages, task: Task) -> RenderedViews:
            views = Renderer()(images, task)
            return RenderedViews(views.global_views.to(dtype), views.local_views.to(dtype))

        return Setting(learner, render, images, TEMPERATURE, tail_blocks)

    return make


@pytest.fixture
def pixels() -> Callable[[Setting, Task], RenderedViews]:
    """Render a task so that nothing leads through the pixels back to the designer."""

    @torch.no_grad()
    def render(setting: Setting, task: Task) -> RenderedViews:
        return setting.renderer(setting.images, task)

    return render


@pytest.fixture
def direction() -> Callable[..., dict[str, Tensor]]:
    """Return a maker of random u for a learner."""

    def make(learner: Learner, tail_blocks: int = 2) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(2)
        tail = learner.student.backbone.tail_parameters(tail_blocks)
        return {name: torch.randn(p.shape, generator=generator) for name, p in tail.items()}

    return make


@pytest.fixture
def splits() -> Splits:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(64) % CLASSES
    colours = torch.tensor([[160, 90, 90], [90, 160, 90], [90, 90, 160]])[labels]
    noise = torch.randint(-80, 80, (64, 3, 40, 40), generator=generator)
    examples = Examples(pack((colours[:, :, None, None] + noise).to(torch.uint8)), labels)
    return split_examples(examples, labels, (32, 24, 8), seed=0)


@pytest.fixture
def make_step(
    make_learner: Callable[..., Learner], make_designer: Callable[..., LearnedDesigner], splits: Splits
) -> Callable[..., ValueStep]:
    """Return a maker of value steps; settings go to the part that has them."""

    def make(
        *,
        learner: dict[str, object] | None = None,
        designer: dict[str, object] | None = None,
        splits: Splits = splits,
        learner_optimiser: torch.optim.AdamW | None = None,
        make_update: Callable[[Learner], LearnerUpdate] | None = None,
        **value: object,
    ) -> ValueStep:
        source = FashionScenesConfig(kind="fashion_scenes", split="feedback", count=1)
        task = ClassificationFeedback(
            ClassificationConfig(source=source, batch=16, l2=0.1),
            splits,
            CLASSES,
            renderer=Renderer(),
            size=32,
        )
        made = make_learner(**(learner or {})).train()
        return ValueStep(
            ValueConfig(**{"batch": BATCH, "pairs": 1, **value}),
            learner=made,
            designer=make_designer(**(designer or {})),
            renderer=Renderer(),
            feedback=Feedback({"classes": WeightedTask(task, batch=16)}),
            learner_optimiser=learner_optimiser,
            learner_update=None if make_update is None else make_update(made),
        )

    return make


@pytest.fixture
def assert_same() -> Callable[[dict[str, object], dict[str, object]], None]:
    def check(first: dict[str, object], second: dict[str, object]) -> None:
        assert first.keys() == second.keys()
        for name, value in first.items():
            other = second[name]
            assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, name

    return check
