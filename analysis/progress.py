"""What a person sees, on standard error, of a computation that takes longer than five
seconds: on a terminal a bar with the time left, elsewhere a line now and then.

    with show_progress("bootstrap", total=1000) as progress:
        for block in blocks:
            ...
            progress.advance(len(block))

A block that says nothing of its progress for five seconds is shown as it stands. Inside
such a block an inner one shows nothing of its own, so that the time left is that of the
whole; it moves the outer one through what `start_part` announced. `SCALING_PROGRESS=off`
in the environment turns it off.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import IO, Protocol, TypeVar, cast, runtime_checkable

PATIENCE = 5.0  # seconds before anything is shown, and the least between two lines
MIN_SHARE = 1e-9  # the time left is unknown before any work is done

Item = TypeVar("Item")

_outer: ContextVar[Progress | None] = ContextVar("outer", default=None)


@runtime_checkable
class Stream(Protocol):
    """What is shown goes there, such as `sys.stderr`."""

    def write(self, text: str, /) -> object: ...

    def flush(self) -> object: ...

    def isatty(self) -> bool: ...


class Progress:
    """How far a computation is.

    Args:
        title: what is computed.
        total: units of work in all.
        stream: where it is shown; None shows nothing.
        clock: seconds, from any origin.
        outer: the computation that this one is a part of.
    """

    def __init__(
        self,
        title: str,
        total: int,
        stream: Stream | None,
        clock: Callable[[], float],
        outer: Progress | None = None,
    ) -> None:
        self.title = title
        self.total = total
        self.done = 0
        self._part = 0
        self._part_done = 0.0
        self._outer = outer
        self._lock = threading.Lock()
        self._stream = stream
        self._clock = clock
        self._begin = clock()
        self._shown = self._begin
        self._bar: _Bar | None = None

    def advance(self, done: int = 1) -> None:
        """Count units of work that are done, and show how far that is."""
        self.move_to(self.done + done)

    def move_to(self, done: int) -> None:
        """Set the units of work that are done, and show how far that is."""
        self.done = done
        self._part_done = 0.0
        self._report()

    def start_part(self, units: int) -> None:
        """Announce that the next inner computation is so many units of work."""
        self._part = units

    def _move_through_part(self, share: float) -> None:
        """Show that an inner computation has done a share of the current part."""
        if self._part:
            self._part_done = max(self._part_done, share * self._part)
            self._report()

    def _report(self) -> None:
        if self._outer is not None:
            self._outer._move_through_part(self._compute_share())
        self.show()

    def _compute_share(self) -> float:
        """The share of the work that is done."""
        return min((self.done + self._part_done) / max(self.total, MIN_SHARE), 1.0)

    def show(self) -> None:
        """Show how far the work is, if it is time to."""
        with self._lock:
            if self._stream is None:
                return
            now = self._clock()
            done = self._compute_share() * self.total
            if self._bar is not None:
                self._bar.move(done)
            elif now - self._shown >= max(PATIENCE, (now - self._begin) / 10):
                self._shown = now
                if self._stream.isatty():
                    self._bar = _Bar(self.title, self.total, self._stream)
                    self._bar.move(done)
                else:
                    self._print_line(now)

    def close(self) -> None:
        """Take the bar off the terminal, and show no more."""
        if self._outer is not None:
            self._outer._part = 0
        with self._lock:
            self._stream = None
            if self._bar is not None:
                self._bar.close()

    def _print_line(self, now: float) -> None:
        share = self._compute_share()
        left = "   ?"  # nothing is done yet
        if share > 0:
            left = f"{(now - self._begin) * (1 - share) / share:4.0f}"
        line = f"[{share:4.0%}  {left} s left]  {self.title}"
        print(line, file=self._stream, flush=True)


class _Bar:
    """The bar of `scaling.monitoring.progress`. Rich is imported when one is shown."""

    def __init__(self, title: str, total: int, stream: Stream) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(),
            console=Console(file=cast(IO[str], stream)),
            transient=True,
        )
        self._task = self._bar.add_task(title, total=total)
        self._bar.start()

    def move(self, done: float) -> None:
        self._bar.update(self._task, completed=done)

    def close(self) -> None:
        self._bar.stop()


@contextmanager
def show_progress(
    title: str,
    total: int,
    *,
    stream: Stream | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """The progress of a computation, which calls `advance` as it goes.

    Args:
        title: what is computed, in a few words.
        total: units of work in all.
        stream: where it is shown; standard error when left out.
        clock: seconds, from any origin.
    """
    shown = stream or sys.stderr
    is_off = os.environ.get("SCALING_PROGRESS") == "off" and stream is None
    outer = _outer.get()
    is_shown = outer is None and not is_off
    progress = Progress(title, total, shown if is_shown else None, clock, outer)
    token = _outer.set(progress)
    stop = threading.Event()
    if is_shown:
        threading.Thread(
            target=_keep_showing, args=(progress, stop), daemon=True
        ).start()
    try:
        yield progress
    finally:
        stop.set()
        _outer.reset(token)
        progress.close()


def _keep_showing(progress: Progress, stop: threading.Event) -> None:
    """Show a computation that says nothing itself, until it ends."""
    while not stop.wait(PATIENCE):
        progress.show()


def track_progress(title: str, items: Sequence[Item]) -> Iterator[Item]:
    """The items one by one, with the progress through them."""
    with show_progress(title, len(items)) as progress:
        for item in items:
            yield item
            progress.advance()
