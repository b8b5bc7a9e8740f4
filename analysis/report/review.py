"""Write how a run table was read as one HTML file: what was read, guessed and rejected.

The file is self-contained, and its size is bounded whatever the table holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.hoffmann.isoflop import TOLERANCE, group_by_budget
from analysis.plots.rows import list_rejected_points, plot_rows
from analysis.plots.style import format_flops
from analysis.report.html import (
    Picture,
    draw_picture,
    load_template,
    write_sentence,
)
from analysis.report.tables import (
    Cell,
    Table,
    Write,
    format_digits,
    format_loss,
    format_whole,
    make_cell,
)
from analysis.table.choices import (
    Choice,
    describe_column,
    format_fit_command,
    format_option,
    list_choices,
    list_unused_columns,
)
from analysis.table.provenance import Provenance
from analysis.table.readers import read_written_cells, replace_unseen
from analysis.table.runs import CANONICAL, Runs

MAX_ACCEPTED = 500
"""Accepted rows that the page shows."""

MAX_REJECTED = 50
"""Rejected rows that the page shows of each kind of reason."""

MAX_KINDS = 40
"""Kinds of reasons that the page shows."""

MAX_COLUMNS = 16
"""Columns of a table that the page shows."""

MAX_UNUSED = 100
"""Columns that were not used, of those that the page names."""

MAX_TEXT = 80
"""Characters of a cell that the page shows."""

N_EXAMPLES = 3
"""Cells of a column that are shown as written and as read."""

MAX_EXAMPLE = 24
"""Characters of such a cell."""

NEEDED = ("N", "D", "loss")
"""What the law that is fitted by default needs."""

LAW_OF_COMPUTE = "power_law_C"
"""The law of a table that has neither N nor D."""


@dataclass(frozen=True)
class RejectedKind:
    """The rejected rows whose reasons are of one kind.

    Attributes:
        kind: what their reasons have in common.
        count: how many rows there are.
        table: the first of them.
    """

    kind: str
    count: int
    table: Table


def write_review(path: str | Path, runs: Runs, *, title: str | None = None) -> Path:
    """Write how a table was read as one self-contained HTML file and return its path.

    The page shows what was read; what was guessed, with the option that states it; the
    rejected rows by reason; the accepted rows; and the command that fits the table with
    every guess stated.

    Args:
        path: of the file; its folder is created.
        runs: as `load_runs` gives them, or the `runs` of its `NoUsableRowError`.
        title: of the page.

    Raises:
        ValueError: the runs do not come from `load_runs`.
    """
    path = Path(path)
    provenance = runs.provenance
    if provenance is None:
        raise ValueError(
            "write_review: these runs do not say how they were read; "
            "give what load_runs returns"
        )
    choices = list_choices(provenance)
    guesses = [choice for choice in choices if not choice.is_stated]
    guesses += _find_budget_guess(runs)
    unused = list_unused_columns(provenance)
    known = {**provenance.columns, **provenance.formulas}
    # Two of N, D, C give the third.
    is_of_compute = "C" in known and "loss" in known and "N" not in known
    missing = [name for name in NEEDED if name not in known and not is_of_compute]
    filled = _fill_missing_roles(missing, unused)
    written = read_written_cells(provenance.source)
    is_file = runs.source != "DataFrame"
    command = format_fit_command(runs.source if is_file else "TABLE", choices + filled)
    if is_of_compute:
        command += f" --law {LAW_OF_COMPUTE}"
    page = load_template("review.html.j2").render(
        title=title or f"Review of {Path(runs.source).name}",
        source=runs.source,
        n_accepted=len(runs),
        n_rejected=len(runs.rejected),
        n_guesses=len(guesses),
        missing=missing,
        filled=filled,
        file=_tabulate_file(runs, choices),
        roles=_tabulate_roles(provenance, choices, written),
        absent=[name for name in CANONICAL if name not in known],
        guesses=_tabulate_guesses(guesses),
        stated=[choice for choice in choices if choice.is_stated],
        candidates=_tabulate_candidates(unused),
        others=[_shorten(name) for name, roles in unused.items() if not roles],
        max_others=MAX_UNUSED,
        kinds=_group_rejected(runs, written),
        max_kinds=MAX_KINDS,
        n_columns=len(provenance.source.frame.columns),
        max_columns=MAX_COLUMNS,
        notes=[write_sentence(note) for note in runs.notes],
        pictures=_draw_pictures(runs),
        accepted=_tabulate_accepted(runs),
        command=command,
        is_file=is_file,
        is_of_compute=is_of_compute,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(replace_unseen(page), encoding="utf-8")
    return path


def _find_budget_guess(runs: Runs) -> list[Choice]:
    """How approach 2 will group the rows, where no column says it."""
    if "budget" in runs.table.columns or "C" not in runs.table.columns:
        return []
    if not len(runs):
        return []
    groups = group_by_budget(runs.table, TOLERANCE)
    count = groups.rows["group"].nunique()
    return [
        Choice(
            subject="budgets",
            value=f"{count} groups of rows, for approach 2",
            reason=f"no column budget; {groups.rule}",
            option=("--columns.budget",),
            role="budget",
        )
    ]


def _fill_missing_roles(
    missing: Sequence[str], unused: dict[str, tuple[str, ...]]
) -> list[Choice]:
    """The column that the missing roles may be in, where one name alone suggests it."""
    filled = []
    for name in missing:
        columns = [column for column, roles in unused.items() if name in roles]
        if len(columns) == 1:
            filled.append(describe_column(name, columns[0]))
    return filled


def _tabulate_file(runs: Runs, choices: Sequence[Choice]) -> Table:
    """The file, how it is written, and how many rows it has."""
    rows = [[make_cell("source"), make_cell(runs.source)]]
    for choice in choices:
        if not choice.role and not choice.subject.startswith(("column ", "tuned")):
            text = f"{choice.value} ({_describe_origin(choice)})"
            rows.append([make_cell(choice.subject), make_cell(_shorten(text, 400))])
    n_rows = len(runs) + len(runs.rejected)
    text = f"{n_rows:,}, numbered from 0 below the header"
    rows.append([make_cell("rows"), make_cell(text)])
    return Table.of(("", ""), rows)


def _describe_origin(choice: Choice) -> str:
    return "stated" if choice.is_stated else choice.reason


def _tabulate_roles(
    provenance: Provenance, choices: Sequence[Choice], written: pd.DataFrame
) -> Table:
    """One row for each canonical quantity: where it comes from and what it holds."""
    units = {
        choice.role: choice
        for choice in choices
        if choice.subject == f"unit of {choice.role}"
    }
    columns = {
        "Role": "",
        "Source column": "",
        "Unit": "",
        "Min": "of the numbers, after conversion",
        "Median": "of the numbers, after conversion",
        "Max": "of the numbers, after conversion",
        "Missing": "empty cells",
        "As written \N{RIGHTWARDS ARROW} as read": "the first rows",
    }
    rows = []
    for name in (*provenance.columns, *provenance.formulas):
        unit = units.get(name)
        shown_unit = ""
        if unit is not None:
            shown_unit = f"{unit.value} ({_describe_unit_origin(unit)})"
        column = provenance.columns.get(name)
        shown_column = f"computed: {provenance.formulas.get(name)}"
        n_missing: object = ""
        if column is not None:
            origin = "stated" if name in provenance.stated else "by its name"
            shown_column = f"{_shorten(column)} ({origin})"
            n_missing = int(provenance.source.frame.loc[:, column].isna().sum())
        rows.append(
            [
                make_cell(name),
                make_cell(shown_column),
                make_cell(shown_unit),
                *_summarize_values(provenance, name),
                make_cell(n_missing),
                make_cell(_show_examples(provenance, name, written)),
            ]
        )
    return Table.of(columns, rows)


def _describe_unit_origin(unit: Choice) -> str:
    return "stated" if unit.is_stated else unit.reason.partition(";")[0]


def _write_example(cell: object) -> str:
    return _shorten(_write_cell(cell), MAX_EXAMPLE)


def _summarize_values(provenance: Provenance, name: str) -> list[Cell]:
    """Smallest, median and largest number of a quantity; empty where it has none."""
    if name not in provenance.values:
        return [make_cell("")] * 3
    numbers = provenance.values[name].to_numpy(float)
    numbers = numbers[np.isfinite(numbers)]
    if not len(numbers):
        return [make_cell("")] * 3
    ends = (numbers.min(), float(np.median(numbers)), numbers.max())
    return [make_cell(float(number), format_digits) for number in ends]


def _show_examples(provenance: Provenance, name: str, written: pd.DataFrame) -> str:
    """The first cells of a quantity as written and as read."""
    if name not in provenance.columns:
        return ""
    cells = list(written.loc[:, provenance.columns[name]].head(N_EXAMPLES))
    if name not in provenance.values:
        return "; ".join(_write_example(cell) for cell in cells)
    numbers = provenance.values[name].head(N_EXAMPLES)
    parts = []
    for cell, number in zip(cells, numbers, strict=True):
        read = f"{number:.6g}" if np.isfinite(number) else "no number"
        parts.append(f"{_write_example(cell)} \N{RIGHTWARDS ARROW} {read}")
    return "; ".join(parts)


def _write_cell(cell: object) -> str:
    """A cell as the source writes it."""
    if cell is None or cell is pd.NA or cell is pd.NaT:
        return "(empty)"
    if isinstance(cell, float) and np.isnan(cell):
        return "(empty)"
    if isinstance(cell, str) and not cell.strip():
        return "(empty)"
    if isinstance(cell, float):
        return f"{cell:.12g}"
    return _shorten(str(cell))


def _shorten(text: str, most: int = MAX_TEXT) -> str:
    if len(text) <= most:
        return text
    return text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _tabulate_guesses(guesses: Sequence[Choice]) -> Table:
    """What was decided without being told, with the option that states it."""
    rows = []
    for guess in guesses:
        option = format_option(guess)
        cells = (guess.subject, guess.value, guess.reason, option)
        rows.append([make_cell(_shorten(text, 400)) for text in cells])
    return Table.of(("What", "Taken", "Why", "Option that states it"), rows)


def _tabulate_candidates(unused: dict[str, tuple[str, ...]]) -> Table:
    """The columns that were not used and could be a role, with the option that says so."""
    rows = []
    for name, roles in unused.items():
        if roles and len(rows) < MAX_UNUSED:
            option = format_option(describe_column(roles[0], name))
            cells = (name, f"could be {' or '.join(roles)}", option)
            rows.append([make_cell(_shorten(text)) for text in cells])
    return Table.of(("Column", "", "Option that uses it"), rows)


def _group_rejected(runs: Runs, written: pd.DataFrame) -> list[RejectedKind]:
    """The rejected rows by the kind of their reasons, the most frequent first."""
    assert runs.provenance is not None
    kinds = runs.provenance.kinds
    rejected = runs.rejected
    by_kind = rejected["reason"].map(lambda reason: kinds.get(reason, reason))
    groups = []
    for kind, count in by_kind.value_counts().items():
        rows = rejected.loc[by_kind == kind].head(MAX_REJECTED)
        table = _tabulate_rejected(runs.provenance, rows, written)
        groups.append(RejectedKind(_shorten(str(kind), 300), int(count), table))
    return groups


def _tabulate_rejected(
    provenance: Provenance, rows: pd.DataFrame, written: pd.DataFrame
) -> Table:
    """Rejected rows with their reasons and their cells as the source writes them."""
    columns = _choose_columns(provenance)
    layout = provenance.source.layout
    table = []
    for record in rows.to_dict("records"):
        values = [record.get(column) for column in columns]
        if layout is not None:
            cells = written.iloc[int(record["row"]) - layout.first_row]
            values = [cells[column] for column in columns]
        table.append(
            [
                make_cell(int(record["row"])),
                make_cell(_shorten(str(record["reason"]), 200)),
                *(make_cell(_write_cell(value)) for value in values),
            ]
        )
    return Table.of(("Row", "Reason", *(_shorten(name) for name in columns)), table)


def _choose_columns(provenance: Provenance) -> list[str]:
    """The columns of the source that the page shows, those that were used first."""
    present = provenance.source.frame.columns
    first = [*provenance.columns.values(), provenance.tuned, "status", "diverged"]
    first += ["run_id", *present]
    chosen = [name for name in dict.fromkeys(first) if name in present]
    return chosen[:MAX_COLUMNS]


def _tabulate_accepted(runs: Runs) -> Table:
    """The first accepted rows: canonical columns, then those of the source."""
    assert runs.provenance is not None
    writers = {
        "N": format_whole,
        "D": format_whole,
        "C": format_flops,
        "budget": format_flops,
        "loss": format_loss,
    }
    columns = ["source_row", *runs.columns]
    used = {*columns, *runs.provenance.columns.values()}
    columns += [name for name in runs.table.columns if name not in used]
    columns = columns[:MAX_COLUMNS]
    rows = []
    for record in runs.table.loc[:, columns].head(MAX_ACCEPTED).to_dict("records"):
        rows.append([_make_cell(record[name], writers.get(name)) for name in columns])
    return Table.of(("Row", *(_shorten(name) for name in columns[1:])), rows)


def _make_cell(value: object, write: Write | None) -> Cell:
    """A cell of any value, whose text is bounded."""
    if isinstance(value, int | float | np.number | np.bool_) or value is None:
        return make_cell(value, write)
    return make_cell(_shorten(str(value)))


def _draw_pictures(runs: Runs) -> list[Picture]:
    """The loss over each of N, D and C that the table has."""
    assert runs.provenance is not None
    pictures = []
    for x in ("N", "D", "C"):
        if x not in runs.provenance.values:
            continue
        n_left_out = len(runs.rejected) - len(list_rejected_points(runs, x))
        caption = "Point at a marker to see its row."
        if n_left_out:
            caption += (
                f" {n_left_out:,} of {len(runs.rejected):,} rejected rows have no "
                f"positive {x} and loss to be drawn at."
            )
        draw = partial(plot_rows, runs, x)
        pictures.append(draw_picture(f"Loss over {x}", caption, draw))
    return pictures
