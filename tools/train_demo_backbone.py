"""Train the small backbone that ships in the package.

    python tools/train_demo_backbone.py vpt_vision/assets/backbone.safetensors

Supervised classification of plain photos: single garments, grey on black, from the photos of the train
split; the demo's feedback and test splits hold other photos. It stands for the pretrained backbone
that a user brings to a domain of their own: the demo continues from it, without labels, on coloured and
cluttered scenes. Weights are stored in fp16.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import track
from torch import nn

from vpt_kernels import PackedImages
from vpt_vision.data import FashionScenes, FashionScenesConfig
from vpt_vision.data.order import Order
from vpt_vision.designers import CropsConfig, FixedDesigner, MasksConfig, PhotometricsConfig, RecipeConfig
from vpt_vision.export import save_backbone
from vpt_vision.learner import Backbone, BackboneConfig
from vpt_vision.task import Keys, Renderer
from vpt_vision.training.schedules import ScheduleConfig, scheduled_values

BACKBONE = BackboneConfig(
    name="vit_tiny_patch16_224",
    options={"patch_size": 8, "embed_dim": 128, "depth": 4, "num_heads": 4, "img_size": 40},
)
SCENES = FashionScenesConfig(
    kind="fashion_scenes",
    split="train",
    count=1_000_000,
    garments=(1, 1),
    colour=0.0,
    texture=0.0,
    salient_area=(0.2, 0.45),
    size=48,
)
RECIPE = RecipeConfig(
    crops=CropsConfig(global_views=1, global_size=40, global_scale=(0.6, 1.0), local_views=0),
    photometrics=PhotometricsConfig(global_blur_p=(0.2,), global_solarize_p=(0.0,)),
    masks=MasksConfig(probability=0.0),
)
SCHEDULE = ScheduleConfig(learning_rate=1e-3, warmup=0.05, weight_decay=0.05, final_weight_decay=0.05)
BATCH = 128


def main() -> None:
    """Train, printing the loss, and export."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="the safetensors file to write")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    scenes = FashionScenes(SCENES)
    order = Order(options.seed, len(scenes))
    backbone = Backbone(BACKBONE)
    head = nn.Linear(backbone.dim, len(scenes.classes))
    designer, renderer = FixedDesigner(RECIPE, backbone.patch_size), Renderer()
    optimiser = torch.optim.AdamW([*backbone.parameters(), *head.parameters()])
    for step in track(range(options.steps)):
        scheduled = scheduled_values(SCHEDULE, step, options.steps)
        for group in optimiser.param_groups:
            group.update(lr=scheduled.learning_rate, weight_decay=scheduled.weight_decay)
        index = order.samples(step * BATCH, BATCH)
        samples = [scenes[int(number)] for number in index]
        images = PackedImages.pack([sample.image for sample in samples])
        labels = torch.tensor([sample.label for sample in samples])
        with torch.no_grad():
            task = designer(images, Keys(options.seed, step, torch.from_numpy(index)))
            views = renderer(images, task).global_views[0]
        logits = head(backbone(views).cls)
        loss = F.cross_entropy(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 99:
            accuracy = (logits.argmax(1) == labels).float().mean()
            print(f"step {step + 1}: loss {loss.item():.3f}, batch accuracy {accuracy.item():.2f}")
    save_backbone(backbone.half(), options.output, renderer)


if __name__ == "__main__":
    main()
