"""Run directories, synced to a tracker: what is new there is written, and nothing is
written twice.

Tracking is no part of training, because the run directories are the truth. A sync reads
configurations, metrics and results from disk: during a sweep from a thread, or at any
later time, even if the sweep knew of no tracker. `OUT/tracked/<kind>-<project>.json`
records what was synced: for each run the last step, and whether its row is there.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypedDict, cast

import pandas as pd

from scaling.config import ConfigError, RunConfig
from scaling.monitoring.trackers import Kind, Tracker, TrackerLocation, make_opener
from scaling.store import query, run_dirs
from scaling.store.files import write_atomically

_INTERVAL_SECONDS = 10.0  # between two updates during a sweep
_LARGEST_STATE = 2**24  # bytes; a run takes a hundred of them


class RunState(TypedDict):
    """How much of a run a tracker has."""

    step: int
    """The last step that was written."""
    finished: bool
    """Whether the row was written."""


class TrackerSync:
    """Syncs one folder to one tracker.

    Runs that are under way stay open between updates.
    """

    def __init__(
        self,
        out: Path,
        kind: Kind,
        project: str | None = None,
        state: Path | None = None,
    ) -> None:
        """Prepare a sync; nothing is written yet.

        Args:
            out: the folder of the runs.
            kind: of the tracker.
            project: name of the project there. Default: the name of the folder.
            state: the file that records what was synced, if it must not be in `out`.

        Raises:
            ConfigError: the package of the tracker is not installed.
            UnreadableFile: the file with the record holds something else.
        """
        project = project or out.resolve().name
        self.out = out
        self.kind = kind
        self.open_tracker = make_opener(kind, TrackerLocation(project, out))
        name = re.sub(r"[^\w.-]", "_", f"{kind}-{project}")[:100]
        self.state_path = state or out / "tracked" / f"{name}.json"
        self.states = _read_states(self.state_path)
        self.trackers: dict[str, Tracker] = {}
        self.runs: dict[str, RunConfig] = {}

    def update(self) -> tuple[int, int]:
        """Write what is new.

        Returns:
            The number of steps and the number of finished runs that were written.
        """
        steps = 0
        rows = 0
        for run_id in query.list_run_ids(self.out):
            state = self.states.get(run_id)
            if state is not None and state["finished"]:
                continue
            with suppress(query.UnreadableFile):
                if run_id not in self.runs:
                    self.runs[run_id] = query.read_config(self.out, run_id)
                new_steps, has_row = self._sync_run(self.runs[run_id])
                steps += new_steps
                rows += has_row
        return steps, rows

    def show(self, paths: Sequence[Path]) -> int:
        """Write figures under the names of their files.

        Args:
            paths: PNG files, or folders of them.

        Returns:
            The number of figures.

        Raises:
            ConfigError: a path is neither, or two figures have one name.
        """
        files: list[Path] = []
        for path in paths:
            files += sorted(path.glob("*.png")) if path.is_dir() else [path]
        figures = {file.stem: file for file in files}
        for file in files:
            if file.suffix != ".png" or not file.is_file():
                raise ConfigError(
                    f"--images {file}: not a PNG file; give what `scaling plot` "
                    "writes, with --format png"
                )
            if figures[file.stem] != file:
                raise ConfigError(
                    f"--images: {figures[file.stem]} and {file} have one name; "
                    "give one of them"
                )
        if figures:
            self.open_tracker().show(figures)
        return len(figures)

    def close(self) -> None:
        """Pause the runs that are not finished; a later sync continues them."""
        for tracker in self.trackers.values():
            tracker.pause()
        self.trackers.clear()

    def _sync_run(self, run: RunConfig) -> tuple[int, bool]:
        """Write what is new of one run.

        Returns:
            The number of steps, and whether its row was written.
        """
        state = self.states.get(run.run_id)
        last_step = 0 if state is None else state["step"]
        row = None
        # Read the result first: if it exists, the metrics are complete.
        if run_dirs.is_finished(self.out, run):
            row = query.read_result(self.out, run.run_id)
        steps = _group_by_step(query.read_history(self.out, run), last_step)
        if not steps and row is None:
            return 0, False
        tracker = self.trackers.get(run.run_id)
        if tracker is None:
            tracker = self.open_tracker()
            self.trackers[run.run_id] = tracker
            tracker.start(run, again=state is not None)
        tracker.log(steps)
        if row is not None:
            tracker.finish(row)
            del self.trackers[run.run_id]
        self.states[run.run_id] = {
            "step": max(steps, default=last_step),
            "finished": row is not None,
        }
        write_atomically(self.state_path, json.dumps(self.states, indent=1))
        return len(steps), row is not None


def _group_by_step(history: pd.DataFrame, after: int) -> dict[int, dict[str, float]]:
    """The metrics of the steps after `after` that are numbers, under trackers' names."""
    steps = {}
    for row in history.loc[history["step"] > after].to_dict("records"):
        metrics = {}
        for name, value in row.items():
            if name != "step" and not pd.isna(value):
                metrics[f"train/{query.clean_text(name)}"] = float(value)
        steps[int(row["step"])] = metrics
    return steps


def _read_states(path: Path) -> dict[str, RunState]:
    """What was synced before, by run id.

    Raises:
        UnreadableFile: the file holds something else. To begin with an empty record
            would write everything twice.
    """
    if not path.exists():
        return {}
    states = query.read_json(path, _LARGEST_STATE)
    for state in states.values():
        if (
            not isinstance(state, dict)
            or type(state.get("step")) is not int
            or type(state.get("finished")) is not bool
        ):
            raise query.UnreadableFile(
                f"{path}: does not say what was synced; remove it to sync everything "
                "again"
            )
    return cast(dict[str, RunState], states)


@contextmanager
def sync_during_sweep(
    out: Path,
    kinds: Sequence[Kind],
    project: str | None = None,
    seconds: float = _INTERVAL_SECONDS,
) -> Iterator[None]:
    """Sync a folder to trackers while a sweep writes it.

    A tracker that fails does not stop training; its error is printed at the end.

    Args:
        out: the folder of the sweep.
        kinds: of the trackers.
        project: name of the project there. Default: the name of the folder.
        seconds: between two updates.

    Raises:
        ConfigError: the package of a tracker is not installed.
    """
    syncs = [TrackerSync(out, kind, project) for kind in dict.fromkeys(kinds)]
    failures: dict[str, Exception] = {}
    ended = threading.Event()

    def update_until_end() -> None:
        is_last = False
        while not is_last:
            is_last = ended.wait(seconds)
            for sync in syncs:
                if sync.kind in failures:
                    continue
                try:
                    sync.update()
                    if is_last:
                        sync.close()
                except Exception as error:
                    failures[sync.kind] = error

    thread = threading.Thread(target=update_until_end, daemon=True)
    if syncs:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if syncs:
            thread.join()
        for kind, error in failures.items():
            message = f"{type(error).__name__}: {query.clean_text(error)}"
            print(
                f"tracker {kind}: {message}; the runs are in {out}; "
                f"`scaling track {out} --to {kind}` syncs what is missing",
                file=sys.stderr,
            )
