"""The log density of what a policy drew: against its KL, its score's mean, enumeration and plain loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from images import blank
from torch import Tensor

from vpt_kernels import PackedImages, keyed_uniform
from vpt_vision.designers import FixedDesigner, LearnedDesigner, Policy, RecipeConfig
from vpt_vision.designers.crops import CropBend
from vpt_vision.designers.distributions import Kumaraswamy
from vpt_vision.designers.masks import MaskBend
from vpt_vision.designers.photometrics import PhotometricBend
from vpt_vision.task import Keys

MANY = 20_000
SHAPES = (0.8, -0.5, -0.6, 0.7)  # log a and log b of area, of aspect
Wild = Callable[..., LearnedDesigner]


def policy_of(settings: dict[str, dict[str, object]], height: int, width: int, count: int) -> Policy:
    """The recipe's policy for `count` images of one size."""
    return FixedDesigner(RecipeConfig.model_validate(settings), 4).policy(blank(count, height, width))


def crop_bend(shapes: Tensor, field: Tensor, count: int) -> CropBend:
    a, b, c, d = (shape.expand(count) for shape in shapes)
    return CropBend(Kumaraswamy(a, b), Kumaraswamy(c, d), field.expand(count, *field.shape))


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.double().mean(0), values.double().std(0) / math.sqrt(len(values))


def bent_crops(
    scale: tuple[float, float], shapes: Tensor, field: Tensor, height: int = 60
) -> tuple[Policy, Keys]:
    policy = policy_of(
        {"crops": {"global_scale": scale, "global_size": 16, "local_views": 0, "global_views": 1},
         "photometrics": {"global_blur_p": [0.5], "global_solarize_p": [0.5]}},
        height, 80, MANY,
    )  # fmt: skip
    bend = replace(policy.global_bend, crops=crop_bend(shapes, field, MANY))
    return replace(policy, global_bend=bend, surfaces=frozenset({"crops"})), Keys(0, 0, torch.arange(MANY))


def scores(log_prob: Callable[[Tensor], Tensor], parameters: Tensor) -> Tensor:
    """Each image's gradient [MANY, P] in parameters [P] that all images share."""
    each = parameters.expand(MANY, -1).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(log_prob(each).sum(), each)
    return gradient


FIELD = torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.5]])


def test_density_of_crops_has_the_mean_that_their_kl_is() -> None:
    policy, keys = bent_crops((0.05, 0.2), torch.tensor(SHAPES), FIELD)  # every attempt fits
    found, error = mean_and_error(policy.log_prob(policy.sample(keys), keys)["crops"])
    assert found.item() == pytest.approx(policy.kl()["crops"][0].item(), abs=5 * error.item())


@pytest.mark.parametrize("height", [60, 40])
def test_score_of_crops_has_mean_zero_and_gives_the_gradient_of_an_expectation(height: int) -> None:
    """Where many attempts are turned down; of an image of 40 x 80 pixels now and then all are."""
    start = torch.tensor([*SHAPES, *FIELD.flatten()])

    def policy_at(parameters: Tensor) -> tuple[Policy, Keys]:
        return bent_crops((0.3, 1.0), parameters[:4], parameters[4:].view(2, 3), height)

    def log_prob(each: Tensor) -> Tensor:
        policy, keys = policy_at(start)
        bend = CropBend(
            Kumaraswamy(each[:, 0], each[:, 1]),
            Kumaraswamy(each[:, 2], each[:, 3]),
            each[:, 4:].view(-1, 2, 3),
        )
        bent = replace(policy, global_bend=replace(policy.global_bend, crops=bend))
        return bent.log_prob(task, keys)["crops"]

    def outcome(boxes: Tensor) -> Tensor:
        top, left, tall, wide = boxes[0].unbind(-1)
        return (tall * wide / (height * 80) + 0.3 * top / height - 0.2 * (left / 80) ** 2).double()

    policy, keys = policy_at(start)
    task = policy.sample(keys)
    score = scores(log_prob, start).double()
    found, error = mean_and_error(score)
    assert (found.abs() <= 5 * error).all()

    value = outcome(task.global_views.boxes)
    gradient, error = mean_and_error((value - value.mean())[:, None] * score)
    for number in range(len(start)):
        bump = torch.zeros_like(start)
        bump[number] = 0.25
        above, below = (
            outcome(policy_at(start + sign * bump)[0].sample(keys).global_views.boxes) for sign in (1, -1)
        )
        expected, noise = mean_and_error((above - below) / 0.5)
        # Central differences of this width are within 3 % or so of the slope.
        slack = 4 * math.hypot(error[number], noise) + 0.03 * expected.abs()
        assert (gradient[number] - expected).abs() < slack, number
    assert gradient.abs().max() > 10 * error.max()


