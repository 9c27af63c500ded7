"""What is said of made-up figures whose truth is known."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vpt_vision.errors import UserError
from vpt_vision.evaluation.compare.contrasts import headline, linearised, primary, secondary
from vpt_vision.evaluation.compare.output import markdown
from vpt_vision.evaluation.result import Mean, MeanRatio


def test_an_effect_is_told_with_its_side(study):
    better, worse = headline(study(-0.1)), headline(study(+0.1))
    assert better.startswith(
        "The learned is better: the learned against the fixed in logistic regression: cross-entropy"
    )
    assert worse.startswith("The learned is worse")
    assert "at equal learner updates differs by -0.099" in better
    assert "over 6 seeds and 400 test images; sign-flip p = 0.031" in better


def test_a_comparison_that_shows_nothing_says_so_in_its_first_line(study):
    text = markdown(study(0.0, by_seed=0.1))
    first = text.splitlines()[0]
    assert first.startswith("**This comparison shows nothing:")
    assert first.endswith("an interval that holds 0.**")


def test_too_few_seeds_show_nothing_however_clear_they_look(study):
    sentence = headline(study(-1.0, seeds=3))
    assert sentence.startswith("This comparison shows nothing")
    assert sentence.endswith("3 seeds are too few for the bootstrap to bound it.")


def test_what_a_test_cannot_reach_is_told(study):
    assert "sign-flip p = 0.062, where 5 seeds allow no less than 0.062" in headline(study(-0.1, seeds=5))


@pytest.mark.parametrize(("seconds", "told"), [((10.0, 10.3), False), ((10.0, 12.0), True)])
def test_arms_that_did_not_train_equally_long_are_told(study, seconds, told):
    sentence = headline(study(-0.1, seconds=seconds, match="seconds"))
    assert ("20% apart, so they are not matched" in sentence) == told


def test_the_primary_question_is_asked_once(study):
    made = study(-0.1)
    first = primary(made)
    assert (first.arm, first.against, first.metric) == ("learned", "fixed", "logistic.cross_entropy")
    rest = [(each.arm, each.against, each.metric) for each in secondary(made)]
    assert len(set(rest)) == len(rest)
    assert (first.arm, first.against, first.metric) not in rest
    assert ("learned", "start", "logistic.cross_entropy") in rest


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_figures_that_are_no_numbers_are_never_an_effect(study, broken):
    made = study(-0.1)
    figure = made.row("learned", "updates").measured[2].results["logistic"].figures["cross_entropy"]
    figure.values[7] = broken
    with pytest.raises(UserError, match=r"cross_entropy of 'learned' is not finite in 1 of 6 seeds"):
        headline(made)


@given(st.integers(2, 30), st.integers(1, 5), st.integers(0, 2**31))
def test_a_mean_of_ratios_is_linearised_as_the_jackknife_does(images, classes, seed):
    """Shares average to the figure; leaving one image out moves it as its share says, to first order."""
    generator = torch.Generator().manual_seed(seed)
    below = torch.randint(50, 100, (images, classes), generator=generator)
    above = (below * torch.rand(images, classes, generator=generator)).floor()
    figure = MeanRatio(above, below)
    whole = figure.of(np.ones((1, images)))[0]
    shares = linearised(figure)
    assert shares.mean() == pytest.approx(whole)
    step = 1e-6
    for image in range(images):
        counts = np.ones((1, images))
        counts[0, image] += step
        moved = (figure.of(counts)[0] - whole) / step
        assert shares[image] == pytest.approx(whole + images * moved, abs=1e-3)


def test_a_class_that_no_image_has_is_left_out():
    figure = MeanRatio(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [2.0, 0.0]]))
    assert linearised(figure).mean() == 0.5


def test_a_mean_is_its_own_share():
    values = torch.rand(5)
    assert np.array_equal(linearised(Mean(values)), values.double().numpy())
