import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vpt_vision.errors import UserError
from vpt_vision.linear_fit import LinearMap
from vpt_vision.regression import fit_scale_invariant, fit_smooth_l1, scale_invariant_error, smooth_l1


def problem(images, patches, width, seed):
    """Features on many scales, targets that they explain in part, and patches of unequal weight."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(images, patches, width, generator=generator, dtype=torch.float64)
    features = features * torch.exp(2 * torch.rand(width, generator=generator)) + 3
    targets = features @ torch.randn(width, generator=generator, dtype=torch.float64) / 5
    targets += torch.randn(images, patches, generator=generator)
    weights = torch.rand(images, patches, generator=generator, dtype=torch.float64)
    weights[weights < 0.3] = 0
    weights[0] = 0  # an image of which nothing is known, where there is another
    weights[-1, 0] = 0.5
    return features, targets, weights


def slopes(loss, fit, features, l2):
    """Gradient at `fit` of loss(answers) + l2/2 |W|², W in units of standardised features."""
    deviation = features.flatten(0, 1).std(0, correction=0)
    weight, bias = (part.double().requires_grad_() for part in fit)
    value = loss((features @ weight.T + bias)[..., 0]) + l2 / 2 * (weight * deviation).square().sum()
    by_weight, by_bias = torch.autograd.grad(value, (weight, bias))
    return by_weight / deviation, by_bias


@given(st.integers(1, 6), st.integers(2, 9), st.integers(1, 5), st.floats(0, 0.9), st.integers(0, 99))
def test_the_scale_invariant_fit_is_at_the_optimum(images, patches, width, share, seed):
    features, targets, weights = problem(images, patches, width, seed)
    fit = fit_scale_invariant(features, targets, weights, share=share, l2=0.05)
    by_weight, by_bias = slopes(
        lambda answers: scale_invariant_error(answers, targets, weights, share=share), fit, features, 0.05
    )
    assert by_weight.abs().max() < 1e-4 and by_bias.abs().max() < 1e-4


@given(st.integers(1, 5), st.integers(1, 5), st.floats(0, 1), st.integers(0, 99))
def test_the_scale_invariant_error_is_the_published_one(images, patches, share, seed):
    """Eigen et al. 2014, equation 4, image by image and pixel by pixel."""
    generator = torch.Generator().manual_seed(seed)
    answers, targets = torch.randn(2, images, patches, generator=generator).double()
    known = torch.rand(images, patches, generator=generator) < 0.7
    total, counted = 0.0, 0
    for image in range(images):
        gaps = [float(answers[image, p] - targets[image, p]) for p in range(patches) if known[image, p]]
        if gaps:
            n = len(gaps)
            total += sum(gap**2 for gap in gaps) / n - share * sum(gaps) ** 2 / n**2
            counted += 1
    error = scale_invariant_error(answers, targets, known.double(), share=share)
    assert error.item() == pytest.approx(total / max(counted, 1), abs=1e-9)


def test_a_common_factor_of_depth_costs_nothing_at_share_1():
    answers = torch.randn(3, 5)
    error = scale_invariant_error(answers + 2.0, answers, torch.ones(3, 5), share=1.0)
    assert error.abs() < 1e-5


@given(st.integers(1, 5), st.integers(3, 9), st.integers(1, 4), st.integers(0, 99))
def test_the_smooth_l1_fit_is_at_the_optimum(images, patches, width, seed):
    features, targets, weights = problem(images, patches, width, seed)
    fit = fit_smooth_l1(features, targets, weights, beta=0.1, l2=0.05)
    by_weight, by_bias = slopes(
        lambda answers: smooth_l1(answers, targets, weights, beta=0.1), fit, features, 0.05
    )
    assert by_weight.abs().max() < 1e-3 and by_bias.abs().max() < 1e-3
    warm = fit_smooth_l1(
        features, targets, weights, beta=0.1, l2=0.05, start=LinearMap(torch.randn(1, width), torch.randn(1))
    )
    torch.testing.assert_close(warm(features.float()), fit(features.float()), atol=2e-3, rtol=1e-3)


def test_smooth_l1_by_hand():
    error = smooth_l1(torch.tensor([0.0, 0.05, 3.0]), torch.zeros(3), torch.tensor([1.0, 1.0, 2.0]), beta=0.1)
    assert error.item() == pytest.approx((0 + 0.05**2 / 0.2 + 2 * (3 - 0.05)) / 4)
    assert smooth_l1(torch.ones(2), torch.zeros(2), torch.zeros(2), beta=0.1) == 0


def test_bad_input_is_told():
    features, targets, weights = problem(3, 4, 2, 0)
    with pytest.raises(UserError, match="not finite"):
        fit_scale_invariant(features / 0, targets, weights, share=0.5, l2=0.1)
    for fit in (
        lambda: fit_scale_invariant(features, targets, weights, share=0.5, l2=0.0),
        lambda: fit_smooth_l1(features, targets, weights, beta=0.1, l2=0.0),
    ):
        with pytest.raises(ValueError, match="l2"):
            fit()
