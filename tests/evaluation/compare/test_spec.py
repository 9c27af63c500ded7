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
        ({"overrides": {"seed": 3}}, "overrides: seed and output are the comparison's own"),
        ({"arms": [{"name": "fixed"}, {"name": "learned", "overrides": {"output": "x"}}]}, "arm 'learned'"),
        ({"arms": [{"name": "fixed"}, {"name": "learned", "overrides": {"steps": 9}}]}, "those of 'fixed'"),
        (
            {"arms": [{"name": "fixed"}, {"name": "learned"}, {"name": "a b"}, {"name": "a+b"}]},
            "would have one folder",
        ),
        (
            {
                "arms": [
                    {"name": "fixed"},
                    {"name": "learned", "choose": {"evaluation.image_size": [32, 40]}},
                ],
                "selection": {
                    "validation": {"kind": "fashion_scenes", "split": "train", "count": 9},
                    "seeds": [9],
                },
            },
            "decides how it is judged",
        ),
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


@pytest.mark.parametrize(
    ("split", "message"),
    [("test", "settings are never picked on it"), ("train", "the probe would know the answers")],
)
@pytest.mark.parametrize("view", [{"size": 32}, {"size": 48}, {"seed": 7, "goal": "colour"}])
def test_settings_are_picked_on_images_that_are_neither_tested_nor_learned_from(
    write_spec, split, message, view
):
    scenes = {"kind": "fashion_scenes", "count": 30, **view}
    selection = {"validation": {**scenes, "split": split}, "seeds": [9]}
    with pytest.raises(UserError, match=message):
        load_spec(write_spec(selection=selection))
    selection["validation"]["split"] = "feedback"
    assert load_spec(write_spec(selection=selection)).selection.seeds == (9,)


def test_what_a_probe_of_pixels_is_judged_on_and_learns_from_counts(write_spec):
    scenes = {"kind": "fashion_scenes", "count": 30, "split": "feedback"}
    asked = {
        "probes": ["segmentation"],
        "primary": {**PRIMARY, "metric": "segmentation.miou"},
        "selection": {"validation": scenes, "seeds": [9]},
    }
    for part, message in {"test": "would stand in for", "train": "shows images of"}.items():
        changes = {f"evaluation.segmentation.{part}": scenes}
        with pytest.raises(UserError, match=message):
            load_spec(write_spec(**asked, overrides=changes))
    assert load_spec(write_spec(**asked))


def test_settings_are_never_picked_on_the_queries_of_a_ground_truth(write_spec):
    scenes = {"kind": "fashion_scenes", "count": 30, "split": "feedback", "seed": 4}
    asked = {
        "probes": ["retrieval"],
        "primary": {**PRIMARY, "metric": "retrieval.map"},
        "selection": {"validation": scenes, "seeds": [9]},
        "overrides": {"evaluation.retrieval.ground_truth": "gnd_roxford5k.pkl"},
    }
    with pytest.raises(UserError, match="ground_truth names the test queries"):
        load_spec(write_spec(**asked))
