"""The estimate of a plan's time: exact where the step time is exact, and a measurement
that is one.
"""

from __future__ import annotations

import dataclasses

import pytest

from scaling import LoopConfig, Plan, grid_plan
from scaling.model.flops import flops_per_token
from scaling.planning.timing import (
    Timing,
    estimate_plan_seconds,
    measure_step,
    select_calibration_runs,
)


@pytest.fixture(scope="module")
def plan(make_run) -> Plan:
    run = make_run()
    options = {
        "model": run.model,
        "optim": run.optim,
        "min_steps": 1,
        "min_tokens_per_parameter": 0.0,
    }
    return grid_plan([8, 16, 24], [10_000, 20_000], data=run.data, **options)


def timings(plan: Plan, a: float, b: float, start: float) -> list[Timing]:
    """Step times of a + b x FLOPs for the runs that are measured."""
    return [
        Timing(a + b * r.batch_tokens * flops_per_token(r.model), start)
        for r in select_calibration_runs(plan)
    ]


def test_the_cheapest_and_the_most_expensive_shape_are_measured(plan):
    assert [run.model.width for run in select_calibration_runs(plan)] == [8, 24]


def test_one_worker_takes_the_sum_and_many_the_longest(plan):
    a, b, start = 1e-3, 1e-10, 2.0
    trunks = [
        start + t.steps * (a + b * t.batch_tokens * flops_per_token(t.model))
        for t in plan.trunks()
    ]
    measured = timings(plan, a, b, start)
    assert estimate_plan_seconds(plan, measured, 1) == pytest.approx(sum(trunks))
    assert estimate_plan_seconds(plan, measured, 3) == pytest.approx(max(trunks))
    assert max(trunks) < estimate_plan_seconds(plan, measured, 2) < sum(trunks)


def test_a_shape_is_timed(plan):
    run, loop = plan.runs[0], LoopConfig(strategy="single")
    new = dataclasses.replace(
        run, model=dataclasses.replace(run.model, vocab=19)
    )  # no other test has compiled this
    step, start = measure_step(new, loop)
    assert 0 < step < start  # compiling takes longer than a step
    assert 0 <= measure_step(new, loop)[1] < start  # and is done once
