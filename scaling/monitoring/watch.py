"""How far a sweep is, from its folder alone: whoever trains it, wherever, sends nothing
and need not know.

What is to come is in `OUT/plans/`, what has begun in the run folders, how far it is in
the last line of each `metrics.jsonl`, and who is at work in the leases of the trunks
(`scaling.store.leases`). A holder counts as alive while its lease grows between two
looks; at the first look, while the file is younger than a lease's expiry. The rate is
what was trained between looks, so that compilation and checkpoints count as they do for
the sweep. Nothing is written.
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
from typing import Any

from scaling.config import RunConfig, Trunk
from scaling.model.flops import flops_per_token
from scaling.planning.plan import Plan
from scaling.store import leases, query, run_dirs

FitTable = Callable[[Any], str]  # what there is to say about a law of these runs
FEWEST = 6  # runs below which no law of five parameters is worth a try
_WINDOW = 600.0  # seconds over which the rate is measured
_TAIL = 4096  # bytes that hold the last line of a file of metrics
_LARGEST_PLAN = 64 << 20  # bytes


@dataclass(frozen=True)
class Active:
    """A run under way: the first unfinished one of a trunk that somebody holds.

    Attributes:
        step: the last that was logged, of `steps`. quiet: seconds since it changed, as
        far as was watched.
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
        failed: run id and reason of each. silent: trunks whose holder has not been
        heard of, with the seconds.
        flops: trained so far. left: to be trained, without what failed. seconds: that
        it takes; None before a rate.
        fit: the law so far, or why there is none.
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

    @property
    def is_over(self) -> bool:
        """Whether nothing is left that could still be trained."""
        return not self.running and not self.waiting


