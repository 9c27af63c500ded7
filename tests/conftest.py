"""A run small enough for tests: every part is there, nothing is large."""

import os

import hypothesis
import pytest
import torch

# Without a GPU Triton's kernels run under its interpreter, which is chosen when Triton is imported: whichever
# test comes first may do that.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The same examples at every run, however slow the machine: a red test is then a change, not a chance.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")

torch.set_num_threads(1)  # the suite may run in parallel, and tiny models gain nothing from threads


@pytest.fixture
def tiny_settings(tmp_path):
    """Settings of a run of a two-block ViT on 32-pixel scenes, with a learned designer and feedback."""
    return {
        "output": str(tmp_path / "run"),
        "seed": 0,
        "steps": 6,
        "batch_size": 8,
        "device": "cpu",
        "data": {
            "train": {"kind": "fashion_scenes", "size": 32, "split": "train", "count": 50},
            "workers": 0,
        },
        "recipe": {
            "crops": {
                "global_size": 24,
                "global_scale": [0.4, 1.0],
                "local_size": 16,
                "local_scale": [0.1, 0.4],
                "local_views": 2,
            },
            "masks": {"kind": "random"},
        },
        "learner": {
            "backbone": {
                "name": "vit_tiny_patch16_224",
                "options": {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "img_size": 24},
                "drop_path": 0.1,
            },
            "head": {"prototypes": 32, "hidden": 32, "bottleneck": 16},
        },
        "designer": {"kind": "learned", "thumbnail": 32, "width": 8, "blocks": 1, "learning_rate": 0.05},
        "feedback": {
            "source": {"kind": "fashion_scenes", "size": 32, "split": "feedback", "count": 200},
            "head_size": 100,
            "meta_size": 60,
            "heldout_size": 40,
            "batch": 20,
        },
        "value": {"every": 2, "burn_in": 1, "batch": 4, "pairs": 1, "tail_blocks": 1},
        "checkpoint": {"every": 3},
        "log": {"every": 2, "tensorboard": False},
        "evaluation": {
            "train": {"kind": "fashion_scenes", "size": 32, "split": "train", "count": 150, "seed": 1},
            "test": {"kind": "fashion_scenes", "size": 32, "split": "test", "count": 60},
            "image_size": 24,
            "cache": {"folder": str(tmp_path / "features")},
        },
    }


@pytest.fixture
def snapshot():
    """Copy all of a module that must stay as it is: weights, buffers, gradients and modes."""

    def take(module):
        state = {name: value.clone() for name, value in module.state_dict().items()}
        for name, parameter in module.named_parameters():
            state[f"{name}.grad"] = None if parameter.grad is None else parameter.grad.clone()
        for name, part in module.named_modules():
            state[f"{name}.training"] = part.training
        return state

    return take
