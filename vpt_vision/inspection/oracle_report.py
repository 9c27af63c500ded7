"""How the oracle's answers are told: tables, words and JSON."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vpt_vision.evaluation.result import Interval
from vpt_vision.inspection.oracle import CLIMBED, WHOLE, Answer, Moment, Oracle

OUTSIDE = 2.0  # deviations of the null beyond which value is said to rank a task
WORDS = {1: "better", -1: "worse", 0: "no different"}
KNOWN = {1: "good", -1: "bad", 0: "unknown"}


def value_says(answer: Answer, term: str = WHOLE) -> int:
    """1 where value ranks the policy above the recipe, -1 below, 0 inside the null."""
    z = answer.rankings[term].z
    return int(np.sign(z)) if abs(z) >= OUTSIDE else 0


def outcome_says(outcome: Interval | None) -> int:
    """1 where the short runs' loss fell further than the recipe's, -1 less far, 0 where they do not tell."""
    return 0 if outcome is None or outcome.holds_zero else int(np.sign(outcome.mean))


def verdict(answer: Answer) -> str:
    """Say in words whether value, outcome and what is known of the policy agree."""
    value, outcome = value_says(answer), outcome_says(answer.outcome)
    if answer.outcome is None:
        said = _against_the_known(value, answer.expected)
    elif value and outcome:
        said = (
            f"agree: {WORDS[value]}"
            if value == outcome
            else f"DISAGREE: value says {WORDS[value]}, the runs came out {WORDS[outcome]}"
        )
    elif outcome:
        said = f"DISAGREE: value is inside the null, the runs came out {WORDS[outcome]}"
    elif value:
        said = f"value says {WORDS[value]}; the runs do not tell"
    else:
        said = "neither tells"
    if outcome and answer.expected and outcome != answer.expected:
        said += f"; taken for {KNOWN[answer.expected]}, it is not"
    contrary = [term for term in _terms(answer) if outcome * value_says(answer, term) < 0]
    if contrary:
        said += f"; {' and '.join(contrary)} against the runs"
    climbed = value_says(answer, CLIMBED)
    if climbed != value:
        said += "; what a designer climbs " + (f"says {WORDS[climbed]}" if climbed else "is inside the null")
    if climbed * answer.rankings[CLIMBED].gain < 0:  # the null's mean is not 0
        said += "; the gain itself, which a designer climbs, has the other sign"
    return said


def _terms(answer: Answer) -> list[str]:
    return [term for term in answer.rankings if term not in (WHOLE, CLIMBED)]


def _against_the_known(value: int, expected: int) -> str:
    if not value:
        return "inside the null"
    if not expected:
        return f"value says {WORDS[value]}"
    return "ranked as known" if value == expected else f"AGAINST what is known: value says {WORDS[value]}"


@dataclass(frozen=True)
class OracleReport:
    """What is printed of an `Oracle`."""

    oracle: Oracle

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = []
        for moment in self.oracle.moments:
            for task in moment.directions:
                (policy, _, *header), rows = self._table(moment, task)
                table = Table(title=_title(moment, task), header_style="bold", box=SIMPLE)
                table.add_column(policy)
                for name in header[:-1]:
                    table.add_column(name.replace(", ", "\n"), justify="right")
                for name, known, *cells, _ in rows:
                    table.add_row(f"{name}\n({known})", *(re.sub(r" (?=\[|±)", "\n", c) for c in cells))
                said = "\n".join(f"{row[0]}: {row[-1]}" for row in rows)
                parts += [table, Text(said, style="bold"), Text()]
        return Group(*parts, *(Text(note, style="dim") for note in self._notes()))

    def markdown(self) -> str:
        """Return tables and notes as Markdown."""
        lines = ["# What value says of tasks whose worth is known", ""]
        for moment in self.oracle.moments:
            for task in moment.directions:
                header, rows = self._table(moment, task)
                lines += [f"## {_title(moment, task)}", "", _line(header)]
                lines += [_line(["---", "---", *["---:"] * (len(header) - 3), "---"])]
                lines += [*map(_line, rows), ""]
        return "\n".join([*lines, *self._notes()]) + "\n"

    def summary(self) -> dict[str, object]:
        """What `--json` prints."""
        return {
            "learning_rate": self.oracle.learning_rate,
            "batches": self.oracle.asked.batches,
            "permutations": self.oracle.asked.permutations,
            "steps": self.oracle.asked.steps,
            "repeats": self.oracle.asked.repeats,
            "notes": self.oracle.notes,
            "moments": [
                {
                    "step": moment.step,
                    "preconditioner": moment.preconditioner,
                    "u_reliability": {name: found.reliability for name, found in moment.directions.items()},
                    "u_reliability_permuted": {
                        name: found.permuted_reliability for name, found in moment.directions.items()
                    },
                    "answers": [_entry(answer) for answer in moment.answers],
                }
                for moment in self.oracle.moments
            ],
        }

    def _table(self, moment: Moment, task: str) -> tuple[list[str], list[list[str]]]:
        answers = [answer for answer in moment.answers if answer.task == task]
        columns = [*_terms(answers[0]), WHOLE, CLIMBED]
        header = [
            "policy",
            "known",
            *(f"{column}, z" for column in columns),
            "gain [null]",
            "fall of loss",
        ]
        rows = []
        for answer in answers:
            whole = answer.rankings[WHOLE]
            rows.append(
                [
                    answer.policy.name,
                    KNOWN[answer.expected],
                    *(f"{answer.rankings[column].z:+.1f}" for column in columns),
                    f"{whole.gain:+.2g} [{whole.null_mean:+.2g} ± {whole.null_deviation:.2g}]",
                    "" if answer.outcome is None else _interval(answer.outcome),
                    verdict(answer),
                ]
            )
        return [*header, "value and outcome"], rows

    def _notes(self) -> list[str]:
        asked = self.oracle.asked
        rate = self.oracle.learning_rate
        notes = [
            "z: by how many deviations of the null value rises from the recipe to the policy, over "
            f"{asked.batches} batches; the null is what {asked.permutations} u's of permuted labels, of u's "
            f"length, make of the same gradients. Beyond ±{OUTSIDE:g} value is said to rank. Gain: "
            "⟨P u, ∇L_pre⟩ of the whole loss less the recipe's, beside the null's mean and deviation. "
            "Climbed: the same sum with each loss term at the size that value.normalise gives it, which is "
            "what a designer climbs."
        ]
        if asked.steps:
            notes.append(
                f"Fall of loss: how much lower the best head's loss is after {asked.steps} steps under the "
                f"policy than after as many under the recipe, {asked.repeats} runs each on the same batches, "
                f"at learning rate {rate:g}; t intervals (95 %) over runs and examples, of the student."
            )
        return [*notes, *self.oracle.notes]


def _title(moment: Moment, task: str) -> str:
    found = moment.directions[task]
    title = f"{task}, step {moment.step}: u's reliability {found.reliability:+.2f}"
    if found.permuted_reliability:
        null = np.array(found.permuted_reliability)
        title += f", of permuted labels {null.mean():+.2f} ± {null.std():.2f}"
    return f"{title}; P: {moment.preconditioner}"  # before the first step AdamW has none


def _interval(interval: Interval) -> str:
    half = (interval.high - interval.low) / 2
    decimals = min(6, max(1, 1 - math.floor(math.log10(half)))) if half > 0 else 4
    return f"{interval.mean:+.{decimals}f} [{interval.low:+.{decimals}f}, {interval.high:+.{decimals}f}]"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _entry(answer: Answer) -> dict[str, object]:
    return {
        "task": answer.task,
        "surface": answer.policy.surface,
        "policy": answer.policy.name,
        "known": KNOWN[answer.expected],
        "value": {
            term: {**ranking._asdict(), "z": ranking.z, "says": WORDS[value_says(answer, term)]}
            for term, ranking in answer.rankings.items()
        },
        "outcome": None if answer.outcome is None else answer.outcome._asdict(),
        "verdict": verdict(answer),
    }
