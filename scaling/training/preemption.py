"""A notice that this process is about to be killed: training saves where it is and
ends.

Nothing depends on it: a process that is killed without notice loses the steps since its
last checkpoint.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_requested = threading.Event()


class Preempted(KeyboardInterrupt):
    """Training has stopped at a checkpoint because the process was told to end."""


def requested() -> bool:
    """Whether the process was told to end."""
    return _requested.is_set()


def request(number: int = 0, frame: FrameType | None = None) -> None:
    """End at the next chance: a signal handler."""
    del number, frame
    _requested.set()


@contextmanager
def sigterm_as_preemption() -> Iterator[None]:
    """Take SIGTERM, what schedulers send before they kill, for such a notice."""
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # only there may handlers be set
        yield
        return
    _requested.clear()
    before = signal.signal(signal.SIGTERM, request)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _requested.clear()
