"""The rejected rows of a table, as tables of runs and of curves show them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

SHOWN_REJECTED = 10
"""How many rejected rows are shown."""


def list_reasons(rejected: pd.DataFrame) -> list[tuple[int, str]]:
    """(row, reason) of every rejected row.

    Args:
        rejected: with the columns row and reason.
    """
    pairs = zip(rejected["row"], rejected["reason"], strict=True)
    return [(int(row), str(reason)) for row, reason in pairs]


def format_rejected(rejected: pd.DataFrame, notes: Sequence[str]) -> list[str]:
    """Lines that show the first rejected rows, how many more there are, and notes."""
    lines = []
    for row, reason in list_reasons(rejected)[:SHOWN_REJECTED]:
        lines.append(f"  row {row}: {reason}")
    hidden = len(rejected) - SHOWN_REJECTED
    if hidden > 0:
        lines.append(f"  ... and {hidden} more, see .rejected")
    return [*lines, *(f"  note: {note}" for note in notes)]
