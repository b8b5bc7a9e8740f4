"""The verb of the `scaling` command that shows how a table is read: review."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scaling.cli.fit import ColumnOptions, Positional
from scaling.cli.output import print_json
from scaling.config import ConfigError

if TYPE_CHECKING:
    from analysis import Runs

SUFFIXES = (".html", ".htm")


@dataclass(frozen=True)
class ReviewArgs:
    """Show in one page how a table is read: columns, units, guesses, rejected rows, and
    the command that fits it with every guess stated.

    Examples: scaling review runs.csv
              scaling review runs.csv --columns.N params --unit N=millions --out page.html
    """

    table: Positional[Path]
    """A sweep's folder, or a .csv, .tsv, .txt, .parquet or .jsonl file."""
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    out: Path = Path("review.html")
    """The page to write."""
    json: bool = False

    def __call__(self) -> int:
        from analysis import NoUsableRowError

        if self.out.suffix.lower() not in SUFFIXES:
            raise ConfigError(
                f"--out {self.out}: the page is HTML; use the suffix .html"
            )
        try:
            runs = self.columns.read(self.table)
        except NoUsableRowError as error:
            self._write(error.runs)
            raise
        self._write(runs)
        return 0

    def _write(self, runs: Runs) -> None:
        """Write the page, and print where it is."""
        from analysis import write_review

        path = write_review(self.out, runs, title=f"Review of {self.table.name}")
        if not self.json:
            print(path)
            return
        print_json(
            {"review": str(path), "accepted": len(runs), "rejected": len(runs.rejected)}
        )
