from dataclasses import dataclass, field

import pytest
import torch

from vpt_vision.data.source import Sample, UnreadableSample
from vpt_vision.evaluation.features import ProbeFeatures
from vpt_vision.learner.backbone import Backbone, BackboneConfig


@dataclass
class Squares:
    """Labelled noise; `unreadable` and `unlabelled` name images that are to fail."""

    count: int
    size: int = 20
    unreadable: set[int] = field(default_factory=set)
    unlabelled: set[int] = field(default_factory=set)
    classes: list[str] | None = field(default_factory=lambda: ["a", "b", "c"])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index in self.unreadable:
            raise UnreadableSample(self.name(index), "broken on purpose")
        noise = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (self.size, self.size + index, 3), dtype=torch.uint8, generator=noise)
        return Sample(image, index, None if index in self.unlabelled else index % 3)

    def name(self, index: int) -> str:
        return f"image {index}"


@pytest.fixture
def squares() -> type[Squares]:
    return Squares


@pytest.fixture
def backbone() -> Backbone:
    torch.manual_seed(0)
    options = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2, "img_size": 16}
    return Backbone(BackboneConfig(name="vit_tiny_patch16_224", options=options, drop_path=0.5))


@pytest.fixture
def clusters():
    """Make `ProbeFeatures` of noisy class centres, the same centres for each call."""

    def make(
        count: int, *, dim: int = 8, classes: int = 4, noise: float = 1.0, seed: int = 0
    ) -> ProbeFeatures:
        centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(99))
        generator = torch.Generator().manual_seed(seed)
        labels = torch.arange(count) % classes
        scale = torch.logspace(-2, 2, dim)  # features of very unlike deviations, as a backbone's may be
        cls, mean_patch = (
            (centres[labels] + noise * torch.randn(count, dim, generator=generator)) * scale + 3
            for _ in range(2)
        )
        return ProbeFeatures(cls[:, None], mean_patch, labels, torch.arange(count))

    return make
