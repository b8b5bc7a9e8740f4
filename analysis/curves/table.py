"""Learning curves: how a long table of logged losses is read, and which rows are
rejected.

The table has one row for each logged point of each run. A run's learning rates give its
schedule (`analysis.curves.schedule.Schedule.from_rows`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.curves.schedule import Schedule
from analysis.suggestions import did_you_mean
from analysis.table.readers import Source, parse_numbers, read_table, replace_unseen
from analysis.table.rejected import format_rejected, list_reasons


@dataclass(frozen=True, eq=False)
class Curves:
    """Validated learning curves.

    Attributes:
        table: the accepted rows, sorted by run and step: run (text), step, lr, loss in
            nats per token, split where the source has one, and `source_row`, the 0-based
            position in the source.
        rejected: row (0-based position in the source) and reason.
        schedules: run -> its learning rate at every step.
        columns: run, step or tokens, lr, loss, split -> source column.
        source: path, or "DataFrame".
        notes: warnings about runs.
    """

    table: pd.DataFrame
    rejected: pd.DataFrame
    schedules: dict[str, Schedule]
    columns: dict[str, str]
    source: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    def __str__(self) -> str:
        lines = [
            f"{len(self.schedules)} runs, {len(self.table)} rows from {self.source}; "
            f"{len(self.rejected)} rejected"
        ]
        return "\n".join(lines + format_rejected(self.rejected, self.notes))

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs, in the order of the table."""
        return tuple(self.schedules)

    def reasons(self) -> list[tuple[int, str]]:
        """(row, reason) of every rejected row."""
        return list_reasons(self.rejected)

    def get_rows(self, run: str) -> pd.DataFrame:
        """The rows of one run.

        Raises:
            ValueError: no run of that name.
        """
        return self.take([run]).table

    def select(self, split: str) -> Curves:
        """The runs whose `split` has that value.

        Raises:
            ValueError: the curves have no split, or none of that value.
        """
        if "split" not in self.table.columns:
            raise ValueError(
                f"{self.source} has no split; name its column when loading: "
                "load_curves(..., split='...')"
            )
        known = sorted(set(self.table["split"]))
        if split not in known:
            raise ValueError(
                f"split {split!r} is in no run; choose one of {', '.join(known)}"
            )
        is_chosen = self.table["split"] == split
        return self.take(sorted(set(self.table.loc[is_chosen, "run"])))

    def take(self, runs: Sequence[str]) -> Curves:
        """The runs of those names.

        Raises:
            ValueError: a name is unknown, or there is none.
        """
        if not runs:
            raise ValueError("no run is named; take at least one")
        for run in runs:
            if run not in self.schedules:
                raise ValueError(
                    f"no run is called {run!r}; {did_you_mean(run, self.runs, most=3)}"
                )
        is_taken = self.table["run"].isin(list(runs))
        schedules = {run: self.schedules[run] for run in self.runs if run in runs}
        table = self.table.loc[is_taken].reset_index(drop=True)
        return replace(self, table=table, schedules=schedules)

    def leave_out(self, runs: Sequence[str]) -> Curves:
        """The other runs.

        Raises:
            ValueError: a name is unknown, or no run is left.
        """
        self.take(runs)
        return self.take([run for run in self.runs if run not in runs])


