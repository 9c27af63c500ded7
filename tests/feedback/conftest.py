from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from images import pack

from vpt_vision.data import FashionScenesConfig
from vpt_vision.feedback import (
    ClassificationConfig,
    ClassificationFeedback,
    Examples,
    Feedback,
    FeedbackGradient,
    FeedbackTask,
    Splits,
    WeightedTask,
    all_features,
    split_examples,
)
from vpt_vision.learner import Backbone, BackboneConfig
from vpt_vision.task import Keys, Renderer

CLASSES = 3
SIZES = (48, 40, 24)


@pytest.fixture
def examples() -> Examples:
    """Noise around a colour for each of three classes; no two images are alike."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(sum(SIZES)) % CLASSES
    colours = torch.tensor([[150, 90, 90], [90, 150, 90], [90, 90, 150]])[labels]
    noise = torch.randint(-90, 90, (len(labels), 3, 20, 20), generator=generator)
    return Examples(pack((colours[:, :, None, None] + noise).to(torch.uint8)), labels)


@pytest.fixture
def splits(examples: Examples) -> Splits:
    return split_examples(examples, examples.labels, SIZES, seed=5)


@pytest.fixture
def backbone() -> Backbone:
    """Build a ViT of three blocks in training mode, with stochastic depth."""
    torch.manual_seed(0)
    options = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 16}
    backbone = Backbone(BackboneConfig(name="vit_tiny_patch16_224", options=options, drop_path=0.5))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone.train()


@pytest.fixture
def make_feedback(splits: Splits) -> Callable[..., ClassificationFeedback]:
    def make(splits: Splits = splits, **settings: object) -> ClassificationFeedback:
        source = FashionScenesConfig(kind="fashion_scenes", split="feedback", count=1)
        config = ClassificationConfig(source=source, **{"batch": 16, "l2": 0.1, **settings})
        return ClassificationFeedback(config, splits, CLASSES, renderer=Renderer(), size=16)

    return make


@pytest.fixture
def make_gradient(make_feedback: Callable[..., ClassificationFeedback]) -> Callable[..., FeedbackGradient]:
    """Return a maker of u's of one classification task; settings go to the part that has them."""

    def make(splits: Splits | None = None, tail_blocks: int = 2, **settings: object) -> FeedbackGradient:
        own = {key: settings.pop(key) for key in ("ema", "every", "heldout_every") if key in settings}
        task = make_feedback(**({} if splits is None else {"splits": splits}), **settings)
        entry = WeightedTask(task, batch=task.config.batch)
        return FeedbackGradient(Feedback({"classes": entry}, **own), tail_blocks)

    return make


@pytest.fixture
def fit() -> Callable[..., None]:
    """Fit a task's head to a backbone."""

    def fit(task: FeedbackTask, backbone: Backbone) -> None:
        task.fit(all_features(task, backbone, "head"))

    return fit


@pytest.fixture
def keys() -> Keys:
    return Keys(seed=3, step=7, samples=torch.arange(4))


@pytest.fixture
def poisoned() -> Callable[[Splits, str], Splits]:
    """Shift every label of one split to the next class."""

    def poison(splits: Splits, name: str) -> Splits:
        split: Examples = getattr(splits, name)
        return splits._replace(**{name: Examples(split.images, (split.labels + 1) % CLASSES)})

    return poison
