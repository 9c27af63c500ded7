import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpt_vision.training.schedules import ScheduleConfig, scheduled_values


def dinov2_schedule(base, final, total, warmup):
    """DINOv2's CosineScheduler written out step by step, its warm-up beginning at one step's share."""
    rise = [base * (step + 1) / warmup for step in range(warmup)]
    left = max(1, total - warmup - 1)
    fall = [
        final + 0.5 * (base - final) * (1 + math.cos(math.pi * min(1, step / left)))
        for step in range(total - warmup)
    ]
    return rise + fall


@given(steps=st.integers(2, 300), warmup=st.floats(0, 0.9), base=st.floats(1e-5, 1e-2))
def test_learning_rate_is_the_published_cosine(steps, warmup, base):
    config = ScheduleConfig(learning_rate=base, final_learning_rate=1e-6, warmup=warmup)
    expected = dinov2_schedule(base, 1e-6, steps, round(warmup * steps))
    got = [scheduled_values(config, step, steps).learning_rate for step in range(steps)]
    assert got == pytest.approx(expected, rel=1e-9)


@given(steps=st.integers(2, 300))
def test_weight_decay_and_momentum_run_from_first_value_to_last(steps):
    config = ScheduleConfig()
    first, last = (scheduled_values(config, step, steps) for step in (0, steps - 1))
    assert (first.weight_decay, first.momentum) == pytest.approx((0.04, 0.992))
    assert (last.weight_decay, last.momentum) == pytest.approx((0.2, 1.0))


def test_teacher_temperature_rises_linearly_and_stays():
    config = ScheduleConfig(teacher_temperature_warmup=0.5)
    got = [scheduled_values(config, step, 10).teacher_temperature for step in range(10)]
    assert got == pytest.approx([0.04, 0.046, 0.052, 0.058, 0.064, 0.07, 0.07, 0.07, 0.07, 0.07])


def test_prototypes_are_frozen_for_their_share():
    config = ScheduleConfig(freeze_prototypes=0.25)
    frozen = [scheduled_values(config, step, 8).prototypes_frozen for step in range(8)]
    assert frozen == [True, True] + [False] * 6


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_runs_have_a_schedule(steps):
    for step in range(steps):
        values = scheduled_values(ScheduleConfig(), step, steps)
        assert values.learning_rate > 0
        assert math.isfinite(values.momentum)
