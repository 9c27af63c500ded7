"""Parameters and FLOPs as `vpt config` prints them, against counts by hand."""

import pytest
import torch
import yaml

from vpt_vision.cli import main
from vpt_vision.config import load_config
from vpt_vision.errors import UserError
from vpt_vision.footprint import footprint
from vpt_vision.learner import Learner


def config(*overrides, **learner):
    scenes = {"kind": "fashion_scenes", "split": "train", "count": 10}
    settings = {"output": "x", "steps": 1, "batch_size": 2, "data": {"train": scenes}, "learner": learner}
    return load_config(settings, overrides)


@pytest.fixture
def tiny():
    """A ViT of 2 blocks, width 32; 2 views of 9 patches, of which 3 are hidden, and 3 views of 4."""
    return config(
        "recipe.crops={global_size: 24, local_size: 16, local_views: 3}",
        "recipe.masks={kind: random, probability: 1.0, ratio: [0.333334, 0.333334]}",
        backbone={
            "name": "vit_tiny_patch16_224",
            "options": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 24},
            "drop_path": 0.2,
        },
        head={"prototypes": 40, "hidden": 24, "bottleneck": 16},
        koleo_weight=0.0,
    )


def vit_products(side, *, width=32, depth=2, patch=8):
    """FLOPs of a ViT's forward pass on one square view: patch embedding, the rest."""
    patches = (side // patch) ** 2
    tokens = patches + 1
    linear = tokens * (3 * width**2 + width**2 + 8 * width**2)  # qkv, output, MLP
    attention = 2 * tokens**2 * width  # scores and their mean of values
    return 2 * patches * 3 * patch**2 * width, 2 * depth * (linear + attention)


def head_products(rows):
    return 2 * rows * (32 * 24 + 24 * 24 + 24 * 16 + 16 * 40)


def test_parameters_are_those_of_the_modules(tiny):
    found = footprint(tiny)
    learner = Learner(tiny.learner)
    count = {
        name: sum(p.numel() for p in part.parameters()) for name, part in learner.student.named_children()
    }
    assert found.backbone == count["backbone"]
    assert found.heads == count["cls_head"] + count["patch_head"]
    assert found.designer == found.designing == found.share == 0


def test_flops_of_the_learner_are_those_counted_by_hand(tiny):
    """Backward costs twice forward, but that nothing asks for the gradient of pixels."""
    embed, blocks = (2 * x for x in vit_products(24))
    local_embed, local_blocks = (3 * x for x in vit_products(16))
    hidden = 2 * 3  # tokens of both global views
    found = footprint(tiny)
    assert found.teacher == embed + blocks + head_products(2 + hidden)
    forward = embed + blocks + local_embed + local_blocks + head_products(5 + hidden)
    assert found.student == 3 * forward - embed - local_embed


def test_what_is_made_twice_to_save_memory_counts_once(tiny):
    """And weights at random, pretrained or anywhere are never read."""
    unstored = load_config(
        tiny.model_dump(mode="json"),
        ["learner.head.store_scores=false", "learner.backbone.weights=nowhere.safetensors"],
    )
    assert footprint(unstored) == footprint(tiny)


def test_the_default_designer_is_small_beside_a_vit_s(tmp_path, capsys):
    """0.4 M parameters; under 2 % of a step of ViT-S/16 at 224 pixels with 2 + 8 views."""
    asked = config("designer={kind: learned, surfaces: [crops, photometrics, masks, mask_ratio, targets]}")
    assert (asked.learner.backbone.name, asked.recipe.view_sizes()) == ("vit_small_patch16_224", [224, 96])
    assert (asked.recipe.crops.global_views, asked.recipe.crops.local_views) == (2, 8)
    found = footprint(asked)
    assert 3e5 < found.designer < 5e5
    embed, blocks = vit_products(224, width=384, depth=12, patch=16)
    assert found.teacher > 2 * (embed + blocks)  # the hand's 9.2 GFLOPs a view
    stem = 32**2 * 27 * 48 + 16**2 * 9 * 48 * 96
    residual = 16**2 * 2 * 2 * 9 * 96**2
    network = 2 * (stem + residual + 96**2)
    assert network < found.designing < 1.02 * network  # the heads are small
    assert 0.001 < found.share == found.designing / (found.teacher + found.student) < 0.02

    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(asked.model_dump(mode="json")))
    assert main(["config", str(path)]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed) == asked.model_dump(mode="json")  # the figures are comments
    figures = [line for line in printed.splitlines() if line.startswith("# ")]
    assert figures[0].startswith("# parameters: backbone 21.7 M, heads 44.6 M, designer 0.39")
    assert figures[2].endswith(f"{100 * found.share:.2g} % of the learner's")


def test_a_designer_that_asks_the_learner_pays_for_the_answer(tiny):
    """AttMask's teacher pass is the learner's own, but for the last attention; HVP's candidates are extra."""
    cost = {
        kind: footprint(load_config(tiny.model_dump(), [f"designer={{kind: {kind}}}"])) for kind in RIVALS
    }
    tokens, width = 10, 32
    attention = 2 * 2 * tokens * (3 * width**2 + width**2) + 2 * 2 * 2 * tokens**2 * width
    assert cost["attention_masks"].designing == attention
    embed, blocks = vit_products(24)
    local_embed, local_blocks = vit_products(16)
    twice = 4 * (embed + blocks) + head_products(4)  # four candidates, by student and teacher
    student = 3 * (local_embed + local_blocks) + head_products(3)
    assert cost["hard_views"].designing == 2 * twice + student
    fixed = footprint(tiny)
    assert all(cost[kind].student == fixed.student for kind in RIVALS)


RIVALS = ("attention_masks", "hard_views")


def test_counting_leaves_random_numbers_alone_and_tells_what_cannot_be_built(tiny):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    footprint(load_config(tiny.model_dump(), ["designer={kind: learned, width: 8}"]))
    assert torch.rand(1) == expected
    for override in ("recipe.crops.local_size=12", "recipe.crops.global_size=20"):
        with pytest.raises(UserError, match="patch"):
            footprint(load_config(tiny.model_dump(), [override]))
