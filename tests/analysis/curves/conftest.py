"""Curves of known laws, and the authors' parameters on the public curves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import scipy.signal

from analysis.curves.features import compute_features
from analysis.curves.schedule import Schedule
from analysis.laws.curves import CURVE_LAWS

PEAK = 3e-4
WARMUP = 200
MULTI_POWER = {
    "L0": 3.0405,
    "A": 0.5247,
    "B": 363.79,
    "alpha": 0.5079,
    "beta": 0.5828,
    "gamma": 0.6414,
    "C": 2.0656,
}
ANNEALING = {"L0": 3.24, "A": 0.55, "C": 0.64, "alpha": 0.81, "tau": 200.0}
TRUTH = {"multi_power": MULTI_POWER, "annealing": ANNEALING}

Simulate = Callable[..., pd.DataFrame]


def make_schedules() -> dict[str, Schedule]:
    """Three runs of 3,000 steps, one of them in two stages."""
    two_stages = np.array(Schedule.constant(PEAK, 3000, WARMUP).lr)
    two_stages[1500:] = 0.3 * PEAK
    return {
        "constant": Schedule.constant(PEAK, 3000, WARMUP),
        "cosine": Schedule.cosine(PEAK, 3000, WARMUP, 0.1 * PEAK),
        "stages": Schedule(two_stages),
    }


def correlate(rng: np.random.Generator, correlation: float, rows: int) -> np.ndarray:
    """[rows] numbers each of which keeps a share of the one before; the new part of each
    has unit variance.
    """
    new = rng.standard_normal(rows)
    return scipy.signal.lfilter([1.0], [1.0, -correlation], new)


@pytest.fixture(scope="session")
def simulate() -> Simulate:
    """Rows every 50 steps of the three runs, with log-normal noise."""

    def make(law: str, noise: float = 0.0, seed: int = 0) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        found = CURVE_LAWS[law]
        parts = []
        for name, schedule in make_schedules().items():
            steps = np.arange(WARMUP, 3001, 50)
            features = compute_features(schedule, steps, found.warmup)
            x = {variable: features[variable] for variable in found.variables}
            loss = found.predict(TRUTH[law], **x)
            loss = loss * np.exp(noise * rng.standard_normal(len(loss)))
            rows = {"run": name, "step": steps, "lr": schedule.lr[steps], "loss": loss}
            parts.append(pd.DataFrame(rows))
        return pd.concat(parts, ignore_index=True)

    return make
