"""The README's examples work as they stand there."""

import re
from pathlib import Path

import pytest
import yaml
from PIL import Image

from vpt_vision import load_config, train
from vpt_vision.designers import build_designer

README = Path(__file__).parents[1] / "README.md"


def example(language, beginning):
    """The one example in `language` that begins so."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    (found,) = (block for block in blocks if block.startswith(beginning))
    return found


def test_the_python_example_runs(capsys):
    exec(compile(example("python", "import torch\nfrom vpt_vision.data"), "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["0", "1", "2"]
    assert all({"dino", "ibot", "koleo"} <= set(re.findall(r"\w+", line)) for line in printed)


def test_the_config_for_images_of_ones_own_is_valid(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(example("yaml", "# my.yaml"))
    config = load_config(path, ["schedule.learning_rate=1e-4"])
    assert config.evaluation is not None
    build_designer(config.designer, config.recipe, patch_size=16)


def test_the_config_of_several_tasks_is_valid(tiny_settings):
    part = yaml.safe_load(example("yaml", "# part of a run's config\n"))
    assert list(load_config({**tiny_settings, **part}).feedback.tasks) == ["breed", "parts", "rooms"]


def test_a_run_takes_the_retrieval_task(tiny_settings, tmp_path, monkeypatch):
    for label in range(4):
        (tmp_path / "objects" / str(label)).mkdir(parents=True)
        for number in range(10):
            photo = Image.new("RGB", (40, 40), (60 * label, 100, 20 * number))
            photo.save(tmp_path / "objects" / str(label) / f"{number}.png")
    (tmp_path / "retrieval.py").write_text(example("python", "# retrieval.py"))
    monkeypatch.syspath_prepend(tmp_path)
    part = yaml.safe_load(example("yaml", "# part of a run's config, with retrieval.py"))
    part["feedback"]["tasks"]["find"]["options"]["path"] = str(tmp_path / "objects")
    part["feedback"]["tasks"]["find"]["batch"] = 16
    result = train({**tiny_settings, **part}, ["steps=4"])
    resumed = train({**tiny_settings, **part}, ["steps=4"])  # finds it finished, and takes up its state
    assert result.step == resumed.step == 4
    last = yaml.safe_load((result.output / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["meta_loss/find"] > 0 and last["u_norm"] > 0
    assert last["heldout_loss/find"] == pytest.approx(last["heldout_loss"])
