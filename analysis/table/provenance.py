"""How a run table was read: what the caller stated and what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from analysis.table.readers import Source


@dataclass(frozen=True, eq=False)
class Provenance:
    """How `load_runs` read a table.

    Attributes:
        source: the table before any row was judged.
        stated: keyword of `load_runs` -> what the caller gave, but for the units.
        stated_units: canonical name -> unit, as the caller gave them.
        columns: canonical name -> source column.
        formulas: canonical name -> formula, of the quantity that was computed.
        units: canonical name -> unit, given or read from the header.
        values: canonical name -> [rows] numbers after conversion, of accepted and
            rejected rows; NaN where there is none.
        kinds: reason -> its kind, which many rows share.
        tuned: column over which the best run of each cell was kept; "" if none was.
    """

    source: Source
    stated: Mapping[str, str]
    stated_units: Mapping[str, str]
    columns: Mapping[str, str]
    formulas: Mapping[str, str]
    units: Mapping[str, str]
    values: Mapping[str, pd.Series]
    kinds: Mapping[str, str] = field(default_factory=dict)
    tuned: str = ""
