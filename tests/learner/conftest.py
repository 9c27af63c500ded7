from collections.abc import Callable

import pytest
import torch

from vpt_vision.learner import BackboneConfig, HeadConfig, Learner, LearnerConfig
from vpt_vision.task import Masks, RenderedViews

SMALL = BackboneConfig(
    name="vit_tiny_patch16_224",
    options={"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 32},
)


@pytest.fixture
def small_backbone() -> BackboneConfig:
    return SMALL


@pytest.fixture
def make_learner() -> Callable[..., Learner]:
    """Return a maker of tiny learners in fp64 and eval mode whose student has moved away from its teacher."""

    def make(
        *,
        drop_path: float = 0.0,
        shared: bool = False,
        store_scores: bool = True,
        apart: float = 0.05,
        **settings: object,
    ) -> Learner:
        torch.manual_seed(0)
        config = LearnerConfig(
            backbone=SMALL.model_copy(update={"drop_path": drop_path}),
            head=HeadConfig(
                prototypes=24, hidden=32, bottleneck=16, shared=shared, store_scores=store_scores
            ),
            **settings,
        )
        learner = Learner(config).double().eval()
        with torch.no_grad():
            for parameter in learner.student.parameters():
                parameter.add_(apart * torch.randn_like(parameter))
        return learner

    return make


@pytest.fixture
def batch() -> tuple[RenderedViews, Masks]:
    """Two global views of 32 and three local views of 16 pixels of four images; one view hides nothing."""
    generator = torch.Generator().manual_seed(1)
    views = RenderedViews(
        torch.randn(2, 4, 3, 32, 32, generator=generator, dtype=torch.float64),
        torch.randn(3, 4, 3, 16, 16, generator=generator, dtype=torch.float64),
    )
    hidden = torch.rand(2, 4, 16, generator=generator) < 0.35
    hidden[:, :, 3] = True
    hidden[1, 2] = False
    return views, Masks.of(hidden, int(hidden.sum()))
