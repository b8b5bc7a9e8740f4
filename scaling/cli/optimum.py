"""The verb of the `scaling` command that finds the best hyper-parameters: optimum."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from scaling.cli.fit import ColumnOptions, Positional
from scaling.cli.output import print_json, to_records


@dataclass(frozen=True)
class OptimumArgs:
    """Find the best learning rate, or other hyper-parameters, of each size, and whether
    it moves.

    Examples: scaling optimum runs/mine --over lr --by width
              scaling optimum runs.csv --over lr batch_tokens --by N D --columns.N params
    """

    runs: Positional[Path]
    """A sweep's folder, or a .csv, .parquet or .jsonl file."""
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    over: tuple[str, ...] = ("lr",)
    """Columns of what was tuned."""
    by: tuple[str, ...] = ("N", "D")
    """Columns that make a cell."""
    span: float = 5.0
    """Values further than this factor from the best one of a cell are left out."""
    json: bool = False

    def __call__(self) -> int:
        from analysis import optimum

        found = optimum(self.columns.read(self.runs), self.over, self.by, self.span)
        if self.json:
            print_json(
                {
                    "cells": to_records(found.cells),
                    "laws": to_records(found.laws),
                    "verdicts": found.verdicts,
                    "scatter": found.scatter,
                    "rejected": found.runs.reasons(),
                    "notes": found.notes,
                }
            )
        else:
            print(found)
        return 0
