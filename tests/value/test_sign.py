"""Batches of one kind of crop, batches that mix two, and the searches all say which crop is better.

u is the difference of the learner's own gradients on a batch of good and on one of poor crops. So all good
less all poor is worth ‖u‖², and the true sign is known. Every batch that mixes them is then counted.
"""

from itertools import product

import pytest
import torch
from images import pack

from vpt_vision.designers import LearnedDesigner, LearnedDesignerConfig, RecipeConfig
from vpt_vision.feedback import inner
from vpt_vision.task import Masks, Renderer, Task, Views
from vpt_vision.value import Occasion, Setting, finite_difference_value, population, score
from vpt_vision.value.gradient import pretraining_gradients

CROPS = frozenset({"crops"})
BATCH = 4
SIDE = 16  # of a crop; images are twice as wide


@pytest.fixture
def images():
    """Four colours on the left, where the good crop lies; grey noise on the right."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.randint(0, 256, (BATCH, 3, 2, 2), generator=generator)
    objects = colours.repeat_interleave(SIDE // 2, -1).repeat_interleave(SIDE // 2, -2)
    ground = torch.randint(108, 148, (BATCH, 3, SIDE, SIDE), generator=generator)
    return pack(torch.cat([objects, ground], -1).to(torch.uint8))


@pytest.fixture
def worth(make_learner, images):
    """Value of every way to give each image its good or its poor crop, float64 [2] * 4; index 1 is good."""
    learner = make_learner(koleo_weight=0.0)
    setting = Setting(learner, Renderer(), images, 0.07, 2)
    weights = learner.config.weights

    def task(good):
        lefts = torch.where(torch.tensor(good).bool(), 0.0, float(SIDE))
        sides = torch.full((BATCH,), float(SIDE))
        boxes = torch.stack([torch.zeros(BATCH), lefts, sides, sides], -1)
        hidden = torch.zeros(1, BATCH, 4, dtype=torch.bool)
        hidden[..., 0] = True
        return Task(Views.unchanged(boxes, 16), Views.unchanged(boxes, 8), Masks.of(hidden, BATCH))

    def gradient(good):
        terms = pretraining_gradients(setting, task(good), Renderer()(images, task(good)))
        return {
            name: torch.stack([weights[term] * part[name] for term, part in terms.items()]).sum(0)
            for name in terms["dino"]
        }

    best, worst = gradient((1,) * BATCH), gradient((0,) * BATCH)
    u = {name: best[name] - worst[name] for name in best}
    values = torch.empty((2,) * BATCH, dtype=torch.float64)
    with torch.no_grad():
        for good in product((0, 1), repeat=BATCH):
            views = Renderer()(images, task(good))
            found = finite_difference_value(setting, task(good), views, u, rho=1e-3)
            values[good] = sum(weights[term] * value for term, value in found.items())
    gain = values[(1,) * BATCH] - values[(0,) * BATCH]
    torch.testing.assert_close(gain, inner(u, u).double(), rtol=1e-2, atol=0)  # u is what it is said to be
    return values / gain


def of_each_image(worth):
    """Value with an image's good crop less that with its poor one, mean over the others' crops, [4]."""
    return torch.stack([(worth.select(i, 1) - worth.select(i, 0)).mean() for i in range(BATCH)])


@pytest.fixture
def make_occasion(worth, images, keys):
    """A designer of crops at the recipe: every image has its good crop by an even chance."""
    recipe = RecipeConfig.model_validate(
        {
            "crops": {
                "global_size": 16,
                "global_views": 1,
                "global_scale": [0.5, 0.5],
                "ratio": [1, 1],
                "local_size": 8,
                "local_views": 1,
                "local_scale": [0.25, 0.25],
            },
            "photometrics": {"global_blur_p": [0], "global_solarize_p": [0]},
            "masks": {"kind": "random", "probability": 1, "ratio": [0.25, 0.25]},
        }
    )
    torch.manual_seed(3)
    config = LearnedDesignerConfig(kind="learned", thumbnail=32, width=8, blocks=1, surfaces=["crops"])
    designer = LearnedDesigner(config, recipe, 8)

    def judge(task):
        good = task.global_views.boxes[0, :, 1] < SIDE / 2
        return worth[tuple(good.int().tolist())].float()

    def make(number):
        features = designer.features(images)
        outputs = {
            name: torch.zeros_like(o).requires_grad_() for name, o in designer.outputs(features).items()
        }
        named = keys._replace(seed=number, samples=torch.arange(BATCH))
        return Occasion(
            designer, images, named, features, outputs, designer.policy_of(images, outputs), judge
        )

    return make


def towards_good(scalar, occasion):
    """Slope of the objective by each image's log odds of its good crop, [4]."""
    (fields,) = torch.autograd.grad(scalar, occasion.outputs["crop_fields"])
    left, right = fields[:, 0].chunk(2, -1)
    return (left.sum((-2, -1)) - right.sum((-2, -1))) / 2


def test_mixed_batches_have_the_sign_of_batches_of_one_kind(worth):
    mixed = of_each_image(worth)
    assert (mixed > 0).all()  # as has the gain of all good over all poor crops, which is 1
    assert abs(mixed.sum() - 1) < 0.1  # what each image's crop does to the others' targets changes no more


def test_the_score_function_has_that_sign_and_size(make_occasion, worth):
    occasions = [make_occasion(number) for number in range(80)]
    found = torch.stack([towards_good(score(made, CROPS, draws=4), made) for made in occasions]).double()
    mean, error = found.mean(0), found.std(0) / len(found) ** 0.5
    expected = of_each_image(worth) / 4  # the slope of a chance by its log odds, where it is even, is 1/4
    assert (abs(mean - expected) < 4 * error).all()
    total = found.sum(1)
    assert total.mean() > 3 * total.std() / len(total) ** 0.5


def test_the_population_search_has_that_sign(make_occasion):
    occasions = [make_occasion(number) for number in range(50)]
    found = torch.stack([towards_good(population(o, CROPS, pairs=2, sigma=1.0), o) for o in occasions])
    total = found.sum(1)
    assert total.mean() > 3 * total.std() / len(total) ** 0.5
