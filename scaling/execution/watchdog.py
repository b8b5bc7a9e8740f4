"""A watchdog for training in a process that no other process watches.

A thread that waits for a device cannot be interrupted, and nothing would notice that it
waits in vain. So if training reports no event for too long, the watchdog ends the
process.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from scaling.events import Event, Report

STATUS = 75
"""Exit status of a process that hangs: EX_TEMPFAIL of sysexits.h, "try again"."""


@contextmanager
def watch_training(report: Report, seconds: float | int) -> Iterator[Report]:
    """Pass on events, and end the process if none comes for `seconds`.

    Before the process ends, it prints what each thread waits for and how to resume.

    Yields:
        The report to which training must send its events.
    """
    last_event = time.monotonic()
    ended = threading.Event()

    def pass_on(event: Event) -> None:
        nonlocal last_event
        last_event = time.monotonic()
        report(event)

    def watch() -> None:
        while not ended.wait(min(1.0, seconds / 4)):
            if time.monotonic() - last_event > seconds:
                _end_process(seconds)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield pass_on
    finally:
        ended.set()
        thread.join()


def _end_process(seconds: float | int) -> None:
    faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
    text = (
        f"training sent no event for {seconds:g} s (loop.stall_seconds): a device may "
        "hang; the same command resumes from the last checkpoint\n"
    )
    os.write(2, text.encode())
    os._exit(STATUS)
