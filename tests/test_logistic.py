import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from vpt_vision.errors import UserError
from vpt_vision.linear_fit import LinearMap
from vpt_vision.logistic import cross_entropy, fit_logistic


def problem(samples, width, classes, seed, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    centres = torch.randn(classes, width, generator=generator)
    features = centres[labels] + torch.randn(samples, width, generator=generator)
    scale = torch.exp(spread * torch.rand(width, generator=generator))
    return features * scale + 5 * torch.randn(width, generator=generator), labels


def objective(fit, features, labels, l2):
    """Write the documented objective again, in fp64 and with the standardisation undone."""
    features = features.double()
    deviation = features.std(0, correction=0)
    logits = features @ fit.weight.double().T + fit.bias.double()
    chosen = logits.gather(1, labels[:, None])[:, 0] - logits.logsumexp(1)
    return -chosen.mean() + l2 / 2 * (fit.weight.double() * deviation).square().sum()


@pytest.mark.parametrize("conditioned", [False, True])
@settings(max_examples=12, deadline=None)
@given(st.integers(30, 120), st.integers(1, 9), st.integers(2, 5), st.floats(1e-3, 1.0), st.integers(0, 99))
def test_agrees_with_scikit_learn(conditioned, samples, width, classes, l2, seed):
    features, labels = problem(samples, width, classes, seed)
    fit = fit_logistic(features, labels, classes, l2=l2, conditioned=conditioned)

    scaler = StandardScaler().fit(features.double().numpy())
    # Of two classes scikit-learn fits one vector w, ours two that settle at ± w/2: half the penalty on w.
    strength = (2 if classes == 2 else 1) / (l2 * samples)
    reference = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000)
    reference.fit(scaler.transform(features.double().numpy()), labels.numpy())
    expected = torch.from_numpy(reference.predict_proba(scaler.transform(features.double().numpy())))
    torch.testing.assert_close(fit(features).softmax(1).double(), expected, atol=2e-4, rtol=2e-3)


@pytest.mark.parametrize("conditioned", [False, True])
def test_gradient_of_the_objective_is_zero_at_the_fit(conditioned):
    features, labels = problem(200, 12, 6, seed=3)
    fit = fit_logistic(features, labels, 6, l2=1e-2, conditioned=conditioned)
    free = LinearMap(fit.weight.double().requires_grad_(), fit.bias.double().requires_grad_())
    gradients = torch.autograd.grad(objective(free, features, labels, 1e-2), free)
    deviation = features.double().std(0, correction=0)
    assert (gradients[0] / deviation).abs().max() < 1e-5
    assert gradients[1].abs().max() < 1e-5


def test_start_changes_time_not_result():
    features, labels = problem(150, 8, 4, seed=1)
    cold = fit_logistic(features, labels, 4, l2=1e-2)
    warm = fit_logistic(features, labels, 4, l2=1e-2, start=LinearMap(torch.randn(4, 8), torch.randn(4)))
    torch.testing.assert_close(warm(features).softmax(1), cold(features).softmax(1), atol=1e-4, rtol=1e-3)
    there = fit_logistic(features, labels, 4, l2=1e-2, start=cold, iterations=1, conditioned=True)
    torch.testing.assert_close(there(features), cold(features), atol=1e-4, rtol=1e-4)
    # Starting at the optimum, no iteration is needed: the fit comes back as it was.
    again = fit_logistic(features, labels, 4, l2=1e-2, start=cold, tolerance=1e-5, iterations=1)
    torch.testing.assert_close(again.weight, cold.weight, atol=1e-5, rtol=1e-4)


def test_constant_features_and_absent_gradients():
    features, labels = problem(60, 5, 3, seed=2)
    features[:, 2] = 7.5
    features.requires_grad_()
    with torch.no_grad():
        fit = fit_logistic(features, labels, 3, l2=1e-2)
    assert fit.weight[:, 2].abs().max() == 0
    assert fit.weight.isfinite().all() and not fit.weight.requires_grad and features.grad is None


@given(st.integers(0, 99))
def test_shares_are_as_many_rows_of_one_class(seed):
    """A row of which 3 parts are of one class and 2 of another counts as five rows with the same features."""
    features, _ = problem(30, 4, 3, seed)
    counts = torch.randint(0, 4, (30, 3), generator=torch.Generator().manual_seed(seed))
    rows = torch.arange(30).repeat_interleave(counts.sum(1))
    labels = torch.cat([torch.arange(3).repeat_interleave(count) for count in counts])
    logits = torch.randn(30, 3)
    one_by_one = cross_entropy(logits[rows], labels)
    torch.testing.assert_close(cross_entropy(logits, counts / 7), one_by_one)

    fit = fit_logistic(features, counts / 7, 3, l2=0.1)
    deviation = features.double().std(0, correction=0)  # of the rows as given
    weight, bias = (part.double().requires_grad_() for part in fit)
    loss = cross_entropy(features[rows].double() @ weight.T + bias, labels)
    loss = loss + 0.1 / 2 * (weight * deviation).square().sum()
    by_weight, by_bias = torch.autograd.grad(loss, (weight, bias))
    assert (by_weight / deviation).abs().max() < 1e-5 and by_bias.abs().max() < 1e-5


def test_rows_without_a_class_do_not_count():
    logits = torch.randn(4, 3)
    shares = torch.zeros(4, 3)
    assert cross_entropy(logits, shares) == 0
    shares[1, 2] = 0.5
    torch.testing.assert_close(cross_entropy(logits, shares), -logits[1].log_softmax(0)[2])


def test_bad_input_is_told():
    features, labels = problem(30, 4, 3, seed=0)
    with pytest.raises(UserError, match=r"label 3 .* outside 0\.\.2"):
        fit_logistic(features, labels + 1, 3, l2=1e-2)
    with pytest.raises(UserError, match="not finite"):
        fit_logistic(features * float("nan"), labels, 3, l2=1e-2)
    with pytest.raises(UserError, match="no examples"):
        fit_logistic(features[:0], labels[:0], 3, l2=1e-2)
    with pytest.raises(ValueError, match="l2"):
        fit_logistic(features, labels, 3, l2=0.0)
