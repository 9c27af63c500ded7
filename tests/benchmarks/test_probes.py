"""Our probes stand beside scikit-learn's, and agree where they solve one problem."""

import json

import probes
import pytest
import torch
from PIL import Image

from vpt_vision.data import FashionScenes, FashionScenesConfig


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Folders of a train and a test split, three classes."""
    root = tmp_path_factory.mktemp("scenes")
    for split, seed in (("train", 1), ("test", 2)):
        scenes = FashionScenes(
            FashionScenesConfig(kind="fashion_scenes", split="train", count=400, size=40, seed=seed)
        )
        kept = dict.fromkeys(range(3), 0)
        for sample in (scenes[index] for index in range(len(scenes))):
            if kept.get(sample.label, 12) < 12:
                kept[sample.label] += 1
                folder = root / split / str(sample.label)
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(sample.image.numpy()).save(folder / f"{sample.index}.png")
    return root


@pytest.fixture
def run(monkeypatch):
    def run(*arguments):
        threads = ["--threads", torch.get_num_threads()]
        monkeypatch.setattr("sys.argv", ["probes.py", *map(str, [*arguments, *threads])])
        probes.main()

    return run


def test_every_probe_stands_beside_scikit_learns(run, images, tmp_path, capsys):
    data = ["--train", images / "train", "--test", images / "test"]
    view = ["--weights", "none", "--image-size", 160, "--cache", tmp_path / "features"]
    run("test_vit", *data, *view, "--markdown", tmp_path / "table.md", "--json")
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert (found["train_images"], found["test_images"]) == (36, 36)
    rows = {(row["probe"].partition(",")[0], row["figure"], row["probe"]): row for row in found["rows"]}
    assert {kind for kind, _, _ in rows} == {
        "kNN",
        "linear",
        "logistic regression",
        "few-shot",
        "class retrieval",
    }
    for (kind, _, _), row in rows.items():
        assert row["low"] <= row["ours"] <= row["high"]
        assert row["difference"] == pytest.approx(row["ours"] - row["scikit_learn"])
        if kind != "linear":  # which is of another kind
            assert row["difference"] == pytest.approx(0, abs=0.002) and row["alike"] > 0.9
    assert found["seconds_beyond_extraction"] == pytest.approx(
        sum(row["ours"] for row in found["seconds"]), abs=0.1
    )
    written = (tmp_path / "table.md").read_text()
    assert all(f"| {probe} |" in written for _, _, probe in rows)


def test_a_source_that_is_not_there_is_one_sentence(run, images, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run("test_vit", "--weights", "none", "--train", tmp_path / "no", "--test", images / "test")
    assert "correct the path" in capsys.readouterr().err
