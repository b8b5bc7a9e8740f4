"""Run directories, mirrored to a tracker: what is new there is written, what was
written is not written again.

The directory stays the truth. So tracking is no part of training: a mirror reads
configurations, metrics and results from disk, during a sweep from a thread of its own,
or at any later time, of a sweep that knew of no tracker. What was mirrored is kept in
`OUT/tracked/<kind>-<project>.json`: per run the last step, and whether its row is
there.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from scaling.config import ConfigError, RunConfig
from scaling.monitoring.trackers import Kind, Tracker, TrackerLocation, make_opener
from scaling.store import query, run_dirs
from scaling.store.files import write_atomically

_SECONDS = 10.0  # between two looks during a sweep
_MEMORY = 2**24  # bytes that what was mirrored may take: a hundred for each run


class TrackerSync:
    """Mirrors one folder to one tracker. Runs that are under way stay open between
    updates.
    """

    def __init__(
        self,
        out: Path,
        kind: Kind,
        project: str | None = None,
        state: Path | None = None,
    ) -> None:
        """state: the file that says what was mirrored, where that is not to lie in
        `out`.

        Raises:
            ConfigError: the tracker's package is not installed.
        """
        project = project or out.resolve().name
        self.out, self.kind = out, kind
        self.make = make_opener(kind, TrackerLocation(project, out))
        name = re.sub(r"[^\w.-]", "_", f"{kind}-{project}")[:100]
        self.path = state or out / "tracked" / f"{name}.json"
        self.state = _read_state(self.path)
        self.open: dict[str, Tracker] = {}
        self.runs: dict[str, RunConfig] = {}

    def update(self) -> tuple[int, int]:
        """Write what is new: the number of steps and of finished runs."""
        steps, rows = 0, 0
        for run_id in query.list_run_ids(self.out):
            if not self.state.get(run_id, {}).get("finished"):
                with suppress(query.UnreadableFile):
                    if run_id not in self.runs:
                        self.runs[run_id] = query.read_config(self.out, run_id)
                    new, over = self._mirror(self.runs[run_id])
                    steps, rows = steps + new, rows + over
        return steps, rows

    def show(self, paths: Sequence[Path]) -> int:
        """Write figures, PNG files or folders of them, by the names of their files; how
        many.

        Raises:
            ConfigError: a path is neither, or two figures have one name.
        """
        files = [
            file
            for path in paths
            for file in (sorted(path.glob("*.png")) if path.is_dir() else [path])
        ]
        figures = {file.stem: file for file in files}
        for file in files:
            if file.suffix != ".png" or not file.is_file():
                raise ConfigError(
                    f"--images {file}: no PNG file; give what `scaling plot` writes, with --format png"
                )
            if figures[file.stem] != file:
                raise ConfigError(
                    f"--images: {figures[file.stem]} and {file} have one name; give one of them"
                )
        if figures:
            self.make().show(figures)
        return len(figures)

    def close(self) -> None:
        """Leave the runs that are not finished to a later mirror."""
        for tracker in self.open.values():
            tracker.pause()
        self.open.clear()

    def _mirror(self, run: RunConfig) -> tuple[int, bool]:
        before = self.state.get(run.run_id)
        is_over = (run_dirs.run_dir(self.out, run) / "result.json").exists()
        row = (
            query.read_result(self.out, run.run_id) if is_over else None
        )  # before the metrics: these are whole then
        steps = _group_by_step(
            query.read_history(self.out, run), 0 if before is None else before["step"]
        )
        if not steps and row is None:
            return 0, False
        tracker = self.open.get(run.run_id)
        if tracker is None:
            tracker = self.open[run.run_id] = self.make()
            tracker.start(run, before is not None)
        tracker.log(steps)
        if row is not None:
            tracker.finish(row)
            del self.open[run.run_id]
        last = max(steps, default=0 if before is None else before["step"])
        self.state[run.run_id] = {"step": last, "finished": row is not None}
        write_atomically(self.path, json.dumps(self.state, indent=1))
        return len(steps), row is not None


def _group_by_step(history: Any, after: int) -> dict[int, dict[str, float]]:
    """The metrics of the steps after one, those that are numbers, named as trackers
    have them.
    """
    rows = history.loc[history["step"] > after].to_dict("records")
    return {
        int(row["step"]): {
            f"train/{query.clean_text(name)}": float(v)
            for name, v in row.items()
            if name != "step" and v == v
        }
        for row in rows
    }


def _read_state(path: Path) -> dict[str, dict[str, Any]]:
    """What was mirrored before.

    Raises:
        Unreadable: the file is not one of ours: to begin anew would write everything
        twice.
    """
    if not path.exists():
        return {}
    state = query.read_json(path, _MEMORY)
    for entry in state.values():
        if (
            not isinstance(entry, dict)
            or type(entry.get("step")) is not int
            or type(entry.get("finished")) is not bool
        ):
            raise query.UnreadableFile(
                f"{path}: does not say what was mirrored; remove it to mirror everything again"
            )
    return state


@contextmanager
def sync_during_sweep(
    out: Path,
    kinds: Sequence[Kind],
    project: str | None = None,
    seconds: float = _SECONDS,
) -> Iterator[None]:
    """Sync a folder while a sweep writes it. A tracker that fails stops no training;
    it is told at the end.

    Raises:
        ConfigError: a tracker's package is not installed.
    """
    mirrors = [TrackerSync(out, kind, project) for kind in dict.fromkeys(kinds)]
    failures: dict[str, Exception] = {}
    over = threading.Event()

    def work() -> None:
        while True:
            last = over.wait(seconds)
            for mirror in mirrors:
                if mirror.kind not in failures:
                    try:
                        mirror.update()
                        if last:
                            mirror.close()
                    except Exception as error:
                        failures[mirror.kind] = error
            if last:
                return

    thread = threading.Thread(target=work, daemon=True)
    if mirrors:
        thread.start()
    try:
        yield
    finally:
        over.set()
        if mirrors:
            thread.join()
        for kind, error in failures.items():
            rest = f"the runs are in {out}; `scaling track {out} --to {kind}` mirrors what is missing"
            print(
                f"tracker {kind}: {type(error).__name__}: {query.clean_text(error)}; {rest}",
                file=sys.stderr,
            )
