"""Statistics of a comparison on synthetic data whose effect is known, with few seeds."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vpt_vision.evaluation import statistics
from vpt_vision.evaluation.statistics import (
    bootstrap_interval,
    paired_difference,
    sign_flip,
    t_interval,
)

# Deviations of what a seed, an image, and a seed on an image change: seeds decide, both do, neither does.
REGIMES = {
    "seeds": (1.0, 0.0, 0.1),
    "both": (0.1, 0.7, 0.5),
    "noise": (0.03, 0.2, 1.0),
    "images": (0.0, 0.5, 0.5),
}
EFFECT = 0.3


def draw(rng, seeds, images, regime, law="normal"):
    """Differences [seeds, images] whose true mean is `EFFECT`."""
    of_seed, of_image, rest = REGIMES[regime]
    by_seed = {
        "normal": rng.standard_normal,
        "heavy": lambda size: rng.standard_t(5, size) / (5 / 3) ** 0.5,
        "skewed": lambda size: rng.exponential(1, size) - 1,
    }[law](seeds)
    by_image = rng.exponential(1, images) - 1  # losses are skewed over images
    return (
        EFFECT
        + of_seed * by_seed[:, None]
        + of_image * by_image
        + rest * rng.standard_normal((seeds, images))
    )


def coverage(interval, repetitions, *arguments, images=100):
    rng = np.random.default_rng(7)
    covered = [interval(draw(rng, arguments[0], images, *arguments[1:])) for _ in range(repetitions)]
    return np.mean([low <= EFFECT <= high for _, low, high in covered])


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("seeds", [3, 5, 6, 10, 20])
def test_the_quoted_interval_covers_the_effect_in_93_to_97_percent(seeds, regime):
    assert 0.93 <= coverage(t_interval, 2500, seeds, regime) <= 0.97


@pytest.mark.parametrize("regime", REGIMES)
def test_heavy_tailed_seeds_leave_the_coverage_as_it_is(regime):
    assert 0.93 <= coverage(t_interval, 2500, 5, regime, "heavy") <= 0.97


def test_skewed_seeds_cost_coverage_as_the_docstring_says():
    assert coverage(t_interval, 2500, 5, "seeds", "skewed") == pytest.approx(0.88, abs=0.015)


def test_the_bootstrap_loses_less_by_skewed_seeds():
    quoted, second = (
        coverage(interval, 300, 5, "seeds", "skewed", images=20)
        for interval in (t_interval, bootstrap_interval)
    )
    assert second > quoted + 0.02


@pytest.mark.parametrize("regime", REGIMES)
def test_the_bootstrap_covers_nearly_as_often(regime):
    assert 0.89 <= coverage(bootstrap_interval, 200, 5, regime, images=30) <= 0.975


@pytest.mark.parametrize("regime", ["seeds", "both"])
def test_without_an_effect_a_difference_is_shown_in_at_most_5_percent(regime):
    rng = np.random.default_rng(3)
    shown = [paired_difference(draw(rng, 5, 30, regime) - EFFECT).shows for _ in range(200)]
    assert np.mean(shown) < 0.065  # 0.05 and one deviation of 200 draws at most; both must agree


def test_an_effect_is_found():
    rng = np.random.default_rng(4)
    found = [paired_difference(draw(rng, 5, 200, "both")).shows for _ in range(50)]
    assert np.mean(found) > 0.9


def brute_force_layout(differences):
    """Mean squares by loops over the cells (Scheffé 1959, section 4.1)."""
    seeds, images = differences.shape
    mean = np.mean([differences[s, i] for s in range(seeds) for i in range(images)])
    of_seed = [np.mean(differences[s]) for s in range(seeds)]
    of_image = [np.mean(differences[:, i]) for i in range(images)]
    by_seed = images * sum((m - mean) ** 2 for m in of_seed) / (seeds - 1)
    by_image = seeds * sum((m - mean) ** 2 for m in of_image) / (images - 1)
    rest = sum(
        (differences[s, i] - of_seed[s] - of_image[i] + mean) ** 2
        for s in range(seeds)
        for i in range(images)
    ) / ((seeds - 1) * (images - 1))
    return mean, by_seed, by_image, rest


@given(st.integers(2, 6), st.integers(2, 9), st.integers(0, 2**31))
def test_mean_squares_are_those_of_loops_for_any_resample(seeds, images, seed):
    rng = np.random.default_rng(seed)
    differences = rng.standard_normal((seeds, images)) + rng.standard_normal((seeds, 1))
    s, i = rng.integers(seeds, size=seeds), rng.integers(images, size=images)
    counts = np.bincount(s, minlength=seeds)[None], np.bincount(i, minlength=images)[None]
    layout = statistics._layout(differences, *(c.astype(float) for c in counts))
    expected = brute_force_layout(differences[s][:, i])
    assert [float(part[0]) for part in layout] == pytest.approx(expected, abs=1e-9)


def test_where_images_do_not_matter_it_is_the_t_interval_over_seeds():
    rng = np.random.default_rng(0)
    by_seed = rng.standard_normal(5)
    differences = by_seed[:, None] + 0.01 * (-1.0) ** np.arange(50) * (-1.0) ** np.arange(5)[:, None]
    reference = stats.ttest_1samp(by_seed, 0).confidence_interval()
    assert t_interval(differences) == pytest.approx((by_seed.mean(), *reference))


def test_where_seeds_do_not_matter_it_is_the_interval_over_images():
    by_image = np.random.default_rng(0).standard_normal(500)
    mean, low, high = t_interval(np.tile(by_image, (4, 1)))
    reference = stats.ttest_1samp(by_image, 0).confidence_interval()
    assert (mean, low, high) == pytest.approx((by_image.mean(), *reference), abs=2e-4)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=9))
def test_sign_flip_tries_every_pattern(values):
    values = np.array(values)
    means = np.array([np.mean(values * signs) for signs in itertools.product([1, -1], repeat=len(values))])
    extreme = np.mean(np.abs(means) >= abs(values.mean()) * (1 - 1e-12))
    assert sign_flip(values) == pytest.approx(extreme)


def test_sign_flip_rejects_no_more_often_than_it_says():
    """Of heavy-tailed symmetric differences; 8 seeds allow p = 12/256 and no finer below 0.05."""
    rng = np.random.default_rng(0)
    rejected = np.mean([sign_flip(rng.standard_cauchy(8)) <= 0.05 for _ in range(1000)])
    assert rejected == pytest.approx(12 / 256, abs=3 * (0.047 * 0.953 / 1000) ** 0.5)


def test_five_seeds_cannot_reach_5_percent():
    result = paired_difference(np.ones((5, 10)) + 1e-3 * np.random.default_rng(0).standard_normal((5, 10)))
    assert result.shows
    assert result.p == result.least_p == 2 / 32


def test_many_seeds_are_judged_by_drawn_signs():
    assert sign_flip(np.ones(25)) < 1e-4
    assert sign_flip((-1.0) ** np.arange(24)) == pytest.approx(1.0, abs=0.01)


def test_equal_arms_differ_by_nothing():
    result = paired_difference(np.zeros((5, 30)))
    assert result.interval == result.bootstrap == (0, 0, 0)
    assert not result.shows and result.p == 1


def test_seeds_that_tie_have_an_interval_all_the_same():
    """Each of two seeds loses another image: equal accuracies, and no certainty."""
    differences = np.zeros((2, 80))
    differences[0, 3] = differences[1, 50] = -1
    mean, low, high = t_interval(differences)
    assert mean == -1 / 80
    assert low < -0.02 and high > 0


@pytest.mark.parametrize("seeds", [2, 3])
def test_two_or_three_seeds_show_nothing(seeds):
    """So few can hardly be resampled without drawing one seed alone."""
    result = paired_difference(5 + np.arange(seeds)[:, None] + np.zeros((1, 20)))
    assert result.bootstrap[1:] == (-np.inf, np.inf)
    assert not result.shows


@pytest.mark.parametrize("shape", [(1, 20), (5, 1), (5,)])
def test_a_single_seed_is_refused(shape):
    with pytest.raises(ValueError, match="seeds >= 2"):
        paired_difference(np.zeros(shape))
