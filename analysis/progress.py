"""What a person sees, on standard error, of a computation that takes longer than five
seconds: on a terminal a bar with the time left, elsewhere a line now and then.

    with show_progress("bootstrap", total=1000) as progress:
        for block in blocks:
            ...
            progress.advance(len(block))

Inside such a block an inner one shows nothing, so that the time left is that of the
whole. `SCALING_PROGRESS=off` in the environment turns it off.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import IO, Protocol, TypeVar, cast, runtime_checkable

PATIENCE = 5.0  # seconds before anything is shown, and between two lines
MIN_SHARE = 1e-9  # the time left is unknown before any work is done

Item = TypeVar("Item")

_has_outer: ContextVar[bool] = ContextVar("has_outer", default=False)


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
    """

    def __init__(
        self,
        title: str,
        total: int,
        stream: Stream | None,
        clock: Callable[[], float],
    ) -> None:
        self.title = title
        self.total = total
        self.done = 0
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
        if self._stream is None:
            return
        now = self._clock()
        if self._bar is not None:
            self._bar.move(self.done)
        elif now - self._shown >= PATIENCE:
            self._shown = now
            if self._stream.isatty():
                self._bar = _Bar(self.title, self.total, self._stream)
                self._bar.move(self.done)
            else:
                self._print_line(now)

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.close()

    def _print_line(self, now: float) -> None:
        share = min(self.done / self.total, 1.0)
        seconds = (now - self._begin) * (1 - share) / max(share, MIN_SHARE)
        line = f"[{share:4.0%}  {seconds:4.0f} s left]  {self.title}"
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

    def move(self, done: int) -> None:
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
    if is_off or _has_outer.get():
        yield Progress(title, total, None, clock)
        return
    progress = Progress(title, total, shown, clock)
    token = _has_outer.set(True)
    try:
        yield progress
    finally:
        _has_outer.reset(token)
        progress.close()


def track_progress(title: str, items: Sequence[Item]) -> Iterator[Item]:
    """The items one by one, with the progress through them."""
    with show_progress(title, len(items)) as progress:
        for item in items:
            yield item
            progress.advance()
