"""The verb of the `scaling` command that makes a run table of what other programs keep:
import-runs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scaling.cli.fit import Positional
from scaling.cli.output import print_json
from scaling.config import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.importers.base import Importer

SHOWN_ROWS = 10
"""How many rows that cannot be used are shown."""

# Flag -> argument of the importers, where the two differ.
_ARGUMENTS = {"map": "mapping", "log": "format"}


@dataclass(frozen=True)
class ImportRunsArgs:
    """Make a run table, for `scaling fit`, of what a tracker, trainer or evaluation wrote.

    Examples: scaling import-runs wandb-chart chart.csv --series 'd{depth}' --out runs.csv
              scaling import-runs text-log logs/ --log megatron --out runs.csv
    """

    format: Positional[str]
    """wandb, wandb-chart, wandb-table, mlflow, tensorboard, trackio, trainer-state,
    levanter, lm-eval, json-folder, json-lines or text-log."""
    source: Positional[str]
    """The file or folder; of wandb entity/project."""
    out: Path
    """The table to write: .csv, .parquet or .jsonl."""
    series: str | None = None
    """Pattern of the series' names, as d{depth}_w{width}: a field is a number, {name:s}
    is text, {} is anything."""
    map: Path | None = None
    """Table with a column run and what each run is, as N, D, lr; instead of
    --series."""
    decimal: str | None = None
    """Decimal mark of --map, . or a comma."""
    thousands: str | None = None
    """Mark between groups of three digits of --map."""
    names: str | None = None
    """Pattern of the names of files or folders, as --series."""
    metric: str | None = None
    """The metric, where there are several."""
    keep: Literal["last", "lowest", "all"] | None = None
    """Which rows of a run's history."""
    history: tuple[str, ...] = ()
    """Logged keys: a row for each step that has all of them."""
    scalars: tuple[str, ...] = ()
    """Tags of TensorBoard."""
    explode: tuple[str, ...] = ()
    """Fields that hold lists, to spread over rows."""
    log: str | None = None
    """nanogpt, nanochat, megatron, torchtitan, or a regular expression with named
    groups."""
    json: bool = False

    def __call__(self) -> int:
        from analysis.importers.registry import IMPORTERS
        from scaling.store.query import EXPORT_SUFFIXES, export_runs

        if self.format not in IMPORTERS:
            from scaling.config.suggestions import did_you_mean

            hint = did_you_mean(self.format, list(IMPORTERS), label="formats")
            raise ConfigError(f"import-runs {self.format!r}: unknown; {hint}")
        if self.out.suffix.lower() not in EXPORT_SUFFIXES:
            raise ConfigError(
                f"--out {self.out}: the suffix decides the format; "
                f"use one of {', '.join(EXPORT_SUFFIXES)}"
            )
        importer = IMPORTERS[self.format]
        options = self._collect_options(importer)
        try:
            table = importer.read(self.source, **options)
        except ImportError as error:
            raise ConfigError(str(error)) from None
        self.out.parent.mkdir(parents=True, exist_ok=True)
        export_runs(table, self.out)
        self._print_table(table)
        return 0

    def _collect_options(self, importer: Importer) -> dict[str, object]:
        """The arguments of the importer that were given.

        Raises:
            ConfigError: it does not take one of them, or needs another.
        """
        given: dict[str, object] = {
            "series": self.series,
            "map": self.map,
            "decimal": self.decimal,
            "thousands": self.thousands,
            "names": self.names,
            "metric": self.metric,
            "keep": self.keep,
            "history": self.history,
            "scalars": self.scalars,
            "explode": self.explode,
            "log": self.log,
        }
        taken = {
            flag: _ARGUMENTS.get(flag, flag)
            for flag in given
            if _ARGUMENTS.get(flag, flag) in importer.options
        }
        options: dict[str, object] = {}
        for flag, value in given.items():
            if value is None or value == ():
                continue
            if flag not in taken:
                flags = ", ".join(f"--{name}" for name in taken)
                raise ConfigError(
                    f"--{flag}: {importer.name} does not take it; "
                    f"it takes {flags or 'none'}"
                )
            options[taken[flag]] = value
        if "log" in taken and self.log is None:
            raise ConfigError(
                f"import-runs {importer.name}: say how its lines read with --log, such "
                "as --log nanogpt"
            )
        return options

    def _print_table(self, table: pd.DataFrame) -> None:
        """What was written, and the rows that a fit will reject."""
        rejected: list[tuple[str, str]] = []
        if "status" in table.columns:
            for run_id, status in zip(table["run_id"], table["status"], strict=True):
                if status != "finished":
                    rejected.append((str(run_id), str(status)))
        if self.json:
            columns = [str(name) for name in table.columns]
            print_json(
                {
                    "out": str(self.out),
                    "rows": len(table),
                    "columns": columns,
                    "rejected": [list(pair) for pair in rejected],
                }
            )
            return
        print(f"{self.out}: {len(table)} rows; columns {', '.join(table.columns)}")
        if not rejected:
            return
        print(
            f"cannot be used: {len(rejected)} of {len(table)} rows, which `scaling fit` "
            "rejects by their status:",
            file=sys.stderr,
        )
        for run_id, reason in rejected[:SHOWN_ROWS]:
            print(f"  {run_id}: {reason}", file=sys.stderr)
        if len(rejected) > SHOWN_ROWS:
            print(f"  ... and {len(rejected) - SHOWN_ROWS} more", file=sys.stderr)
