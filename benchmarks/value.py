"""What the designer and its value step cost over the fixed recipe: time by part of a step, and peak memory.

    python benchmarks/value.py --json                      # the demo, on what device there is
    python benchmarks/value.py --set batch_size=32 --json  # any key of the config, as `vpt train` takes it

Time: in one process a step of the fixed recipe, one of the designer and a value step are taken in turns, so
that a busy moment strikes all three; figures are means over whole periods of what not every value step does
(fitting heads, looking at held-out examples). In a run one follows every r-th learner step, so at r a step
costs the designer's step and 1/r of a value step. The breakdown is taken in steps of its own, waiting for
the device at each boundary; backward passes count as optimiser in a learner step, as value in a value step.
Memory: a fresh process for each arm, its peak resident set (on CUDA the device's peak of allocated memory).
The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from vpt_vision import load_config
from vpt_vision.data import Batch, on_device
from vpt_vision.errors import UserError
from vpt_vision.task import Keys
from vpt_vision.training.trainer import Trainer

FREQUENCIES = (1, 2, 4, 8, 16)
DERIVED = ("crops", "photometrics", "masks")
ESTIMATORS = {
    "as configured": [],
    **{
        name: [f"value.estimators.{surface}={name}" for surface in DERIVED]
        for name in ("exact", "finite_difference", "population", "score", "rollout")
    },
}
ESTIMATORS["rollout"].append("feedback.every=1")  # it judges by the heads, and so wants them fitted each time
FIXED = ["designer={kind: fixed}", "feedback=null"]
PARTS = ("data", "designer", "render", "teacher", "student", "feedback", "value", "optimiser")


class Stopwatch:
    """Adds up time by part; what runs inside another part counts for itself alone."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def _turn(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def around(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return `call`, counted for `part`."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._open.append(part)
            try:
                return call(*args, **kwargs)
            finally:
                self._turn()
                self._open.pop()

        return counted

    def watch(self, part: str, owner: Any, *names: str) -> None:
        """Count calls of `owner`'s methods `names` for `part`."""
        for name in names:
            object.__setattr__(owner, name, self.around(part, getattr(owner, name)))


def make(config: str, overrides: list[str]) -> Trainer:
    trainer = Trainer(load_config(config, [*overrides, f"output={tempfile.mkdtemp()}"]))
    if trainer.value_step is not None:
        trainer.steps_done = trainer.value_step.config.burn_in
        trainer.value_step.due = lambda step: False  # type: ignore[method-assign]
    return trainer


def seconds_of(trainer: Trainer, call: Callable[[], Any]) -> float:
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    began = time.perf_counter()
    call()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    return time.perf_counter() - began


def value_step(trainer: Trainer, batch: Batch) -> None:
    assert trainer.value_step is not None
    trainer.value_step(batch.images, Keys(trainer.config.seed, trainer.steps_done, batch.index), 0.05)


def period_of(trainer: Trainer) -> int:
    """Value steps until all that not every one does has been done equally often."""
    assert trainer.value_step is not None
    feedback = trainer.value_step.feedback_gradient.feedback
    return math.lcm(trainer.value_step.config.guard.every or 1, feedback.every * feedback.heldout_every)


def take_turns(fixed: Trainer, designed: Trainer, batches: Iterator[Batch], steps: int) -> dict[str, float]:
    """Mean seconds of a step of the fixed recipe, of one of the designer, and of a value step.

    Over at least `steps` turns, in whole periods. The value steps come one learner step after another, so a
    head is fitted from a nearer start than in a run.
    """
    period = period_of(designed)
    turns = math.ceil(steps / period) * period
    seconds = {"fixed": 0.0, "designed": 0.0, "value": 0.0}
    for number in range(-period, turns):  # in the first period heads are fitted from nothing, memory is got
        batch = next(batches)
        for name, trainer, call in (
            ("fixed", fixed, fixed.train_step),
            ("designed", designed, designed.train_step),
            ("value", designed, partial(value_step, designed)),
        ):
            taken = seconds_of(trainer, partial(call, batch))
            if number >= 0:
                seconds[name] += taken / turns
    return seconds


