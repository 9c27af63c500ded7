"""The fixed recipe's laws against torchvision's transforms, by Kolmogorov-Smirnov and binomial tests."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from images import blank
from scipy.stats import binomtest, chisquare, ks_2samp
from torch import Tensor
from torchvision.transforms import ColorJitter, GaussianBlur, RandomResizedCrop

from vpt_kernels import PackedImages
from vpt_vision.designers import FixedDesigner, FixedDesignerConfig, RecipeConfig, build_designer
from vpt_vision.designers.streams import Stream
from vpt_vision.designers.streams import draw as uniforms
from vpt_vision.errors import UserError
from vpt_vision.task import Keys, Task, Views

IMAGES = 4000
HEIGHT, WIDTH = 600, 800  # large, so that torchvision's rounding to pixels does not show


def draw(settings: dict[str, dict[str, object]], height: int = HEIGHT, width: int = WIDTH) -> Task:
    """Draw a task for many images of one size: the fixed designer looks at nothing but that size."""
    designer = build_designer(FixedDesignerConfig(), RecipeConfig.model_validate(settings), patch_size=16)
    return designer(blank(IMAGES, height, width), Keys(0, 0, torch.arange(IMAGES)))


@pytest.fixture(scope="module")
def task() -> Task:
    return draw({"crops": {"local_views": 2}})


def torchvision_boxes(scale: tuple[float, float], height: int, width: int, count: int = IMAGES) -> Tensor:
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    boxes = [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)]
    return torch.tensor(boxes, dtype=torch.float64)


def measures(boxes: Tensor, height: int, width: int) -> dict[str, Tensor]:
    top, left, tall, wide = boxes.double().unbind(-1)
    return {
        "area": tall * wide,
        "aspect": wide / tall,
        "top": (top + tall / 2) / height,
        "left": (left + wide / 2) / width,
        # Where in its valid range the box lies; torchvision's places are the range's whole pixels.
        "row": (top + 0.5) / (height - tall + 1),
        "column": (left + 0.5) / (width - wide + 1),
    }


@pytest.mark.parametrize("kind", ["global", "local"])
def test_crops_follow_random_resized_crop(task: Task, kind: str) -> None:
    views: Views = getattr(task, f"{kind}_views")
    scale = {"global": (0.32, 1.0), "local": (0.05, 0.32)}[kind]
    reference = measures(torchvision_boxes(scale, HEIGHT, WIDTH), HEIGHT, WIDTH)
    for view in range(2):
        ours = measures(views.boxes[view], HEIGHT, WIDTH)
        for name, values in reference.items():
            assert ks_2samp(ours[name], values).pvalue > 1e-3, (view, name)


@pytest.mark.parametrize(("height", "width"), [(50, 400), (400, 50)])
def test_boxes_that_never_fit_fall_back_to_the_centre(height: int, width: int) -> None:
    settings: dict[str, dict[str, object]] = {"crops": {"global_scale": [0.99, 1.0], "local_views": 0}}
    boxes = draw(settings, height, width).global_views.boxes.double()
    reference = torchvision_boxes((0.99, 1.0), height, width, count=20)
    assert (reference == reference[0]).all()
    assert (boxes - reference[0]).abs().max() <= 1  # torchvision rounds


@pytest.mark.parametrize(("height", "width"), [(90, 100), (100, 80)])
def test_boxes_against_a_plain_loop_over_attempts(height: int, width: int) -> None:
    """Under a scale at which some attempts fail and some images see all ten fail."""
    settings: dict[str, dict[str, object]] = {"crops": {"global_scale": [0.95, 1.0], "local_views": 0}}
    boxes = draw(settings, height, width).global_views.boxes
    kind = RecipeConfig.model_validate(settings).view_kinds()[0]
    keys = Keys(0, 0, torch.arange(300))
    u_area, u_aspect, u_row, u_column = (
        uniforms(keys, stream, kind, attempts).double()
        for stream, attempts in ((Stream.AREA, 10), (Stream.ASPECT, 10), (Stream.ROW, 1), (Stream.COLUMN, 1))
    )
    attempts_needed = set()
    for view in range(2):
        for image in range(300):
            expected, attempt = [0.0, 0.0, 0.0, 0.0], 0
            for attempt in range(10):
                area = (0.95 + 0.05 * u_area[view, image, attempt].item()) * height * width
                aspect = (3 / 4) * (16 / 9) ** u_aspect[view, image, attempt].item()
                tall, wide = (area / aspect) ** 0.5, (area * aspect) ** 0.5
                if tall <= height and wide <= width:
                    top = u_row[view, image].item() * (height - tall)
                    left = u_column[view, image].item() * (width - wide)
                    expected = [top, left, tall, wide]
                    break
            else:
                attempt = 10
                tall, wide = min(height, width * 4 / 3), min(width, height * 4 / 3)
                expected = [(height - tall) / 2, (width - wide) / 2, tall, wide]
            attempts_needed.add(attempt)
            torch.testing.assert_close(boxes[view, image], torch.tensor(expected), rtol=1e-5, atol=1e-4)
    assert attempts_needed >= {0, 3, 10}


def test_boxes_lie_in_the_image(task: Task) -> None:
    for views in (task.global_views, task.local_views):
        top, left, tall, wide = views.boxes.unbind(-1)
        assert views.boxes.dtype == torch.float32
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (top + tall <= HEIGHT * (1 + 1e-6)).all()
        assert (left + wide <= WIDTH * (1 + 1e-6)).all()


@pytest.mark.parametrize("kind", ["global", "local"])
def test_jitter_follows_color_jitter(task: Task, kind: str) -> None:
    photometrics = getattr(task, f"{kind}_views").photometrics
    jitter = ColorJitter(0.4, 0.4, 0.2, 0.1)
    torch.manual_seed(0)
    bounds = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    reference = torch.tensor([ColorJitter.get_params(*bounds)[1:] for _ in range(IMAGES)])
    for view in range(2):
        jittered = photometrics.brightness[view] != 1
        assert binomtest(int(jittered.sum()), IMAGES, 0.8).pvalue > 1e-3
        for index, name in enumerate(("brightness", "contrast", "saturation", "hue")):
            values = getattr(photometrics, name)[view]
            neutral = 0.0 if name == "hue" else 1.0
            assert (values[~jittered] == neutral).all()
            assert ks_2samp(values[jittered], reference[:, index]).pvalue > 1e-3, (view, name)
        orders = torch.bincount(photometrics.order[view], minlength=24)
        assert len(orders) == 24
        assert chisquare(orders).pvalue > 1e-3


def test_events_have_the_recipes_probabilities(task: Task) -> None:
    """Blur as DINO states it, (1.0, 0.1): not inverted as DINOv2's released code applies it."""
    expected = {
        "global_views": {"flip": (0.5, 0.5), "grey": (0.2, 0.2), "blur": (1.0, 0.1), "solarize": (0.0, 0.2)},
        "local_views": {"flip": (0.5, 0.5), "grey": (0.2, 0.2), "blur": (0.5, 0.5), "solarize": (0.0, 0.0)},
    }
    for kind, probabilities in expected.items():
        views: Views = getattr(task, kind)
        photometrics = views.photometrics
        events = {
            "flip": views.flips,
            "grey": photometrics.grey,
            "blur": photometrics.sigma > 0,
            "solarize": photometrics.solarize <= 1,
        }
        for name, per_view in probabilities.items():
            for happened, probability in zip(events[name], per_view, strict=True):
                assert binomtest(int(happened.sum()), IMAGES, probability).pvalue > 1e-3, (kind, name)


