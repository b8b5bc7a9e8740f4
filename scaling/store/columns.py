"""The columns of the run table, as `columns.toml` declares them.

`python -m scaling.store.columns` prints the table of docs/reference/columns.md.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["id", "text", "flag", "number"]
SCHEMA = Path(__file__).with_name("columns.toml")


@dataclass(frozen=True)
class Column:
    """One column of the run table; `columns.toml` describes the fields."""

    name: str
    kind: Kind
    meaning: str
    unit: str = ""
    positive: bool = False
    may_be_missing: bool = False
    optional: bool = False
    default: str = ""


def read_columns(path: Path = SCHEMA) -> tuple[Column, ...]:
    """The columns that a schema file declares, in its order."""
    declared = tomllib.loads(path.read_text(encoding="utf-8"))["column"]
    return tuple(Column(**fields) for fields in declared)


COLUMNS = read_columns()
COLUMN_NAMES = tuple(column.name for column in COLUMNS)
COLUMN_KINDS: dict[str, Kind] = {column.name: column.kind for column in COLUMNS}


def format_reference() -> str:
    """The Markdown page that documents the columns."""
    lines = [
        "# Columns of the run table",
        "",
        "One row is one run at one token budget. `scaling.run_table` returns this "
        "table,",
        "and `analysis.load_runs` reads it. A `result.json` holds the same names.",
        "",
        "| Column | Kind | Unit | Meaning |",
        "|---|---|---|---|",
    ]
    for column in COLUMNS:
        cells = (f"`{column.name}`", column.kind, column.unit, column.meaning)
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(format_reference(), end="")
