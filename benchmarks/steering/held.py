"""Judge what a designer had found, apart from what its search did to the learner.

    python benchmarks/steering/held.py runs/pilots/channels_trials/runs/learned-designer/steps-240/seed-100

A new learner is trained as RUN's config says, under the designer of its newest checkpoint, which learns no
more; its teacher is judged by the logistic probe.
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path

import torch

from vpt_vision.config import load_config
from vpt_vision.errors import UserError
from vpt_vision.evaluation.probes import probe
from vpt_vision.inspection.branch import state_of
from vpt_vision.training.trainer import Trainer


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    options = parser.parse_args()
    try:
        accuracy, entropy = judge(options.run)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"accuracy {accuracy:.4f}, cross-entropy {entropy:.4f}")
    return 0


def judge(run: Path) -> tuple[float, float]:
    """Return accuracy and cross-entropy of a learner under the designer that `run` ended with."""
    state = state_of(run)
    config = load_config(state["config"])
    if config.evaluation is None:
        raise UserError(f"{run}: its config has no 'evaluation' part to judge by.")
    trainer = Trainer(config)
    trainer.designer.load_state_dict(state["designer"])
    trainer.value_step = None
    for batch in islice(trainer.loader, config.steps):
        trainer.train_step(batch)
    backbone = trainer.learner.teacher.backbone.eval()
    with torch.no_grad():
        (result,) = probe(backbone, config.evaluation, ("logistic",), renderer=config.renderer())["logistic"]
    return result.interval("accuracy").mean, result.interval("cross_entropy").mean


if __name__ == "__main__":
    sys.exit(main())
