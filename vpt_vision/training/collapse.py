"""Whether the learner still tells images apart: indicators of collapse, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vpt_vision.learner.scores import Target, similarities
from vpt_vision.learner.student_teacher import TeacherTargets

LEAST_INFORMATION = 0.02  # nats: targets that tell less of their image tell nothing
LINES_IN_A_ROW = 3  # of the log that must say so
JUDGED_AFTER = 0.1  # share of the run: a learner from scratch begins by telling little


class CollapseVerdict:
    """Reads the log line by line, while it is written or afterwards, and tells when a learner is collapsed.

    It is while at least three lines in a row, of the last 90 % of the run, find less than 0.02 nats of
    information in the targets. On the demo's scenes healthy runs had 0.09 and more, with either kind of
    centring, and collapsed ones below 0.01.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.lines = 0  # in a row that find too little

    @property
    def collapsed(self) -> bool:
        """Whether the learner is collapsed as of the last line."""
        return self.lines >= LINES_IN_A_ROW

    def take(self, record: Mapping[str, Any]) -> str | None:
        """Take in one line of the log; returns a sentence where the verdict changes."""
        before = self.collapsed
        information = record.get("collapse/information")
        judged = record["step"] > JUDGED_AFTER * self.steps
        flat = judged and information is not None and information < LEAST_INFORMATION
        self.lines = self.lines + 1 if flat else 0
        if self.collapsed == before:
            return None
        return _collapsed(record) if self.collapsed else _recovered(record)


def _collapsed(record: Mapping[str, Any]) -> str:
    return (
        "the learner has collapsed: the teacher's targets hardly depend on the image any more "
        f"({_indicators(record)}). Lower schedule.learning_rate, raise schedule.momentum, or look at "
        "learner.centring and the learner's loss weights."
    )


def _recovered(record: Mapping[str, Any]) -> str:
    return f"the learner is no longer collapsed: targets depend on the image again ({_indicators(record)})."


def _indicators(record: Mapping[str, Any]) -> str:
    return (
        f"{record['collapse/information']:.2g} nats of information, {record['collapse/prototypes']:.1f} "
        f"prototypes in use, RankMe {record['collapse/rankme']:.1f}"
    )


class CollapseWatch:
    """Adds up what the teacher says of the global views, on the device, between two lines of the log.

    Nothing waits for the device but `read`. The sums are part of a run's state, as the meter's are.
    """

    def __init__(self, steps: int) -> None:
        self.verdict = CollapseVerdict(steps)
        self._sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, teacher: TeacherTargets) -> None:
        """Take in the targets of one step."""
        features = teacher.features.double()
        directions = F.normalize(features, dim=1)
        probabilities = _probabilities(teacher.cls)
        favourites = probabilities.new_zeros(probabilities.shape[1])
        sums = {
            "rows": features.new_tensor(float(len(features))),
            "moments": features.T @ features,
            "directions": directions.sum(0),
            "squared_directions": directions.square().sum(0),
            "targets": probabilities.sum(0).double(),
            "entropies": _entropy(probabilities).sum().double(),
            "favourites": favourites.index_add_(
                0, probabilities.argmax(1), probabilities.new_ones(len(probabilities))
            ).double(),
        }
        self._sums = {name: self._sums.get(name, 0.0) + total for name, total in sums.items()}

    def read(self) -> dict[str, float]:
        """Return the indicators of what was added since the last reading, and start again.

        Of N rows, one for each global view of each image, with class tokens z of D numbers and targets q
        over K prototypes, both the teacher's:

        - `rankme`: see `rankme`; between 1 and the smaller of N and D;
        - `deviation`: √D · mean over dimensions of the deviation of z/‖z‖ over rows; 1 where directions are
          spread evenly, 0 where all are one (SimSiam, Chen & He 2021, section 4.1);
        - `teacher_entropy`: mean over rows of H(q), nats;
        - `information`: H(mean q) - mean H(q), nats: what a target tells of its image; 0 in both ways
          that DINO collapses, to one prototype and to the uniform law (Caron et al. 2021, section 5.3);
        - `prototypes`: exp of the entropy of how often each prototype is a row's most likely: how many are
          in use.

        Indicators of what is not finite are NaN.
        """
        sums, self._sums = self._sums, {}
        mean = {name: sums[name] / sums["rows"] for name in sums}
        variances = mean["squared_directions"] - mean["directions"].square()
        indicators = {
            "rankme": rankme(sums["moments"]),
            "deviation": variances.clamp(min=0).sqrt().mean() * math.sqrt(len(variances)),
            "teacher_entropy": mean["entropies"],
            "information": _entropy(mean["targets"]) - mean["entropies"],
            "prototypes": _entropy(mean["favourites"]).exp(),
        }
        return {f"collapse/{name}": float(indicator) for name, indicator in indicators.items()}

    def judge(self, record: Mapping[str, Any]) -> str | None:
        """Take in a line of the log that holds `read`'s indicators; a sentence where the verdict changes."""
        return self.verdict.take(record)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums, and how far the verdict is."""
        return {"sums": self._sums, "lines": self.verdict.lines}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take back what `state_dict` gave."""
        self._sums = {name: total.to(device) for name, total in state["sums"].items()}
        self.verdict.lines = state["lines"]


def rankme(moments: Tensor) -> Tensor:
    """Smooth rank of features Z [N, D] from `moments` = ZᵀZ [D, D] in fp64 (Garrido et al. 2023, equation 1).

    exp(-Σ_k p_k log p_k) with p_k = σ_k / Σ σ + 1e-7 over Z's singular values σ; NaN where Z is not finite.
    """
    if not bool(moments.isfinite().all()):
        return moments.new_tensor(math.nan)
    singular = torch.linalg.eigvalsh(moments).clamp(min=0).sqrt()
    share = singular / singular.sum() + 1e-7
    return _entropy(share).exp()


def _probabilities(target: Target) -> Tensor:
    """Targets [M, K] fp32, each row summing to 1."""
    rows, prototypes, weight_norm = target.scores.rows, target.scores.prototypes, target.scores.weight_norm
    scores = rows.float() if prototypes is None else similarities(rows, prototypes, weight_norm)
    temperature = torch.as_tensor(target.temperature, device=scores.device).view(-1, 1)
    return (scores / temperature + target.potentials.row[:, None] + target.potentials.column).exp()


def _entropy(probabilities: Tensor) -> Tensor:
    """H [...] of laws [..., K], nats."""
    return torch.special.entr(probabilities).sum(-1)
