"""Intervals of a table of many rows are those of refitting every replicate."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.fitting import bootstrap, large_tables
from analysis.fitting.fit import Fit, fit
from analysis.fitting.large_tables import (
    LARGE_ROWS,
    MAX_GROUPS,
    pool_units,
    step_replicates,
)
from analysis.fitting.solver import Solution


def make_table(rows: int, seed: int = 0, trunks: int = 0) -> pd.DataFrame:
    """Rows of a known law. With trunks each has its own size, and an effect that all
    its rows share.
    """
    rng = np.random.default_rng(seed)
    N = np.exp(rng.uniform(np.log(1e7), np.log(1e10), rows))
    D = np.exp(rng.uniform(20, 26, rows))
    noise = 0.01 * rng.standard_normal(rows)
    columns = {}
    if trunks:
        trunk = rng.integers(trunks, size=rows)
        N = np.geomspace(1e7, 1e10, trunks)[trunk]
        noise = noise + 0.004 * rng.standard_normal(trunks)[trunk]
        columns = {"trunk": trunk}
    loss = (1.8 + 480 / N**0.35 + 2100 / D**0.37) * np.exp(noise)
    return pd.DataFrame({"N": N, "D": D, "loss": loss, **columns})


def refit_in_full(fitted: Fit, draws: int, unit: str) -> bootstrap.Bootstrap:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "LARGE_ROWS", len(fitted.residuals))
        return fitted.bootstrap(draws, unit=unit)


@pytest.mark.slow
@pytest.mark.parametrize("trunks", [0, 150])
def test_intervals_are_those_of_refitting_every_replicate(trunks: int) -> None:
    """Spreads of 200 and 1,000 draws differ by 5.5 %: three times that is allowed."""
    fitted = fit(make_table(6000, trunks=trunks), effects="row")
    unit = "trunk" if trunks else "row"
    stepped = fitted.bootstrap(1000, unit=unit)
    refitted = refit_in_full(fitted, 200, unit)
    for name in fitted.free:
        spread, expected = stepped.draws[name].std(), refitted.draws[name].std()
        assert spread == pytest.approx(expected, rel=3 * 0.055)
        shift = stepped.draws[name].mean() - refitted.draws[name].mean()
        assert abs(shift) < 4 * expected / np.sqrt(200)


def test_a_replicate_is_where_its_refit_is() -> None:
    """Without noise beyond Huber's threshold the step is exact but for curvature."""
    fitted = fit(make_table(LARGE_ROWS + 1), objective="least_squares")
    solver = fitted.solver()
    labels = np.arange(LARGE_ROWS + 1)
    stepped = step_replicates(fitted, solver, 40, 0, labels)
    assert stepped is not None
    rng = np.random.default_rng(0)
    groups = pool_units(rng, labels, MAX_GROUPS)
    counts = rng.multinomial(MAX_GROUPS, np.full(MAX_GROUPS, 1 / MAX_GROUPS), size=40)
    refitted = solver.local_fits(counts[:8, groups].astype(float), stepped[:8])
    difference = np.abs(refitted.z - stepped[:8]) / stepped.std(axis=0)
    assert difference.max() < 0.1


def test_a_table_whose_refits_lie_elsewhere_takes_no_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted = fit(make_table(LARGE_ROWS + 1), objective="least_squares")
    labels = np.arange(LARGE_ROWS + 1)
    solver = fitted.solver()
    assert step_replicates(fitted, solver, 50, 0, labels) is not None
    true_fits = solver.local_fits

    def find_elsewhere(counts: np.ndarray, starts: np.ndarray) -> Solution:
        found = true_fits(counts, starts)
        return found._replace(z=found.z * 1.05)

    monkeypatch.setattr(solver, "local_fits", find_elsewhere)
    assert step_replicates(fitted, solver, 50, 0, labels) is None


def test_groups_hold_equally_many_units_and_whole_units() -> None:
    labels = np.repeat(np.arange(1000), 3)
    groups = pool_units(np.random.default_rng(0), labels, 50)
    assert (np.bincount(groups) == 60).all()
    assert (groups.reshape(1000, 3) == groups.reshape(1000, 3)[:, :1]).all()
    few = pool_units(np.random.default_rng(0), labels, 1000)
    assert (few == labels).all()


def test_the_groups_scatter_as_their_units_do() -> None:
    """The mean of 20,000 values: its standard error by groups is the known one."""
    rng = np.random.default_rng(3)
    values = rng.standard_normal(20_000)
    groups = pool_units(rng, np.arange(20_000), MAX_GROUPS)
    sums = np.bincount(groups, values)
    shares = np.full(MAX_GROUPS, 1 / MAX_GROUPS)
    means = rng.multinomial(MAX_GROUPS, shares, size=2000) @ sums / 20_000
    assert means.std() == pytest.approx(values.std() / np.sqrt(20_000), rel=0.06)


def test_a_replicate_that_differs_from_its_refit_is_not_used() -> None:
    rng = np.random.default_rng(0)
    replicates = rng.standard_normal((100, 2))
    assert large_tables._agree(replicates, replicates[:3] + 0.1)
    assert not large_tables._agree(replicates, replicates[:3] + 0.5)
