import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vpt_vision.errors import UserError
from vpt_vision.evaluation.result import KINDS, Interval, Mean, MeanRatio, ProbeResult, bootstrap, paired


def result(correct, cross_entropy=None, index=None):
    correct = torch.as_tensor(correct)
    return ProbeResult.of_classes(
        "linear, CLS", correct, cross_entropy, torch.arange(len(correct)) if index is None else index
    )


@pytest.mark.parametrize("count", [1, 30, 500])
def test_interval_agrees_with_scipy(count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count)).exp()
    found = bootstrap(Mean(values))
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
        bootstrap(Mean((torch.rand(200, generator=generator) < 0.7).double()), resamples=1000)
        for _ in range(600)
    ]
    covered = sum(interval.low <= 0.7 <= interval.high for interval in intervals) / len(intervals)
    assert 0.92 < covered < 0.975


def test_interval_is_the_same_at_every_call_and_however_many_values_are_held_at_once(monkeypatch):
    values = Mean(torch.randn(100))
    whole = bootstrap(values)
    assert bootstrap(values) == whole
    monkeypatch.setattr("vpt_vision.evaluation.result._VALUES_AT_ONCE", 700)
    assert bootstrap(values) == pytest.approx(whole)


def test_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one image"):
        bootstrap(Mean(torch.zeros(0)))
    with pytest.raises(ValueError, match="the same images on both sides"):
        bootstrap(Mean(torch.zeros(2)), minus=Mean(torch.zeros(3)))


def random_ratio(generator, images, classes):
    below = torch.randint(0, 5, (images, classes), generator=generator).double()
    return MeanRatio((below * torch.rand(images, classes, generator=generator)).round(), below)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 10**6))
def test_a_mean_of_ratios_is_that_of_its_sums_over_images(images, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    figure = random_ratio(generator, images, classes)
    counts = torch.randint(0, 4, (3, images), generator=generator).double()
    for found, row in zip(figure.of(counts.numpy()), counts.tolist(), strict=True):
        ratios = []
        for c in range(classes):
            above = sum(n * figure.numerators[i, c].item() for i, n in enumerate(row))
            below = sum(n * figure.denominators[i, c].item() for i, n in enumerate(row))
            if below:
                ratios.append(above / below)
        assert found == pytest.approx(sum(ratios) / len(ratios) if ratios else 0.0)


def test_the_interval_of_a_mean_of_ratios_agrees_with_resampling_by_hand():
    figure = random_ratio(torch.Generator().manual_seed(3), 60, 3)
    found = bootstrap(figure)
    resampled = []
    for seed in range(3000):
        drawn = torch.randint(0, 60, (60,), generator=torch.Generator().manual_seed(seed))
        resampled.append((figure.numerators[drawn].sum(0) / figure.denominators[drawn].sum(0)).mean())
    low, high = torch.stack(resampled).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert found.low == pytest.approx(low, abs=0.06 * (high - low))
    assert found.high == pytest.approx(high, abs=0.06 * (high - low))
    assert paired(
        ProbeResult("a", {"x": figure}, torch.arange(60)), ProbeResult("b", {"x": figure}, torch.arange(60))
    ) == {"x": Interval(0, 0, 0)}


def test_paired_difference_is_second_minus_first_and_narrower_than_the_two_apart():
    generator = torch.Generator().manual_seed(0)
    difficulty = torch.randn(800, generator=generator, dtype=torch.float64).exp()
    first = result(difficulty < 1.0, difficulty)
    second = result(difficulty < 1.3, difficulty - 0.02 * torch.rand(800, generator=generator))
    difference = paired(first, second)
    change = second.interval("accuracy").mean - first.interval("accuracy").mean
    assert difference["accuracy"].mean == pytest.approx(change)
    assert difference["accuracy"].low > 0
    assert difference["cross_entropy"].mean == pytest.approx(-0.01, abs=0.002)
    assert not difference["cross_entropy"].holds_zero
    assert difference["cross_entropy"].high - difference["cross_entropy"].low < 0.002
    apart = first.interval("cross_entropy")
    assert apart.high - apart.low > 0.1


def test_paired_difference_of_equal_probes_is_0():
    one = result([True, False, True], torch.rand(3, dtype=torch.float64))
    assert paired(one, one)["accuracy"] == (0, 0, 0)
    assert paired(one, one)["cross_entropy"].holds_zero


def test_what_only_one_probe_has_is_not_compared():
    knn, linear = result([True, False]), result([True, False], torch.zeros(2, dtype=torch.float64))
    assert paired(knn, linear).keys() == paired(linear, knn).keys() == {"accuracy"}


def test_other_test_images_are_refused():
    with pytest.raises(UserError, match="2 and 3 test images cannot be paired"):
        paired(result([True, False]), result([True, False, True]))
    with pytest.raises(UserError, match="the same images in the same order"):
        paired(result([True, False]), result([True, False], index=torch.tensor([1, 0])))


def test_a_result_is_told_with_the_units_of_its_figures():
    told = str(result([True, True], torch.tensor([0.25, 0.25])))
    assert told == (
        "linear, CLS: accuracy 100.0% [100.0%, 100.0%], cross-entropy 0.250 [0.250, 0.250] nats over 2 test "
        "images"
    )
    assert KINDS["accuracy"].higher_is_better and not KINDS["cross_entropy"].higher_is_better
