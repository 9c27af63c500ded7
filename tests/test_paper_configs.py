"""The configs of the published runs: their numbers, and a step of each at a size that a test can bear."""

from pathlib import Path

import pytest
import timm

from vpt_vision.config import load_config, read_yaml
from vpt_vision.training.trainer import train

CONFIGS = Path(__file__).parent.parent / "configs"
# Table 11 of arXiv 2601.22108v2, rows "ADE20K": learning rate, batch, frequency, meta batch, blocks,
# augmentor's learning rate, keep, prices of sparsity and variation, weights of segmentation and depth.
PUBLISHED = {
    "vitb": (4.15e-6, 256, 4, 32, 2, 1.54e-4, 0.6, 0.131, 0.144, 1, 8),
    "vitl": (4.50e-5, 50, 4, 16, 4, 2.17e-4, 0.5, 0.196, 0.0399, 4, 1),
}


@pytest.mark.parametrize("size", PUBLISHED)
def test_holds_the_published_settings(size):
    config = load_config(CONFIGS / f"vpretraining_paper_{size}.yaml")
    tasks = config.feedback.tasks
    designer, value = config.designer, config.value
    weights = [tasks[name].weight for name in ("ade20k", "nyu")]
    total = sum(weights)  # u is the gradient of the weighted mean, so the prices are divided likewise
    found = (
        config.schedule.learning_rate,
        config.batch_size,
        value.every,
        value.batch,
        value.tail_blocks,
        designer.learning_rate,
        designer.keep,
        designer.sparsity_weight * total,
        designer.tv_weight * total,
        *weights,
    )
    assert found == pytest.approx(PUBLISHED[size], rel=1e-3)
    assert (
        config.steps == 20_000
        and config.precision == "bf16"
        and config.schedule.warmup * config.steps == 1000
    )
    assert config.learner.weights == {"dino": 1.0} and config.recipe.masks.probability == 0
    assert (config.recipe.crops.global_views, config.recipe.crops.local_views) == (2, 6)
    assert designer.generator == "unet" and value.normalise == "none" and not config.feedback.normalise
    assert value.estimators.plan(frozenset()).exact
    # Nothing that the paper does not have scales the designer's step or smooths what it climbs.
    assert (value.pace, value.guard.every, value.burn_in) == ("full", 0, 0)
    assert (value.preconditioner, value.direction) == ("identity", "feedback")
    assert (config.feedback.ema, config.feedback.every, config.feedback.labels) == (0, 1, "given")
    assert [tasks["ade20k"].head_size, tasks["ade20k"].meta_size] == [2000, 512]
    assert set(tasks["ade20k"].ignore) == {0, 255}  # "other" is none of ADE20K's 150 classes
    assert [tasks["nyu"].head_size, tasks["nyu"].meta_size] == [512, 128]
    assert timm.is_model(config.learner.backbone.name)


@pytest.mark.parametrize("size", PUBLISHED)
@pytest.mark.parametrize("generator", ["unet", "transformer"])
def test_a_step_of_it_runs(size, generator, tmp_path):
    settings = read_yaml(CONFIGS / f"vpretraining_paper_{size}.yaml")
    scenes = {"kind": "fashion_scenes", "split": "feedback", "count": 60, "size": 48}
    settings |= {"output": str(tmp_path / "run"), "steps": 2, "batch_size": 4, "device": "cpu"}
    settings["data"] = {"train": {**scenes, "split": "train"}, "workers": 0}
    settings["recipe"]["crops"] |= {"global_size": 32, "local_size": 16}
    depth = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "img_size": 32}
    settings["learner"]["backbone"] = {"name": "vit_tiny_patch16_224", "options": depth}
    settings["learner"]["head"] = {"prototypes": 32, "hidden": 32, "bottleneck": 16}
    settings["designer"] |= {"generator": generator, "width": 8, "blur_kernel": 7}
    for task in settings["feedback"]["tasks"].values():
        task |= {"source": scenes, "head_size": 20, "meta_size": 20, "heldout_size": 10, "batch": 8}
        task.pop("depth_range", None)
    settings["value"] |= {"batch": 4, "every": 1}
    settings["log"] = {"every": 1, "tensorboard": False}
    assert train(settings).step == 2
