"""How far u is off where the head was fitted some steps ago, and how well heads of several decays do.

    python benchmarks/heads.py                     # the demo: fixed recipe, heads of four decays
    python benchmarks/heads.py --l2 0.01 0.1 --start 100

Trains the fixed recipe. At `--start` steps a head of each decay `feedback.l2` is fitted; every 8 steps from
there on the gradient of its loss on all meta examples in the last blocks is compared with that of a head
fitted then. Prints, by decay and age of the head in steps: loss of the fresh head on the examples it was
fitted to, on meta and on held-out ones, the old head's on meta, and the cosine of the two gradients.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from typing import Any

import torch

from vpt_vision import load_config
from vpt_vision.data import on_device
from vpt_vision.feedback import all_features, build_feedback, cosine, gradients_over, whole_loss
from vpt_vision.training.trainer import Trainer


def with_decay(task: Any, l2: float) -> Any:
    """Return `task` with a decay of its own and no head yet."""
    other = copy.copy(task)
    other.config, other.heads = task.config.model_copy(update={"l2": l2}), None
    return other


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml", help="a run config with one feedback task")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of it")
    parser.add_argument("--l2", type=float, nargs="+", default=[0.01, 0.1, 0.3, 1.0])
    parser.add_argument("--start", type=int, default=64, help="learner steps before the first fit")
    parser.add_argument("--ages", type=int, default=4, help="how often 8 steps are taken from there")
    args = parser.parse_args()
    config = load_config(args.config, [*args.set, "designer={kind: fixed}", f"output={tempfile.mkdtemp()}"])
    assert config.feedback is not None
    trainer = Trainer(config.model_copy(update={"feedback": None}))
    backbone = trainer.learner.student.backbone
    feedback = build_feedback(
        config.feedback,
        renderer=trainer.renderer,
        size=config.recipe.crops.global_size,
        patch_size=backbone.patch_size,
        seed=config.seed,
    )
    (entry,) = feedback.tasks.values()
    tail = backbone.tail_parameters(config.value.tail_blocks)
    batches, stale = on_device(iter(trainer.loader), trainer.device), []
    every = torch.arange(entry.task.count("meta"))
    for number in range(args.ages + 1):
        for _ in range(args.start if number == 0 else 8):
            trainer.train_step(next(batches))
        fresh = [with_decay(entry.task, l2) for l2 in args.l2]
        features = all_features(entry.task, backbone, "head")
        for task in fresh:
            task.fit(features)
        stale = stale or fresh
        found = gradients_over([*fresh, *stale], backbone, "meta", every, tail)
        for place, (l2, task) in enumerate(zip(args.l2, fresh, strict=True)):
            now, then = found[place], found[place + len(fresh)]
            print(
                f"step {trainer.steps_done}  l2 {l2:<5g} head {whole_loss(task, backbone, 'head'):.3f}  "
                f"meta {now.loss:.3f}  held-out {whole_loss(task, backbone, 'heldout'):.3f}  "
                f"head of {8 * number:2} steps ago: meta {then.loss:.3f}  "
                f"cosine of u {cosine(now.gradient, then.gradient):.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
