"""A run at one moment, from which steps can be taken and taken back."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpt_vision.config import RunConfig, load_config
from vpt_vision.data import Batch, on_device
from vpt_vision.designers import Designer
from vpt_vision.errors import UserError
from vpt_vision.feedback import FeedbackGradient
from vpt_vision.training.checkpoint import read_checkpoint
from vpt_vision.training.run_folder import newest_state
from vpt_vision.training.schedules import scheduled_values
from vpt_vision.training.trainer import Trainer


class Branch:
    """The trainer of a run with feedback, at the start or where `state`, a checkpoint's, has it.

    Its steps are those that training takes, under a designer of one's choice; no designer learns. The
    learning rate is the highest of the run's schedule unless another is given: a run that has ended steps no
    longer, and early or late steps are too small to show where a first-order prediction fails.

    Raises:
        UserError: the config has no feedback.
    """

    def __init__(
        self,
        config: RunConfig,
        state: dict[str, Any] | None = None,
        *,
        learning_rate: float | None = None,
    ) -> None:
        if config.feedback is None:
            raise UserError("value needs labelled examples: give the config a 'feedback' part.")
        self.learning_rate = config.schedule.learning_rate if learning_rate is None else learning_rate
        constant = {
            "warmup": 0.0,
            "learning_rate": self.learning_rate,
            "final_learning_rate": self.learning_rate,
        }
        self.config = config.model_copy(update={"schedule": config.schedule.model_copy(update=constant)})
        self.trainer = Trainer(self.config)
        value_step = self.trainer.value_step
        assert value_step is not None, "there is feedback"
        if state is not None:
            if load_config(state["config"]).feedback != config.feedback:
                self.trainer.value_step = None  # the state's is of other tasks
            try:
                self.trainer.load_state_dict(state)
            except (RuntimeError, ValueError, KeyError) as error:
                raise UserError(
                    "the checkpoint is of a run whose learner or designer differs from the config's: "
                    f"{' '.join(str(error).split())[:200]}"
                ) from error
        self.feedback_gradient: FeedbackGradient = value_step.feedback_gradient
        self.trainer.value_step = None
        self.trainer.adversary = None
        self.designer = self.trainer.designer
        self.learner = self.trainer.learner
        self.backbone = self.learner.student.backbone

    @property
    def step(self) -> int:
        """Learner updates that the run had done."""
        return self.trainer.steps_done

    def batches(self, count: int) -> list[Batch]:
        """Read the next `count` batches of the run; at every call the same ones."""
        state = self.trainer.loader.state_dict()
        read = self._read(count)
        self.trainer.loader.load_state_dict(state)
        return read

    def take(self, batch: Batch, designer: Designer) -> dict[str, Tensor]:
        """Take a step of the learner on the task that `designer` sets on `batch`."""
        self.trainer.designer = designer
        try:
            return self.trainer.train_step(batch)
        finally:
            self.trainer.designer = self.designer

    def advance(self, steps: int, designer: Designer) -> None:
        """Train on for `steps` under `designer`; the next batches are then later ones."""
        for batch in self._read(steps):
            self.take(batch, designer)

    def _read(self, count: int) -> list[Batch]:
        with closing(on_device(iter(self.trainer.loader), self.trainer.device)) as batches:
            return list(islice(batches, count))

    @contextmanager
    def carried(self) -> Iterator[None]:
        """Stand, for a while, where the optimiser's next step leads without a gradient.

        Momentum and weight decay carry the learner there whatever the task; the task's own part of the step
        starts from there.
        """
        nothing = torch.stack(
            [(0 * parameter).sum() for parameter in self.learner.student.parameters()]
        ).sum()
        with self.undone():
            scheduled = scheduled_values(self.config.schedule, self.step, self.config.steps)
            self.trainer.optimiser.step(nothing, scheduled)
            yield

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Put learner, optimiser and step back afterwards to what they are now."""
        learner = {name: value.clone() for name, value in self.learner.state_dict().items()}
        adamw = self.trainer.optimiser.adamw
        optimiser, step = copy.deepcopy(adamw.state_dict()), self.step
        try:
            yield
        finally:
            self.learner.load_state_dict(learner)
            adamw.load_state_dict(optimiser)
            adamw.zero_grad(set_to_none=True)
            self.trainer.steps_done = step


def branch_of(run: Path, overrides: Sequence[str] = (), *, learning_rate: float | None = None) -> Branch:
    """Open the run in folder `run`, or the checkpoint `run` (.pt), where it stands.

    `overrides` change its config, such as its feedback; what makes up learner and designer must stay.
    Raises `UserError` where there is none.
    """
    state = state_of(run)
    return Branch(load_config(state["config"], overrides), state, learning_rate=learning_rate)


def state_of(run: Path) -> dict[str, Any]:
    """Read the newest checkpoint of the run in folder `run`, or the checkpoint `run` (.pt).

    Raises `UserError` where there is none.
    """
    state = newest_state(run) if run.is_dir() else read_checkpoint(run)
    if state is None:
        raise UserError(
            f"{run} holds no checkpoint of a run: name a run's output folder, or wait for its first."
        )
    if "config" not in state:
        raise UserError(f"{run} is not a checkpoint of vpt-vision: it has no 'config' entry.")
    return state
