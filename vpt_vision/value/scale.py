"""The running size of each term's value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RunningScale:
    """Root mean square of each term's value over past steps, an exponential average without bias.

    Terms differ in size by orders of magnitude (iBOT's gradient on the last blocks has been measured at ten
    times DINO's): divided by its own size, each counts by the learner's weight for it.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.mean_square: dict[str, Tensor] = {}
        self.count = 0

    def update(self, values: dict[str, Tensor]) -> None:
        """Take in one value of each term, scalars; one that is not finite is left out."""
        self.count += 1
        for term, value in values.items():
            square = value.detach().square()
            before = self.mean_square.get(term, square.new_zeros(()))
            self.mean_square[term] = torch.lerp(
                torch.where(square.isfinite(), square, before), before, self.decay
            )

    def scale(self, term: str) -> Tensor:
        """Return the root mean square of `term`, a scalar on the device, above 0."""
        square = self.mean_square[term] / (1 - self.decay**self.count)
        return square.sqrt().clamp(min=1e-30)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and their count."""
        return {"mean_square": dict(self.mean_square), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.mean_square = dict(state["mean_square"])
        self.count = state["count"]
