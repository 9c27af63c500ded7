import pytest
import torch
from posed import posed
from torch import nn

from vpt_vision.designers import FixedDesigner, SoftMaskDesigner, SoftMaskDesignerConfig
from vpt_vision.errors import UserError
from vpt_vision.task import Renderer

PATCH = 4
GENERATORS = ["unet", "transformer"]
SIGMA, KERNEL = 1.5, 7


@pytest.fixture
def make(recipe):
    """A maker of designers whose masks are as varied as can be."""

    def build(generator, **settings):
        torch.manual_seed(0)
        config = SoftMaskDesignerConfig(
            kind="soft_mask", generator=generator, width=8, blur_sigma=SIGMA, blur_kernel=KERNEL, **settings
        )
        designer = SoftMaskDesigner(config, recipe, PATCH)
        nn.init.normal_(designer.generator.out.weight, 0, 0.5)
        return designer

    return build


def blurred(view):
    """A Gaussian blur by its definition, pixel by pixel along each side, with reflection."""
    far = KERNEL // 2
    weights = torch.exp(-0.5 * (torch.arange(-far, far + 1) / SIGMA) ** 2)
    weights = weights / weights.sum()
    for axis in (1, 2):
        side = view.shape[axis]
        lines = view.movedim(axis, 0)
        padded = [lines[abs(i) if i < side else 2 * (side - 1) - i] for i in range(-far, side + far)]
        view = torch.stack(
            [sum(w * padded[i + k] for k, w in enumerate(weights)) for i in range(side)]
        ).movedim(0, axis)
    return view


@pytest.mark.parametrize("generator", GENERATORS)
def test_global_views_are_mixed_with_their_blur_and_nothing_else_changes(make, images, keys, generator):
    designer = make(generator)
    with torch.no_grad():
        task, views, result = posed(designer, images, keys)
        mask = torch.sigmoid(designer.generator(views.global_views.flatten(0, 1)))[:, 0]
    assert mask.shape == (2 * len(images), 32, 32) and mask.std() > 0.05
    for view, kept, mixed in zip(
        views.global_views.flatten(0, 1), mask, result.views.global_views.flatten(0, 1), strict=True
    ):
        torch.testing.assert_close(mixed, kept * view + (1 - kept) * blurred(view), rtol=1e-4, atol=1e-4)
    assert result.task is task
    assert result.views.local_views is views.local_views and result.views.teacher_views is None


@pytest.mark.parametrize("generator", GENERATORS)
def test_pays_for_the_mean_and_the_variation_of_its_mask(make, images, keys, generator):
    designer = make(generator, keep=0.4, sparsity_weight=0.7, tv_weight=0.3)
    with torch.no_grad():
        _, views, result = posed(designer, images, keys)
        mask = torch.sigmoid(designer.generator(views.global_views.flatten(0, 1)))[:, 0]
    of_each = [((m.mean() - 0.4) ** 2).item() for m in mask]
    down = [(m[1:] - m[:-1]).abs().mean().item() for m in mask]
    right = [(m[:, 1:] - m[:, :-1]).abs().mean().item() for m in mask]
    count = len(mask)
    assert result.penalties["sparsity"].item() == pytest.approx(0.7 * sum(of_each) / count, rel=1e-4)
    assert result.penalties["tv"].item() == pytest.approx(0.3 * (sum(down) + sum(right)) / count, rel=1e-4)
    assert result.figures["kept"].item() == pytest.approx(mask.mean().item(), rel=1e-4)


@pytest.mark.parametrize("generator", GENERATORS)
def test_starts_at_a_constant_mask_that_costs_nothing(recipe, images, keys, generator):
    config = SoftMaskDesignerConfig(kind="soft_mask", generator=generator, keep=0.3, blur_kernel=KERNEL)
    designer = SoftMaskDesigner(config, recipe, PATCH)
    _, views, result = posed(designer, images, keys)
    assert result.penalties["tv"] == 0 and result.penalties["sparsity"] < 1e-10
    mask = torch.sigmoid(designer.generator(views.global_views.flatten(0, 1)))
    torch.testing.assert_close(mask, torch.full_like(mask, 0.3))


def test_the_transformers_mask_has_one_value_a_patch_and_sees_the_whole_view(make, images, keys):
    designer = make("transformer")
    views = Renderer()(images, designer(images, keys)).global_views.flatten(0, 1).requires_grad_()
    mask = designer.generator(views)
    patches = mask.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).flatten(-2)
    assert (patches == patches[..., :1]).all()
    reached = torch.autograd.grad(mask[0, 0, 0, 0], views)[0][0].abs().sum(0)
    assert (reached > 0).all()


@pytest.mark.parametrize("generator", GENERATORS)
def test_views_are_the_recipes_before_and_images_do_not_see_each_other(
    make, recipe, images, keys, tensors_of, generator
):
    designer = make(generator)
    task, _, result = posed(designer, images, keys)
    fixed = FixedDesigner(recipe, PATCH)(images, keys)
    for name, value in tensors_of(fixed).items():
        assert torch.equal(value, tensors_of(task)[name]), name
    few = posed(designer, images[2:5], keys._replace(samples=keys.samples[2:5]))[2]
    torch.testing.assert_close(
        few.views.global_views, result.views.global_views[:, 2:5], rtol=1e-4, atol=1e-5
    )


def test_autocast_does_not_reach_the_generator(make, images, keys):
    designer = make("unet")
    expected = posed(designer, images, keys)[2].views.global_views
    with torch.autocast("cpu", torch.bfloat16):
        found = posed(designer, images, keys)[2].views.global_views
    assert torch.equal(found, expected)


def test_a_blur_wider_than_the_view_is_refused(recipe):
    config = SoftMaskDesignerConfig(kind="soft_mask", blur_kernel=65)
    with pytest.raises(UserError, match="below 64"):
        SoftMaskDesigner(config, recipe, PATCH)
    SoftMaskDesigner(config.model_copy(update={"blur_kernel": 63}), recipe, PATCH)
