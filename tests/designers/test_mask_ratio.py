"""The learned mask ratio: exact counts, a list of a length that the host knows, padding without effect."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from images import blank
from torch import Tensor

from vpt_kernels import PackedImages
from vpt_vision.designers import FixedDesigner, LearnedDesigner, LearnedDesignerConfig, RecipeConfig
from vpt_vision.designers.distributions import Kumaraswamy
from vpt_vision.designers.mask_ratio import RatioBend, RatioLaw
from vpt_vision.designers.streams import Stream
from vpt_vision.designers.streams import draw as uniforms
from vpt_vision.learner import BackboneConfig, HeadConfig, Learner, LearnerConfig
from vpt_vision.task import Keys, Masks, RenderedViews, Targets

CPU = torch.device("cpu")


def law_of(low: float = 0.1, high: float = 0.5, probability: float = 0.6) -> RatioLaw:
    recipe = RecipeConfig.model_validate(
        {"masks": {"ratio": [low, high], "probability": probability}, "crops": {"global_size": 224}}
    )
    return RatioLaw(recipe.masks, recipe.view_kinds()[0], patches=196)


def bend_of(log_a: float, log_b: float, count: int, bound: float = 0.7) -> RatioBend:
    return RatioBend(Kumaraswamy(torch.full((count,), log_a), torch.full((count,), log_b)), bound)


@pytest.mark.parametrize("kind", ["block", "random"])
def test_starts_at_the_recipe(images: PackedImages, kind: str) -> None:
    recipe = RecipeConfig.model_validate(
        {"masks": {"kind": kind}, "crops": {"global_size": 64, "local_size": 16, "local_views": 1}}
    )
    config = LearnedDesignerConfig(kind="learned", surfaces=["mask_ratio"], thumbnail=32, width=8, blocks=1)
    learned, fixed = LearnedDesigner(config, recipe, 8), FixedDesigner(recipe, 8)
    for step in range(40):
        keys = Keys(0, step, 7 * torch.arange(len(images)))
        ours, theirs = learned(images, keys).masks, fixed(images, keys).masks
        assert ours.hidden.equal(theirs.hidden)
        assert ours.padded
        assert not theirs.padded
        assert theirs.counted is None
        assert ours.counted is not None
        listed = ours.counted == 1
        assert ours.index[listed].equal(theirs.index)
        assert ours.weights[listed].equal(theirs.weights)
        assert ours.total >= theirs.total
        assert (ours.weights[~listed] == 0).all()
    policy = learned.policy(images)
    assert policy.kl()["mask_ratio"].equal(torch.zeros(8))
    assert policy.log_prob(policy.sample(keys), keys)["mask_ratio"].abs().max() < 1e-5


@given(
    st.floats(-0.7, 0.7), st.floats(-0.7, 0.7), st.floats(0, 0.6), st.floats(0, 0.4), st.integers(0, 2**31)
)
@settings(max_examples=30, deadline=None)
def test_counts_are_those_of_the_law_and_within_what_the_host_knows(
    log_a: float, log_b: float, low: float, width: float, seed: int
) -> None:
    law, keys = law_of(low, low + width), Keys(seed, 3, torch.arange(50))
    counts = law.draw(keys, bend_of(log_a, log_b, 50), CPU)
    assert counts.padded
    assert counts.each.sum() <= counts.total
    a, b = math.exp(log_a), math.exp(log_b)
    masked = uniforms(keys, Stream.MASKED, law.kind)[..., 0] < 0.6
    u = uniforms(keys, Stream.MASK_RATIO, law.kind)[..., 0].double()
    ratio = low + width * (1 - (1 - u) ** (1 / b)) ** (1 / a)
    expected = torch.where(masked, ratio * 196, 0.0)
    # Rounding may tell otherwise where a ratio is a whole number of patches.
    assert (counts.each >= (expected - 1e-3).floor()).all()
    assert (counts.each <= (expected + 1e-3).floor()).all()
    assert (counts.each[masked] >= math.floor(low * 196 - 1e-3)).all()
    assert (counts.each <= math.floor((low + width) * 196 + 1e-3)).all()


def test_the_extremes_of_the_bend_and_of_the_uniforms() -> None:
    """The largest bend reaches the host's bound and never passes it; the recipe's own range holds."""
    law, keys = law_of(probability=1.0), Keys(1, 2, torch.arange(40_000))
    most = law.draw(keys, bend_of(0.7, -0.7, 40_000), CPU)
    assert most.each.sum() == most.total
    assert most.each.max() <= 97  # floor(just under 98)
    mean = law.draw(keys, None, CPU).total
    assert most.total / mean == pytest.approx(1.38, abs=0.01)  # what padding costs at the defaults
    for log_a, log_b in ((-0.7, 0.7), (0.7, 0.7), (-0.7, -0.7)):
        assert (law.draw(keys, bend_of(log_a, log_b, 40_000), CPU).each <= most.each).all()


def test_density_has_the_mean_that_kl_is_and_a_score_of_mean_zero() -> None:
    law, keys = law_of(), Keys(4, 0, torch.arange(20_000))
    parameters = torch.tensor([0.5, -0.4]).expand(20_000, 2).clone().requires_grad_()
    bend = RatioBend(Kumaraswamy(*parameters.unbind(1)), 0.7)
    log_prob = law.log_prob(keys, bend)
    error = log_prob.std() / math.sqrt(len(log_prob))
    assert log_prob.mean().item() == pytest.approx(law.kl(bend)[0].item(), abs=5 * error.item())
    (score,) = torch.autograd.grad(log_prob.sum(), parameters)
    assert (score.mean(0).abs() < 5 * score.std(0) / math.sqrt(len(score))).all()
    assert law.entropy(bend).equal(-law.kl(bend))
    ratios = law.draw(keys, bend, CPU).each / 196
    masked = ratios > 0
    assert law.describe(bend)["ratio"].item() == pytest.approx(
        ratios[masked].mean().item() + 0.5 / 196, abs=0.005
    )


def test_stays_within_the_recipe_whatever_the_weights(images: PackedImages) -> None:
    recipe = RecipeConfig.model_validate({"crops": {"global_size": 64, "local_views": 0}})
    config = LearnedDesignerConfig(
        kind="learned", surfaces=["mask_ratio", "masks"], thumbnail=32, width=8, blocks=1
    )
    for seed in range(6):
        torch.manual_seed(seed)
        designer = LearnedDesigner(config, recipe, 8)
        for parameter in designer.parameters():
            torch.nn.init.normal_(parameter, 0, 10.0 ** (seed - 2))
        task = designer(images, Keys(seed, 0, torch.arange(8)))
        count = task.masks.hidden.sum(-1)
        assert ((count == 0) | ((count >= 6) & (count <= 31))).all()
        assert count.sum() <= task.masks.total == len(task.masks.weights)
        views = count[count > 0]
        assert task.masks.weights.sum().item() == pytest.approx(len(views), rel=1e-5)


def padded(masks: Masks, more: int) -> Masks:
    tail = torch.zeros(more)
    return replace(
        masks,
        index=torch.cat([masks.index, tail.long()]),
        weights=torch.cat([masks.weights, tail]),
        padded=True,
    )


@pytest.mark.parametrize("centring", ["sinkhorn", "ema"])
@pytest.mark.parametrize("store_scores", [False, True])
@pytest.mark.parametrize("aimed", [False, True])
def test_padding_changes_nothing_in_the_learner(centring: str, store_scores: bool, aimed: bool) -> None:
    options = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32}
    backbone = BackboneConfig(name="vit_tiny_patch16_224", options=options)
    head = HeadConfig(prototypes=24, hidden=32, bottleneck=16, store_scores=store_scores)
    generator = torch.Generator().manual_seed(1)
    views = RenderedViews(
        torch.randn(2, 4, 3, 32, 32, generator=generator, dtype=torch.float64),
        torch.randn(1, 4, 3, 16, 16, generator=generator, dtype=torch.float64),
    )
    hidden = torch.rand(2, 4, 16, generator=generator) < 0.35
    hidden[0, 0, 0] = True  # padding points to the first token
    masks = Masks.of(hidden, int(hidden.sum()))
    targets = Targets()
    if aimed:
        targets = Targets(
            *(torch.rand(shape, generator=generator) + 0.5 for shape in ((2, 4, 16), (4,), (4,), (3, 4)))
        )
    found: list[list[Tensor]] = []
    for each in (masks, padded(masks, 9)):
        torch.manual_seed(0)
        learner = Learner(LearnerConfig(backbone=backbone, head=head, centring=centring)).double()
        with torch.no_grad():
            for parameter in learner.student.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        losses = learner(views, each, 0.05, targets)
        losses.total.backward()
        gradients = [p.grad for p in learner.student.parameters() if p.grad is not None]
        centres = [c.value for c in (learner.cls_centre, learner.patch_centre) if c is not None]
        found.append(
            [losses.total, *losses.terms.values(), *losses.per_sample.values(), *gradients, *centres]
        )
    for exact, loose in zip(*found, strict=True):
        torch.testing.assert_close(loose, exact, rtol=1e-9, atol=1e-11)


def test_images_of_any_size_and_none_masked() -> None:
    recipe = RecipeConfig.model_validate(
        {"masks": {"probability": 0.0}, "crops": {"global_size": 64, "local_views": 0}}
    )
    config = LearnedDesignerConfig(kind="learned", surfaces=["mask_ratio"], thumbnail=32, width=8, blocks=1)
    masks = LearnedDesigner(config, recipe, 8)(blank(3, 20, 30), Keys(0, 0, torch.arange(3))).masks
    assert masks.total == 0
    assert not masks.hidden.any()
