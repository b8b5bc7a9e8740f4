"""One run per cell is kept, the best, and cells whose optimum may lie outside what was
tried are named.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import load_runs, tuned


@pytest.fixture
def grid() -> pd.DataFrame:
    """Two sizes, five rates: the first has its best inside, the second at the highest
    rate.
    """
    rates = 1e-3 * 2.0 ** np.arange(5)
    rows = []
    for N, best in ((1e6, 4e-3), (1e7, 64e-3)):
        rows += [
            {
                "N": N,
                "D": 1e9,
                "lr": lr,
                "loss": 3 - 0.1 * np.log10(N) + np.log(lr / best) ** 2,
            }
            for lr in rates
        ]
    return pd.DataFrame(rows)


def test_the_best_run_of_each_cell_is_kept_and_the_rest_are_rejected_with_a_reason(
    grid,
) -> None:
    runs = tuned(load_runs(grid))
    assert runs.table["lr"].tolist() == [4e-3, 16e-3]
    assert len(runs.rejected) == 8
    assert set(runs.rejected["reason"]) == {"not the best lr of its cell (N, D)"}


def test_a_best_rate_at_the_edge_is_flagged_with_its_row(grid) -> None:
    assert "1 of 2 cells" in tuned(load_runs(grid)).notes[-1]
    assert "rows 9)" in tuned(load_runs(grid)).notes[-1]
    inside = load_runs(grid[grid["N"] == 1e6])
    assert not any("untuned" in note for note in tuned(inside).notes)


def test_the_order_of_rows_does_not_matter(grid) -> None:
    shuffled = tuned(load_runs(grid.sample(frac=1, random_state=0)))
    assert sorted(shuffled.table["lr"]) == [4e-3, 16e-3]


def test_a_missing_column_is_named(grid) -> None:
    with pytest.raises(ValueError, match="tuned needs lr, which DataFrame lacks"):
        tuned(load_runs(grid.drop(columns="lr")))
