"""Verbs of the `scaling` command that read the folder of a sweep and train nothing:
runs, show, diff, watch, track.

They read files alone, so they work while another process or machine trains.
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
        table = self._list_runs()
        table = query.filter_runs(table, self.where)
        if self.sort is not None:
            table = query.sort_runs(table, self.sort, self.descending)
        if self.export is not None:
            query.export_runs(table, self.export)
        if table.empty and not self.json:
            print("no such run")
            return 0
        if not self.all and not self.json:
            table = select_main_columns(table, [self.sort] if self.sort else [])
        print_table(table, self.json)
        return 0

    def _list_runs(self) -> pd.DataFrame:
        from scaling.store import query

        if self.failed and self.all_runs:
            raise ConfigError("--failed, --all-runs: give one of the two")
        which: query.Which = "finished"
        if self.failed:
            which = "failed"
        elif self.all_runs:
            which = "all"
        table, unreadable = query.list_runs(self.out, which)
        for entry in unreadable:
            folder = self.out / entry.run_id
            print(
                f"left out: {entry.reason}; remove {folder}, and the next sweep trains "
                "the run again",
                file=sys.stderr,
            )
        print_duplicates(self.out, table)
        if table.empty and which != "failed":
            what = "finished run" if which == "finished" else "run"
            raise ConfigError(
                f"{self.out}: no {what} below this folder; train some with `scaling "
                "sweep --out`; --all-runs lists those that are not finished"
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
    """Print one snapshot and end."""
    interval: float = 10.0
    """Seconds between snapshots."""
    fit: bool = True
    """Fit a law to the finished runs, again after each run."""
    law: str = "chinchilla"
    json: bool = False
    """Print each snapshot as a JSON line."""

    def __call__(self) -> int:
        from rich.console import Console

        from scaling.monitoring import watch

        if not self.out.is_dir():
            raise ConfigError(f"{self.out}: no such folder; give the --out of a sweep")
        if not self.interval > 0:
            raise ConfigError(f"--interval {self.interval:g}: must be positive")
        watcher = watch.Watcher(self.out, self._describe_law if self.fit else None)
        try:
            if self.json:
                last = self._print_json_lines(watcher)
            elif self.once:
                last = watcher.take_snapshot()
                print(watch.format_summary(last))
                for line in watch.list_details(last):
                    print(line)
            else:
                last = watch.show_sweep(watcher, self.interval, Console())
        except KeyboardInterrupt:
            return 130
        return 3 if last.is_over and last.failed else 0

    def _print_json_lines(self, watcher: Watcher) -> Snapshot:
        """Print snapshots until the sweep is over; returns the last one."""
        while True:
            snapshot = watcher.take_snapshot()
            values = null_nonfinite(dataclasses.asdict(snapshot))
            print(json.dumps(values, allow_nan=False), flush=True)
            if self.once or snapshot.is_over:
                return snapshot
            time.sleep(self.interval)

    def _describe_law(self, table: pd.DataFrame) -> str:
        """The law of the finished runs in a line."""
        from analysis import fit, load_runs

        runs = load_runs(table)
        found = fit(runs, law=self.law)
        errors = found.standard_errors
        parts = []
        for name, value in found.params.items():
            error = f" ± {errors[name]:.2g}" if name in errors else ""
            parts.append(f"{name} {value:.4g}{error}")
        for name, value in found.derived().items():
            parts.append(f"{name} {value:.4g}")
        doubt = "" if found.certificate.ok else "; the optimum is NOT certified"
        return f"{found.law.name} of {len(runs)} runs: {'  '.join(parts)}{doubt}"


@dataclass(frozen=True)
class TrackArgs:
    """Sync a sweep's folder to experiment trackers: whatever they do not have yet.

    Example: scaling track runs/mine --to wandb --project scaling-laws
    """

    out: Positional[Path]
    to: tyro.conf.UseAppendAction[tuple[Kind, ...]]
    """The trackers; repeat the flag for more."""
    project: str | None = None
    """Name of the project or experiment there. Default: the folder's name."""
    state: Path | None = None
    """File that records what was synced, for one tracker, where the folder cannot be
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
            sync = TrackerSync(self.out, kind, self.project, self.state)
            try:
                steps, rows = sync.update()
                shown = sync.show(images)
            finally:
                sync.close()
            sent = f"{kind}: {steps} steps and {rows} finished runs that were not there"
            print(f"{sent}, {shown} figures" if images else sent)
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
    config = query.flatten_config(run)
    if as_json:
        answer = {"config": config, "row": row, "history": to_records(history)}
        print_json(answer)
        return
    print(f"run {run_id} on trunk {run.trunk_id} in {out}\n")
    print_pairs({name: query.clean_text(value) for name, value in config.items()})
    print()
    for name in ("run_id", "trunk_id", "versions"):
        row.pop(name, None)
    print_pairs(row)
    print_curve(history)


def show_difference(out: Path, prefixes: tuple[str, str], as_json: bool) -> None:
    """Print the fields in which two runs differ."""
    from scaling.store import query

    ids = [query.find_run(out, prefix) for prefix in prefixes]
    fields = query.diff_configs(*(query.read_config(out, run_id) for run_id in ids))
    if as_json:
        answer = {}
        for name, values in fields.items():
            answer[name] = dict(zip(ids, values, strict=True))
        print_json(answer)
        return
    if not fields:
        print("the two configurations are the same")
        return
    pairs = {"": [run_id[:8] for run_id in ids]}
    for name, values in fields.items():
        pairs[name] = [query.clean_text(value) for value in values]
    print_pairs(pairs)
