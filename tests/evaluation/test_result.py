import pytest
import torch
from scipy import stats

from vpt_vision.errors import UserError
from vpt_vision.evaluation.result import ProbeResult, bootstrap, paired


def result(correct, cross_entropy=None, index=None):
    correct = torch.as_tensor(correct)
    return ProbeResult(
        "linear, CLS", correct, cross_entropy, torch.arange(len(correct)) if index is None else index
    )


@pytest.mark.parametrize("count", [1, 30, 500])
def test_interval_agrees_with_scipy(count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)).exp()
    found = bootstrap(values)
    assert found.mean == pytest.approx(values.double().mean().item())
    if count == 1:
        assert found.low == found.high == pytest.approx(found.mean)
        return
    expected = stats.bootstrap(
        [values.double().numpy()], lambda x, axis: x.mean(axis), method="percentile", n_resamples=20000, rng=1
    ).confidence_interval
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.05 * width)
    assert found.high == pytest.approx(expected.high, abs=0.05 * width)


def test_interval_covers_the_mean_in_about_95_of_100_samples():
    generator = torch.Generator().manual_seed(0)
    intervals = [
        bootstrap((torch.rand(200, generator=generator) < 0.7).double(), resamples=1000) for _ in range(600)
    ]
    covered = sum(interval.low <= 0.7 <= interval.high for interval in intervals) / len(intervals)
    assert 0.92 < covered < 0.975


def test_interval_is_the_same_at_every_call_and_however_many_values_are_held_at_once(monkeypatch):
    values = torch.randn(100)
    assert bootstrap(values) == bootstrap(values)
    whole = bootstrap(values)
    monkeypatch.setattr("vpt_vision.evaluation.result._VALUES_AT_ONCE", 700)
    assert bootstrap(values) == pytest.approx(whole)


@pytest.mark.parametrize("values", [torch.zeros(0), torch.zeros(2, 2)])
def test_interval_of_nothing_is_refused(values):
    with pytest.raises(ValueError, match="non-empty vector"):
        bootstrap(values)


def test_paired_difference_is_second_minus_first_and_narrower_than_the_two_apart():
    generator = torch.Generator().manual_seed(0)
    difficulty = torch.randn(800, generator=generator, dtype=torch.float64).exp()
    first = result(difficulty < 1.0, difficulty)
    second = result(difficulty < 1.3, difficulty - 0.02 * torch.rand(800, generator=generator))
    difference = paired(first, second)
    assert difference.accuracy.mean == pytest.approx(second.accuracy().mean - first.accuracy().mean)
    assert difference.accuracy.low > 0
    assert difference.cross_entropy.mean == pytest.approx(-0.01, abs=0.002)
    assert not difference.cross_entropy.holds_zero
    assert difference.cross_entropy.high - difference.cross_entropy.low < 0.002
    apart = first.mean_cross_entropy()
    assert apart.high - apart.low > 0.1


def test_paired_difference_of_equal_probes_is_0():
    one = result([True, False, True], torch.rand(3, dtype=torch.float64))
    assert paired(one, one).accuracy == (0, 0, 0)
    assert paired(one, one).cross_entropy.holds_zero


def test_probes_without_probabilities():
    knn, linear = result([True, False]), result([True, False], torch.zeros(2, dtype=torch.float64))
    assert paired(knn, linear).cross_entropy is None
    with pytest.raises(ValueError, match="no cross-entropy"):
        knn.mean_cross_entropy()


def test_other_test_images_are_refused():
    with pytest.raises(UserError, match="2 and 3 test images cannot be paired"):
        paired(result([True, False]), result([True, False, True]))
    with pytest.raises(UserError, match="the same images in the same order"):
        paired(result([True, False]), result([True, False], index=torch.tensor([1, 0])))
