"""Means of the figures of steps, between two lines of the log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Meter:
    """Adds up scalars on the device; reading them is the only time that the loop waits for it.

    The sums are part of a run's state: a run that is killed between two lines and resumed writes the
    same next line as one that was not. Times are not.
    """

    def __init__(self, batch_size: int, steps: int) -> None:
        self.batch_size = batch_size
        self.steps = steps
        self.count = 0
        self._sums: dict[str, Tensor] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Begin to time here; what came before the first step is no part of it."""
        self._timed = 0
        self._since = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave what happens inside the `with` block out of the time of steps."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - began

    def add(self, figures: dict[str, Tensor]) -> None:
        """Take in the scalars of one step, the same names at every step."""
        for name, figure in figures.items():
            self._sums[name] = self._sums[name] + figure if name in self._sums else figure
        self.count += 1
        self._timed += 1

    def read(self, steps_done: int) -> dict[str, float]:
        """Return means since the last reading, `images_per_second` and `seconds_left`; start again."""
        means = {name: float(total) / self.count for name, total in self._sums.items()}
        seconds_per_step = (time.perf_counter() - self._since) / self._timed
        self._sums, self.count = {}, 0
        self.restart_clock()
        return {
            **means,
            "images_per_second": self.batch_size / seconds_per_step,
            "seconds_left": seconds_per_step * (self.steps - steps_done),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and how many steps they are of."""
        return {"sums": self._sums, "count": self.count}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take back what `state_dict` gave."""
        self._sums = {name: total.to(device) for name, total in state["sums"].items()}
        self.count = state["count"]
