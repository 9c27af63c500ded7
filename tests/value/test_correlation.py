import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vpt_vision.value.correlation import pearson, spearman


@given(st.integers(3, 40), st.integers(0, 99), st.booleans())
def test_agrees_with_scipy(count, seed, ties):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=count)
    y = x + generator.normal(size=count)
    if ties:
        x = np.round(x)
    if np.ptp(x) == 0:
        return
    assert pearson(x, y).value == pytest.approx(stats.pearsonr(x, y).statistic)
    assert spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic)


def test_intervals_cover_the_truth():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        x, noise = generator.normal(size=(2, 60))
        found = pearson(x, 0.6 * x + 0.8 * noise)  # their correlation is 0.6
        covered += found.low <= 0.6 <= found.high
        assert found.low <= found.value <= found.high
    assert 88 <= covered <= 99


def test_what_does_not_vary_has_no_correlation():
    assert np.isnan(pearson(np.ones(5), np.arange(5.0)).value)
    with pytest.raises(ValueError, match="at least 3"):
        pearson(np.arange(2.0), np.arange(2.0))
