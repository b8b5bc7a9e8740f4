"""Verbs of the `scaling` command that look at a sweep's folder and train nothing: runs,
watch, track.

They read the folder alone, so they serve one that another process, machine or person is
writing.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from scaling.cli.fit import Positional
from scaling.cli.output import (
    null_nonfinite,
    print_curve,
    print_duplicates,
    print_json,
    print_pairs,
    print_table,
    select_main_columns,
    to_records,
)
from scaling.config import ConfigError
from scaling.monitoring.trackers import Kind

if TYPE_CHECKING:
    import pandas as pd

    from scaling.monitoring.watch import Snapshot, Watcher

Words = tyro.conf.UseAppendAction[tuple[str, ...]]  # one per flag


@dataclass(frozen=True)
class RunsArgs:
    """Print the run table of a sweep's folder.

    Examples: scaling runs runs/mine --where 'width>=64' --sort loss
              scaling runs runs/mine --all-runs --export runs.csv
    """

    out: Positional[Path]
    where: Words = ()
    """Only runs for which COLUMN OP VALUE holds, OP one of == != >= <= > < and, of
    text, ~ (contains); repeat the flag for more. An id equals its beginning; what is
    missing equals none."""
    sort: str | None = None
    """Order by this column."""
    descending: bool = False
    failed: bool = False
    """The runs that could not be trained, with the reason, instead of the finished
    ones.
    """
    all_runs: bool = False
    """The failed, unfinished and unreadable runs too."""
    all: bool = False
    """All columns."""
    export: Path | None = None
    """Also write these rows, with all columns, to a .csv, .parquet or .jsonl file."""
    show: str | None = None
    """Old name of `scaling show`."""
    diff: tuple[str, str] | None = None
    """Old name of `scaling diff`."""
    json: bool = False

    def __call__(self) -> int:
        from scaling.store import query

        if self.show is not None:
            new = f"scaling show {self.out} {self.show}"
            print(f"--show is now a verb: `{new}`", file=sys.stderr)
            show_run(self.out, self.show, self.json)
            return 0
        if self.diff is not None:
            new = f"scaling diff {self.out} {' '.join(self.diff)}"
            print(f"--diff is now a verb: `{new}`", file=sys.stderr)
            show_difference(self.out, self.diff, self.json)
            return 0
        table = self._table()
        table = query.filter_runs(table, self.where)
        if self.sort is not None:
            table = query.sort_runs(table, self.sort, self.descending)
        if self.export is not None:
            query.export_runs(table, self.export)
        if table.empty and not self.json:
            print("no such run")
        else:
            also = [word for word in (self.sort,) if word]
            print_table(
                table if self.all or self.json else select_main_columns(table, also),
                self.json,
            )
        return 0

    def _table(self) -> pd.DataFrame:
        from scaling.store import query

        if self.failed and self.all_runs:
            raise ConfigError("--failed, --all-runs: give one of the two")
        which = "failed" if self.failed else "all" if self.all_runs else "finished"
        table, unreadable = query.list_runs(self.out, which)
        for entry in unreadable:
            remedy = f"remove {self.out / entry.run_id} and the next sweep trains the run again"
            print(f"left out: {entry.reason}; {remedy}", file=sys.stderr)
        print_duplicates(self.out, table)
        if table.empty and which != "failed":
            rest = "train some with `scaling sweep --out`; --all-runs lists those that are not finished"
            raise ConfigError(
                f"{self.out}: no {'finished ' * (which == 'finished')}run below this folder; {rest}"
            )
        return table


@dataclass(frozen=True)
class ShowArgs:
    """Print one run of a sweep: configuration, result and learning curve.

    Example: scaling show runs/mine d20d
    """

    out: Positional[Path]
    """The sweep's folder."""
    run: Positional[str]
    """The beginning of the run's id."""
    json: bool = False

    def __call__(self) -> int:
        show_run(self.out, self.run, self.json)
        return 0


@dataclass(frozen=True)
class DiffArgs:
    """Print the fields in which the configurations of two runs differ.

    Example: scaling diff runs/mine d20d e440
    """

    out: Positional[Path]
    """The sweep's folder."""
    a: Positional[str]
    """The beginning of a run's id."""
    b: Positional[str]
    """The beginning of the other run's id."""
    json: bool = False

    def __call__(self) -> int:
        show_difference(self.out, (self.a, self.b), self.json)
        return 0


