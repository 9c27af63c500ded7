import pytest
import yaml

from vpt_vision.config import load_config
from vpt_vision.errors import UserError
from vpt_vision.training.run_folder import claim, newest_state


def test_a_folder_is_claimed_once_and_again_by_the_same_run(tiny_settings):
    output = claim(load_config(tiny_settings))
    assert load_config(output / "config.yaml") == load_config(tiny_settings)
    assert claim(load_config(tiny_settings)) == output
    assert newest_state(output) is None


def test_a_run_may_move_and_log_otherwise(tiny_settings, tmp_path):
    claim(load_config(tiny_settings)).rename(tmp_path / "moved")
    moved = load_config(tiny_settings, [f"output={tmp_path / 'moved'}", "log.every=1", "data.workers=1"])
    claim(moved)
    assert load_config(tmp_path / "moved" / "config.yaml") == moved


def test_another_run_names_the_keys_that_differ(tiny_settings):
    claim(load_config(tiny_settings))
    with pytest.raises(UserError, match=r"differs at schedule\.warmup, steps:"):
        claim(load_config(tiny_settings, ["steps=9", "schedule.warmup=0.5"]))


def test_a_claim_that_a_kill_cut_short_is_taken_up(tiny_settings, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.part").write_text("outp")
    assert claim(load_config(tiny_settings)).joinpath("config.yaml").exists()


@pytest.mark.parametrize("content", ["", "- a", "a: ["])
def test_a_damaged_config_in_the_folder_is_told(tiny_settings, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"config\.yaml"):
        claim(load_config(tiny_settings))


def test_a_run_from_before_a_key_goes_on_with_its_default(tiny_settings):
    config = load_config(tiny_settings)
    stored = claim(config) / "config.yaml"
    settings = yaml.safe_load(stored.read_text())
    del settings["value"]["repeats"], settings["designer"]["photometrics"]
    stored.write_text(yaml.safe_dump(settings))
    assert claim(config) == stored.parent
    stored.write_text(yaml.safe_dump(settings))
    with pytest.raises(UserError, match=r"differs at value\.until:"):
        claim(load_config(tiny_settings, ["value.until=5"]))
