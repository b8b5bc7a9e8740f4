"""What a person, or a program, sees of a running sweep.

`bar`: one bar in FLOPs with its time left; `plain`: a line for each run; `json`: every
event as a JSON line; `quiet`: nothing. `auto` is the bar on a terminal, else replace_nonfinite
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

    def report(self, event: dict[str, Any]) -> None:
        """Show one event."""
        if self.show == "json":
            print(json.dumps(replace_nonfinite(event)), file=sys.stderr, flush=True)
        elif event["event"] in ("started", "restored", "progress"):
            self._count(event)
        elif event["event"] == "finished":
            self.finished += 1
            self._line(_describe(event))
        elif event["event"] == "restarted":
            self._line(f"{event['reason']}; its runs resume from their checkpoints")
        elif event["event"] == "mixed":
            self._line(
                f"{event['folder']}: begun under {event['before']}, goes on under {event['now']}"
            )
        elif event["event"] == "packed":
            self._line(
                f"{event['members']} trunks of one shape train {_WAYS[event['how']]}"
            )
        elif event["event"] == "unpacked":
            self._line(
                f"training together failed ({event['reason']}); the trunks train one after the other"
            )
        elif event["event"] == "programs":
            self.programs.update(
                {name: count for name, count in event.items() if name != "event"}
            )

    def _count(self, event: dict[str, Any]) -> None:
        """Add FLOPs to those of a trunk; one that starts again has lost what no
        checkpoint gives back.
        """
        trunk = event["trunk"]
        added = event["flops"] if event["event"] != "started" else -self.done[trunk]
        self.done[trunk] += added
        if event["event"] == "progress":
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
