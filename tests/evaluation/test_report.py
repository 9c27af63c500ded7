import io
import re

import pytest
import torch
from rich.console import Console

from vpt_vision.evaluation.report import Arm, Report, finding
from vpt_vision.evaluation.result import ProbeResult, paired

IMAGES = 2000
DIFFICULTY = torch.randn(IMAGES, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp() + 3


def arm(name: str, change: float, *, steps: int = 300, spread: float = 0.2) -> Arm:
    """Make an arm whose cross-entropy differs from the common difficulty by `change` on average."""
    generator = torch.Generator().manual_seed(len(name))
    noise = spread * torch.randn(IMAGES, generator=generator, dtype=torch.float64)
    loss = DIFFICULTY + change + noise - noise.mean()
    index = torch.arange(IMAGES)
    logistic = ProbeResult.of_classes("logistic regression, CLS", loss < 4.0, loss, index, {"l2": 0.1})
    return Arm(name, steps, ProbeResult.of_classes("kNN, k = 20", loss < 3.9, None, index), logistic)


START, FIXED = arm("start", 0.1, steps=0), arm("fixed recipe", 0.0)


def test_a_finding_speaks_of_a_change_where_the_interval_leaves_0_out():
    better = finding(FIXED, arm("learned designer", -0.05))
    assert re.fullmatch(
        r"The learned designer changed cross-entropy by -0\.0\d+ \[-0\.0\d+, -0\.0\d+\] against the fixed "
        r"recipe at equal steps \(300\) over 2,000 test images of one seed: better, by more than the choice "
        r"of test images explains; other seeds are not yet asked\.",
        better,
    )
    assert ": worse, by more than" in finding(FIXED, arm("learned designer", +0.05))


def test_a_finding_says_that_it_shows_nothing_where_the_interval_holds_0():
    sentence = finding(FIXED, arm("learned designer", 0.0, spread=1.0))
    assert "against the fixed recipe at equal steps (300) shows nothing in cross-entropy" in sentence
    assert "an interval that holds 0." in sentence
    assert "better" not in sentence and "worse" not in sentence


def test_a_finding_tells_how_far_the_arms_were_trained():
    assert "against the start after 300 steps" in finding(START, FIXED)
    uneven = finding(FIXED, arm("learned designer", -0.05, steps=250))
    assert "at unequal steps (250 against 300)" in uneven


def test_markdown_holds_the_numbers_of_the_probes():
    learned = arm("learned designer", -0.05)
    text = Report([START, FIXED, learned], [(START, FIXED), (FIXED, learned)]).markdown()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows[0] == [
        "backbone",
        "steps",
        "kNN, k = 20",
        "logistic accuracy",
        "logistic cross-entropy, nats",
    ]
    assert {len(row) for row in rows[:5]} == {5} and {len(row) for row in rows[5:]} == {4}
    fixed, difference = rows[3], rows[8]
    assert fixed[:2] == ["fixed recipe", "300"]
    accuracy = FIXED.logistic.interval("accuracy")
    numbers = [float(number) for number in re.findall(r"[-+]?\d+\.\d+", fixed[3])]
    assert numbers == pytest.approx([100 * bound for bound in accuracy], abs=0.06)
    assert difference[0] == "learned designer − fixed recipe"
    numbers = [float(number) for number in re.findall(r"[-+]?\d+\.\d+", difference[3])]
    assert numbers == pytest.approx(paired(FIXED.logistic, learned.logistic)["cross_entropy"], abs=6e-4)
    assert numbers[0] < 0
    assert text.index("The learned designer changed") < text.index("| backbone")  # the finding comes first
    assert "one training seed" in text


def test_small_differences_keep_the_digits_that_tell_them_from_0():
    plain = arm("fixed recipe", 0.0, spread=0.0)
    sentence = finding(plain, arm("learned designer", -0.0004, spread=0.002))
    low, high = (float(bound) for bound in re.search(r"\[(\S+), (\S+)\]", sentence).groups())
    assert "better" in sentence
    assert low <= high < 0


def test_identical_arms_have_a_difference_of_0():
    assert "shows nothing in cross-entropy: it changed by +0.0 [+0.0, +0.0]" in finding(FIXED, FIXED)


def test_the_console_table_fits_80_columns():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(Report([START, FIXED], [(START, FIXED)]))
    text = console.export_text()
    assert "…" not in text
    for number in re.findall(r"[-+]?\d+\.\d+", Report([START, FIXED], [(START, FIXED)]).markdown()):
        assert number in text


def test_the_file_is_the_markdown(tmp_path):
    report = Report([START, FIXED], [(START, FIXED)])
    report.save(tmp_path / "new" / "probes.md")
    assert (tmp_path / "new" / "probes.md").read_text(encoding="utf-8") == report.markdown()