def test_blur_and_solarize_strengths(task: Task) -> None:
    torch.manual_seed(0)
    reference = torch.tensor([GaussianBlur.get_params(0.1, 2.0) for _ in range(IMAGES)])
    assert ks_2samp(task.global_views.photometrics.sigma[0], reference).pvalue > 1e-3
    thresholds = task.global_views.photometrics.solarize[1]
    torch.testing.assert_close(thresholds[thresholds <= 1].unique(), torch.tensor([128 / 255]))


def test_views_of_an_image_are_independent(task: Task) -> None:
    rows = []
    for views in (task.global_views, task.local_views):
        for view in range(2):
            fields = [*views.boxes[view].T, views.flips[view], *(f[view] for f in views.photometrics)]
            rows.append(torch.stack([field.double() for field in fields]))
    for first, second in pairwise(rows):
        together = torch.corrcoef(torch.cat([first, second]))[: len(first), len(first) :]
        assert together.nan_to_num().abs().max() < 5 / IMAGES**0.5


def test_quantities_of_a_view_are_independent(task: Task) -> None:
    views = task.local_views
    p = views.photometrics
    jittered = p.brightness[0] != 1
    events = [jittered, views.flips[0], p.grey[0], p.sigma[0] > 0]
    strengths = [values[0, jittered] for values in (p.brightness, p.contrast, p.saturation, p.hue, p.order)]
    for together in (events, strengths):
        rows = torch.stack([row.double() for row in together])
        correlation = torch.corrcoef(rows) - torch.eye(len(rows))
        assert correlation.abs().max() < 5 / rows.shape[1] ** 0.5