class Watcher:
    """Looks at a folder again and again, and reads as little as it can each time."""

    def __init__(
        self, out: Path, fit: FitTable | None = None, expiry: float = leases.EXPIRY
    ) -> None:
        self.out, self.fit, self.expiry = out, fit, expiry
        self._plans: dict[Path, tuple[tuple[int, int], list[RunConfig]]] = {}
        self._runs: dict[str, RunConfig] = {}
        self._ended: dict[str, str] = {}  # status of each finished run
        self._unreadable: set[str] = set()
        self._heard: dict[
            Path, tuple[int, float]
        ] = {}  # length of a lease, and when it was first that long
        self._steps: dict[str, tuple[int, float]] = {}
        self._looks: deque[tuple[float, float]] = deque()
        self._fitted = (0, "")

    def look(self, now: float | None = None) -> Snapshot:
        """What the folder shows now, in seconds of a clock that never goes back."""
        now = time.monotonic() if now is None else now
        runs = self._known()
        failed, flops, left, waiting = [], 0.0, 0.0, 0
        active: list[Active] = []
        silent: list[tuple[str, float]] = []
        for trunk in Plan("seen", tuple(runs)).trunks():
            reasons = {run.run_id: self._failure(run) for run in trunk.runs}
            failed += [(run_id, reason) for run_id, reason in reasons.items() if reason]
            pending = [
                run
                for run in trunk.runs
                if run.run_id not in self._ended and not reasons[run.run_id]
            ]
            done, more = self._flops(trunk, pending)
            flops, left = flops + done, left + more
            held = self._holder(trunk.runs[0], now) if pending else None
            if held is not None and held <= self.expiry:
                active.append(
                    self._active(
                        min(pending, key=lambda run: (run.branch_step, run.steps)), now
                    )
                )
                waiting += len(pending) - 1
            else:
                waiting += len(pending)
                silent += [] if held is None else [(trunk.id, held)]
        diverged = sum(status == "diverged" for status in self._ended.values())
        seconds = self._seconds(now, flops, left)
        return Snapshot(
            *(
                len(self._ended) - diverged,
                diverged,
                tuple(active),
                waiting,
                tuple(failed),
                len(self._unreadable),
            ),
            *(tuple(silent), flops, left, seconds, self._law()),
        )

    def _known(self) -> list[RunConfig]:
        """The runs of the plans in the folder, and those that have begun without one."""
        for path in sorted((self.out / "plans").glob("*.json")):
            with suppress(*query.PARSE_ERRORS, OSError):
                stat = path.stat()
                mark = (stat.st_mtime_ns, stat.st_size)
                if (
                    path.is_file()
                    and stat.st_size <= _LARGEST_PLAN
                    and self._plans.get(path, ((), []))[0] != mark
                ):
                    self._plans[path] = (mark, list(Plan.from_json(path)))
        planned = {run.run_id: run for _, runs in self._plans.values() for run in runs}
        begun = query.list_run_ids(self.out)
        for run_id in begun:
            if run_id not in self._runs:
                with suppress(query.UnreadableFile):
                    self._runs[run_id] = planned.get(run_id) or query.read_config(
                        self.out, run_id
                    )
            self._see(run_id)
        known = {
            **planned,
            **{run_id: self._runs[run_id] for run_id in begun if run_id in self._runs},
        }
        return [run for run_id, run in known.items() if run_id not in self._unreadable]

    def _see(self, run_id: str) -> None:
        """Whether a run has ended, and how."""
        if run_id in self._ended or not (self.out / run_id / "result.json").exists():
            return
        self._unreadable.discard(run_id)
        try:
            self._ended[run_id] = query.read_result(self.out, run_id)["status"]
        except query.UnreadableFile:
            self._unreadable.add(run_id)

    def _failure(self, run: RunConfig) -> str:
        return (
            ""
            if run.run_id in self._ended
            else query.clean_text(run_dirs.read_failure(self.out, run) or "")
        )

    def _flops(self, trunk: Trunk, pending: Sequence[RunConfig]) -> tuple[float, float]:
        """FLOPs of a trunk and its cooldowns, done and to come."""
        ended = [run for run in trunk.runs if run.run_id in self._ended]
        longest = max(run.branch_step for run in trunk.runs)
        reached = min(longest, read_last_line(trunk.folder(self.out))[0])
        reached = max([reached, *(run.branch_step for run in ended)])
        cooled = {run.run_id: self._cooled(run) for run in trunk.runs}
        left = max([0, *(run.branch_step - reached for run in pending)])
        left += sum(run.steps - run.branch_step - cooled[run.run_id] for run in pending)
        price = trunk.batch_tokens * flops_per_token(trunk.model)
        return (reached + sum(cooled.values())) * price, left * price

    def _cooled(self, run: RunConfig) -> int:
        """Steps of a run after it left its trunk."""
        step = (
            run.steps
            if run.run_id in self._ended
            else read_last_line(run_dirs.run_dir(self.out, run))[0]
        )
        return min(max(0, step - run.branch_step), run.steps - run.branch_step)

    def _holder(self, run: RunConfig, now: float) -> float | None:
        """Seconds since the holder of a trunk was heard of; None where nobody holds it."""
        path = leases.find_last_lease(run_dirs.trunk_dir(self.out, run))
        try:
            if path is None or leases.is_ended(path.read_text(errors="replace")):
                return None
            stat = path.stat()
        except OSError:
            return None
        before = self._heard.get(path)
        if before is None:
            self._heard[path] = (
                stat.st_size,
                now - max(0.0, time.time() - stat.st_mtime),
            )
        elif before[0] != stat.st_size:
            self._heard[path] = (stat.st_size, now)
        return now - self._heard[path][1]

    def _active(self, run: RunConfig, now: float) -> Active:
        own, trunk = (
            read_last_line(folder)
            for folder in (
                run_dirs.run_dir(self.out, run),
                run_dirs.trunk_dir(self.out, run),
            )
        )
        step, loss = own if own[0] else (min(trunk[0], run.branch_step), trunk[1])
        if self._steps.get(run.run_id, (None, 0.0))[0] != step:
            self._steps[run.run_id] = (step, now)
        quiet = now - self._steps[run.run_id][1]
        return Active(
            run.run_id, run.model.width, run.model.depth, step, run.steps, loss, quiet
        )

    def _seconds(self, now: float, flops: float, left: float) -> float | None:
        """What is left at the rate between the looks of the last minutes."""
        self._looks.append((now, flops))
        while len(self._looks) > 2 and self._looks[0][0] < now - _WINDOW:
            self._looks.popleft()
        since, before = self._looks[0]
        if not left:
            return 0.0
        return (
            left * (now - since) / (flops - before)
            if flops > before and now > since
            else None
        )

    def _law(self) -> str:
        """What is known of the law, asked again when more runs have finished."""
        ended = len(self._ended)
        if self.fit is None:
            return ""
        if ended < FEWEST:
            return f"no law yet: {ended} of at least {FEWEST} runs"
        if self._fitted[0] != ended:
            try:
                text = self.fit(query.list_runs(self.out)[0])
            except Exception as error:  # whatever the runs hold, the view goes on
                text = f"no law yet: {error}"
            self._fitted = (ended, query.clean_text(text))
        return self._fitted[1]