def load_curves(
    source: str | Path | pd.DataFrame,
    *,
    run: str = "run",
    step: str | None = None,
    tokens: str | None = None,
    tokens_per_step: float | None = None,
    lr: str = "lr",
    loss: str = "loss",
    split: str | None = None,
    warmup_steps: int | None = None,
    schedules: Mapping[str, Schedule] | None = None,
) -> Curves:
    """Read learning curves, and reject the rows that no law can be fitted to.

    Before its first row a run is assumed to warm up linearly from a learning rate of 0
    at step 0 to the first row's at `warmup_steps`. Between rows the learning rate is
    linear, or jumps where it is constant before and after. A row with a learning rate
    and without a loss takes part in the schedule only.

    A row is rejected, with a reason, when its run is missing; its step, learning rate or
    loss is missing, not a number or infinite; its step is below 1 or not whole; its
    learning rate is negative; its loss is not positive; or an earlier row has its run and
    step.

    Args:
        source: path to .csv, .parquet or .jsonl, or a DataFrame.
        run: column that tells runs apart.
        step: column of the optimizer steps that were done; "step" by default.
        tokens: column of the tokens seen, in place of `step`.
        tokens_per_step: tokens of one step, with `tokens`.
        lr: column of the learning rate at that step.
        loss: column of the loss, nats per token.
        split: column that divides runs, such as into "fit" and "test".
        warmup_steps: where the warm-up before the first row ends; the first row's step
            by default.
        schedules: run -> its whole schedule, in place of what its rows say.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is unreadable, a column is missing, both or neither of step
            and tokens can be used, a run has two splits, a schedule ends before its run,
            or no row is left.
    """
    read = read_table(source, (run, split) if split else (run,))
    columns = _name_columns(run, step, tokens, lr, loss, split)
    _check_columns(columns, read)
    _check_tokens_per_step(tokens, tokens_per_step)
    rows = _parse_rows(read, columns, tokens_per_step)
    reasons = _find_reasons(rows, columns, read)
    is_scheduled = np.array([not reason for reason in reasons.schedule])
    is_accepted = np.array([not reason for reason in reasons.row])
    rejected = list(read.unread)
    for line, reason in zip(read.lines, reasons.row, strict=True):
        if reason:
            rejected.append((int(line), reason))
    if not is_accepted.any():
        shown = "; ".join(f"row {row}: {reason}" for row, reason in rejected[:3])
        raise ValueError(
            f"{read.label} has no usable row left: {shown or 'it is empty'}"
        )
    table = rows.loc[is_accepted].sort_values(["run", "step"], kind="stable")
    if split:
        _check_splits(table, columns["split"])
    found = _build_schedules(
        rows.loc[is_scheduled], table, warmup_steps, schedules or {}, read.label
    )
    return Curves(
        table=table.reset_index(drop=True),
        rejected=pd.DataFrame(rejected, columns=pd.Index(["row", "reason"])),
        schedules=found,
        columns=columns,
        source=read.label,
        notes=_find_notes(found),
    )


def _name_columns(
    run: str,
    step: str | None,
    tokens: str | None,
    lr: str,
    loss: str,
    split: str | None,
) -> dict[str, str]:
    if step is not None and tokens is not None:
        raise ValueError(
            f"step={step!r} and tokens={tokens!r} both say where a row is; give one"
        )
    columns = {"run": run}
    if tokens is None:
        columns["step"] = step or "step"
    else:
        columns["tokens"] = tokens
    columns["lr"] = lr
    columns["loss"] = loss
    if split is not None:
        columns["split"] = split
    return {name: replace_unseen(column) for name, column in columns.items()}


def _check_columns(columns: Mapping[str, str], read: Source) -> None:
    present = [str(name) for name in read.frame.columns]
    for name, column in columns.items():
        if column not in present:
            raise ValueError(
                f"{read.label} has no column {column!r} for {name}; name the source "
                f"column: load_curves(..., {name}='...'); "
                f"{did_you_mean(column, present, most=3)}"
            )


def _check_tokens_per_step(tokens: str | None, tokens_per_step: float | None) -> None:
    if tokens is None and tokens_per_step is not None:
        raise ValueError(
            f"tokens_per_step={tokens_per_step!r} without tokens=; name the column of "
            "the tokens, or leave both out"
        )
    if tokens is not None and not (tokens_per_step and tokens_per_step > 0):
        raise ValueError(
            f"tokens={tokens!r} needs tokens_per_step=, the tokens of one step (batch "
            "times length): the laws sum learning rates over steps"
        )


def _parse_rows(
    read: Source, columns: Mapping[str, str], tokens_per_step: float | None
) -> pd.DataFrame:
    """The named columns; numbers are NaN where a cell holds none."""
    frame = read.frame
    names = frame.loc[:, columns["run"]]
    rows: dict[str, object] = {"run": names.where(names.isna(), names.astype(str))}
    if "tokens" in columns:
        seen = parse_numbers(frame.loc[:, columns["tokens"]])
        rows["step"] = (seen / tokens_per_step).round(6)
    else:
        rows["step"] = parse_numbers(frame.loc[:, columns["step"]])
    for name in ("lr", "loss"):
        rows[name] = parse_numbers(frame.loc[:, columns[name]])
    if "split" in columns:
        rows["split"] = frame.loc[:, columns["split"]].astype(str)
    rows["source_row"] = read.lines
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class _Reasons:
    """Why rows are rejected, "" where they are not.

    Attributes:
        schedule: [n] reasons that leave a row out of the schedule.
        row: [n] those, and reasons that leave its loss out.
    """

    schedule: list[str]
    row: list[str]


