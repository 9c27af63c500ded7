"""Where a run writes its figures: JSON lines, TensorBoard, W&B, and the console."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

from pydantic import Field
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.tensorboard import SummaryWriter

from vpt_vision.errors import UserError
from vpt_vision.schema import Config

METRICS_FILE = "metrics.jsonl"


class LogConfig(Config):
    """How often and where figures are written."""

    every: int = Field(10, ge=1, description="steps between lines; a line holds means over its interval")
    tensorboard: bool = Field(True, description="also write TensorBoard event files to OUTPUT/tensorboard")
    wandb_project: str | None = Field(
        None, description="also log to this Weights & Biases project (needs wandb)"
    )


class Log:
    """Writes one record per logged step everywhere it is wanted.

    On resume, lines past the checkpoint are cut off first, so that a killed and resumed run leaves the
    very file that an undisturbed one leaves, timings apart.
    """

    def __init__(
        self, config: LogConfig, output: Path, *, start: int, steps: int, run_config: dict[str, Any]
    ) -> None:
        self.path = output / METRICS_FILE
        _truncate(self.path, start)
        self._file = self.path.open("a", encoding="utf-8")
        self._tensorboard = (
            SummaryWriter(str(output / "tensorboard"), purge_step=start + 1) if config.tensorboard else None
        )
        self._wandb = _wandb_run(config.wandb_project, output, run_config) if config.wandb_project else None
        self.console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._bar = self._progress.add_task(output.name, total=steps, completed=start, figures="")
        self._steps = steps

    def __enter__(self) -> Log:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if kind is None else 1)

    def advance(self, step: int) -> None:
        """Move the progress bar to `step` finished steps."""
        self._progress.update(self._bar, completed=step)

    def say(self, sentence: str) -> None:
        """Print one sentence above the progress bar."""
        self.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def write(self, record: Mapping[str, float | int | None]) -> None:
        """Write one record; it has at least `step`, `loss`, `value` and `images_per_second`.

        A figure that is not finite is written as null: JSON has no NaN.
        """
        step = int(record["step"] or 0)
        clean = {key: _json_number(number) for key, number in record.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()
        scalars = {key: number for key, number in clean.items() if number is not None and key != "step"}
        if self._tensorboard is not None:
            for key, number in scalars.items():
                self._tensorboard.add_scalar(key, number, step)
        if self._wandb is not None:
            self._wandb.log(scalars, step=step)
        value = clean["value"]
        figures = (
            f"loss {_text(clean['loss'])}  value {'-' if value is None else format(value, '+.2g')}  "
            f"{record['images_per_second']:.0f} img/s"
        )
        if self.console.is_terminal:
            self._progress.update(self._bar, figures=figures)
        else:
            left = record.get("seconds_left")
            self.say(
                f"step {step}/{self._steps}  {figures}" + (f"  {left:.0f} s left" if left is not None else "")
            )


def read_log(file: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's `metrics.jsonl`, each with its `step`; a figure that was not finite is None.

    Raises `UserError` for a missing file, a line that is no JSON object with a step, or no line at all.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}): name a run that has logged a step."
        ) from error
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            int(record["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{file}, line {number} is not a JSON object with a step and figures: mend or delete it."
            ) from error
        records.append(record)
    if not records:
        raise UserError(f"{file} holds no logged step: train for longer, or log more often.")
    return records


def _text(number: float | int | None) -> str:
    return "not finite" if number is None else f"{number:.3f}"


def _json_number(number: float | int | None) -> float | int | None:
    return number if number is None or math.isfinite(number) else None


def _truncate(path: Path, start: int) -> None:
    """Keep the lines of steps up to `start`; a line that a kill cut short goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            if not line.endswith("\n") or json.loads(line)["step"] > start:
                break
        except ValueError:
            break
        kept.append(line)
    part = path.with_suffix(".part")
    part.write_text("".join(kept), encoding="utf-8")
    part.replace(path)


def _wandb_run(project: str, output: Path, run_config: dict[str, Any]) -> Any:
    if find_spec("wandb") is None:
        raise UserError(
            "log.wandb_project is set but wandb is not installed: pip install wandb, or set it to null."
        )
    import wandb

    id_file = output / "wandb_id.txt"  # a name of its own: folders of one name are not one run
    if not id_file.exists():
        id_file.write_text(uuid4().hex, encoding="utf-8")
    return wandb.init(
        project=project,
        dir=str(output),
        config=run_config,
        name=output.name,
        id=id_file.read_text(encoding="utf-8"),
        resume="allow",
    )
