"""The default recipe's random laws against torchvision's transforms set up as the published recipe.

Both generations of torchvision's transforms stand as the reference: v1 by `get_params`, v2 by `make_params`.
Two-sample tests at fixed seeds. Images are large, as torchvision rounds boxes to pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations, permutations
from types import ModuleType

import numpy as np
import pytest
import torch
from images import blank
from numpy.typing import NDArray
from scipy.stats import chi2_contingency, ks_2samp
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import v2

from vpt_vision.designers import FixedDesigner, RecipeConfig
from vpt_vision.task import Keys, Task, Views

IMAGES = 5000
DRAWS = 5000  # of torchvision, for each law
BOUND = 1e-4  # p below which two samples are of two laws
KINDS = ("global", "local")
SIDES = {"square": (20_000, 20_000), "landscape": (15_000, 20_000), "panorama": (10_000, 30_000)}
SIDES["portrait"], SIDES["strip"] = SIDES["landscape"][::-1], SIDES["panorama"][::-1]

# The published recipe, in the words of DINO's and DINOv2's augmentations. Blur and solarise: see `PUBLISHED`.
SCALE = {"global": (0.32, 1.0), "local": (0.05, 0.32)}
RATIO = (3 / 4, 4 / 3)
JITTER = (0.4, 0.4, 0.2, 0.1)
SIGMA = (0.1, 2.0)
PUBLISHED: dict[tuple[str, int], tuple[float, float]] = {  # of a view: p of blur, p of solarise
    ("global", 0): (1.0, 0.0),
    ("global", 1): (0.1, 0.2),
    ("local", 0): (0.5, 0.0),
    ("local", 7): (0.5, 0.0),
}


def draw(height: int, width: int) -> Task:
    """Draw for many images of one size, of which the fixed designer looks at nothing else."""
    return FixedDesigner(RecipeConfig(), patch_size=16)(
        blank(IMAGES, height, width), Keys(0, 0, torch.arange(IMAGES))
    )


@pytest.fixture(scope="module")
def task() -> Task:
    return draw(*SIDES["square"])


@pytest.fixture(params=[v1, v2], ids=["v1", "v2"])
def torchvision(request: pytest.FixtureRequest) -> ModuleType:
    torch.manual_seed(0)
    return request.param


def views_of(task: Task, kind: str) -> Views:
    return {"global": task.global_views, "local": task.local_views}[kind]


def continuous(ours: NDArray[np.float64], theirs: NDArray[np.float64], name: object = None) -> None:
    """Kolmogorov-Smirnov; rounded, so that what many images share (the central box) is equal in both."""
    assert ks_2samp(ours.round(3), theirs.round(3)).pvalue > BOUND, name


def discrete(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> None:
    """Chi-square over the outcomes that occur in either sample, rare ones pooled."""
    table = np.array([np.bincount(sample, minlength=32) for sample in (ours, theirs)])
    common = table.sum(0) >= 20
    table = np.concatenate([table[:, common], table[:, ~common].sum(1, keepdims=True)], 1)
    table = table[:, table.sum(0) > 0]
    assert table.shape[1] == 1 or chi2_contingency(table).pvalue > BOUND


def crops(generation: ModuleType, scale: tuple[float, float], height: int, width: int) -> Tensor:
    """Draw boxes (top, left, height, width) as torchvision's `RandomResizedCrop` does."""
    image = torch.empty(1, 1, 1).expand(3, height, width)
    transform = generation.RandomResizedCrop(224, scale, RATIO)
    if generation is v2:
        found = [transform.make_params([image]) for _ in range(DRAWS)]
        return torch.tensor([[p["top"], p["left"], p["height"], p["width"]] for p in found])
    return torch.tensor([transform.get_params(image, list(scale), list(RATIO)) for _ in range(DRAWS)])


def jitters(generation: ModuleType) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Draw orders [N] and factors [N, 4] as torchvision's `ColorJitter` does."""
    transform = generation.ColorJitter(*JITTER)
    if generation is v2:
        drawn = [tuple(transform.make_params([]).values()) for _ in range(DRAWS)]
    else:
        ranges = (transform.brightness, transform.contrast, transform.saturation, transform.hue)
        drawn = [transform.get_params(*ranges) for _ in range(DRAWS)]
    index = {order: number for number, order in enumerate(permutations(range(4)))}
    return np.array([index[tuple(order.tolist())] for order, *_ in drawn]), np.array([f for _, *f in drawn])