def _find_reasons(
    rows: pd.DataFrame, columns: Mapping[str, str], read: Source
) -> _Reasons:
    where = "tokens" if "tokens" in columns else "step"
    cells = {
        "step": list(read.frame[columns[where]]),
        "lr": list(read.frame[columns["lr"]]),
        "loss": list(read.frame[columns["loss"]]),
    }
    records = zip(rows["run"], rows["step"], rows["lr"], rows["loss"], strict=True)
    first_line: dict[tuple[str, float], int] = {}
    of_schedule = []
    of_row = []
    for i, (run, step, lr, loss) in enumerate(records):
        reason = ""
        if pd.isna(run):
            reason = f"{columns['run']} is missing"
        reason = reason or _judge_step(step, cells["step"][i], columns[where])
        reason = reason or _judge_number(lr, cells["lr"][i], columns["lr"])
        if not reason and lr < 0:
            reason = f"{columns['lr']} is {lr:g}; a learning rate is not negative"
        if not reason:
            earlier = first_line.setdefault((run, step), int(read.lines[i]))
            if earlier != read.lines[i]:
                reason = f"row {earlier} has the same run and step ({step:g})"
        of_schedule.append(reason)
        reason = reason or _judge_number(loss, cells["loss"][i], columns["loss"])
        if not reason and loss <= 0:
            reason = f"{columns['loss']} is {loss:g}; it must be positive"
        of_row.append(reason)
    return _Reasons(of_schedule, of_row)


def _judge_step(step: float, cell: object, column: str) -> str:
    reason = _judge_number(step, cell, column)
    if reason:
        return reason
    if step < 1:
        return f"{column} is {cell}: a law of curves begins at step 1"
    if step != round(step):
        return f"{column} is {cell}, which is no whole number of steps"
    return ""


def _judge_number(value: float, cell: object, column: str) -> str:
    if np.isnan(value):
        is_missing = cell is None or cell != cell
        return (
            f"{column} is missing"
            if is_missing
            else f"{column} is {cell!r:.80}, not a number"
        )
    return f"{column} is infinite" if np.isinf(value) else ""


def _check_splits(table: pd.DataFrame, column: str) -> None:
    known: dict[str, str] = {}
    for run, split in zip(table["run"], table["split"], strict=True):
        if known.setdefault(run, split) != split:
            raise ValueError(
                f"run {run!r} has several values of {column}; a split divides runs: "
                "give each run one value"
            )


def _build_schedules(
    rows: pd.DataFrame,
    accepted: pd.DataFrame,
    warmup_steps: int | None,
    given: Mapping[str, Schedule],
    label: str,
) -> dict[str, Schedule]:
    """Run -> schedule, for the runs with accepted rows.

    Raises:
        ValueError: a given schedule belongs to no run or ends before it, or the rows of
            a run give none.
    """
    names = [str(name) for name in dict.fromkeys(accepted["run"])]
    for name in given:
        if name not in names:
            raise ValueError(
                f"schedules[{name!r}]: {label} has no such run; "
                f"{did_you_mean(name, names, most=3)}"
            )
    schedules = {}
    for name in names:
        own = rows.loc[rows["run"] == name].sort_values("step")
        last = int(own["step"].iloc[-1])
        if name in given:
            if given[name].steps < last:
                raise ValueError(
                    f"schedules[{name!r}] ends at step {given[name].steps}, and the "
                    f"run has a row at step {last}; give every step"
                )
            schedules[name] = given[name]
            continue
        step = own["step"].to_numpy(float).astype(int)
        try:
            schedules[name] = Schedule.from_rows(
                step, own["lr"].to_numpy(float), warmup_steps
            )
        except ValueError as error:
            raise ValueError(f"run {name!r} of {label}: {error}") from None
    return schedules


def _find_notes(schedules: Mapping[str, Schedule]) -> tuple[str, ...]:
    notes = []
    for name, schedule in schedules.items():
        rise = schedule.find_rise()
        if rise is not None:
            notes.append(
                f"run {name}: the learning rate rises from {rise.before:.4g} to "
                f"{rise.after:.4g} at step {rise.step}, after its warm-up; the laws "
                "count a rise as a negative drop"
            )
    return tuple(notes)
