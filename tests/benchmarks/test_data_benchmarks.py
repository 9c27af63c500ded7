"""The benchmarks of data run, and tell what they promise. No timing is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from photos import photo, save_photo
from PIL import Image
from step import ALLOWED, EveryStep, measure
from torchvision.transforms import v2

from vpt_vision.data import FolderConfig, build_source
from vpt_vision.designers import RecipeConfig
from vpt_vision.training.step_timer import PHASES


@pytest.fixture
def photos(tmp_path):
    for number in range(4):
        save_photo(tmp_path / "photos" / f"{number}.jpg", number)
    return tmp_path / "photos"


def run(script, *arguments):
    command = [sys.executable, str(Path(__file__).parents[2] / "benchmarks" / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class TestPhotos:
    def test_are_of_an_image_net_files_size(self, photos):
        files = sorted(photos.iterdir())
        assert all(80_000 < file.stat().st_size < 130_000 for file in files)
        assert [Image.open(file).size for file in files] == [(375, 500), (500, 375)] * 2

    def test_are_a_function_of_the_seed(self):
        assert np.array_equal(photo(3), photo(3)) and not np.array_equal(photo(3), photo(5))


class TestLoader:
    def test_the_last_line_has_all_figures(self, photos):
        options = ["--turns", 1, "--seconds", 0.05, "--batch-size", 2, "--memory-batches", 40]
        done = run("loader.py", photos, *options, "--memory-batch-size", 1, "--json")
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()
        found = json.loads(line)
        for kind in ("decode", "ours", "peer", "peer_pil"):
            for workers in ("1", "2"):
                figures = found[kind][workers]
                assert 0 < figures["min"] <= figures["images_per_second_and_core"] <= figures["max"]
        for workers in ("1", "2"):
            over = found["ours"][workers]["images_per_second_and_core"]
            under = found["peer"][workers]["images_per_second_and_core"]
            assert found["ours_over_peer"][workers]["median"] == pytest.approx(over / under, rel=0.01)
        assert found["shorter_side"] == RecipeConfig().shorter_side() and found["images"] == 4
        if sys.platform == "linux":
            memory = found["memory"]
            assert memory["low"] <= memory["slope_mib_per_1000_batches"] <= memory["high"]
            assert memory["first_mib"] > 50

    def test_a_source_that_is_not_there_is_one_sentence(self, tmp_path):
        done = run("loader.py", tmp_path / "none")
        assert done.returncode == 2 and "Traceback" not in done.stderr

    def test_the_peer_renders_the_views_of_the_recipe(self, photos):
        from loader import Peer, PillowPeer

        recipe = RecipeConfig()
        source = build_source(FolderConfig(kind="folder", path=photos), recipe.shorter_side())
        for kind in (Peer, PillowPeer):
            views = kind(source, recipe)[0]
            assert [tuple(view.shape) for view in views] == [(3, 224, 224)] * 2 + [(3, 96, 96)] * 8
            assert all(view.dtype == torch.float32 for view in views)
            assert -3 < min(view.min() for view in views) < 0 < max(view.max() for view in views) < 3
        first, second, *local = Peer(source, recipe).views
        for pipeline, blur, solarise in (
            (first, 1.0, 0.0),
            (second, 0.1, 0.2),
            *((p, 0.5, 0.0) for p in local),
        ):
            crop, flip, jitter, grey, blurred, solarised, *_ = pipeline.transforms
            assert isinstance(crop, v2.RandomResizedCrop) and crop.antialias
            assert (flip.p, jitter.p, grey.p, blurred.p, solarised.p) == (0.5, 0.8, 0.2, blur, solarise)
            assert solarised.threshold == 128 and blurred.transforms[0].sigma == [0.1, 2.0]


class TestStep:
    def test_tells_every_step_of_a_run(self, tiny_settings, tmp_path):
        config = tmp_path / "run.yaml"
        config.write_text(yaml.safe_dump(tiny_settings))
        done = run("step.py", config, "data.workers=1", "--steps", 6, "--warm-up", 2)
        assert done.returncode == 0, done.stderr
        *told, line = done.stdout.splitlines()
        found = json.loads(line)
        assert (found["steps"], found["batch_size"], found["workers"]) == (6, 8, 1)
        assert 0 <= found["data_wait"] < 1
        assert 0 <= found["data_wait_by_step"]["median"] <= found["data_wait_by_step"]["max"] < 1
        assert found["decode_images_per_second"] > 0 and found["model_images_per_second"] > 0
        assert told[0].startswith("cpu: 6 steps of 8 images, ")
        assert (found["sentence"] is None) == found["waits_under_1_percent"] == (found["data_wait"] < ALLOWED)
        assert not Path(tiny_settings["output"]).exists()  # the config's own folder is left alone

    def test_waiting_is_told_as_the_log_tells_it(self, tiny_settings, monkeypatch):
        from vpt_vision.data import FashionScenes

        read, sleep = FashionScenes.__getitem__, __import__("time").sleep
        monkeypatch.setattr(FashionScenes, "__getitem__", lambda self, i: sleep(0.02) or read(self, i))
        del tiny_settings["feedback"]
        found = measure({**tiny_settings, "designer": {"kind": "fixed"}}, [], 4, 1)
        assert found["data_wait"] > 0.2 and not found["waits_under_1_percent"]
        assert found["sentence"].startswith("the training process itself decodes ")
        assert f"it waits {found['data_wait']:.0%} of the time" in found["sentence"]

    def test_phases_are_kept_step_by_step(self):
        timer = EveryStep(torch.device("cpu"))
        for _ in range(3):
            for phase in PHASES:
                with timer(phase):
                    pass
        means = timer.read()
        assert [set(step) for step in timer.steps] == [set(PHASES)] * 3
        for phase in PHASES:
            mean = sum(step[phase] for step in timer.steps) / 3
            assert means[f"seconds/{phase}"] == pytest.approx(mean)

    def test_a_bad_config_is_one_sentence(self, tmp_path):
        done = run("step.py", tmp_path / "none.yaml")
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "does not exist" in done.stderr

    def test_the_config_of_the_gpu_script_is_one(self, folder):
        from vpt_vision.config import load_config

        config = load_config(folder / "vit_s16.yaml")
        assert config.recipe == RecipeConfig() and config.learner.backbone.name == "vit_small_patch16_224"
