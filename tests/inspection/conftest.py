import pytest
from small_run import small_run

from vpt_vision import load_config, train
from vpt_vision.inspection.branch import Branch, branch_of


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run of `tiny_settings`' kind with feedback of two kinds."""
    source = {"kind": "fashion_scenes", "split": "feedback", "count": 200, "size": 32}
    sizes = {"source": source, "head_size": 100, "meta_size": 60, "heldout_size": 40, "batch": 20}
    settings = small_run(
        tmp_path_factory.mktemp("inspected") / "run",
        steps=30,
        data={"train": {**source, "split": "train", "count": 50}, "workers": 0},
        learner={
            "backbone": {
                "name": "vit_tiny_patch16_224",
                "options": {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 24},
                "drop_path": 0.1,
            },
            "head": {"prototypes": 32, "hidden": 32, "bottleneck": 16},
        },
        feedback={"tasks": {"classes": sizes, "layers": {"kind": "depth", **sizes}}},
        value={"every": 10, "batch": 4, "pairs": 1, "tail_blocks": 1, "pace": "full"},  # whatever u is worth
        checkpoint={"every": 30},
        log={"every": 10, "tensorboard": False},
    )
    return train(settings).output


@pytest.fixture
def branch(run) -> Branch:
    return branch_of(run)


@pytest.fixture
def config(run):
    return load_config(run / "config.yaml")
