"""The simulated schedule keeps what is known of any: no less than its bound, no work
lost, Graham's guarantee.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ORDERS = ("planned", "matched", "ahead")


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "schedule.py"))


def dice(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("order", ORDERS)
def test_one_worker_needs_the_time_of_all_work(
    script: dict[str, Any], order: str
) -> None:
    assert script["simulate_sweep"](
        [3.0, 2.0, 1.0], [2.0], script["Failures"](), dice(), order
    ) == (3.0, 0)


@pytest.mark.parametrize("order", ORDERS)
def test_no_schedule_beats_the_bound_and_equal_workers_come_close(
    script: dict[str, Any], order: str
) -> None:
    """Graham 1966: any order ends within 2 - 1/m of the best on m equal workers; 1969:
    longest first within 4/3.
    """
    for seed in range(20):
        work, speeds = (
            sorted(dice(seed).exponential(1.0, 40).tolist(), reverse=True),
            dice(seed).uniform(1, 4, 8),
        )
        seconds, _ = script["simulate_sweep"](
            work, speeds.tolist(), script["Failures"](), dice(), order
        )
        assert seconds >= script["compute_lower_bound"](work, speeds.tolist())
        equal, _ = script["simulate_sweep"](
            work, [1.0] * 8, script["Failures"](), dice(), order
        )
        assert equal <= 4 / 3 * script["compute_lower_bound"](work, [1.0] * 8) + max(
            work
        )


@pytest.mark.parametrize("order", ORDERS)
def test_failures_cost_time_but_no_trunk(script: dict[str, Any], order: str) -> None:
    """One worker: seconds are those of the work, the absences, and at most one interval
    lost with each failure.
    """
    failures = script["Failures"](every=50.0, checkpoint=5.0, away=10.0, noticed=3.0)
    seconds, failed = script["simulate_sweep"](
        [100.0] * 10, [1.0], failures, dice(), order
    )
    assert failed > 5
    assert 1000 + 10 * failed <= seconds <= 1000 + 15 * failed