def breakdown(trainer: Trainer, batches: Any, steps: int) -> dict[str, dict[str, float]]:
    """Seconds of each part of a learner step and of a value step."""
    watch, learner, value = Stopwatch(trainer.device), trainer.learner, trainer.value_step
    assert value is not None
    for _ in range(2):  # heads are fitted from nothing once only
        value_step(trainer, next(batches))
    render = trainer.renderer
    counted = watch.around("render", lambda *args: type(render).__call__(render, *args))
    trainer.renderer = counted  # type: ignore[assignment]
    value.renderer = counted  # type: ignore[assignment]
    watch.watch("designer", trainer.designer, "forward", "features", "outputs")
    watch.watch("teacher", learner, "teacher_targets")
    watch.watch("student", learner, "student_outputs", "student_trunk", "student_tail", "losses")
    watch.watch("feedback", value.feedback_gradient, "update", "heldout")
    watch.watch("optimiser", trainer.optimiser, "step")
    watch.watch("optimiser", learner, "update_teacher")
    for _ in range(steps):
        batch = watch.around("data", next)(batches)
        watch.around("other", trainer.train_step)(batch)
    of_step = {part: watch.seconds[part] / steps for part in (*PARTS, "other") if part in watch.seconds}
    watch.seconds.clear()
    period = period_of(trainer)
    for _ in range(period):
        watch.around("value", value_step)(trainer, batch)
    return {
        "learner step": of_step,
        "value step": {part: watch.seconds[part] / period for part in PARTS if part in watch.seconds},
    }


def peak_memory(config: str, overrides: list[str], steps: int) -> float:
    """Peak MiB of a fresh process that takes a few steps."""
    command = [sys.executable, __file__, "--config", config, "--memory-of", str(steps)]
    for override in overrides:
        command += ["--set", override]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def memory_of(config: str, overrides: list[str], steps: int) -> float:
    trainer = make(config, overrides)
    batches = on_device(iter(trainer.loader), trainer.device)
    for _ in range(steps):
        batch = next(batches)
        trainer.train_step(batch)
        if trainer.value_step is not None:
            value_step(trainer, batch)
    if trainer.device.type == "cuda":
        return torch.cuda.max_memory_allocated(trainer.device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml", help="a run config with feedback")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of it")
    parser.add_argument("--estimators", nargs="*", default=list(ESTIMATORS), choices=list(ESTIMATORS))
    parser.add_argument(
        "--steps", type=int, default=8, help="turns that are timed, rounded up to whole periods"
    )
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(memory_of(args.config, args.set, args.memory_of))
        return 0
    try:
        measure(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure(args: argparse.Namespace) -> None:
    """Time and print all that `args` asks for."""
    for name in args.estimators:  # a config that cannot be is told before any is timed
        load_config(args.config, [*args.set, *ESTIMATORS[name]])
    fixed = make(args.config, [*args.set, *FIXED])
    batches = on_device(iter(fixed.loader), fixed.device)
    base_memory = peak_memory(args.config, [*args.set, *FIXED], 3)
    found: dict[str, Any] = {
        "machine": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if fixed.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "config": args.config,
        "set": args.set,
        "fixed": {"peak_mib": base_memory},
        "estimators": {},
    }
    print(f"fixed recipe: {base_memory:.0f} MiB")
    for name in args.estimators:
        overrides = [*args.set, *ESTIMATORS[name]]
        seconds = take_turns(fixed, make(args.config, overrides), batches, args.steps)
        memory = peak_memory(args.config, overrides, 3)
        over = {r: (seconds["designed"] + seconds["value"] / r) / seconds["fixed"] - 1 for r in FREQUENCIES}
        found["estimators"][name] = {
            "fixed_step_seconds": seconds["fixed"],
            "designer_step_seconds": seconds["designed"],
            "value_step_seconds": seconds["value"],
            "time_over_fixed": over,
            "peak_mib": memory,
            "memory_over_fixed": memory / base_memory - 1,
        }
        shares = "  ".join(f"r={r}: {share:+.1%}" for r, share in over.items())
        print(
            f"{name:18} {seconds['fixed']:.3f} s a step of the fixed recipe, {seconds['designed']:.3f} s of "
            f"the designer, {seconds['value']:.3f} s a value step  {shares}  "
            f"memory {memory / base_memory - 1:+.1%}"
        )
    found["breakdown"] = breakdown(make(args.config, args.set), batches, min(args.steps, 4))
    for name, parts in found["breakdown"].items():
        print(f"{name}: " + ", ".join(f"{part} {seconds:.4f} s" for part, seconds in parts.items()))
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
