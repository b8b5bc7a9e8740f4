"""What a person, or a program, sees of a running sweep, all on standard error.

`bar` shows one bar in FLOPs with the time left; `plain`, a line for each run; `json`,
every event as a JSON line; `quiet`, nothing. `auto` is the bar on a terminal, otherwise
plain lines. The time left is the remaining FLOPs at the rate measured since the first
step: steps that were restored from checkpoints count as done, but not towards the rate.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from scaling import events
from scaling.config.conversion import JsonObject
from scaling.events import (
    Event,
    Finished,
    Mixed,
    Packed,
    Programs,
    Restarted,
    Started,
    TrunkEvent,
    Unpacked,
    event_to_json,
)
from scaling.planning.plan import Plan
from scaling.store.run_dirs import replace_nonfinite

Show = Literal["auto", "bar", "plain", "json", "quiet"]

_PACKING_NAMES = {
    "solo": "one after the other",
    "vmap": "in one executable (vmap)",
    "map": "in one executable, sequentially",
}


class Progress:
    """Shows the events of a sweep, and counts its FLOPs."""

    def __init__(self, plan: Plan, bar: Bar | None, show: Show) -> None:
        self.total_flops = plan.flops
        self.runs = len(plan)
        self.shapes = plan.shapes
        self.bar = bar
        self.show = show
        self.flops = 0.0
        self.finished = 0
        self.trunk_flops: defaultdict[str, float] = defaultdict(float)
        self.executables: Counter[str] = Counter()
        # FLOPs and time at the first progress, before which the sweep compiled.
        self.rate_start: tuple[float, float] | None = None
        self.task = None
        if bar is not None:
            title = f"{self.runs} runs"
            self.task = bar.add_task(title, total=self.total_flops, loss="")

    def report(self, event: Event) -> None:
        """Show one event."""
        if self.show == "json":
            line = json.dumps(replace_nonfinite(event_to_json(event)))
            print(line, file=sys.stderr, flush=True)
            return
        match event:
            case TrunkEvent():
                self._count_flops(event)
            case Finished(row):
                self.finished += 1
                self._print_line(_describe_result(row))
            case Restarted(reason):
                self._print_line(f"{reason}; its runs resume from their checkpoints")
            case Mixed(folder, before, now):
                self._print_line(
                    f"{folder}: began under {before}, continues under {now}"
                )
            case Packed(members, how):
                self._print_line(
                    f"{members} trunks of one shape train {_PACKING_NAMES[how]}"
                )
            case Unpacked(reason):
                self._print_line(
                    f"training together failed ({reason}); "
                    "the trunks train one after the other"
                )
            case Programs(compiled, reused):
                self.executables.update({"compiled": compiled, "reused": reused})

    def _count_flops(self, event: TrunkEvent) -> None:
        """Add the FLOPs of an event to those of its trunk.

        When a trunk starts again its FLOPs are taken back, and checkpoints restore
        some.
        """
        added = event.flops
        if isinstance(event, Started):
            added = -self.trunk_flops[event.trunk]
        self.trunk_flops[event.trunk] += added
        if self.rate_start is not None and not isinstance(event, events.Progress):
            flops, since = self.rate_start
            self.rate_start = (flops + added, since)
        elif self.rate_start is None and isinstance(event, events.Progress):
            self.rate_start = (self.flops + added, time.monotonic())
        self.flops += added
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, advance=added)

    def close(self) -> None:
        """Show how many executables were compiled."""
        if self.show == "json":
            return
        compiled = self.executables["compiled"]
        reused = self.executables["reused"]
        shapes = f"{self.shapes} shape" + ("s" if self.shapes > 1 else "")
        self._print_line(
            f"{shapes} of model and batch: {compiled} executables compiled, "
            f"{reused} reused"
        )

    def _print_line(self, text: str) -> None:
        if self.bar is not None:
            self.bar.console.print(text, highlight=False)
        elif self.show != "quiet":
            runs = f"{self.finished}/{self.runs}"
            share = f"{self.flops / self.total_flops:4.0%}"
            seconds = f"{self._estimate_seconds_left():4.0f} s left"
            line = f"[{runs}  {share}  {seconds}]  {text}"
            print(line, file=sys.stderr, flush=True)

    def _estimate_seconds_left(self) -> float:
        """Seconds at the rate since the first progress; NaN before the second one."""
        flops, since = self.rate_start or (0.0, 0.0)
        done = self.flops - flops
        if done <= 0:
            return math.nan
        return (time.monotonic() - since) * (self.total_flops - self.flops) / done


def _describe_result(row: JsonObject) -> str:
    outcome = "diverged" if row["diverged"] else f"loss {row['loss']:.4f}"
    shape = f"width {row['width']:>4}  depth {row['depth']:>2}"
    size = f"{row['tokens']:>11,} tokens  {row['flops']:.2e} FLOPs"
    return f"{row['run_id'][:8]}  {shape}  {size}  {outcome}"


@contextmanager
def show_progress(plan: Plan, show: Show = "auto") -> Iterator[Progress]:
    """The display of a sweep, on standard error."""
    console = Console(stderr=True)
    if show == "auto":
        show = "bar" if console.is_terminal else "plain"
    if show != "bar":
        progress = Progress(plan, None, show)
        yield progress
        progress.close()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} % of FLOPs"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as bar:
        progress = Progress(plan, bar, show)
        yield progress
        progress.close()