@dataclass(frozen=True)
class WatchArgs:
    """Show how far a sweep is, who trains what, what failed and the law so far, from
    its folder alone.

    Example: scaling watch runs/mine
    """

    out: Positional[Path]
    once: bool = False
    """Print one look and end."""
    interval: float = 10.0
    """Seconds between looks."""
    fit: bool = True
    """Fit a law to what has finished, again after each run."""
    law: str = "chinchilla"
    json: bool = False
    """Print each look as a JSON line."""

    def __call__(self) -> int:
        from rich.console import Console

        from scaling.monitoring import watch

        if not self.out.is_dir():
            raise ConfigError(f"{self.out}: no such folder; give the --out of a sweep")
        if not self.interval > 0:
            raise ConfigError(f"--interval {self.interval:g}: must be positive")
        watcher = watch.Watcher(self.out, self._law if self.fit else None)
        try:
            if self.json:
                look = self._lines(watcher)
            elif self.once:
                look = watcher.take_snapshot()
                print(
                    "\n".join([watch.format_summary(look), *watch.list_details(look)])
                )
            else:
                look = watch.show_sweep(watcher, self.interval, Console())
        except KeyboardInterrupt:
            return 130
        return 3 if look.is_over and look.failed else 0

    def _lines(self, watcher: Watcher) -> Snapshot:
        while True:
            look = watcher.take_snapshot()
            print(
                json.dumps(null_nonfinite(dataclasses.asdict(look)), allow_nan=False),
                flush=True,
            )
            if self.once or look.is_over:
                return look
            time.sleep(self.interval)

    def _law(self, table: pd.DataFrame) -> str:
        from analysis import fit, load_runs

        runs = load_runs(table)
        found = fit(runs, law=self.law)
        errors = found.standard_errors
        named = [
            f"{name} {v:.4g}" + (f" ± {errors[name]:.2g}" if name in errors else "")
            for name, v in found.params.items()
        ]
        named += [f"{name} {value:.4g}" for name, value in found.derived().items()]
        doubt = "" if found.certificate.ok else "; the optimum is NOT certified"
        return f"{found.law.name} of {len(runs)} runs: {'  '.join(named)}{doubt}"


@dataclass(frozen=True)
class TrackArgs:
    """Sync a sweep's folder to experiment trackers: what they do not have yet, and
    nothing twice.

    Example: scaling track runs/mine --to wandb --project scaling-laws
    """

    out: Positional[Path]
    to: tyro.conf.UseAppendAction[tuple[Kind, ...]]
    """tensorboard, wandb, mlflow or trackio; repeat the flag for more."""
    project: str | None = None
    """Name of the project or experiment there. Default: the folder's name."""
    state: Path | None = None
    """File that says what was mirrored, for one tracker, where the folder cannot be
    written. Default: below OUT/tracked."""
    images: tuple[Path, ...] = ()
    """Images too: PNG files or folders of them, as `scaling plot --figures` writes
    them; into a run named "figures".
    """
    figures: tuple[Path, ...] = ()
    """Old name of `--images`."""

    def __call__(self) -> int:
        from scaling.monitoring.sync import TrackerSync

        if not self.out.is_dir():
            raise ConfigError(f"{self.out}: no such folder; give the --out of a sweep")
        if not self.to:
            raise ConfigError("--to: name a tracker, as --to tensorboard")
        if self.state is not None and len(self.to) > 1:
            raise ConfigError(
                f"--state {self.state}: serves one tracker; give one --to"
            )
        if self.figures:
            print("--figures of `track` is now `--images`; use that", file=sys.stderr)
        images = (*self.images, *self.figures)
        for kind in dict.fromkeys(self.to):
            mirror = TrackerSync(self.out, kind, self.project, self.state)
            try:
                steps, rows = mirror.update()
                shown = mirror.show(images)
            finally:
                mirror.close()
            pictures = f", {shown} figures" if images else ""
            print(
                f"{kind}: {steps} steps and {rows} finished runs that were not there{pictures}"
            )
        return 0


def show_run(out: Path, prefix: str, as_json: bool) -> None:
    """Print one run: configuration, result, learning curve."""
    from scaling.store import query

    run_id = query.find_run(out, prefix)
    run = query.read_config(out, run_id)
    rows, _ = query.list_runs(out, "all")
    (row,) = to_records(rows.loc[rows["run_id"] == run_id])
    row = {name: value for name, value in row.items() if value not in (None, "")}
    history = query.read_history(out, run)
    if as_json:
        print_json(
            {
                "config": query.flatten_config(run),
                "row": row,
                "history": to_records(history),
            }
        )
        return
    print(f"run {run_id} on trunk {run.trunk_id} in {out}\n")
    print_pairs(
        {
            name: query.clean_text(value)
            for name, value in query.flatten_config(run).items()
        }
    )
    print()
    print_pairs(
        {
            name: value
            for name, value in row.items()
            if name not in ("run_id", "trunk_id", "versions")
        }
    )
    print_curve(history)


def show_difference(out: Path, prefixes: tuple[str, str], as_json: bool) -> None:
    """Print the fields in which two runs differ."""
    from scaling.store import query

    ids = [query.find_run(out, prefix) for prefix in prefixes]
    fields = query.diff_configs(*(query.read_config(out, run_id) for run_id in ids))
    if as_json:
        print_json(
            {
                name: dict(zip(ids, values, strict=True))
                for name, values in fields.items()
            }
        )
    elif not fields:
        print("one and the same configuration")
    else:
        print_pairs(
            {"": [i[:8] for i in ids]}
            | {
                name: [query.clean_text(v) for v in both]
                for name, both in fields.items()
            }
        )
