"""The share of each training step that is spent waiting for data.

    python benchmarks/step.py CONFIG [KEY=VALUE ...] --steps 100 --json

CONFIG and the overrides are those of `vpt train`. The trainer itself runs, in a folder that is thrown away:
the first `--warm-up` steps are left out, as workers start and kernels are compiled, and of the others each
tells how long it took and how long of that it waited for its images. On a GPU a step's phases last from one
event in the stream to another, and nothing waits for the device but the log, every tenth of the steps: what
counts is the time in which the device stood idle for want of images. Where steps wait more than 1 % of the
time, the sentence that a run's log would say follows, with the rates of workers and model. The last line is
one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from vpt_vision.config import load_config
from vpt_vision.errors import UserError
from vpt_vision.training.data_wait import KEYS, DataWait
from vpt_vision.training.step_timer import StepTimer
from vpt_vision.training.trainer import Trainer

ALLOWED = 0.01  # share of a step that may be spent waiting


class EveryStep(StepTimer):
    """Remembers the phases of every step, besides the means that the log wants."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.steps: list[dict[str, float]] = []  # seconds of each phase

    def take(self) -> list[tuple[str, float]]:
        spans = super().take()
        for phase, seconds in spans:
            if phase == "data":  # the first of a step
                self.steps.append({})
            self.steps[-1][phase] = self.steps[-1].get(phase, 0.0) + seconds
        return spans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", help="a run's config")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes to it")
    parser.add_argument("--steps", type=int, default=100, help="steps that are measured")
    parser.add_argument("--warm-up", type=int, default=20, help="steps before them")
    parser.add_argument("--json", action="store_true", help="print the last line, and it alone")
    arguments = parser.parse_args()
    if arguments.steps < 1 or arguments.warm_up < 1:
        parser.error("--steps and --warm-up are 1 or more")
    try:
        found = measure(arguments.config, arguments.overrides, arguments.steps, arguments.warm_up)
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    if not arguments.json:
        print(
            f"{found['device']}: {found['steps']} steps of {found['batch_size']} images, "
            f"{1000 * found['seconds_per_step']:.1f} ms each, of which {found['data_wait']:.2%} waiting for "
            f"data (worst step {found['data_wait_by_step']['max']:.2%})."
        )
        if found["sentence"] is not None:
            print(f"{found['sentence']}.")
    print(json.dumps(found))


def measure(source: str | dict[str, Any], overrides: list[str], steps: int, warm_up: int) -> dict[str, Any]:
    total, every = warm_up + steps, max(steps // 10, 1)
    with TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        config = load_config(
            source,
            [
                *overrides,
                f"output={json.dumps(str(output))}",
                f"steps={total}",
                f"checkpoint.every={total}",
                f"log.every={every}",
                "log.tensorboard=false",
                "log.wandb_project=null",
            ],
        )
        trainer = Trainer(config)
        timer = trainer.timer = EveryStep(trainer.device)
        trainer.fit()
        records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    waited = np.array([step["data"] for step in timer.steps[warm_up:]])
    took = np.array([sum(step.values()) for step in timer.steps[warm_up:]])
    measured = [record for record in records if record["step"] > warm_up + every]
    figures = {key: float(np.median([r[key] for r in measured or records[-1:]])) for key in KEYS}
    figures["data_wait"] = float(waited.sum() / took.sum())
    wait = DataWait(config.batch_size, config.data.workers)
    return {
        "steps": len(took),
        "batch_size": config.batch_size,
        "workers": config.data.workers,
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else "cpu",
        "backbone": config.learner.backbone.name,
        "precision": config.precision,
        "seconds_per_step": float(took.mean()),
        **figures,
        "data_wait_by_step": {
            "median": float(np.median(waited / took)),
            "p90": float(np.quantile(waited / took, 0.9)),
            "max": float((waited / took).max()),
        },
        "waits_under_1_percent": bool(figures["data_wait"] < ALLOWED),
        "sentence": None if figures["data_wait"] < ALLOWED else wait.sentence(figures),
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