def bent_photometrics(parameters: Tensor, jitter_p: float = 0.6) -> tuple[Policy, Keys]:
    """Two global views; `parameters` [15] or [B, 15]: logs a and b of strengths, offsets of events."""
    policy = policy_of(
        {"crops": {"global_size": 16, "local_views": 0}, "photometrics": {"jitter_p": jitter_p}}, 20, 20, MANY
    )
    log_a, log_b, offsets = parameters.expand(MANY, 15).T.split(5)
    bend = PhotometricBend(Kumaraswamy(log_a, log_b), offsets)
    bent = replace(policy.global_bend, photometrics=bend)
    policy = replace(policy, global_bend=bent, surfaces=frozenset({"photometrics"}))
    return policy, Keys(1, 0, torch.arange(MANY))


def test_density_of_photometrics_has_the_mean_and_the_score_that_it_should() -> None:
    torch.manual_seed(0)
    parameters = torch.randn(15) * 0.7
    policy, keys = bent_photometrics(parameters)
    task = policy.sample(keys)
    log_prob = policy.log_prob(task, keys)["photometrics"]
    # Under the recipe's law the same draws have only their events' probability.
    p = task.global_views.photometrics
    events = torch.stack(
        [task.global_views.flips, p.brightness != 1, p.grey, p.sigma > 0, p.solarize <= 1]
    ).double()
    shares = torch.tensor([[0.5, 0.5], [0.6, 0.6], [0.2, 0.2], [1.0, 0.1], [0.0, 0.2]], dtype=torch.float64)[
        :, :, None
    ]
    of_recipe = torch.where(events > 0, shares, 1 - shares).log().sum((0, 1))

    # KL of the task: that of the events, and of the strengths where they are applied.
    found, error = mean_and_error(log_prob - of_recipe)
    law = bent_photometrics(parameters)[0].laws.global_views.photometrics
    kl_events = law._events(policy.global_bend.photometrics).kl_to_recipe()[..., 0].sum()
    applied = events.mean(-1)  # [5, 2]
    each = policy.global_bend.photometrics.strengths.kl_to_uniform()[:, 0]
    kl_strengths = each[:4].sum() * applied[1].sum() + each[4] * applied[3].sum()
    assert found.item() == pytest.approx((kl_events + kl_strengths).item(), abs=6 * error.item())
    assert policy.kl()["photometrics"][0] >= kl_events + kl_strengths  # which counts strengths wherever drawn

    found, error = mean_and_error(
        scores(lambda each: bent_photometrics(each)[0].log_prob(task, keys)["photometrics"], parameters)
    )
    assert (found.abs() <= 5 * error).all()


def test_photometrics_count_strengths_where_they_are_applied() -> None:
    never = torch.zeros(15)
    never[0] = 1.0  # brightness
    policy, keys = bent_photometrics(never, jitter_p=0.0)
    bent = policy.log_prob(policy.sample(keys), keys)["photometrics"]
    recipe, _ = bent_photometrics(torch.zeros(15), jitter_p=0.0)
    assert bent.equal(recipe.log_prob(recipe.sample(keys), keys)["photometrics"])


def test_entropy_is_that_of_events_less_kl_of_what_is_uniform() -> None:
    parameters = torch.zeros(15)
    parameters[3], parameters[11], parameters[12] = 0.9, -0.7, 1.2  # hue; jitter's and grey's offsets
    policy, _ = bent_photometrics(parameters)

    def entropy(p: float) -> float:
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    def moved(p: float, offset: float) -> float:
        return 1 / (1 + (1 - p) / p * math.exp(-offset))

    hue = Kumaraswamy(torch.tensor(0.9), torch.tensor(0.0)).kl_to_uniform().item()
    expected = 2 * (entropy(moved(0.6, -0.7)) - entropy(0.6) + entropy(moved(0.2, 1.2)) - entropy(0.2) - hue)
    assert policy.entropy()["photometrics"][5].item() == pytest.approx(expected, abs=1e-5)

    crops, _ = bent_crops((0.05, 0.2), torch.tensor(SHAPES), FIELD)
    assert crops.entropy()["crops"].equal(-crops.kl()["crops"])


def tiny_masks(field: Tensor, count: int, probability: float = 1.0) -> tuple[Policy, Keys]:
    """One global view of 2 x 2 patches, of which two are hidden."""
    policy = policy_of(
        {"crops": {"global_size": 8, "global_scale": [1, 1], "ratio": [1, 1], "local_views": 0},
         "masks": {"kind": "random", "ratio": [0.5, 0.5], "probability": probability}},
        8, 8, count,
    )  # fmt: skip
    bend = MaskBend(field.expand(count, *field.shape), 0.5, 8)
    return replace(policy, mask_bend=bend, surfaces=frozenset({"masks"})), Keys(2, 0, torch.arange(count))


