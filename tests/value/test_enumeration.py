"""Searches against the exact expectation: a policy over so few masks that all of them can be counted."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from vpt_vision.designers import LearnedDesigner, LearnedDesignerConfig, RecipeConfig
from vpt_vision.task import Masks, Renderer
from vpt_vision.value import Occasion, Setting, finite_difference_value, population, score

MASKS = frozenset({"masks"})
PATCHES = 4


@pytest.fixture
def case(make_learner, direction, images, keys):
    """Two images, a view each, of whose four patches one is hidden: sixteen tasks, and the value of each."""
    recipe = RecipeConfig.model_validate(
        {
            "crops": {
                "global_size": 16,
                "global_views": 1,
                "global_scale": [1, 1],
                "ratio": [1, 1],
                "local_size": 8,
                "local_views": 1,
                "local_scale": [0.5, 0.5],
            },
            "photometrics": {
                "flip_p": 0,
                "jitter_p": 0,
                "grey_p": 0,
                "global_blur_p": [0],
                "local_blur_p": 0,
                "global_solarize_p": [0],
            },
            "masks": {"kind": "random", "probability": 1, "ratio": [0.25, 0.25]},
        }
    )
    torch.manual_seed(3)
    config = LearnedDesignerConfig(kind="learned", thumbnail=32, width=8, blocks=1, surfaces=["masks"])
    designer = LearnedDesigner(config, recipe, 8)
    torch.nn.init.normal_(designer.heads["masks"].weight, std=0.1)
    images, keys = images[:2], keys._replace(samples=keys.samples[:2])
    learner = make_learner(koleo_weight=0.0)
    setting = Setting(learner, Renderer(), images, 0.07, 2)
    u = direction(learner)
    with torch.no_grad():
        fixed = designer(images, keys)  # the local view is drawn once and for all
        values = torch.empty(PATCHES, PATCHES)
        for first, second in product(range(PATCHES), repeat=2):
            hidden = F.one_hot(torch.tensor([[first, second]]), PATCHES).bool()
            task = type(fixed)(fixed.global_views, fixed.local_views, Masks.of(hidden, 2), fixed.targets)
            found = finite_difference_value(setting, task, Renderer()(images, task), u, rho=1e-3)
            values[first, second] = sum(learner.config.weights[term] * value for term, value in found.items())
    values = values / values.std()

    def judge(task):
        first, second = task.masks.hidden[0].int().argmax(-1)
        return values[first, second]

    def expected(outputs):
        """J = Σ π V; one patch is hidden, so its chances are the softmax of the logits."""
        policy = designer.policy_of(images, outputs)
        sizes = (images.heights, images.widths)
        logits = policy.laws.masks.in_views(policy.mask_bend.field, fixed.global_views, *sizes)
        chances = logits.reshape(2, PATCHES).softmax(-1)
        return chances[0] @ values @ chances[1]

    def occasion(samples):
        features = designer.features(images)
        outputs = {name: output.detach() for name, output in designer.outputs(features).items()}
        for output in outputs.values():
            output.requires_grad_()
        policy = designer.policy_of(images, outputs)
        named = keys._replace(samples=samples)
        return Occasion(designer, images, named, features, outputs, policy, judge)

    return occasion, expected


def gradient(scalar, occasion):
    return torch.autograd.grad(scalar, occasion.outputs["masks"])[0]


def test_the_mean_score_is_the_gradient_of_the_expectation(case):
    make, expected = case
    occasion = make(torch.arange(2))
    exact = gradient(expected(occasion.outputs), occasion)
    estimates = []
    for number in range(20):
        occasion = make(torch.tensor([2 * number, 2 * number + 1]))
        estimates.append(gradient(score(occasion, MASKS, draws=25), occasion))
    estimates = torch.stack(estimates)
    found = estimates.mean(0)
    assert F.cosine_similarity(found.flatten(), exact.flatten(), dim=0) > 0.9
    along = (estimates * exact).sum((1, 2, 3, 4)) / exact.square().sum()  # 1 on average, if unbiased
    assert abs(along.mean() - 1) < 3 * along.std() / len(along) ** 0.5
    assert along.std() / len(along) ** 0.5 < 0.25


def test_two_draws_give_no_bias_either(case):
    make, expected = case
    occasion = make(torch.arange(2))
    exact = gradient(expected(occasion.outputs), occasion)
    along = torch.stack(
        [
            (gradient(score(made, MASKS, draws=2), made) * exact).sum() / exact.square().sum()
            for made in (make(torch.tensor([2 * n, 2 * n + 1])) for n in range(200))
        ]
    )
    assert abs(along.mean() - 1) < 3 * along.std() / len(along) ** 0.5
    assert along.std() / len(along) ** 0.5 < 0.5


def test_the_mean_search_is_the_difference_of_expectations(case, monkeypatch):
    """Along the direction that it perturbs, which the keys of seed and step choose, whatever the samples."""
    make, expected = case
    sigma, pairs, candidates = 1.0, 150, []
    estimates = []
    for number in range(pairs):
        occasion = make(torch.tensor([2 * number, 2 * number + 1]))
        designer = occasion.designer
        with monkeypatch.context() as patch:
            if not candidates:
                policy_of = designer.policy_of
                patch.setattr(
                    designer, "policy_of", lambda *args, ask=policy_of: candidates.append(args) or ask(*args)
                )
            estimates.append(gradient(population(occasion, MASKS, pairs=1, sigma=sigma), occasion))
    (_, above), (_, below) = candidates
    slope = (expected(above) - expected(below)) / (2 * sigma)
    direction = (above["masks"] - below["masks"]) / (2 * sigma)
    # The documented sum: slope times direction over the rows, of which a field with one channel has them all.
    slopes = torch.stack([(found * direction).sum() for found in estimates])
    slopes = slopes / direction.square().sum() * direction.numel()
    assert abs(slopes.mean() - slope) < 3 * slopes.std() / pairs**0.5
    assert slopes.std() / pairs**0.5 < 0.1
