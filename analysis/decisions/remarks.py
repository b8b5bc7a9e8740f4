"""Notes on what may make a comparison of recipes unfair, or its intervals wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from analysis.decisions.allocate import counted_flops_per_token
from analysis.decisions.joint import Source
from analysis.fitting.fit import Fit

# Canonical columns that must mean the same in all tables.
SHARED_COLUMNS = ("N", "D", "C", "loss")
# Columns whose values must agree, and what is not comparable where they do not.
SHARED_VALUES = {
    "tokenizer": "losses per token",
    "source": "losses on held-out data",
    "vocab": "losses per token",
}
INSIDE_SWEEP = 1.0001  # C over a sweep's largest C, up to which it counts as inside


def note_sources(
    sources: Sequence[Source],
    fits: Sequence[Fit],
    options: Sequence[Callable[[np.ndarray], np.ndarray] | str | None],
    table: pd.DataFrame,
) -> list[str]:
    """All notes on what is compared.

    Args:
        sources: the runs of each recipe, the baseline first.
        fits: the law of each.
        options: how each one's FLOPs per token are counted.
        table: the multipliers at each budget.
    """
    return [
        *note_runs(sources),
        *note_columns(sources, fits),
        *note_values(sources),
        *note_objectives(sources),
        *note_flops_conventions(sources, fits, options),
        *note_multipliers(sources, fits, table),
    ]


def note_columns(sources: Sequence[Source], fits: Sequence[Fit]) -> list[str]:
    """Notes on canonical columns that were read from different columns."""
    notes = []
    first = fits[0].protocol.columns
    for source, fit in zip(sources[1:], fits[1:], strict=True):
        for name in SHARED_COLUMNS:
            column_a = first.get(name)
            column_b = fit.protocol.columns.get(name)
            if column_a != column_b:
                notes.append(
                    f"{name} is {column_a or 'absent'} in {sources[0].name} and "
                    f"{column_b or 'absent'} in {source.name}: name the same column for "
                    "both when loading, or part of the difference is one of counting"
                )
    return notes


def note_values(sources: Sequence[Source]) -> list[str]:
    """Notes on recipes whose losses are not of the same tokens or data."""
    notes = []
    first = sources[0]
    for source in sources[1:]:
        for name, measure in SHARED_VALUES.items():
            values_a = _list_values(first.runs.table, name)
            values_b = _list_values(source.runs.table, name)
            if values_a and values_b and values_a != values_b:
                notes.append(
                    f"{name} is {', '.join(values_a[:3])} in {first.name} and "
                    f"{', '.join(values_b[:3])} in {source.name}: their {measure} are "
                    "not comparable unless both are measured in the same way"
                )
    return notes


def _list_values(table: pd.DataFrame, name: str) -> list[str]:
    if name not in table.columns:
        return []
    return sorted(set(table[name].dropna().astype(str)))


def note_runs(sources: Sequence[Source]) -> list[str]:
    """What was noted of each recipe's runs when they were read, such as cells that were
    not tuned: it limits the comparison as it limits a fit.
    """
    notes = []
    for source in sources:
        of_runs = source.runs.notes
        if source.fit is not None:
            of_runs = source.fit.protocol.notes
        notes += [f"{source.name}: {note}" for note in of_runs]
    return notes


def note_objectives(sources: Sequence[Source]) -> list[str]:
    """Notes on fits that were given and were made with different objectives."""
    given = []
    for source in sources:
        if source.fit is not None:
            given.append((source.name, source.fit.protocol))
    notes = []
    for name, protocol in given[1:]:
        first_name, first = given[0]
        if (protocol.objective, protocol.delta) != (first.objective, first.delta):
            notes.append(
                f"objectives differ: {first.objective} in {first_name}, "
                f"{protocol.objective} in {name}"
            )
    return notes


def note_flops_conventions(
    sources: Sequence[Source],
    fits: Sequence[Fit],
    options: Sequence[Callable[[np.ndarray], np.ndarray] | str | None],
) -> list[str]:
    """Notes on a C in the tables that is not the C of the frontier."""
    notes = []
    for source, fit, option in zip(sources, fits, options, strict=True):
        is_surface = {"N", "D"} <= set(fit.law.variables)
        if option is not None or not is_surface:
            continue
        if counted_flops_per_token(fit) is not None:
            notes.append(
                f"the C of {source.name}'s runs is not 6 N D, with which its frontier "
                "is computed: give flops_per_token='counted'"
            )
    return notes


def note_multipliers(
    sources: Sequence[Source], fits: Sequence[Fit], table: pd.DataFrame
) -> list[str]:
    """Notes on infinite multipliers and on the extrapolation of the baseline's law."""
    notes = []
    baseline = sources[0].name
    largest = float(fits[0].compute.max())
    for source in sources[1:]:
        own: pd.DataFrame = table.loc[table["recipe"] == source.name]
        worst = own.loc[own["beyond_floor"].idxmax()]
        if worst["beyond_floor"] > 0:
            notes.append(
                f"{source.name}'s loss lies below {baseline}'s irreducible loss in "
                f"{100 * worst['beyond_floor']:.3g} % of the draws at "
                f"{worst['C']:.3g} FLOPs: the multiplier is infinite there"
            )
        is_inside = own["reach"] <= INSIDE_SWEEP
        needed = own["multiplier"] * own["C"]
        extrapolated = own.loc[is_inside & (needed > INSIDE_SWEEP * largest)]
        if len(extrapolated):
            notes.append(
                f"to match {source.name} at {extrapolated['C'].iloc[0]:.3g} FLOPs "
                f"{baseline} needs more than the {largest:.3g} of its largest run: the "
                f"multiplier rests on {baseline}'s extrapolated law from there on"
            )
    return notes
