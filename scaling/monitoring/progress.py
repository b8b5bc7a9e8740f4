"""What a person, or a program, sees of a running sweep.

`bar`: one bar in FLOPs with its time left; `plain`: a line for each run; `json`: every
event as a JSON line; `quiet`: nothing. `auto` is the bar on a terminal, else plain
lines. All on standard error. The time left is what remains in
FLOPs at the rate measured since the first step: what is restored from checkpoints
counts as done, not as speed.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from scaling import events
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
_WAYS = {
    "solo": "one after the other",
    "vmap": "side by side",
    "map": "in turn, in one program",
}


class Progress:
    """Takes the events of a sweep."""

    def __init__(self, plan: Plan, bar: Bar | None, show: Show) -> None:
        self.total, self.runs = plan.flops, len(plan)
        self.bar, self.show = bar, show
        self.flops, self.finished = 0.0, 0
        self.done: defaultdict[str, float] = defaultdict(float)  # FLOPs of each trunk
        self.first: tuple[float, float] | None = (
            None  # FLOPs and time of the first progress: before it, compilation
        )
        self.shapes, self.programs = plan.shapes, Counter[str]()
        self.task = (
            None
            if bar is None
            else bar.add_task(f"{self.runs} runs", total=self.total, loss="")
        )

    def report(self, event: Event) -> None:
        """Show one event."""
        if self.show == "json":
            line = json.dumps(replace_nonfinite(event_to_json(event)))
            print(line, file=sys.stderr, flush=True)
            return
        match event:
            case TrunkEvent():
                self._count(event)
            case Finished(row):
                self.finished += 1
                self._line(_describe(row))
            case Restarted(reason):
                self._line(f"{reason}; its runs resume from their checkpoints")
            case Mixed(folder, before, now):
                self._line(f"{folder}: begun under {before}, goes on under {now}")
            case Packed(members, how):
                self._line(f"{members} trunks of one shape train {_WAYS[how]}")
            case Unpacked(reason):
                self._line(
                    f"training together failed ({reason}); "
                    "the trunks train one after the other"
                )
            case Programs(compiled, reused):
                self.programs.update({"compiled": compiled, "reused": reused})

    def _count(self, event: TrunkEvent) -> None:
        """Add FLOPs to those of a trunk.

        A trunk that starts again has lost what no checkpoint gives back.
        """
        added = event.flops
        if isinstance(event, Started):
            added = -self.done[event.trunk]
        self.done[event.trunk] += added
        if isinstance(event, events.Progress):
            self.first = self.first or (self.flops + added, time.monotonic())
        else:
            self.first = self.first and (self.first[0] + added, self.first[1])
        self.flops += added
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, advance=added)

    def close(self) -> None:
        """Say what was compiled."""
        if self.show == "json":
            return
        compiled, reused = self.programs["compiled"], self.programs["reused"]
        shapes = f"{self.shapes} shape" + ("s" if self.shapes > 1 else "")
        self._line(
            f"{shapes} of model and batch: {compiled} programs compiled, {reused} reused"
        )

    def _line(self, text: str) -> None:
        if self.bar is not None:
            self.bar.console.print(text, highlight=False)
        elif self.show != "quiet":
            head = f"[{self.finished}/{self.runs}  {self.flops / self.total:4.0%}  {self._seconds_left():4.0f} s left]"
            print(f"{head}  {text}", file=sys.stderr, flush=True)

    def _seconds_left(self) -> float:
        """At the rate since the first progress; NaN before a second one."""
        flops, since = self.first or (0.0, 0.0)
        done = self.flops - flops
        return (
            (time.monotonic() - since) * (self.total - self.flops) / done
            if done > 0
            else float("nan")
        )


def _describe(row: dict[str, Any]) -> str:
    outcome = "diverged" if row["diverged"] else f"loss {row['loss']:.4f}"
    shape = f"width {row['width']:>4}  depth {row['depth']:>2}"
    return f"{row['run_id'][:8]}  {shape}  {row['tokens']:>11,} tokens  {row['flops']:.2e} FLOPs  {outcome}"


@contextmanager
def progress(plan: Plan, show: Show = "auto") -> Iterator[Progress]:
    """The display of a sweep, on standard error."""
    console = Console(stderr=True)
    if show == "auto":
        show = "bar" if console.is_terminal else "plain"
    if show != "bar":
        shown = Progress(plan, None, show)
        yield shown
        shown.close()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} % of FLOPs"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console) as bar:
        shown = Progress(plan, bar, show)
        yield shown
        shown.close()
