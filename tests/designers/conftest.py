from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from images import pack
from torch import Tensor

from vpt_kernels import PackedImages
from vpt_vision.designers import LearnedDesigner, LearnedDesignerConfig, RecipeConfig
from vpt_vision.task import Keys, Task, Views

PATCH = 4


@pytest.fixture
def recipe() -> RecipeConfig:
    return RecipeConfig.model_validate(
        {
            "crops": {"global_size": 32, "local_size": 16, "local_views": 3},
            "masks": {"kind": "random", "probability": 0.7},
        }
    )


@pytest.fixture
def images() -> PackedImages:
    """Eight images of 48 x 64 pixels, as unlike as can be."""
    torch.manual_seed(0)
    noise = torch.randint(0, 256, (5, 3, 48, 64), dtype=torch.uint8)
    ramp = torch.linspace(0, 255, 64).to(torch.uint8).expand(1, 3, 48, 64)
    plain = torch.zeros(2, 3, 48, 64, dtype=torch.uint8)
    plain[1] = 255
    return pack(torch.cat([noise, ramp, plain]))


@pytest.fixture
def keys() -> Keys:
    return Keys(seed=7, step=11, samples=torch.tensor([3, 1, 4, 15, 9, 2, 6, 5]))


@pytest.fixture
def wild() -> Callable[..., LearnedDesigner]:
    """Build a learned designer with every weight random, far from where training would take it."""

    def build(
        recipe: RecipeConfig, surfaces: list[str], scale: float = 1.0, seed: int = 0
    ) -> LearnedDesigner:
        torch.manual_seed(seed)
        config = LearnedDesignerConfig(kind="learned", surfaces=surfaces, thumbnail=32, width=8, blocks=1)
        designer = LearnedDesigner(config, recipe, PATCH)
        with torch.no_grad():
            for parameter in designer.parameters():
                parameter.normal_(0, scale)
        return designer

    return build


@pytest.fixture
def tensors_of() -> Callable[[Task], dict[str, Tensor]]:
    """Name everything in a task; images along axis 1 of each tensor."""

    def flatten(task: Task) -> dict[str, Tensor]:
        def named(prefix: str, views: Views) -> dict[str, Tensor]:
            fields = {"boxes": views.boxes, "flips": views.flips, **views.photometrics._asdict()}
            return {f"{prefix}.{name}": value.detach() for name, value in fields.items()}

        return {
            **named("global", task.global_views),
            **named("local", task.local_views),
            "masks": task.masks.hidden,
        }

    return flatten
