"""Settings of a run of a learned designer that takes seconds."""


def small_run(output, **others):
    """Six steps on scenes of 32 pixels; `others` replace whole sections."""
    scenes = {"kind": "fashion_scenes", "size": 32, "count": 200}
    return {
        "output": str(output),
        "steps": 6,
        "batch_size": 8,
        "device": "cpu",
        "data": {"train": {**scenes, "split": "train"}, "workers": 0},
        "recipe": {
            "crops": {"global_size": 24, "local_size": 16, "local_views": 2},
            "masks": {"kind": "random"},
        },
        "learner": {
            "backbone": {
                "name": "vit_tiny_patch16_224",
                "options": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 24},
            },
            "head": {"prototypes": 32, "hidden": 32, "bottleneck": 16},
        },
        "designer": {"kind": "learned", "thumbnail": 32, "width": 8, "blocks": 1, "learning_rate": 0.05},
        "feedback": {
            "source": {**scenes, "split": "feedback"},
            "head_size": 100,
            "meta_size": 60,
            "heldout_size": 40,
            "batch": 20,
        },
        "value": {"every": 2, "batch": 4, "pairs": 1, "tail_blocks": 1},
        "checkpoint": {"every": 6, "designers": 3},
        "log": {"every": 2, "tensorboard": False},
        **others,
    }