def test_probability_of_masks_by_enumeration_of_the_orders() -> None:
    field = torch.tensor([[0.4, -1.0], [1.3, 0.0]])
    policy, keys = tiny_masks(field, 20_000)
    task = policy.sample(keys)
    log_prob = policy.log_prob(task, keys)["masks"]
    flips = task.global_views.flips

    weights = torch.stack([field, field.flip(1)]).flatten(1).exp().double()  # as each view sees the field
    for flipped in (0, 1):
        w = weights[flipped]
        orders = {
            (i, j): (w[i] / w.sum() * w[j] / (w.sum() - w[i])).item()
            for i, j in itertools.permutations(range(4), 2)
        }
        assert sum(orders.values()) == pytest.approx(1)
        chosen = flips[0] == bool(flipped)
        pairs = task.masks.hidden[0, chosen].nonzero()[:, 1].view(-1, 2)
        # Of one view the probability is that of one of the set's orders, each as often as it is drawn.
        for first, second in itertools.combinations(range(4), 2):
            here = (pairs == torch.tensor([first, second])).all(1)
            each = torch.tensor([orders[first, second], orders[second, first]], dtype=torch.float64)
            share = here.double().mean().item()
            assert share == pytest.approx(each.sum().item(), abs=5 * (0.25 / chosen.sum().item()) ** 0.5)
            in_view = log_prob[chosen][here].double().exp()
            assert in_view.isfinite().all()

    single, keys = tiny_masks(field, 200)
    task = single.sample(keys)
    log_prob = single.log_prob(task, keys)["masks"]
    for image in range(200):
        expected = 0.0
        for view in range(2):
            gumbel = -(-keyed_uniform(2, 0, torch.tensor(2 * image + view), 0xFFFE, 4).log()).log()
            w = weights[int(task.global_views.flips[view, image])]
            left = list(range(4))
            order = (gumbel + w.log()).argsort(descending=True)[:2].tolist()
            assert sorted(order) == task.masks.hidden[view, image].nonzero().squeeze(1).tolist()
            for patch in order:
                expected += math.log(w[patch] / sum(w[other] for other in left))
                left.remove(patch)
        assert log_prob[image].item() == pytest.approx(expected, abs=1e-5)


def test_the_recipe_itself() -> None:
    """No bend: nothing but the probabilities of equal outcomes."""
    policy, keys = tiny_masks(torch.zeros(1, 1), 50, probability=0.5)
    task = policy.sample(keys)
    masked = task.masks.hidden.any(-1).sum(0)
    torch.testing.assert_close(policy.log_prob(task, keys)["masks"], -masked * math.log(4 * 3))
    crops, keys = bent_crops((0.3, 1.0), torch.zeros(4), torch.zeros(2, 2))
    torch.testing.assert_close(crops.log_prob(crops.sample(keys), keys)["crops"], torch.zeros(MANY))
    assert (crops.entropy()["crops"] == 0).all()


def test_every_image_has_its_own_and_the_gradient_reaches_the_bends(
    recipe: RecipeConfig, images: PackedImages, keys: Keys, wild: Wild
) -> None:
    surfaces = ["crops", "photometrics", "masks", "mask_ratio"]
    designer = wild(recipe, surfaces, scale=0.5)
    policy = designer.policy(images)
    task = policy.sample(keys)
    log_prob = policy.log_prob(task, keys)
    assert sorted(log_prob) == sorted(policy.entropy()) == sorted(surfaces)
    assert all(value.shape == (len(images),) and value.isfinite().all() for value in log_prob.values())
    for surface, heads in {
        "crops": ["crop_shapes", "crop_fields"],
        "photometrics": ["photometrics"],
        "masks": ["masks"],
        "mask_ratio": ["mask_ratio"],
    }.items():
        designer.zero_grad()
        log_prob[surface].sum().backward(retain_graph=True)
        reached = {name for name, head in designer.heads.items() if head.weight.grad is not None}
        assert reached == set(heads)
        for head in heads:
            gradient = designer.heads[head].weight.grad
            assert gradient is not None
            assert gradient.isfinite().all()
            assert gradient.abs().max() > 0

    some = torch.tensor([6, 0, 3])
    part = designer.policy(images[some])
    their_keys = keys._replace(samples=keys.samples[some])
    for surface, value in part.log_prob(part.sample(their_keys), their_keys).items():
        torch.testing.assert_close(value, log_prob[surface][some], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
@pytest.mark.parametrize("kind", ["random", "block"])
def test_is_finite_whatever_the_weights(
    recipe: RecipeConfig, images: PackedImages, wild: Wild, scale: float, kind: str
) -> None:
    recipe = recipe.model_copy(update={"masks": recipe.masks.model_copy(update={"kind": kind})})
    designer = wild(recipe, ["crops", "photometrics", "masks", "mask_ratio"], scale=scale)
    for step in range(10):
        keys = Keys(0, step, torch.arange(len(images)))
        policy = designer.policy(images)
        log_prob = policy.log_prob(policy.sample(keys), keys)
        assert all(value.isfinite().all() for value in log_prob.values())
        sum(value.sum() for value in log_prob.values()).backward()
    assert all(
        head.weight.grad is not None and head.weight.grad.isfinite().all() for head in designer.heads.values()
    )
