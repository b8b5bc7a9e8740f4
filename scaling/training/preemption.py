"""The notice that this process will be killed soon: training saves a checkpoint and
ends.

No result depends on the notice. A process that is killed without one loses the steps
since its last checkpoint.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_requested = threading.Event()


class Preempted(KeyboardInterrupt):
    """Training has stopped at a checkpoint because the process received the notice."""


def is_requested() -> bool:
    """Whether this process has received the notice."""
    return _requested.is_set()


def request_preemption(number: int = 0, frame: FrameType | None = None) -> None:
    """Give the notice; has the signature of a signal handler."""
    del number, frame
    _requested.set()


@contextmanager
def sigterm_as_preemption() -> Iterator[None]:
    """Take SIGTERM, which schedulers send before they kill, as the notice.

    In another thread than the main one it does nothing, because only the main thread
    may set signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _requested.clear()
    before = signal.signal(signal.SIGTERM, request_preemption)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _requested.clear()
