import math

import pytest
import torch
from posed import posed

from vpt_vision.designers import (
    AdversarialMasksDesigner,
    AdversarialMasksDesignerConfig,
    FixedDesigner,
)

PATCH = 4
COUNT = 3


@pytest.fixture
def make(recipe):
    def build(**settings):
        torch.manual_seed(0)
        config = AdversarialMasksDesignerConfig(kind="adversarial_masks", masks=COUNT, width=8, **settings)
        designer = AdversarialMasksDesigner(config, recipe, PATCH)
        torch.nn.init.normal_(designer.generator.out.weight, 0, 1.0)
        return designer

    return build


def masks_of(designer, views):
    """[masks, G, B, S, S], straight from the network."""
    with torch.no_grad():
        masks = torch.softmax(designer.generator(views.global_views.flatten(0, 1)), 1)
    return masks.view(*views.global_views.shape[:2], COUNT, 32, 32).movedim(2, 0)


def test_all_the_student_sees_is_every_view_less_each_mask_and_the_teacher_sees_it_whole(make, images, keys):
    designer = make()
    task, views, result = posed(designer, images, keys)
    masks = masks_of(designer, views)
    torch.testing.assert_close(masks.sum(0), torch.ones_like(masks[0]))
    assert masks.std(0).mean() > 0.05
    assert result.views.teacher_views is views.global_views and result.views.local_views is views.local_views
    versions = result.views.global_views.unflatten(0, (COUNT, 2))
    for number in range(COUNT):
        expected = views.global_views * (1 - masks[number][:, :, None])
        torch.testing.assert_close(versions[number], expected)
    # What the masks hide adds up to the whole view.
    torch.testing.assert_close(COUNT * views.global_views - versions.sum(0), views.global_views)
    assert torch.equal(result.task.masks.hidden, task.masks.hidden.repeat(COUNT, 1, 1))
    assert result.task.masks.total == COUNT * task.masks.total


def test_with_one_each_view_is_less_one_of_its_masks_drawn_anew(make, images, keys):
    designer = make(forward="one")
    drawn = []
    for step in range(20):
        task, views, result = posed(designer, images, keys._replace(step=step))
        assert torch.equal(result.task.masks.hidden, task.masks.hidden)
        candidates = views.global_views * (1 - masks_of(designer, views)[:, :, :, None])
        distance = (candidates - result.views.global_views).abs().flatten(3).amax(-1)
        assert distance.min(0).values.max() < 1e-5
        drawn.append(distance.argmin(0))
    shares = torch.stack(drawn).flatten().bincount(minlength=COUNT) / (20 * 2 * len(images))
    assert (shares - 1 / COUNT).abs().max() < 0.1
    again = posed(designer, images[3:5], keys._replace(step=19, samples=keys.samples[3:5]))[2]
    torch.testing.assert_close(
        again.views.global_views, result.views.global_views[:, 3:5], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("forward", ["all", "one"])
def test_pays_one_over_the_sine_of_each_masks_share(make, images, keys, forward):
    designer = make(forward=forward, sparsity_weight=0.3)
    _, views, result = posed(designer, images, keys)
    shares = masks_of(designer, views).mean((-2, -1)).flatten(1)  # [masks, views]
    prices = [sum(1 / math.sin(math.pi * share) for share in row) / len(row) for row in shares.tolist()]
    expected = sum(prices) / (COUNT if forward == "all" else 1)
    assert result.penalties["sparsity"].item() == pytest.approx(0.3 * expected, rel=1e-4)


def test_the_price_of_all_or_nothing_is_finite(make, images, keys):
    designer = make()
    with torch.no_grad():
        designer.generator.out.bias.copy_(torch.tensor([1e4, 0.0, 0.0]))
    price = posed(designer, images, keys)[2].penalties["sparsity"]
    assert price.isfinite() and price > 1e3


def test_views_are_the_recipes_before(make, recipe, images, keys, tensors_of):
    task = make()(images, keys)
    for name, value in tensors_of(FixedDesigner(recipe, PATCH)(images, keys)).items():
        assert torch.equal(value, tensors_of(task)[name]), name
