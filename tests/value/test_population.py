from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F

from vpt_vision.designers import Designer
from vpt_vision.errors import UserError
from vpt_vision.value import Occasion, finite_difference_value, population, score

SURFACES = frozenset({"crops", "photometrics"})


@dataclass
class Stub:
    """A designer and its policy in one: the task is the outputs themselves, beside the keys."""

    outputs: dict
    keys: object = None

    surface_of = {"numbers": "crops", "field": "crops", "other": "masks"}  # noqa: RUF012

    def policy_of(self, images, outputs):
        return Stub(outputs)

    def sample(self, keys):
        return replace(self, keys=keys)


@pytest.fixture
def occasion(images, keys):
    """Return a maker of an occasion for a stub with two heads that are searched and one that is not."""

    def make(judge, keys=keys):
        generator = torch.Generator().manual_seed(0)

        def random(*shape):
            return torch.randn(*shape, generator=generator)

        features = {"numbers": random(6, 5), "field": random(6, 4, 3, 3), "other": random(6, 5)}
        outputs = {"numbers": random(6, 3), "field": random(6, 2, 3, 3), "other": random(6, 2)}
        for output in outputs.values():
            output.requires_grad_()
        return Occasion(
            designer=Stub(outputs),
            images=images,
            keys=keys,
            features=features,
            outputs=outputs,
            policy=Stub(outputs),
            judge=lambda task: judge(task.outputs),
        )

    return make


def gradient(occasion, **settings):
    surrogate = population(occasion, SURFACES, **{"pairs": 1, "sigma": 0.05, **settings})
    names = list(occasion.outputs)
    found = torch.autograd.grad(
        surrogate, [occasion.outputs[name] for name in names], allow_unused=True, materialize_grads=True
    )
    return dict(zip(names, found, strict=True))


def test_the_mean_over_pairs_is_the_gradient_that_images_share(occasion):
    """A goal that says the same of every image: its gradient lies in what the search can say."""
    slope = torch.tensor([1.0, -2.0, 0.5])
    made = occasion(lambda outputs: torch.sin(outputs["numbers"]).mean(0) @ slope)
    found = gradient(made, pairs=800, sigma=0.02)
    exact = torch.cos(made.outputs["numbers"].detach()) * slope / 6
    shared = found["numbers"].mean(0)
    torch.testing.assert_close(shared, exact.mean(0), rtol=0.1, atol=0.04)
    assert not found["other"].any()


def test_the_mean_over_pairs_is_a_projection(occasion):
    """Of a linear goal by images' features: what the search finds is an ascent direction of that length."""
    made = occasion(lambda outputs: torch.zeros(()))
    features = made.features["numbers"]
    target = (features[:, :1] - features[:, :1].mean()) / 6
    made = replace(made, judge=lambda task: (task.outputs["numbers"][:, :1] * target).sum())
    found = gradient(made, pairs=800)["numbers"]
    along = (found[:, :1] * target).sum() / target.norm()
    assert 0.1 * target.norm() < along < 1.1 * target.norm()
    assert found[:, 1:].norm() < 0.25 * found.norm()
    field = made.features["field"]
    spread = (field[:, 0] - field[:, 0].mean()) / 54
    made = replace(made, judge=lambda task: (task.outputs["field"][:, 1] * spread).sum())
    found = gradient(made, pairs=800)["field"]
    along = (found[:, 1] * spread).sum() / spread.norm()
    assert 0.1 * spread.norm() < along < 1.1 * spread.norm()


def test_pairs_are_antithetic_and_share_images_and_keys(occasion):
    seen = []

    def judge(outputs):
        seen.append({name: value.clone() for name, value in outputs.items()})
        return outputs["numbers"].sum() + (outputs["field"][:, 0] * torch.arange(9.0).view(3, 3)).sum()

    made = occasion(judge)
    found = gradient(made, pairs=3, sigma=0.2)
    assert len(seen) == 6 and not any(value.requires_grad for outputs in seen for value in outputs.values())
    total = {name: torch.zeros_like(value) for name, value in made.outputs.items()}
    for above, below in zip(seen[0::2], seen[1::2], strict=True):
        assert torch.equal(above["other"], below["other"])
        direction = {name: (above[name] - below[name]).detach() / 0.4 for name in ("numbers", "field")}
        for name, value in direction.items():
            torch.testing.assert_close(above[name] + below[name], 2 * made.outputs[name].detach())
            assert value.square().mean() > 0.1
        slope = direction["numbers"].sum() + (direction["field"][:, 0] * torch.arange(9.0).view(3, 3)).sum()
        # The documented sum: functions over rows.
        total["numbers"] += slope * direction["numbers"] * 2 / 6 / 3
        total["field"] += slope * direction["field"] / 54 / 3
    for name in ("numbers", "field"):
        torch.testing.assert_close(found[name], total[name].detach(), rtol=1e-3, atol=1e-3)


