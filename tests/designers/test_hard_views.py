import itertools

import pytest
import torch

from vpt_vision.designers import CropsConfig, FixedDesigner, HardViewsDesigner, HardViewsDesignerConfig
from vpt_vision.designers.recipe import RecipeConfig
from vpt_vision.errors import UserError
from vpt_vision.task import RenderedViews, Renderer

PATCH = 4
LOCALS = 3


class Learner:
    """A learner with given cross-entropies of views [V, G, B]."""

    def __init__(self, losses):
        self.losses = losses

    def cross_entropies(self, views, temperature):
        assert self.losses.shape[:2] == (
            len(views.global_views) + len(views.local_views),
            len(views.global_views),
        )
        return self.losses


def losses(candidates, drawn, seed=0):
    return torch.rand(candidates + drawn, candidates, 8, generator=torch.Generator().manual_seed(seed))


def refined(recipe, images, keys, table, **settings):
    """The candidates' task, and what is kept of views whose pixels are the candidate's number."""
    designer = HardViewsDesigner(HardViewsDesignerConfig(kind="hard_views", **settings), recipe, PATCH)
    task = designer(images, keys)
    views = RenderedViews(*(numbered(kind) for kind in (task.global_views, task.local_views)))
    return task, designer.refine(task, views, keys, Learner(table), 0.04)


def numbered(views):
    number = torch.arange(len(views.boxes))[:, None, None, None, None]
    return number.expand(*views.boxes.shape[:2], 3, views.size, views.size).float()


def kept_numbers(result):
    """Which candidates are kept, [2, B] and [L, B]."""
    return (views[:, :, 0, 0, 0].long() for views in (result.views.global_views, result.views.local_views))


def loss_of(table, image, pair, locals_kept):
    """DINO's sum over the pairs of student and teacher view, no view under itself."""
    return sum(
        table[student, teacher, image].item()
        for teacher in pair
        for student in (*pair, *locals_kept)
        if student != teacher
    )


def choices(candidates, drawn):
    for pair in itertools.product(range(0, candidates, 2), range(1, candidates, 2)):
        for kept in itertools.combinations(range(candidates, candidates + drawn), LOCALS):
            yield pair, kept


@pytest.mark.parametrize(("candidates", "drawn"), [(4, None), (4, 5), (2, 6), (6, 3)])
def test_keeps_the_choice_of_the_highest_loss(recipe, images, keys, candidates, drawn):
    table = losses(candidates, drawn or LOCALS)
    task, result = refined(recipe, images, keys, table, global_candidates=candidates, local_candidates=drawn)
    pairs, kept = kept_numbers(result)
    for image in range(len(images)):
        mine = loss_of(
            table, image, pairs[:, image].tolist(), [candidates + k for k in kept[:, image].tolist()]
        )
        every = [loss_of(table, image, *choice) for choice in choices(candidates, drawn or LOCALS)]
        assert mine == pytest.approx(max(every))
    assert result.task.masks is task.masks and task.masks.hidden.shape[0] == 2


def test_the_task_tells_of_the_views_that_are_kept(recipe, images, keys):
    designer = HardViewsDesigner(HardViewsDesignerConfig(kind="hard_views"), recipe, PATCH)
    task = designer(images, keys)
    views = Renderer()(images, task)
    result = designer.refine(task, views, keys, Learner(losses(4, LOCALS)), 0.04)
    assert result.views.global_views.shape[:2] == (2, len(images))
    again = Renderer()(images, result.task)
    assert torch.equal(again.global_views, result.views.global_views)
    assert torch.equal(again.local_views, result.views.local_views)


def test_random_comparisons_reach_from_chance_to_the_best(recipe, images, keys):
    table = losses(4, 6)

    def mean_loss(comparisons):
        _, result = refined(recipe, images, keys, table, local_candidates=6, comparisons=comparisons)
        pairs, kept = kept_numbers(result)
        assert (pairs[0] % 2 == 0).all() and (pairs[1] % 2 == 1).all()
        assert all(len(set(kept[:, image].tolist())) == LOCALS for image in range(len(images)))
        return sum(
            loss_of(table, image, pairs[:, image].tolist(), [4 + k for k in kept[:, image].tolist()])
            for image in range(len(images))
        ) / len(images)

    chance, some, many, best = (mean_loss(number) for number in (1, 8, 1024, 0))
    assert chance < some < many == pytest.approx(best)  # 80 choices, each met by 1024 draws


def test_two_candidates_are_the_fixed_recipe_and_ask_nothing(recipe, images, keys, tensors_of):
    designer = HardViewsDesigner(
        HardViewsDesignerConfig(kind="hard_views", global_candidates=2), recipe, PATCH
    )
    task = designer(images, keys)
    result = designer.refine(task, Renderer()(images, task), keys, None, 0.04)
    fixed = FixedDesigner(recipe, PATCH)(images, keys)
    for name, value in tensors_of(result.task).items():
        assert torch.equal(value, tensors_of(fixed)[name]), name


def test_candidates_follow_the_two_laws_in_turn(recipe, images, keys, tensors_of):
    photometrics = recipe.photometrics.model_copy(
        update={"global_blur_p": (1.0, 0.0), "global_solarize_p": (0.0, 1.0)}
    )
    recipe = recipe.model_copy(update={"photometrics": photometrics})
    designer = HardViewsDesigner(
        HardViewsDesignerConfig(kind="hard_views", global_candidates=6), recipe, PATCH
    )
    task = designer(images, keys)
    drawn, fixed = tensors_of(task), tensors_of(FixedDesigner(recipe, PATCH)(images, keys))
    for name, value in fixed.items():
        assert torch.equal(drawn[name][: len(value)], value), name
    blurred = task.global_views.photometrics.sigma > 0
    assert blurred[0::2].all() and not blurred[1::2].any()


def test_a_recipe_without_local_views(images, keys):
    recipe = RecipeConfig(crops=CropsConfig(global_size=32, local_views=0))
    _, result = refined(recipe, images, keys, losses(4, 0))
    assert result.views.global_views.shape[0] == 2 and result.views.local_views.shape[0] == 0


def test_a_recipe_it_cannot_choose_pairs_for_is_refused(recipe):
    config = HardViewsDesignerConfig(kind="hard_views")
    photometrics = recipe.photometrics.model_copy(
        update={"global_blur_p": (0.1,) * 3, "global_solarize_p": (0.1,) * 3}
    )
    three = RecipeConfig(crops=recipe.crops.model_copy(update={"global_views": 3}), photometrics=photometrics)
    with pytest.raises(UserError, match="global_views is 3"):
        HardViewsDesigner(config, three, PATCH)
    with pytest.raises(UserError, match="local_candidates 2 is below"):
        HardViewsDesigner(config.model_copy(update={"local_candidates": 2}), recipe, PATCH)