def read_last_line(folder: Path) -> tuple[int, float | None]:
    """Step and loss of the last whole line of a folder's metrics; 0 and None where
    there is none.
    """
    try:
        with open(folder / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read(_TAIL).splitlines()
    except OSError:
        return 0, None
    for line in reversed(lines):
        with suppress(*query.PARSE_ERRORS):
            row = json.loads(line)
            step, loss = int(row["step"]), row.get("loss")
            return max(0, step), float(loss) if isinstance(loss, int | float) else None
    return 0, None


# --- what is shown ----------------------------------------------------------------------------------------------


def summarize(look: Snapshot) -> str:
    """A look in one line."""
    total = look.flops + look.left
    share = f"{look.flops / total:.0%} of {total:.3g} FLOPs" if total else "no FLOPs"
    parts = [f"{look.finished} finished"]
    parts += [
        f"{n} {name}"
        for n, name in ((look.diverged, "diverged"), (len(look.running), "running"))
        if n
    ]
    parts += [f"{look.waiting} waiting", f"{len(look.failed)} failed"]
    parts += [f"{look.unreadable} unreadable"] if look.unreadable else []
    return f"{', '.join(parts)}; {share}; {_describe_time_left(look)}"


def _describe_time_left(look: Snapshot) -> str:
    if look.is_over:
        return "over"
    if look.seconds is None:
        return (
            "nobody trains it"
            if not look.running
            else "time left: after two looks with progress between them"
        )
    minutes = look.seconds / 60
    return (
        f"{minutes:.1f} minutes left"
        if minutes < 90
        else f"{minutes / 60:.1f} hours left"
    )


def list_details(look: Snapshot, most: int = 12) -> Iterator[str]:
    """What there is to say beyond the line, a line each; of long lists the first
    `most`.
    """
    for run in look.running[:most]:
        loss = "" if run.loss is None else f"  loss {run.loss:.4f}"
        quiet = f"  no step for {run.quiet:.0f} s" if run.quiet > leases.EXPIRY else ""
        shape = f"width {run.width:>4}  depth {run.depth:>2}"
        yield f"  running  {run.run_id[:8]}  {shape}  step {run.step:>7,} of {run.steps:>7,}{loss}{quiet}"
    for trunk_id, seconds in look.silent[:most]:
        yield f"  silent   trunk {trunk_id}: its process has not been heard of for {seconds:.0f} s"
    for run_id, reason in look.failed[:most]:
        yield f"  failed   {run_id[:8]}  {reason[:200]}"
    for name, several in (
        ("running", look.running),
        ("silent", look.silent),
        ("failed", look.failed),
    ):
        if len(several) > most:
            yield f"  ... and {len(several) - most} more {name}"
    if look.fit:
        yield f"  {look.fit}"


def show_sweep(watcher: Watcher, interval: float, console: Any) -> Snapshot:
    """Show a sweep until it is over: a view that renews itself on a terminal, else a
    line at every interval.

    console: of rich.
    """
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    def view(look: Snapshot) -> Table:
        rows = Table.grid()
        rows.add_row(
            ProgressBar(total=(look.flops + look.left) or 1.0, completed=look.flops)
        )
        rows.add_row(Text("\n".join([summarize(look), *list_details(look)])))
        return rows

    look = watcher.look()
    if console.is_terminal:
        with Live(view(look), console=console, auto_refresh=False) as live:
            while not look.is_over:
                time.sleep(interval)
                look = watcher.look()
                live.update(view(look), refresh=True)
        return look
    told: set[str] = set()
    while True:
        lines = [
            line
            for line in list_details(look)
            if not line.startswith("  running") and line not in told
        ]
        told.update(lines)
        console.out("\n".join([summarize(look), *lines]), highlight=False)
        if look.is_over:
            return look
        time.sleep(interval)
        look = watcher.look()
