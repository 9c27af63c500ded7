import pytest
import yaml

from vpt_vision.config import RunConfig, differing_keys, dump_config, load_config
from vpt_vision.errors import UserError

SMALL = {
    "output": "runs/x",
    "steps": 3,
    "batch_size": 4,
    "data": {"train": {"kind": "fashion_scenes", "split": "train", "count": 10}},
    "learner": {},
}


def errors_of(settings, overrides=()):
    with pytest.raises(UserError) as caught:
        load_config(settings, overrides)
    return str(caught.value)


def test_a_dumped_config_loads_as_itself(tmp_path):
    config = load_config(SMALL)
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("override", "where", "nearest"),
    [
        ("stepz=3", "stepz", "steps"),
        ("schedule.learning_rat=1", "schedule.learning_rat", "learning_rate"),
        ("data.train.cuont=3", "data.train.cuont", "count"),
        ("learner.backbone.nam=x", "learner.backbone.nam", "name"),
        ("designer={kind: learned, surface: [crops]}", "designer.surface", "surfaces"),
        ("recipe.crops.local_view=8", "recipe.crops.local_view", "local_views"),
    ],
)
def test_an_unknown_key_names_the_nearest(override, where, nearest):
    assert f"{where}: unknown key; the nearest known key is '{nearest}'" in errors_of(SMALL, [override])


def test_a_key_of_an_earlier_version_is_told_what_became_of_it():
    told = errors_of(SMALL, ["data.source_size=256"])
    assert "data.source_size: there is no such key any more: images keep their own sizes" in told


def test_jpegs_are_decoded_as_small_as_the_recipe_allows_unless_told_otherwise():
    assert load_config(SMALL).shorter_side() == 496  # 96 / sqrt(0.05 * 3 / 4), above 224 / sqrt(0.32 * 3 / 4)
    assert load_config(SMALL, ["recipe.crops.local_views=0"]).shorter_side() == 458
    assert load_config(SMALL, ["data.shorter_side=300"]).shorter_side() == 300


def test_all_problems_are_told_at_once():
    told = errors_of(SMALL, ["steps=0", "batch_size=many", "sed=1", "schedule.warmup=3"])
    assert "4 problems" in told
    for where in ("steps:", "batch_size:", "sed:", "schedule.warmup:"):
        assert where in told


def test_an_item_that_is_wrong_is_one_problem_and_an_empty_list_another():
    told = errors_of(SMALL, ["designer={kind: learned, surfaces: [crop]}"])
    assert "1 problem:" in told and "designer.surfaces.0: input should be 'crops'" in told
    told = errors_of(SMALL, ["designer={kind: learned, surfaces: []}"])
    assert "1 problem:" in told and "at least 1 item" in told


def test_sentences_of_ours_are_told_without_pydantics_words():
    feedback = "feedback={source: {kind: fashion_scenes, split: feedback, count: 9}}"
    told = errors_of(SMALL, [feedback, "value.batch=64"])
    assert told.splitlines()[1].startswith("  value.batch 64 is above batch_size 4: ")
    told = errors_of(SMALL, ["data.train.garments=[3, 1]"])
    assert told.splitlines()[1].startswith("  data.train: garments: the range 3 to 1 is empty")


def test_nothing_is_judged_by_heads_that_were_fitted_some_steps_ago():
    feedback = "feedback={every: 4, source: {kind: fashion_scenes, split: feedback, count: 9}}"
    asked = [feedback, "value.batch=4"]
    assert load_config(SMALL, [*asked, "value.guard.every=8"]).feedback.every == 4
    assert load_config(SMALL, [*asked, "value.guard.every=0"]).feedback.every == 4
    told = errors_of(SMALL, [*asked, "value.guard.every=6"])
    assert "value.guard.every 6 is no multiple of feedback.every 4" in told
    told = errors_of(SMALL, [*asked, "value.estimators.crops=rollout"])
    assert "it needs them fitted at every value step, feedback.every: 1" in told


def test_what_is_valued_cannot_be_weighed_up_by_the_designer():
    asked = ["value.terms={dino: 1}", "designer={kind: learned, surfaces: [targets]}"]
    assert "more of a valued term always pays" in errors_of(SMALL, asked)
    assert load_config(SMALL, [*asked, "designer.targets.mix=0"]).value.terms == {"dino": 1}
    assert load_config(SMALL, asked[1:]).value.terms is None


def test_a_missing_key_is_named():
    told = errors_of({key: value for key, value in SMALL.items() if key != "data"})
    assert "data: required, and not given" in told


def test_an_unknown_kind_is_told_with_the_known_ones():
    told = errors_of(SMALL, ["data.train.kind=fashion_scene"])
    assert "data.train" in told
    assert "fashion_scenes" in told


def test_overrides_reach_any_depth_and_leave_the_callers_mapping_alone():
    before = yaml.safe_dump(SMALL)
    config = load_config(
        SMALL, ["schedule.learning_rate=2e-4", "recipe.crops.global_scale=[0.5, 1]", "seed=7"]
    )
    assert config.schedule.learning_rate == 2e-4
    assert config.recipe.crops.global_scale == (0.5, 1.0)
    assert config.seed == 7
    assert yaml.safe_dump(SMALL) == before


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("steps", "should read dotted.key=value"),
        ("=3", "should read dotted.key=value"),
        ("steps.more=3", "steps is a value and has no keys below it"),
        ("steps=[1", "is not a YAML value"),
    ],
)
def test_a_malformed_override_is_told(override, sentence):
    assert sentence in errors_of(SMALL, [override])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("- a\n- b\n", "should hold a mapping"), ("a: [1", "is not valid YAML"), ("", "should hold a mapping")],
)
def test_a_malformed_file_is_told(tmp_path, content, sentence):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    assert sentence in errors_of(path)


def test_a_missing_file_is_told(tmp_path):
    assert "does not exist" in errors_of(tmp_path / "none.yaml")


def test_differing_keys_are_dotted():
    first = load_config(SMALL).model_dump(mode="json")
    second = load_config(SMALL, ["seed=1", "schedule.warmup=0.5"]).model_dump(mode="json")
    assert differing_keys(first, second) == ["schedule.warmup", "seed"]
    assert differing_keys(first, first) == []


def test_every_field_is_described():
    def undescribed(model, prefix=""):
        for name, field in model.model_fields.items():
            nested = field.annotation if isinstance(field.annotation, type) else None
            if nested is not None and hasattr(nested, "model_fields"):
                yield from undescribed(nested, f"{prefix}{name}.")
            elif not field.description and name not in ("data", "designer", "train", "kind"):
                yield prefix + name

    assert list(undescribed(RunConfig)) == []
