"""Indicators of collapse against their definitions, and runs that collapse on purpose."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vpt_kernels import centre_potentials, sinkhorn_potentials
from vpt_vision import train
from vpt_vision.learner.scores import Scores, Target
from vpt_vision.learner.student_teacher import TeacherTargets
from vpt_vision.training.collapse import CollapseVerdict, CollapseWatch, rankme

TEMPERATURE = 0.1


def targets(features, similarity, *, balanced=False):
    """Targets of `features` [M, D] whose similarities to the prototypes are `similarity` [M, K]."""
    if balanced:
        potentials = sinkhorn_potentials(similarity, TEMPERATURE)
    else:
        potentials = centre_potentials(similarity, TEMPERATURE, torch.zeros(similarity.shape[1]))
    return TeacherTargets(Target(Scores(similarity), potentials, TEMPERATURE), None, None, features)


def read(*steps):
    watch = CollapseWatch(100)
    for step in steps:
        watch.add(step)
    return {name.removeprefix("collapse/"): value for name, value in watch.read().items()}


@given(st.integers(1, 40), st.integers(2, 17), st.integers(2, 11), st.integers(0, 2**31))
def test_indicators_are_their_definitions(rows, dim, prototypes, seed):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, dim, generator=generator) + 2 * torch.randn(dim, generator=generator)
    similarity = torch.randn(rows, prototypes, generator=generator)
    cut = rows // 2  # what is added in two steps counts as one
    indicators = read(
        *(
            targets(features[part], similarity[part])
            for part in (slice(cut), slice(cut, None))
            if len(features[part])
        )
    )

    singular = torch.linalg.svdvals(features.double())
    share = [float(s / singular.sum()) + 1e-7 for s in singular] + [1e-7] * (dim - len(singular))
    expected_rank = math.exp(-sum(p * math.log(p) for p in share))
    # Singular values below √eps of the largest are lost in the moments: a few of them count as little.
    assert indicators["rankme"] == pytest.approx(expected_rank, rel=1e-4)

    q = (similarity.double() / TEMPERATURE).softmax(1)
    entropies = [-sum(p * math.log(p) for p in row.tolist() if p > 0) for row in q]
    assert indicators["teacher_entropy"] == pytest.approx(sum(entropies) / rows, abs=1e-4)
    kl = [
        sum(p * math.log(p / m) for p, m in zip(row.tolist(), q.mean(0).tolist(), strict=True) if p > 0)
        for row in q
    ]
    assert indicators["information"] == pytest.approx(sum(kl) / rows, abs=1e-4)

    counts = torch.bincount(similarity.argmax(1), minlength=prototypes).double() / rows
    used = math.exp(-sum(p * math.log(p) for p in counts.tolist() if p > 0))
    assert indicators["prototypes"] == pytest.approx(used, rel=1e-5)

    z = features.double() / features.double().norm(dim=1, keepdim=True)
    spread = z.std(0, correction=0).mean() * dim**0.5
    assert indicators["deviation"] == pytest.approx(float(spread), abs=1e-6)


def test_features_spread_evenly_have_full_rank_and_deviation_1():
    indicators = read(
        targets(torch.randn(5000, 8, generator=torch.Generator().manual_seed(0)), torch.eye(8).repeat(625, 1))
    )
    assert indicators["rankme"] == pytest.approx(8, rel=0.01)
    assert indicators["deviation"] == pytest.approx(1, rel=0.02)
    assert indicators["prototypes"] == pytest.approx(8)
    assert indicators["information"] == pytest.approx(math.log(8), rel=0.01)


@pytest.mark.parametrize("balanced", [False, True])
def test_one_answer_for_every_image_tells_nothing(balanced):
    similarity = torch.randn(1, 16, generator=torch.Generator().manual_seed(0)).expand(64, 16).contiguous()
    indicators = read(targets(torch.ones(64, 8), similarity, balanced=balanced))
    assert indicators["rankme"] == pytest.approx(1, abs=1e-3)
    assert indicators["deviation"] == pytest.approx(0, abs=1e-6)
    assert indicators["information"] == pytest.approx(0, abs=1e-5)
    assert indicators["prototypes"] == pytest.approx(1)
    if balanced:  # Sinkhorn turns equal rows into the uniform law
        assert indicators["teacher_entropy"] == pytest.approx(math.log(16), abs=1e-4)


def test_scores_that_are_not_stored_give_the_same():
    generator = torch.Generator().manual_seed(0)
    directions, prototypes = torch.randn(20, 6, generator=generator), torch.randn(9, 6, generator=generator)
    stored = targets(torch.ones(20, 4), directions @ prototypes.T)
    factors = Target(Scores(directions, prototypes), stored.cls.potentials, TEMPERATURE)
    assert read(stored._replace(cls=factors)) == pytest.approx(read(stored), abs=1e-5)


def test_what_is_not_finite_is_nan_and_no_verdict():
    indicators = read(targets(torch.full((4, 3), math.nan), torch.zeros(4, 5)))
    assert math.isnan(indicators["rankme"])
    assert math.isnan(float(rankme(torch.full((2, 2), math.inf, dtype=torch.float64))))
    verdict = CollapseVerdict(10)
    for step in range(1, 11):
        assert verdict.take({"step": step, "collapse/information": math.nan}) is None


def record(step, information):
    return {
        "step": step,
        "collapse/information": information,
        "collapse/prototypes": 1.0,
        "collapse/rankme": 1.0,
    }


def test_the_verdict_needs_three_lines_in_a_row_after_the_beginning():
    verdict = CollapseVerdict(100)
    lines = [(5, 0.0), (10, 0.0), (15, 0.001), (20, 0.001), (25, 0.3), (30, 0.001), (35, 0.01), (40, 0.0)]
    said = {step: verdict.take(record(step, information)) for step, information in lines}
    assert {step for step, sentence in said.items() if sentence} == {40}
    assert "has collapsed" in said[40]
    assert verdict.take(record(45, 0.0)) is None  # it is news once
    assert "no longer collapsed" in verdict.take(record(50, 0.5))


def test_a_record_without_indicators_is_no_collapse():
    verdict = CollapseVerdict(10)
    assert [verdict.take({"step": step}) for step in range(2, 11)] == [None] * 9


@pytest.fixture
def settings(tiny_settings):
    """A longer run of the fixed recipe."""
    del tiny_settings["feedback"]
    return {**tiny_settings, "steps": 50, "designer": {"kind": "fixed"}, "checkpoint": {"every": 30}}


def collapsing(settings):
    """Targets without centring, a teacher on the student's heels, and a high learning rate."""
    settings["learner"] |= {"centring": "ema", "centre_momentum": 1.0, "koleo_weight": 0.0}
    settings["schedule"] = {"momentum": 0.5, "final_momentum": 0.5, "learning_rate": 5e-3}
    return settings


def last_record(output):
    return json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])


def test_a_run_that_collapses_says_so_once_however_often_it_is_stopped(settings, capfd):
    output = train(collapsing(settings)).output
    said = capfd.readouterr().err
    last = last_record(output)
    assert last["collapse/information"] < 0.01
    assert last["collapse/prototypes"] < 2

    (output / "checkpoints/step_00000050.pt").unlink()  # as if killed: it goes on from 30
    train(settings)
    assert (said + capfd.readouterr().err).count("the learner has collapsed") == 1


@pytest.mark.parametrize("centring", ["sinkhorn", "ema"])
def test_a_healthy_run_is_not_called_collapsed(settings, capfd, centring):
    settings["learner"]["centring"] = centring
    result = train(settings)
    assert "collapsed" not in capfd.readouterr().err
    assert last_record(result.output)["collapse/information"] > 0.05
