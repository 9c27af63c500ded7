"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = {  # of a step, in order, and what each is
    "data": "waiting for images",
    "task": "designer and rendering",
    "forward": "student, teacher and losses",
    "update": "backward, optimiser and teacher",
    "value": "feedback and designer",
}


class StepTimer:
    """Adds up the time of each phase of the steps between two lines of the log.

    On CUDA a phase lasts from one event in the stream to another, so that nothing waits for the device and
    the time that it stood idle counts for the phase that kept it waiting. Elsewhere it is the wall's time.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._spans: list[tuple[str, float | torch.cuda.Event, float | torch.cuda.Event]] = []

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count what happens inside the `with` block for `phase`, one of `PHASES`."""
        start = self._mark()
        try:
            yield
        finally:
            self._spans.append((phase, start, self._mark()))

    def read(self) -> dict[str, float]:
        """Return `seconds/PHASE` per step, of phases there were, and start again; waits for the device.

        A step is what has a `forward`; a phase that not every step has is spread over all of them.
        """
        spans = self.take()
        totals: dict[str, float] = {}
        for phase, seconds in spans:
            totals[phase] = totals.get(phase, 0.0) + seconds
        steps = sum(phase == "forward" for phase, _ in spans)
        return {f"seconds/{phase}": totals[phase] / steps for phase in PHASES if phase in totals}

    def take(self) -> list[tuple[str, float]]:
        """Return every phase since the last reading with its seconds, in order, and start again.

        Waits for the device.
        """
        spans, self._spans = self._spans, []
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return [(phase, _seconds(start, end)) for phase, start, end in spans]

    def _mark(self) -> float | torch.cuda.Event:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _seconds(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(start, torch.cuda.Event) or isinstance(end, torch.cuda.Event):
        return start.elapsed_time(end) / 1000  # type: ignore[union-attr, arg-type]
    return end - start
