"""The committed ablations: every arm turns one switch, and trains."""

from pathlib import Path

import pytest

from vpt_vision.evaluation.compare.spec import load_spec, run_config
from vpt_vision.training.trainer import Trainer

SPEC = Path(__file__).parents[2] / "configs" / "compare_ablations.yaml"
SMALL = {
    "steps": 4,
    "batch_size": 2,
    "recipe.crops.local_views": 1,
    "designer.surfaces": ["masks"],
    "data.train.count": 40,
    "learner.head": {"prototypes": 32, "hidden": 32, "bottleneck": 16},
    "feedback.head_size": 60,
    "feedback.meta_size": 30,
    "feedback.heldout_size": 20,
    "feedback.batch": 8,
    "feedback.l2": 1.0,
    "value.every": 1,
    "value.burn_in": 1,
    "value.batch": 2,
    "value.guard.every": 1,
    "feedback.every": 1,
}


@pytest.fixture(scope="module")
def spec():
    return load_spec(SPEC)


def leaves(settings, path=""):
    if not isinstance(settings, dict):
        return {path: settings}
    return {
        key: leaf for name, part in settings.items() for key, leaf in leaves(part, f"{path}.{name}").items()
    }


def test_every_switch_has_an_arm_that_turns_it_alone(spec):
    whole = leaves(run_config(spec, spec.arm("all of it")).model_dump())
    turned = {}
    for arm in spec.arms:
        if arm.name in ("fixed recipe", "all of it"):
            continue
        settings = leaves(run_config(spec, arm).model_dump())
        changed = {key for key in whole.keys() | settings.keys() if whole.get(key) != settings.get(key)}
        if arm.name == "no price of KL":  # held alone, it would be adapted from 0
            assert changed == {".value.leash.kl_target", ".designer.kl_weight"}
            continue
        assert len(changed) == 1, arm.name
        turned[arm.name] = changed.pop()
    assert set(turned.values()) == {
        ".value.burn_in",
        ".value.normalise",
        ".value.leash.kl_target",
        ".value.leash.kl_bound",
        ".value.leash.entropy_floor",
        ".designer.recipe_share",
        ".value.guard.every",
        ".value.pace",
        ".feedback.ema",
        ".feedback.labels",
    }


def test_every_arm_trains(spec, tmp_path):
    reports = {}
    for arm in spec.arms:
        fewer = {k: v for k, v in SMALL.items() if k not in arm.overrides}
        small = spec.model_copy(update={"overrides": spec.overrides | fewer})
        trainer = Trainer(run_config(small, arm, (), f"output={tmp_path / arm.name}"))
        trainer.steps_done = 1  # the burn-in is over
        assert trainer.train_step(next(iter(trainer.loader)))["loss"].isfinite()
        reports[arm.name] = {} if trainer.value_step is None else trainer.value_step.latest
    assert reports.pop("fixed recipe") == {}
    for name, report in reports.items():
        assert report["designer_skipped"] == 0, name
        assert all(figure.isfinite() for figure in report.values()), name
        assert ("leash/kl" in report) == (name != "no bound on KL")
        assert ("guard/factor" in report) == (name != "no held-out guard")
        assert (report["pace"] == 1) == (name == "full pace")