def test_directions_are_keyed_and_of_size_one(occasion, keys):
    def directions(keys):
        seen = []
        made = occasion(lambda outputs: seen.append(outputs) or torch.zeros(()), keys=keys)
        gradient(made, pairs=200, sigma=1.0)
        return {
            name: torch.stack([outputs[name] for outputs in seen[0::2]]) - made.outputs[name].detach()
            for name in ("numbers", "field")
        }

    first, again, other = directions(keys), directions(keys), directions(keys._replace(step=5))
    for name, value in first.items():
        assert torch.equal(value, again[name]) and not torch.equal(value, other[name])
        assert value.square().mean().item() == pytest.approx(1, abs=0.15)
        assert value.mean().item() == pytest.approx(0, abs=0.1)
    assert first["field"].mean((1, 3, 4)).abs().max() < 1e-4  # no shift of all places at once


def test_images_that_look_the_same_give_no_nan(occasion):
    made = occasion(lambda outputs: outputs["numbers"].sum())
    same = {name: torch.ones_like(value) for name, value in made.features.items()}
    assert all(value.isfinite().all() for value in gradient(replace(made, features=same)).values())


def test_what_cannot_be_searched_is_told(occasion, make_designer, images, keys):
    made = occasion(lambda outputs: outputs["numbers"].sum())
    with pytest.raises(UserError, match=r"outputs of Stub .* none shapes mask_ratio or targets"):
        population(made, frozenset({"mask_ratio", "targets"}), pairs=1, sigma=0.1)
    with pytest.raises(UserError, match="surface_of does not say which surface 'more' shapes"):
        population(
            replace(made, outputs={**made.outputs, "more": torch.zeros(6, 1)}), SURFACES, pairs=1, sigma=0.1
        )
    crops = occasion_of(make_designer(surfaces=["crops"]), images, keys, lambda task: torch.zeros(()))
    with pytest.raises(
        UserError, match=r"value\.estimators\.masks is score, .* LearnedDesigner has no density"
    ):
        score(crops, frozenset({"crops", "masks"}), draws=2)


def test_a_head_that_reads_nothing_is_searched_by_what_all_images_share(occasion):
    slope, seen = torch.tensor([1.0, -2.0, 0.5]), []

    def goal(outputs):
        seen.append(outputs["numbers"])
        return torch.sin(outputs["numbers"]).mean(0) @ slope

    made = occasion(goal)
    nothing = made.features | {"numbers": torch.zeros(6, 0)}
    found = gradient(replace(made, features=nothing), pairs=400, sigma=0.02)["numbers"]
    exact = torch.cos(made.outputs["numbers"].detach()) * slope / 6
    torch.testing.assert_close(found.sum(0), exact.sum(0), rtol=0.1, atol=0.1)
    directions = (torch.stack(seen[0::2]) - torch.stack(seen[1::2])) / 0.04  # [pairs, images, numbers]
    torch.testing.assert_close(directions, directions[:, :1].expand_as(directions), rtol=1e-2, atol=1e-2)
    assert directions.square().mean().item() == pytest.approx(1, abs=0.1)


def occasion_of(designer: Designer, images, keys, judge):
    features = designer.features(images)
    outputs = designer.outputs(features)
    policy = designer.policy_of(images, outputs)
    return Occasion(designer, images, keys, features, outputs, policy, judge)


def test_crops_move_along_a_smooth_function_of_their_boxes(make_designer, images, keys):
    """The boxes are differentiable in the designer: autograd gives what the search must find."""
    designer = make_designer(surfaces=["crops"])

    def mean_area(task):
        return (task.global_views.boxes[..., 2] * task.global_views.boxes[..., 3]).mean() / 1600

    made = occasion_of(designer, images, keys, mean_area)
    bias = designer.heads["crop_shapes"].bias
    (exact,) = torch.autograd.grad(mean_area(designer(images, keys)), bias)
    surrogate = population(made, frozenset({"crops"}), pairs=100, sigma=0.05)
    (found,) = torch.autograd.grad(surrogate, bias)
    # The expected cosine of P pairs with about n free numbers is about (1 + n/P)^-1/2, n = 16 here.
    assert F.cosine_similarity(found, exact, dim=0) > 0.7


def test_every_candidate_is_a_group_of_its_own(
    make_learner, make_designer, make_setting, direction, images, keys, snapshot, assert_same
):
    """The search's gradient is made of values of whole batches under one policy each."""
    learner, designer = make_learner(), make_designer(apart=0.0, surfaces=["crops", "photometrics"])
    setting, u = make_setting(learner), direction(learner)
    before, of_learner, random = snapshot(designer), snapshot(learner), torch.get_rng_state()
    scores = []

    def judge(task):
        assert task.global_views.boxes.shape[1] == len(images)
        views = setting.renderer(images, task)
        scores.append(finite_difference_value(setting, task, views, u, rho=1e-3)["dino"])
        return scores[-1]

    surrogate = population(occasion_of(designer, images, keys, judge), SURFACES, pairs=1, sigma=0.2)
    torch.autograd.grad(surrogate, list(designer.heads.parameters()), allow_unused=True)
    assert_same(before, snapshot(designer))
    assert_same(of_learner, snapshot(learner))
    assert torch.equal(random, torch.get_rng_state())
    assert len(scores) == 2 and not any(score.requires_grad for score in scores)
