"""The time a run has trained, however often it was stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class TrainingClock:
    """Counts the seconds of the training loop, without those spent evaluating and saving.

    Reading data, logging, the designer and its value steps count. `seconds` is part of a run's state: a run
    that is killed goes on from the seconds of its checkpoint, so that steps which are lost and taken again
    count once.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._counted = 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        running = 0.0 if self._since is None else time.perf_counter() - self._since
        return self._counted + running

    def load(self, seconds: float) -> None:
        """Go on from `seconds`."""
        self._counted = seconds

    def start(self) -> None:
        """Begin to count."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Count up to here; what the device still has to do is waited for, and counts."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._counted = self.seconds
        self._since = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens inside the `with` block."""
        self.stop()
        try:
            yield
        finally:
            self.start()
