from itertools import pairwise

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats

from vpt_vision.value.guard import Guard, GuardConfig


def looks(guard, meta, heldout):
    return [
        guard.look(torch.tensor(float(m)), torch.tensor(float(h))) for m, h in zip(meta, heldout, strict=True)
    ]


def gains(count, seed, *, meta, heldout, noise=0.02):
    """Gains about their means; both are measured on the same tasks, so part of the noise is shared."""
    generator = np.random.default_rng(seed)
    shared = noise * generator.standard_normal(count)
    own = noise * generator.standard_normal((2, count))
    return meta + shared + own[0], heldout + shared + own[1]


def spoke(seed, looks_=60, **means):
    return float(looks(Guard(GuardConfig()), *gains(looks_, seed, **means))[-1]["guard/interventions"]) > 0


def test_rests_where_heldout_examples_confirm_the_gain():
    """Runs of 60 looks: a gain half of which is confirmed, and a designer that gains nothing."""
    assert sum(spoke(seed, meta=0.06, heldout=0.03) for seed in range(40)) == 0
    assert sum(spoke(seed, meta=0.0, heldout=0.0) for seed in range(60)) <= 12


@pytest.mark.parametrize("means", [{"meta": 0.2, "heldout": 0.0}, {"meta": -0.03, "heldout": -0.03}])
def test_speaks_where_meta_gains_alone_and_where_the_recipe_was_better(means):
    assert sum(spoke(seed, **means) for seed in range(40)) >= 38


@pytest.mark.parametrize(
    ("heldout", "first", "last"),
    [(-0.03, 6, 6), (-0.005, 10, 40), (0.005, None, None), (0.1, None, None)],
)
def test_what_it_takes_for_it_to_speak_at_its_defaults(heldout, first, last):
    """A meta gain of 0.1, of which held-out examples should show 0.02, and looks that deviate by 0.03.

    3 standard errors are 1.24 deviations after 6 looks and 0.69 at last, of the 19 looks that weights of 0.9
    are worth: 0.037 and 0.021. The mean lags by 0.05, 0.025, 0.015 and not at all.
    """
    noise = 0.03 * np.tile([-1.0, 1.0], 100)
    found = looks(Guard(GuardConfig()), [0.1] * 200, heldout + noise)
    factors = [float(report["guard/factor"]) for report in found]
    assert float(found[-1]["guard/interventions"]) > 0 if first else factors == [1.0] * 200
    if first:
        spoke_at = next(number for number, factor in enumerate(factors, 1) if factor < 1)
        assert first <= spoke_at <= last and factors[spoke_at - 1] == 0.5


def test_its_lag_is_students_t_of_the_weighted_mean():
    config = GuardConfig(confirmed=0.3, looks=5)
    meta, heldout = gains(12, 3, meta=0.1, heldout=0.0)
    found = looks(Guard(config), meta, heldout)
    for count, report in enumerate(found, start=1):
        weights = 0.9 ** np.arange(count)[::-1]
        excess = (heldout - 0.3 * meta)[:count]
        mean = np.average(excess, weights=weights)
        np.testing.assert_allclose(report["guard/gain"], np.average(meta[:count], weights=weights), rtol=1e-4)
        if count < 5:
            assert report["guard/lag"] == 0
            continue
        # Reliability weights: the unbiased variance of one look, and the mean's share of it.
        shares = weights / weights.sum()
        variance = (shares * (excess - mean) ** 2).sum() / (1 - (shares**2).sum())
        np.testing.assert_allclose(
            report["guard/lag"], -mean / np.sqrt(variance * (shares**2).sum()), rtol=1e-3
        )
    # With equal weights it is the t statistic itself; 12 looks at 0.9 are not far from that.
    t = -stats.ttest_1samp(heldout - 0.3 * meta, 0).statistic
    assert float(found[-1]["guard/lag"]) == pytest.approx(t, rel=0.5)


def test_shrinks_the_step_says_so_now_and_then_and_recovers():
    guard = Guard(GuardConfig(shrink=0.5, recovery=1.5))

    def told(reports):
        lines = [{name: float(figure) for name, figure in report.items()} for report in reports]
        return [(line, sentence) for line in lines if (sentence := guard.news(line)) is not None]

    assert guard.news({}) is None
    sentences = told(looks(guard, *gains(30, 0, meta=0.3, heldout=0.0)))
    assert guard.factor < 0.01 and guard.interventions > 10
    factors = [line["guard/factor"] for line, _ in sentences]
    assert factors[0] == 0.5 and all(b <= a / 8 for a, b in pairwise(factors))
    line, sentence = sentences[0]
    assert "do not confirm" in sentence and f"{line['guard/gain']:+.3f} on meta" in sentence
    assert "50.0%" in sentence
    assert told(looks(guard, *gains(60, 1, meta=0.1, heldout=0.1))) == [] and guard.factor == 1
    assert len(told(looks(guard, *gains(20, 0, meta=0.5, heldout=0.0)))) >= 1  # anew


def test_a_designer_at_the_recipe_and_gains_that_are_not_finite():
    guard = Guard(GuardConfig(looks=3))
    assert all(report["guard/lag"] == 0 for report in looks(guard, [0.0] * 6, [0.0] * 6))
    reports = looks(guard, [float("nan"), float("inf"), 0.1], [0.1, float("-inf"), float("nan")])
    assert all(figure.isfinite() for report in reports for figure in report.values())


def test_resumes():
    first, second = Guard(GuardConfig()), Guard(GuardConfig())
    meta, heldout = gains(20, 2, meta=0.2, heldout=0.0)
    looks(first, meta[:12], heldout[:12])
    first.news({name: float(figure) for name, figure in looks(first, meta[12:13], heldout[12:13])[0].items()})
    second.load_state_dict(first.state_dict())
    assert looks(first, meta[13:], heldout[13:]) == looks(second, meta[13:], heldout[13:])
    assert first.state_dict().keys() == second.state_dict().keys() and first.told == second.told < 1


def test_settings_have_bounds():
    with pytest.raises(ValidationError):
        GuardConfig(shrink=1.0)