@pytest.mark.parametrize("kind", ["block", "random"])
def test_masks_hide_their_count_exactly(kind: str) -> None:
    settings: dict[str, dict[str, object]] = {
        "masks": {"kind": kind, "probability": 0.6, "ratio": [0.1, 0.5]},
        "crops": {"global_size": 128, "local_views": 0},
    }
    masks = draw(settings).masks
    counts = masks.hidden.sum(-1)  # of 8 x 8 patches
    assert masks.hidden.shape == (2, IMAGES, 64)
    assert masks.total == counts.sum()
    assert masks.relaxed is None
    for view in counts:
        masked = view[view > 0]
        assert binomtest(len(masked), IMAGES, 0.6).pvalue > 1e-3
        assert (masked.min(), masked.max()) == (6, 31)  # floor(6.4), floor(just under 32)
        # Between the ends, every count has the same share of the range of ratios.
        assert chisquare(torch.bincount(masked)[7:32]).pvalue > 1e-3
    shared = (masks.hidden[0] & masks.hidden[1]).sum(-1).double()
    if kind == "random":  # the views' masks meet no more than by chance
        by_chance = counts[0] * counts[1] / 64
        assert (shared - by_chance).mean().abs() < 5 * (shared - by_chance).std() / IMAGES**0.5
    assert not masks.hidden[0].equal(masks.hidden[1])


def test_views_may_be_absent() -> None:
    task = draw({"crops": {"local_views": 0}})
    assert task.local_views.boxes.shape == (0, IMAGES, 4)
    assert all(field.shape == (0, IMAGES) for field in task.local_views.photometrics)


def test_a_task_is_a_function_of_seed_step_and_sample(
    recipe: RecipeConfig, images: PackedImages, keys: Keys, tensors_of: Callable[[Task], dict[str, Tensor]]
) -> None:
    designer = FixedDesigner(recipe, patch_size=4)
    task = tensors_of(designer(images, keys))
    some = torch.tensor([6, 0, 3])
    part = tensors_of(designer(images[some], keys._replace(samples=keys.samples[some])))
    for name, value in task.items():
        assert value[:, some].equal(part[name]), name
    for other in (keys._replace(seed=8), keys._replace(step=12), keys._replace(samples=keys.samples + 100)):
        boxes = designer(images, other).global_views.boxes
        assert (boxes != task["global.boxes"]).any(-1).all()


def test_nothing_to_learn_and_nothing_to_save(recipe: RecipeConfig, images: PackedImages) -> None:
    designer = FixedDesigner(recipe, patch_size=4)
    assert not designer.state_dict()
    assert not designer.outputs(designer.features(images))
    assert not designer.surfaces
    policy = designer.policy(images)
    assert not policy.kl()
    assert not policy.describe()


def test_refuses_patches_that_do_not_tile_the_view(recipe: RecipeConfig) -> None:
    with pytest.raises(UserError, match=r"global_size 32 is not .* patch size 14: .* such as 28"):
        FixedDesigner(recipe, patch_size=14)