def events(generation: ModuleType, blur_p: float, solarize_p: float) -> NDArray[np.int64]:
    """Which of flip, jitter, grey, blur and solarise torchvision's transforms bring about, as bits [N].

    Each acts on a picture that shows it. What stands inside a `RandomApply` does not change how often it
    comes: an inversion, which is always seen, takes the place of jitter and blur.
    """
    picture = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    seen = generation.RandomInvert(1.0)
    pipeline: list[Callable[[Tensor], Tensor]] = [
        generation.RandomHorizontalFlip(0.5),
        generation.RandomApply([seen], 0.8),
        generation.RandomGrayscale(0.2),
        generation.RandomApply([seen], blur_p),
        generation.RandomSolarize(128, solarize_p),
    ]
    happened = [[not transform(picture).equal(picture) for transform in pipeline] for _ in range(DRAWS)]
    return np.array(happened) @ (1 << np.arange(5))


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_boxes(torchvision: ModuleType, kind: str, sides: tuple[int, int]) -> None:
    """Panoramas and strips: of global boxes most attempts fail there, and some images see all ten fail."""

    def measures(boxes: Tensor) -> dict[str, NDArray[np.float64]]:
        top, left, tall, wide = boxes.double().numpy().reshape(-1, 4).T
        row, column = (
            (near + 0.5) / (whole - box + 1)
            for near, box, whole in zip((top, left), (tall, wide), sides, strict=True)
        )
        return {
            "area": tall * wide / math.prod(sides),
            "aspect": np.log(wide / tall),
            "height": tall / sides[0],
            "width": wide / sides[1],
            "row": row,  # where in its valid range the box lies
            "column": column,
            "row against column": row - column,
            "row against area": row - tall * wide / math.prod(sides),
            "column against aspect": column - np.log(wide / tall),
        }

    theirs = measures(crops(torchvision, SCALE[kind], *sides))
    for name, ours in measures(views_of(draw(*sides), kind).boxes).items():
        continuous(ours, theirs[name], name)


@pytest.mark.parametrize("kind", KINDS)
def test_jitter(task: Task, torchvision: ModuleType, kind: str) -> None:
    photometrics = views_of(task, kind).photometrics
    orders, theirs = jitters(torchvision)
    jittered = photometrics.brightness != 1
    discrete(photometrics.order[jittered].numpy(), orders)
    parts = (photometrics.brightness, photometrics.contrast, photometrics.saturation, photometrics.hue)
    ours = np.stack([part[jittered].double().numpy() for part in parts], -1)
    # A factor by itself, and two by two: a sum has its law only if the two are independent as theirs are.
    for weights in [*np.eye(4), *(a + b for a, b in combinations(np.eye(4), 2))]:
        continuous(ours @ weights, theirs @ weights)


@pytest.mark.parametrize(("view", "probabilities"), PUBLISHED.items(), ids=str)
def test_events(
    task: Task, torchvision: ModuleType, view: tuple[str, int], probabilities: tuple[float, float]
) -> None:
    """All five at once: their probabilities, and that they are independent."""
    views, number = views_of(task, view[0]), view[1]
    p = views.photometrics
    happened = (views.flips, p.brightness != 1, p.grey, p.sigma > 0, p.solarize <= 1)
    ours = np.stack([event[number].numpy() for event in happened], -1) @ (1 << np.arange(5))
    discrete(ours, events(torchvision, *probabilities))


@pytest.mark.parametrize("kind", KINDS)
def test_sigma(task: Task, torchvision: ModuleType, kind: str) -> None:
    transform = torchvision.GaussianBlur(9, SIGMA)
    theirs = [
        transform.make_params([])["sigma"][0] if torchvision is v2 else transform.get_params(*SIGMA)
        for _ in range(DRAWS)
    ]
    sigma = views_of(task, kind).photometrics.sigma
    continuous(sigma[sigma > 0].double().numpy(), np.array(theirs))


def test_threshold_of_solarise(task: Task, torchvision: ModuleType) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    inverted = torchvision.RandomSolarize(128, 1.0)(values) != values
    thresholds = task.global_views.photometrics.solarize[1]
    (threshold,) = thresholds[thresholds <= 1].unique()
    assert (values / 255 >= threshold).equal(inverted)
