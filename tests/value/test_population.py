from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vpt_vision.value import finite_difference_value, population_gradient


@dataclass
class Drawn:
    """What the stub designer sets as a task: its parameters through a curve, plus the keys' own noise."""

    point: torch.Tensor
    keys: object


class StubDesigner(nn.Module):
    def __init__(self):
        super().__init__()
        self.searched = nn.Parameter(torch.tensor([0.3, -0.7, 1.1]))
        self.kept = nn.Parameter(torch.tensor([5.0]))

    def forward(self, images, keys):
        return Drawn(torch.sin(self.searched) * self.kept, keys)

    def search_parameters(self):
        return {"searched": self.searched}


def test_the_mean_over_pairs_is_the_gradient(images, keys):
    designer = StubDesigner()
    slope = torch.tensor([1.0, -2.0, 0.5])
    found = population_gradient(
        designer, images, keys, lambda task: (slope * task.point).sum(), pairs=3000, sigma=0.05
    )
    assert found.keys() == {"searched"}
    expected = 5 * slope * torch.cos(designer.searched.detach())
    assert (found["searched"] - expected).norm() < 0.08 * expected.norm()


def test_pairs_are_antithetic_and_share_images_and_keys(images, keys):
    designer, seen = StubDesigner(), []

    def objective(task):
        seen.append(task)
        return task.point.sum()

    found = population_gradient(designer, images, keys, objective, pairs=3, sigma=1e-2)
    assert len(seen) == 6 and all(task.keys is keys for task in seen)
    offsets = [torch.asin(task.point / 5) - designer.searched.detach() for task in seen]
    directions = torch.stack(offsets) / 1e-2
    torch.testing.assert_close(directions[0::2], -directions[1::2], atol=1e-3, rtol=1e-3)
    assert (directions[0] - directions[2]).norm() > 0.1

    # The documented sum, from what was seen.
    slopes = (
        torch.stack([(a.point - b.point).sum() for a, b in zip(seen[0::2], seen[1::2], strict=True)]) / 2e-2
    )
    torch.testing.assert_close(
        found["searched"], (slopes[:, None] * directions[0::2]).mean(0), rtol=1e-2, atol=1e-2
    )


def test_directions_are_keyed_and_normal(images, keys):
    class Wide(StubDesigner):
        def __init__(self):
            super().__init__()
            self.searched = nn.Parameter(torch.zeros(20_000))

    def direction(keys):
        # The objective's slope is 1 along any direction: the gradient is the direction itself.
        signs = iter((0.5, -0.5))
        return population_gradient(
            Wide(), images, keys, lambda task: torch.tensor(next(signs)), pairs=1, sigma=0.5
        )["searched"]

    first = direction(keys)
    assert torch.equal(first, direction(keys))
    assert not torch.equal(first, direction(keys._replace(step=5)))
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert (first**power).mean().item() == pytest.approx(moment, abs=0.2)


def test_crops_move_along_a_smooth_function_of_their_boxes(make_designer, images, keys):
    """The boxes are differentiable in the designer: autograd gives what the search must find."""
    designer = make_designer(surfaces=["crops"])
    wanted = designer.search_parameters()

    def mean_area(task):
        return (task.global_views.boxes[..., 2] * task.global_views.boxes[..., 3]).mean() / 1600

    task = designer(images, keys)
    exact = torch.autograd.grad(
        mean_area(task), list(wanted.values()), allow_unused=True, materialize_grads=True
    )
    found = population_gradient(designer, images, keys, mean_area, pairs=60, sigma=0.01)
    found, exact = torch.cat([g.flatten() for g in found.values()]), torch.cat([g.flatten() for g in exact])
    # The expected cosine of P pairs in d dimensions is about (1 + d/P)^-1/2.
    assert F.cosine_similarity(found, exact, dim=0) > 0.8 / (1 + len(exact) / 60) ** 0.5


def test_every_candidate_is_a_group_of_its_own(
    make_learner, make_designer, make_setting, pixels, direction, images, keys, snapshot, assert_same
):
    """The search's gradient is made of values of whole batches under one policy each."""
    learner, designer = make_learner(), make_designer(apart=0.0, surfaces=["crops", "photometrics"])
    setting, u = make_setting(learner), direction(learner)
    before, of_learner, random = snapshot(designer), snapshot(learner), torch.get_rng_state()
    scores = []

    def objective(task):
        assert task.global_views.boxes.shape[1] == len(images)
        scores.append(finite_difference_value(setting, task, pixels(setting, task), u, rho=1e-3)["dino"])
        return scores[-1]

    found = population_gradient(designer, images, keys, objective, pairs=1, sigma=0.2)
    assert_same(before, snapshot(designer))
    assert_same(of_learner, snapshot(learner))
    assert torch.equal(random, torch.get_rng_state())
    assert not any(score.requires_grad for score in scores)

    along = sum((found[name] ** 2).sum() for name in found).sqrt()
    size = sum(value.numel() for value in found.values()) ** 0.5
    assert along.item() == pytest.approx(abs((scores[0] - scores[1]) / 0.4).item() * size, rel=0.1)
