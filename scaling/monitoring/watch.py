"""How far a sweep is, from its folder alone.

The processes that train send nothing and need not know. Planned runs are in
`OUT/plans/`, begun runs in the run folders; the last line of each `metrics.jsonl` says
how far a run is, and the lease on a trunk (`scaling.store.leases`) says which process
trains it. An owner counts as alive if its lease grew between two snapshots; at the
first snapshot, if the file is younger than the expiry of a lease. The rate is what was
trained between snapshots, so that compilation and checkpoints count as they do for the
sweep. Nothing is written.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from scaling.config import RunConfig, Trunk
from scaling.model.flops import flops_per_token
from scaling.planning.plan import Plan
from scaling.store import leases, query, run_dirs
from scaling.store.duplicates import describe_duplicates, group_duplicates

if TYPE_CHECKING:
    from rich.console import Console

DescribeLaw = Callable[[pd.DataFrame], str]
"""Fits a law to a run table, and says in a line what it is."""

FEWEST_RUNS = 6
"""Runs below which a law of five parameters is not fitted."""

_RATE_SECONDS = 600.0  # over which the rate is measured
_LINE_BYTES = 4096  # that hold the last line of a file of metrics
_LARGEST_PLAN = 64 << 20  # bytes


@dataclass(frozen=True)
class Active:
    """A run under way: the first unfinished run of a trunk that a process holds.

    Attributes:
        run_id: its id.
        width: of its model.
        depth: of its model.
        step: the last step that was logged.
        steps: all steps of the run.
        loss: at that step; None if it was not logged.
        quiet: seconds since the step changed, as far as it was watched.
    """

    run_id: str
    width: int
    depth: int
    step: int
    steps: int
    loss: float | None
    quiet: float


@dataclass(frozen=True)
class Snapshot:
    """A sweep at one moment.

    Attributes:
        finished: number of runs that finished without diverging.
        diverged: number of runs that diverged.
        running: the runs under way.
        waiting: number of runs that wait.
        failed: run id and reason of each run that failed.
        unreadable: number of runs with a damaged result.
        silent: trunks whose owner is silent, with the seconds.
        flops: trained so far.
        left: FLOPs to be trained, without the runs that failed.
        seconds: estimated for `left`; None until a rate is known.
        fit: the law so far, or why there is none.
        duplicates: the run ids of each configuration that the folder holds twice.
    """

    finished: int
    diverged: int
    running: tuple[Active, ...]
    waiting: int
    failed: tuple[tuple[str, str], ...]
    unreadable: int
    silent: tuple[tuple[str, float], ...]
    flops: float
    left: float
    seconds: float | None
    fit: str
    duplicates: tuple[tuple[str, ...], ...]

    @property
    def is_over(self) -> bool:
        """Whether nothing is left that could still be trained."""
        return not self.running and not self.waiting


class LastLine(NamedTuple):
    """The last whole line of a file of metrics; step 0 if there is none."""

    step: int
    loss: float | None


class _PlanFile(NamedTuple):
    """A plan, with time and size of the file that it was read from."""

    mark: tuple[int, int]
    runs: list[RunConfig]


class Watcher:
    """Takes snapshots of a folder, and reads as little as it can for each."""

    def __init__(
        self,
        out: Path,
        describe_law: DescribeLaw | None = None,
        expiry: float = leases.EXPIRY,
    ) -> None:
        """Prepare to watch a folder.

        Args:
            out: the folder of the sweep.
            describe_law: is called with the run table when more runs have finished.
            expiry: seconds of silence after which a lease may be taken over.
        """
        self.out = out
        self.describe_law = describe_law
        self.expiry = expiry
        self._plans: dict[Path, _PlanFile] = {}
        self._runs: dict[str, RunConfig] = {}
        self._statuses: dict[str, str] = {}  # of each finished run
        self._unreadable: set[str] = set()
        # By folder, the id that its configuration has today, where they differ.
        self._misnamed: dict[str, str] = {}
        # By lease: its length, and when it was first seen with this length.
        self._seen_leases: dict[Path, tuple[int, float]] = {}
        # By run: its step, and when it was first seen at this step.
        self._seen_steps: dict[str, tuple[int, float]] = {}
        # Time and FLOPs of the last snapshots.
        self._rate_samples: deque[tuple[float, float]] = deque()
        self._law = ""
        self._runs_in_law = 0

    def take_snapshot(self, now: float | None = None) -> Snapshot:
        """What the folder shows now.

        Args:
            now: seconds of a clock that never goes back. Default: time.monotonic().
        """
        if now is None:
            now = time.monotonic()
        flops = 0.0
        left = 0.0
        waiting = 0
        running: list[Active] = []
        failed: list[tuple[str, str]] = []
        silent: list[tuple[str, float]] = []
        for trunk in Plan("seen", tuple(self._find_runs())).trunks():
            pending = []
            for run in trunk.runs:
                reason = self._read_failure(run)
                if reason:
                    failed.append((run.run_id, reason))
                elif run.run_id not in self._statuses:
                    pending.append(run)
            done, more = self._count_flops(trunk, pending)
            flops += done
            left += more
            silence = self._measure_silence(trunk, now) if pending else None
            if silence is not None and silence <= self.expiry:
                first = min(pending, key=lambda run: (run.branch_step, run.steps))
                running.append(self._describe_active(first, now))
                waiting += len(pending) - 1
                continue
            waiting += len(pending)
            if silence is not None:
                silent.append((trunk.id, silence))
        statuses = list(self._statuses.values())
        diverged = statuses.count("diverged")
        return Snapshot(
            finished=len(statuses) - diverged,
            diverged=diverged,
            running=tuple(running),
            waiting=waiting,
            failed=tuple(failed),
            unreadable=len(self._unreadable),
            silent=tuple(silent),
            flops=flops,
            left=left,
            seconds=self._estimate_seconds(now, flops, left),
            fit=self._update_law(),
            duplicates=self._find_duplicates(),
        )

    def _find_runs(self) -> list[RunConfig]:
        """The runs of the plans in the folder, and those that began without a plan."""
        self._read_plans()
        runs: dict[str, RunConfig] = {}
        for plan in self._plans.values():
            runs |= {run.run_id: run for run in plan.runs}
        for run_id in query.list_run_ids(self.out):
            if run_id not in self._runs:
                planned = runs.get(run_id)
                try:
                    self._runs[run_id] = planned or query.read_config(self.out, run_id)
                except query.MisnamedRun as error:
                    self._misnamed[run_id] = error.current_id
                except query.UnreadableFile:
                    pass
            self._read_status(run_id)
            if run_id in self._runs:
                runs[run_id] = self._runs[run_id]
        return [run for run_id, run in runs.items() if run_id not in self._unreadable]

    def _find_duplicates(self) -> tuple[tuple[str, ...], ...]:
        current_ids = dict(self._misnamed)
        for current_id in self._misnamed.values():
            if current_id in self._statuses:
                current_ids[current_id] = current_id
        return tuple(group_duplicates(current_ids))

    def _read_plans(self) -> None:
        """Read the plans that are new or have changed."""
        for path in sorted((self.out / "plans").glob("*.json")):
            with suppress(*query.PARSE_ERRORS, OSError):
                stat = path.stat()
                mark = (stat.st_mtime_ns, stat.st_size)
                known = self._plans.get(path)
                if known is not None and known.mark == mark:
                    continue
                if path.is_file() and stat.st_size <= _LARGEST_PLAN:
                    self._plans[path] = _PlanFile(mark, list(Plan.from_json(path)))

    def _read_status(self, run_id: str) -> None:
        """Record whether and how a run has ended."""
        if run_id in self._statuses:
            return
        if not (self.out / run_id / "result.json").exists():
            return
        self._unreadable.discard(run_id)
        try:
            self._statuses[run_id] = query.read_result(self.out, run_id)["status"]
        except query.UnreadableFile:
            self._unreadable.add(run_id)

    def _read_failure(self, run: RunConfig) -> str:
        """Why an unfinished run failed; empty if it did not."""
        if run.run_id in self._statuses:
            return ""
        return query.clean_text(run_dirs.read_failure(self.out, run) or "")

    def _count_flops(
        self, trunk: Trunk, pending: Sequence[RunConfig]
    ) -> tuple[float, float]:
        """FLOPs of a trunk and its cooldowns: those done, and those that are left."""
        reached = read_last_line(trunk.folder(self.out)).step
        reached = min(reached, max(run.branch_step for run in trunk.runs))
        cooldown_steps = {}
        for run in trunk.runs:
            if run.run_id in self._statuses:
                reached = max(reached, run.branch_step)
            cooldown_steps[run.run_id] = self._count_cooldown_steps(run)
        done = reached + sum(cooldown_steps.values())
        left = max([0, *(run.branch_step - reached for run in pending)])
        for run in pending:
            left += run.steps - run.branch_step - cooldown_steps[run.run_id]
        flops_per_step = trunk.batch_tokens * flops_per_token(trunk.model)
        return done * flops_per_step, left * flops_per_step

    def _count_cooldown_steps(self, run: RunConfig) -> int:
        """Steps that a run has made after it left its trunk."""
        planned = run.steps - run.branch_step
        if run.run_id in self._statuses:
            return planned
        step = read_last_line(run_dirs.run_dir(self.out, run)).step
        return min(max(0, step - run.branch_step), planned)

    def _measure_silence(self, trunk: Trunk, now: float) -> float | None:
        """Seconds since the owner of a trunk sent a heartbeat; None without an owner."""
        path = leases.find_last_lease(trunk.folder(self.out))
        try:
            if path is None or leases.is_ended(path.read_text(errors="replace")):
                return None
            stat = path.stat()
        except OSError:
            return None
        seen = self._seen_leases.get(path)
        if seen is None:
            age = max(0.0, time.time() - stat.st_mtime)
            seen = (stat.st_size, now - age)
        elif seen[0] != stat.st_size:
            seen = (stat.st_size, now)
        self._seen_leases[path] = seen
        _, since = seen
        return now - since

    def _describe_active(self, run: RunConfig, now: float) -> Active:
        last = read_last_line(run_dirs.run_dir(self.out, run))
        if not last.step:
            trunk = read_last_line(run_dirs.trunk_dir(self.out, run))
            last = LastLine(min(trunk.step, run.branch_step), trunk.loss)
        seen_step, since = self._seen_steps.get(run.run_id, (None, now))
        if seen_step != last.step:
            since = now
            self._seen_steps[run.run_id] = (last.step, since)
        return Active(
            run_id=run.run_id,
            width=run.model.width,
            depth=run.model.depth,
            step=last.step,
            steps=run.steps,
            loss=last.loss,
            quiet=now - since,
        )

    def _estimate_seconds(self, now: float, flops: float, left: float) -> float | None:
        """Seconds for what is left, at the rate between the snapshots of the last
        minutes; None without a rate.
        """
        self._rate_samples.append((now, flops))
        while (
            len(self._rate_samples) > 2
            and self._rate_samples[0][0] < now - _RATE_SECONDS
        ):
            self._rate_samples.popleft()
        if not left:
            return 0.0
        since, before = self._rate_samples[0]
        if flops <= before or now <= since:
            return None
        return left * (now - since) / (flops - before)

    def _update_law(self) -> str:
        """What is known of the law; it is fitted again when more runs have finished."""
        if self.describe_law is None:
            return ""
        ended = len(self._statuses)
        if ended < FEWEST_RUNS:
            return f"no law yet: {ended} of at least {FEWEST_RUNS} runs"
        if self._runs_in_law != ended:
            try:
                table, _ = query.list_runs(self.out)
                law = self.describe_law(table)
            except Exception as error:
                # Whatever the runs hold, the display goes on.
                law = f"no law yet: {error}"
            self._law = query.clean_text(law)
            self._runs_in_law = ended
        return self._law


def read_last_line(folder: Path) -> LastLine:
    """Step and loss of the last whole line of a folder's metrics."""
    try:
        with open(folder / "metrics.jsonl", "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LINE_BYTES))
            lines = file.read(_LINE_BYTES).splitlines()
    except OSError:
        return LastLine(0, None)
    for line in reversed(lines):
        with suppress(*query.PARSE_ERRORS):
            row = json.loads(line)
            step = int(row["step"])
            loss = row.get("loss")
            if not isinstance(loss, int | float):
                loss = None
            return LastLine(max(0, step), None if loss is None else float(loss))
    return LastLine(0, None)


# --- display ----------------------------------------------------------------------


def format_summary(snapshot: Snapshot) -> str:
    """A snapshot in one line."""
    counts = [f"{snapshot.finished} finished"]
    if snapshot.diverged:
        counts.append(f"{snapshot.diverged} diverged")
    if snapshot.running:
        counts.append(f"{len(snapshot.running)} running")
    counts.append(f"{snapshot.waiting} waiting")
    counts.append(f"{len(snapshot.failed)} failed")
    if snapshot.unreadable:
        counts.append(f"{snapshot.unreadable} unreadable")
    share = "no FLOPs"
    total = snapshot.flops + snapshot.left
    if total:
        share = f"{snapshot.flops / total:.0%} of {total:.3g} FLOPs"
    return f"{', '.join(counts)}; {share}; {_describe_time_left(snapshot)}"


def _describe_time_left(snapshot: Snapshot) -> str:
    if snapshot.is_over:
        return "over"
    if snapshot.seconds is None and not snapshot.running:
        return "no process trains it"
    if snapshot.seconds is None:
        return "time left: known after two snapshots with progress between them"
    minutes = snapshot.seconds / 60
    if minutes < 90:
        return f"{minutes:.1f} minutes left"
    return f"{minutes / 60:.1f} hours left"


def list_details(snapshot: Snapshot, most: int = 12) -> Iterator[str]:
    """What a snapshot shows beyond its summary, as lines.

    Args:
        snapshot: what is shown.
        most: of a longer list, only so many items are shown.
    """
    for run in snapshot.running[:most]:
        yield _format_active(run)
    for trunk_id, seconds in snapshot.silent[:most]:
        yield f"  silent   trunk {trunk_id}: no heartbeat for {seconds:.0f} s"
    for run_id, reason in snapshot.failed[:most]:
        yield f"  failed   {run_id[:8]}  {reason[:200]}"
    counts = {
        "running": len(snapshot.running),
        "silent": len(snapshot.silent),
        "failed": len(snapshot.failed),
    }
    for name, count in counts.items():
        if count > most:
            yield f"  ... and {count - most} more {name}"
    if snapshot.duplicates:
        yield f"  {describe_duplicates(snapshot.duplicates)}"
    if snapshot.fit:
        yield f"  {snapshot.fit}"


def _format_active(run: Active) -> str:
    shape = f"width {run.width:>4}  depth {run.depth:>2}"
    step = f"step {run.step:>7,} of {run.steps:>7,}"
    line = f"  running  {run.run_id[:8]}  {shape}  {step}"
    if run.loss is not None:
        line += f"  loss {run.loss:.4f}"
    if run.quiet > leases.EXPIRY:
        line += f"  no step for {run.quiet:.0f} s"
    return line


def show_sweep(watcher: Watcher, interval: float, console: Console) -> Snapshot:
    """Show a sweep until it is over, and return the last snapshot.

    A terminal shows a display that is renewed; otherwise there are lines at each
    interval.

    Args:
        watcher: of the sweep.
        interval: seconds between snapshots.
        console: where the sweep is shown.
    """
    if console.is_terminal:
        return _show_live(watcher, interval, console)
    shown: set[str] = set()
    while True:
        snapshot = watcher.take_snapshot()
        lines = [format_summary(snapshot)]
        for line in list_details(snapshot):
            # The lines of running runs change each time; the others are shown once.
            if not line.startswith("  running") and line not in shown:
                lines.append(line)
                shown.add(line)
        console.out("\n".join(lines), highlight=False)
        if snapshot.is_over:
            return snapshot
        time.sleep(interval)


def _show_live(watcher: Watcher, interval: float, console: Console) -> Snapshot:
    """Show a sweep on a terminal until it is over."""
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def render(snapshot: Snapshot) -> Table:
        total = (snapshot.flops + snapshot.left) or 1.0
        lines = [format_summary(snapshot), *list_details(snapshot)]
        rows = Table.grid()
        rows.add_row(ProgressBar(total=total, completed=snapshot.flops))
        rows.add_row(Text("\n".join(lines)))
        return rows

    snapshot = watcher.take_snapshot()
    with Live(render(snapshot), console=console, auto_refresh=False) as live:
        while not snapshot.is_over:
            time.sleep(interval)
            snapshot = watcher.take_snapshot()
            live.update(render(snapshot), refresh=True)
    return snapshot
