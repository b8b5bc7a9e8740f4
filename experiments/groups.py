"""A column's statistic over groups of rows, as a series that type checkers know."""

from __future__ import annotations

import pandas as pd


def average_by(
    table: pd.DataFrame, by: str | list[str], column: str = "loss"
) -> pd.Series:
    """Mean of a column over the rows that agree in `by`, indexed by `by`."""
    means = table.groupby(by)[column].mean()
    assert isinstance(means, pd.Series)
    return means


def find_least_by(table: pd.DataFrame, by: str, column: str = "loss") -> pd.Series:
    """Least value of a column over the rows that agree in `by`, indexed by `by`."""
    least = table.groupby(by)[column].min()
    assert isinstance(least, pd.Series)
    return least
