import pytest

from vpt_vision import UserError
from vpt_vision.evaluation.compare import load_spec
from vpt_vision.evaluation.compare.spec import run_config

PRIMARY = {"arm": "learned", "metric": "logistic.cross_entropy", "match": "updates"}


def test_arms_are_the_config_with_their_changes(write_spec):
    spec = load_spec(write_spec(overrides={"steps": 7}))
    fixed, learned = (run_config(spec, arm) for arm in spec.arms)
    assert (fixed.designer.kind, learned.designer.kind) == ("fixed", "learned")
    assert fixed.feedback is None and fixed.steps == learned.steps == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1]}, "seeds"),
        ({"seeds": [1, 1]}, "each may stand there once"),
        ({"reference": "nobody"}, "'nobody' is none of the arms: fixed, learned"),
        ({"primary": {**PRIMARY, "arm": "nobody"}}, "primary.arm: 'nobody'"),
        ({"primary": {**PRIMARY, "against": "learned"}}, "is no other arm"),
        ({"primary": {**PRIMARY, "match": "seconds"}}, "seconds is not among match"),
        ({"primary": {**PRIMARY, "metric": "accuracy"}}, "should be a probe of knn, logistic"),
        ({"arms": [{"name": "fixed"}, {"name": "start"}]}, "are taken"),
        ({"arms": [{"name": "fixed"}, {"name": "learned", "choose": {"steps": [1, 2]}}]}, "selection"),
        ({"unknown": 1}, "unknown key"),
        ({"overrides": {"stepps": 1}}, "the nearest known key is 'steps'"),
        ({"overrides": {"evaluation": None}}, "no 'evaluation' part"),
    ],
)
def test_a_spec_that_cannot_be_answered_is_refused(write_spec, changes, message):
    with pytest.raises(UserError, match=message):
        load_spec(write_spec(**changes))


def test_arms_judged_on_other_images_are_refused(write_spec):
    arms = [{"name": "fixed"}, {"name": "learned", "overrides": {"evaluation.test.seed": 9}}]
    with pytest.raises(UserError, match="test images cannot be paired"):
        load_spec(write_spec(arms=arms))


def test_settings_are_never_picked_on_the_test_images(write_spec):
    selection = {
        "validation": {"kind": "fashion_scenes", "split": "test", "count": 30, "size": 32},
        "seeds": [9],
    }
    with pytest.raises(UserError, match="settings are never picked on it"):
        load_spec(write_spec(selection=selection))
