"""Targets of the learned designer: neutral at the start, normalised, bounded, each part alone."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vpt_kernels import PackedImages
from vpt_vision.designers import FixedDesigner, LearnedDesigner, LearnedDesignerConfig, RecipeConfig
from vpt_vision.designers.targets import TargetBend, TargetLaw
from vpt_vision.task import Keys, Masks, Targets

PARTS = ("tokens", "samples", "temperature", "mix")
FIELDS = tuple(field.name for field in fields(Targets))


def build(recipe: RecipeConfig, scale: float = 0.0, seed: int = 0, **bounds: float) -> LearnedDesigner:
    torch.manual_seed(seed)
    config = LearnedDesignerConfig(
        kind="learned", surfaces=["targets"], thumbnail=32, width=8, blocks=1, targets=bounds
    )
    designer = LearnedDesigner(config, recipe, 4)
    with torch.no_grad():
        for parameter in designer.heads.parameters():
            parameter.normal_(0, scale)
    return designer


def test_start_neutral_and_the_fixed_designer_says_nothing(
    recipe: RecipeConfig, images: PackedImages, keys: Keys
) -> None:
    targets = build(recipe)(images, keys).targets
    for name in FIELDS:
        value = getattr(targets, name)
        assert torch.equal(value, torch.ones_like(value)), name
    assert FixedDesigner(recipe, 4)(images, keys).targets == Targets()
    policy = build(recipe).policy(images)
    assert torch.equal(policy.kl()["targets"], torch.zeros(8))
    assert not policy.log_prob(policy.sample(keys), keys)


@given(st.integers(0, 2**31), st.floats(-2, 3))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_normalised_and_bounded_whatever_the_weights(
    recipe: RecipeConfig, images: PackedImages, seed: int, log_scale: float
) -> None:
    bounds = {"tokens": 0.8, "samples": 1.2, "temperature": 0.25, "mix": 0.5}
    policy = build(recipe, 10**log_scale, seed, **bounds).policy(images)
    task = policy.sample(Keys(seed, 0, torch.arange(8)))
    tokens, samples, temperature, mix = (getattr(task.targets, name) for name in FIELDS)
    hidden = task.masks.hidden
    assert tokens.shape == hidden.shape
    masked = hidden.any(-1)
    mean = (tokens * hidden).sum(-1)[masked] / hidden.sum(-1)[masked]
    torch.testing.assert_close(mean, torch.ones_like(mean))
    torch.testing.assert_close(samples.mean(), torch.ones(()))
    for value, bound in ((tokens, 1.6), (samples, 2.4), (temperature, 0.25), (mix, 0.5)):
        assert (value.log().abs() <= bound + 1e-5).all()
    kl, entropy = policy.kl()["targets"], policy.entropy()["targets"]
    assert kl.shape == (8,)
    assert (kl > -1e-6).all()
    assert entropy.equal(-kl)
    assert all(scalar.isfinite() for scalar in policy.describe().values())


@pytest.mark.parametrize("part", PARTS)
def test_each_part_alone(recipe: RecipeConfig, images: PackedImages, keys: Keys, part: str) -> None:
    off = {name: 0.0 for name in PARTS if name != part}
    designer = build(recipe, 0.5, **off)
    task = designer(images, keys)
    found = dict(zip(PARTS, (getattr(task.targets, name) for name in FIELDS), strict=True))
    assert [name for name, value in found.items() if value is not None] == [part]
    assert found[part].unique().numel() > 4
    assert task.has_gradient
    weights = torch.randn(found[part].shape, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(
        (found[part] * weights).sum(), list(designer.parameters()), allow_unused=True
    )
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    (head,) = designer.heads
    assert head == ("token_weights" if part == "tokens" else "target_numbers")
    assert (designer.policy(images).kl()["targets"] > 0).all()


def test_all_parts_off_is_refused(recipe: RecipeConfig) -> None:
    with pytest.raises(ValidationError, match=r"every bound is 0; take targets from designer\.surfaces"):
        build(recipe, **dict.fromkeys(PARTS, 0.0))


def test_everything_else_is_the_recipes(recipe: RecipeConfig, images: PackedImages, keys: Keys) -> None:
    ours, theirs = build(recipe, 1.0)(images, keys), FixedDesigner(recipe, 4)(images, keys)
    assert ours.global_views.boxes.equal(theirs.global_views.boxes)
    assert ours.local_views.boxes.equal(theirs.local_views.boxes)
    assert ours.masks.hidden.equal(theirs.masks.hidden)
    assert ours.masks.relaxed is None


def test_token_weights_follow_the_image(recipe: RecipeConfig, images: PackedImages, keys: Keys) -> None:
    """The ratio of two patches' weights is that of the field where they lie, in views mirrored or not."""
    policy = build(recipe, 1.0).policy(images)
    task = policy.sample(keys)
    assert policy.target_bend is not None
    field = policy.target_bend.field
    assert field is not None
    views = task.global_views
    for view, image, patch in ((0, 0, 0), (0, 3, 37), (1, 5, 63), (1, 2, 8)):
        found = []
        for place in (patch, 20):
            top, left, tall, wide = views.boxes[view, image].tolist()
            down, across = (place // 8 + 0.5) / 8, (place % 8 + 0.5) / 8
            across = 1 - across if views.flips[view, image] else across
            y, x = (top + down * tall) / 48, (left + across * wide) / 64
            grid = torch.tensor([[[[2 * x - 1, 2 * y - 1]]]])
            read = torch.nn.functional.grid_sample(
                field[image][None, None], grid, align_corners=False, padding_mode="border"
            )
            found.append(read.item())
        weights = task.targets.token_weights[view, image]
        assert (weights[patch] / weights[20]).log().item() == pytest.approx(found[0] - found[1], abs=1e-4)


def test_an_image_depends_on_others_by_its_weight_alone(
    recipe: RecipeConfig, images: PackedImages, keys: Keys
) -> None:
    designer = build(recipe, 0.7)
    whole = designer(images, keys).targets
    some = torch.tensor([6, 0, 3])
    part = designer(images[some], keys._replace(samples=keys.samples[some])).targets
    torch.testing.assert_close(part.token_weights, whole.token_weights[:, some], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(part.temperature, whole.temperature[some], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(part.mix, whole.mix[:, some], rtol=1e-4, atol=1e-5)
    ratio = part.sample_weights / whole.sample_weights[some]
    torch.testing.assert_close(ratio, ratio[:1].expand(3), rtol=1e-4, atol=1e-5)


def test_kl_is_the_sum_of_its_stand_ins() -> None:
    bend = TargetBend(
        torch.tensor([[[0.0, 1.0]], [[0.5, 0.5]]]),
        torch.tensor([0.3, -0.4]),
        torch.tensor([0.2, 0.0]),
        torch.tensor([[0.1, 0.0], [0.4, 0.0], [-0.3, 0.0]]),
    )
    samples = torch.tensor([0.3, -0.4]).exp()
    samples = samples / samples.mean()

    def poisson(rate: float) -> float:
        return sum(
            math.exp(-rate) * rate**k / math.factorial(k) * (k * math.log(rate) - rate + 1) for k in range(40)
        )

    def shares(logs: list[float]) -> float:
        total = sum(math.exp(value) for value in logs)
        return sum(math.exp(value) / total * math.log(len(logs) * math.exp(value) / total) for value in logs)

    first = (
        shares([0.0, 1.0]) + poisson(samples[0].item()) + poisson(math.exp(0.2)) + shares([0.1, 0.4, -0.3])
    )
    expected = torch.tensor([first, poisson(samples[1].item())])
    torch.testing.assert_close(TargetLaw().kl(bend), expected)


def test_a_view_that_hides_nothing_has_finite_weights() -> None:
    logits = torch.randn(1, 2, 4, requires_grad=True)
    hidden = torch.tensor([[[True, False, True, False], [False] * 4]])
    targets = TargetLaw().draw(TargetBend(None, None, None, None), logits, Masks.of(hidden, 2))
    assert targets.token_weights is not None
    (gradient,) = torch.autograd.grad(
        (targets.token_weights * hidden).sum() + targets.token_weights[0, 1].sum(), logits
    )
    assert gradient.isfinite().all()
    assert targets.token_weights[0, 1].equal(logits[0, 1].exp())
