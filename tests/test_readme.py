"""The README's examples work as they stand there."""

import re
from pathlib import Path

from vpt_vision import load_config
from vpt_vision.designers import build_designer

README = Path(__file__).parents[1] / "README.md"


def test_the_python_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["0", "1", "2"]
    assert all({"dino", "ibot", "koleo"} <= set(re.findall(r"\w+", line)) for line in printed)


def test_the_config_for_images_of_ones_own_is_valid(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    path = tmp_path / "my.yaml"
    path.write_text(example)
    config = load_config(path, ["schedule.learning_rate=1e-4"])
    assert config.evaluation is not None
    build_designer(config.designer, config.recipe, patch_size=16)
