"""The loop: data, designer, learner, value step, checkpoint, log."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpt_vision.config import RunConfig, load_config
from vpt_vision.data import Batch, Loader, build_source, on_device
from vpt_vision.designers import build_designer
from vpt_vision.errors import UserError
from vpt_vision.evaluation.features import Reading
from vpt_vision.evaluation.online import OnlineProbe
from vpt_vision.export import save_backbone
from vpt_vision.feedback import build_feedback
from vpt_vision.learner import Learner
from vpt_vision.task import Keys
from vpt_vision.training.adversary import AdversarialStep
from vpt_vision.training.checkpoint import Checkpoints
from vpt_vision.training.clock import TrainingClock
from vpt_vision.training.collapse import CollapseWatch
from vpt_vision.training.data_wait import DataWait
from vpt_vision.training.designer_history import keep_designer, kept_after
from vpt_vision.training.environment import note_environment
from vpt_vision.training.interrupts import Interrupts
from vpt_vision.training.log import Log
from vpt_vision.training.memory import host_memory_mb
from vpt_vision.training.meter import Meter
from vpt_vision.training.optimiser import LearnerOptimiser
from vpt_vision.training.run_folder import BACKBONE_FILE, CHECKPOINT_FOLDER, claim, newest_state
from vpt_vision.training.schedules import scheduled_values
from vpt_vision.training.skipped_images import SkippedImages
from vpt_vision.training.step_timer import StepTimer
from vpt_vision.value import ValueStep

PATIENCE = 100  # steps in a row that may be skipped for a loss that is not finite


@dataclass(frozen=True)
class TrainingResult:
    """Where a run stands when `Trainer.fit` returns."""

    output: Path
    step: int  # learner updates done
    interrupted: int | None  # number of the signal that ended it early; None where it ran to its last step


class Trainer:
    """Starts, or goes on with, the run that `config` describes.

    Raises `UserError` where the config asks for what cannot be built.
    """

    def __init__(self, config: RunConfig) -> None:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                "WORLD_SIZE is above 1: a run is one process for now, so start it without torchrun."
            )
        self.config = config
        self.device = resolve_device(config.device)
        self.steps_done = 0
        self.skipped_in_a_row = 0
        self.renderer = config.renderer()
        self.loader = Loader(
            build_source(config.data.train, config.shorter_side()),
            batch_size=config.batch_size,
            seed=config.seed,
            workers=config.data.workers,
            max_unreadable=config.data.max_unreadable,
            pin_memory=self.device.type == "cuda",
        )
        torch.manual_seed(config.seed)
        self.learner = Learner(config.learner).to(self.device)
        backbone = self.learner.student.backbone
        for size in config.recipe.view_sizes():
            backbone.grid(size)  # refuses now what would fail at the first batch
        torch.manual_seed(config.seed)  # the designer's weights are the same whatever the learner drew
        self.designer = build_designer(config.designer, config.recipe, patch_size=backbone.patch_size).to(
            self.device
        )
        self.optimiser = LearnerOptimiser(self.learner, config.optimiser)
        self.meter = Meter(config.batch_size, config.steps)
        self.clock = TrainingClock(self.device)
        self.timer = StepTimer(self.device)
        self.collapse = CollapseWatch(config.steps)
        self.adversary: AdversarialStep | None = None
        if self.designer.learns_from == "loss":
            self.adversary = AdversarialStep(
                learner=self.learner, designer=self.designer, renderer=self.renderer
            )
        self.value_step = self._value_step()
        self.online = self._online_probe()
        self.online_figures: dict[str, float] = {}  # since the last line of the log

    def train_step(self, batch: Batch) -> dict[str, Tensor]:
        """One step: the designer sets the task, the learner learns it, and the designer learns from that."""
        config, step = self.config, self.steps_done
        scheduled = scheduled_values(config.schedule, step, config.steps)
        keys = Keys(config.seed, step, batch.index)
        images = batch.images
        torch.manual_seed((config.seed << 32) + step)  # stochastic depth draws from the global generator

        with self.timer("task"), torch.no_grad(), self._autocast():
            task = self.designer(images, keys)
            task, views, *_ = self.designer.refine(
                task, self.renderer(images, task), keys, self.learner, scheduled.teacher_temperature
            )
        with self.timer("forward"), self._autocast():
            losses = self.learner(views, task.masks, scheduled.teacher_temperature, task.targets)
        with self.timer("update"):
            report = self.optimiser.step(losses.total, scheduled)
            self.learner.update_teacher(scheduled.momentum)
        if self.adversary is not None:
            with self.timer("value"), self._autocast():
                report |= self.adversary(images, keys, scheduled.teacher_temperature)
        if self.value_step is not None and self.value_step.due(step):
            others = on_device(self.loader.upcoming(config.value.batch), self.device)
            with self.timer("value"), closing(others):
                self.value_step(
                    images, keys, scheduled.teacher_temperature, ((b.images, b.index) for b in others)
                )

        self.steps_done += 1
        self.collapse.add(losses.teacher)
        terms = {name: term.detach() for name, term in losses.terms.items()}
        described = {f"task/{name}": figure for name, figure in task.describe(images).items()}
        return {"loss": losses.total.detach(), **terms, **described, **report}

    def fit(self) -> TrainingResult:
        """Run to the last step, from the newest checkpoint of `config.output` if it holds one.

        The same command after a kill at any moment goes on and gives the same losses, bit for bit on
        one CPU. SIGTERM and Ctrl-C finish the step in hand, save, and return.

        Raises:
            UserError: where `config.output` holds another run, or too many images cannot be read.
        """
        config = self.config
        output = claim(config)
        checkpoints = Checkpoints(output / CHECKPOINT_FOLDER, config.checkpoint)
        state = newest_state(output)
        if state is not None:
            self.load_state_dict(state)
        start = self.steps_done
        log = Log(
            config.log, output, start=start, steps=config.steps, run_config=config.model_dump(mode="json")
        )
        with log, Interrupts() as interrupts:
            if state is None:
                log.say(f"{output}: backbone: {self.learner.student.backbone.weights_report}.")
            else:
                log.say(f"{output}: going on from step {start} of {config.steps}.")
            note_environment(output, self.device, start)
            kept = kept_after(config.steps, config.checkpoint.designers) if self.designer_learns else set()
            batches = on_device(iter(self.loader), self.device)
            wait = DataWait(config.batch_size, config.data.workers)
            skipped = SkippedImages(log.say)
            self.meter.restart_clock()
            self.clock.start()
            while self.steps_done < config.steps and interrupts.received is None:
                with self.timer("data"):
                    batch = next(batches)
                skipped.add(batch.unreadable)
                wait.add(batch)
                self.meter.add(self.train_step(batch))
                log.advance(self.steps_done)
                last = self.steps_done == config.steps
                if self.online is not None and (last or self.online.due(self.steps_done)):
                    with self.clock.paused(), self.meter.paused():
                        self.online_figures = self.online(self.learner.teacher.backbone)
                if last or self.steps_done % config.log.every == 0:
                    record = self._record(wait)
                    log.write(record)
                    skipped.end_interval()
                    self._expect_progress(record)
                    watches = [self.collapse.judge(record)]
                    if self.value_step is not None:
                        watches.append(self.value_step.guard.news(record))
                    for sentence in filter(None, watches):
                        log.say(f"{output}: step {self.steps_done}: {sentence}")
                    if (news := wait.judge(record)) is not None:
                        log.say(f"{output}: step {self.steps_done}: {news}.")
                if self.steps_done in kept:
                    with self.clock.paused():
                        keep_designer(output, self.steps_done, self.designer)
                if last or interrupts.received is not None or self.steps_done % config.checkpoint.every == 0:
                    with self.clock.paused():
                        save_backbone(self.learner.teacher.backbone, output / BACKBONE_FILE, self.renderer)
                        checkpoints.save(self.steps_done, self.state_dict())
            self.clock.stop()
            skipped.end_interval()
            worst = self.loader.worst_shards()
            if worst:
                log.say(f"{output}: images that cannot be read, by shard: {worst}.")
            if interrupts.received is not None:
                log.say(
                    f"{output}: stopped after step {self.steps_done}; the same command goes on from there."
                )
        return TrainingResult(output, self.steps_done, interrupts.received)

    @property
    def designer_learns(self) -> bool:
        """Whether the designer has anything that training changes."""
        return any(True for _ in self.designer.parameters())

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on; random numbers are keyed by the step and need none."""
        return {
            "step": self.steps_done,
            "config": self.config.model_dump(mode="json"),
            "learner": self.learner.state_dict(),
            "optimiser": self.optimiser.adamw.state_dict(),
            "designer": self.designer.state_dict(),
            "adversary": None if self.adversary is None else self.adversary.state_dict(),
            "value": None if self.value_step is None else self.value_step.state_dict(),
            "loader": self.loader.state_dict(),
            "meter": self.meter.state_dict(),
            "collapse": self.collapse.state_dict(),
            "training_seconds": self.clock.seconds,
            "online": self.online_figures,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of a run with the same config; raises `UserError` where it is not whole."""
        missing = self.state_dict().keys() - state.keys()
        if missing:
            raise UserError(
                f"the checkpoint lacks {', '.join(sorted(missing))}: go on with the version that wrote it, "
                "or begin a new run in another folder."
            )
        self.steps_done = state["step"]
        self.learner.load_state_dict(state["learner"])
        self.optimiser.adamw.load_state_dict(state["optimiser"])
        self.designer.load_state_dict(state["designer"])
        if self.adversary is not None:
            self.adversary.load_state_dict(state["adversary"])
        if self.value_step is not None:
            self.value_step.load_state_dict(state["value"])
        self.loader.load_state_dict(state["loader"])
        self.meter.load_state_dict(state["meter"], self.device)
        self.collapse.load_state_dict(state["collapse"], self.device)
        self.clock.load(state["training_seconds"])
        self.online_figures = state["online"]
        self.skipped_in_a_row = state["skipped_in_a_row"]

    def _autocast(self) -> torch.autocast:
        """The precision of the learner, and of what designers ask of it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _value_step(self) -> ValueStep | None:
        """The judge of tasks, where there is feedback to judge by; a fixed recipe is only measured."""
        config = self.config
        if config.feedback is None:
            if self.designer.learns_from == "value":
                raise UserError(
                    f"a {config.designer.kind} designer learns from labelled examples: give the config a "
                    "'feedback' part."
                )
            return None
        self.learner.student.backbone.tail_parameters(config.value.tail_blocks)  # refuses too many blocks
        feedback = build_feedback(
            config.feedback,
            renderer=self.renderer,
            size=config.recipe.crops.global_size,
            patch_size=self.learner.student.backbone.patch_size,
            seed=config.seed,
        )
        return ValueStep(
            config.value,
            learner=self.learner,
            designer=self.designer,
            renderer=self.renderer,
            feedback=feedback,
            learner_optimiser=self.optimiser.adamw,
            learner_update=self.optimiser,
            bf16=config.precision == "bf16",
        )

    def _online_probe(self) -> OnlineProbe | None:
        evaluation = self.config.evaluation
        if evaluation is None or evaluation.online is None:
            return None
        self.learner.teacher.backbone.grid(evaluation.image_size)
        return OnlineProbe(
            evaluation.online,
            build_source(evaluation.train, evaluation.shorter_side()),
            self.renderer,
            size=evaluation.image_size,
            precision=self.config.precision,
            reading=Reading(evaluation.batch_size, evaluation.workers, evaluation.max_unreadable),
            seed=self.config.seed,
        )

    def _expect_progress(self, record: dict[str, float | int | None]) -> None:
        """Give up a run of which no step counts any more."""
        self.skipped_in_a_row = self.skipped_in_a_row + self.config.log.every if record["skipped"] == 1 else 0
        if self.skipped_in_a_row >= PATIENCE:
            raise UserError(
                f"none of the last {self.skipped_in_a_row} steps had a finite loss and gradient, so the "
                "learner stands still: lower schedule.learning_rate, or look at data.mean and data.std."
            )

    def _record(self, wait: DataWait) -> dict[str, float | int | None]:
        """One line of the log: the only place in the loop that waits for the device."""
        values: dict[str, Tensor] = {}
        if self.value_step is not None:
            values = self.value_step.latest
            if self.value_step.over(self.steps_done):
                self.value_step.rest()
        phases = self.timer.read()
        online, self.online_figures = self.online_figures, {}
        return {
            "step": self.steps_done,
            **self.meter.read(self.steps_done),
            **self.collapse.read(),
            **phases,
            **wait.read(sum(phases.values()), phases["seconds/data"]),
            "training_seconds": self.clock.seconds,
            "value": None,
            **{name: float(number) for name, number in values.items()},
            **online,
            **scheduled_values(self.config.schedule, self.steps_done - 1, self.config.steps)._asdict(),
            "unreadable": self.loader.state_dict()["unreadable"],
            "host_memory_mb": host_memory_mb(),
            "peak_host_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }


def train(
    config: RunConfig | str | Path | Mapping[str, Any], overrides: Sequence[str] = ()
) -> TrainingResult:
    """Start the run that `config` describes, or go on with it, to its last step.

    Args:
        config: a checked config, a YAML file, or its contents as a mapping.
        overrides: `dotted.key=value` strings, as on the command line; none with a checked config.

    Raises:
        UserError: where the config, the data or the output folder cannot be used.
    """
    checked = config if isinstance(config, RunConfig) else load_config(config, overrides)
    return Trainer(checked).fit()


def resolve_device(name: str) -> torch.device:
    """The device that a config names; raises `UserError` where this machine has no such device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"device: '{name}' is not a device: use auto, cpu, cuda or cuda:N.")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device: '{name}' was asked for, and this machine has {torch.cuda.device_count()} CUDA devices: "
            "use auto or cpu."
        )
    return device
