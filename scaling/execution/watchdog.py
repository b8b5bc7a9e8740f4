"""A watch over training that no other process watches: where a device hangs, the
process ends itself.

A thread that waits for a device cannot be interrupted, and nothing else would ever tell
that it waits in vain.
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

STATUS = 75  # with which the process ends: EX_TEMPFAIL of sysexits.h, try again


@contextmanager
def watchdog(report: Report, seconds: float | int) -> Iterator[Report]:
    """Pass on events. Where none comes for `seconds`, say so, show what each thread
    waits for, and end the process.
    """
    heard, over = [time.monotonic()], threading.Event()

    def passing(event: Event) -> None:
        heard[0] = time.monotonic()
        report(event)

    def watch() -> None:
        while not over.wait(min(1.0, seconds / 4)):
            if time.monotonic() - heard[0] > seconds:
                _end(seconds)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield passing
    finally:
        over.set()
        thread.join()


def _end(seconds: float | int) -> None:
    faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
    text = (
        f"training said nothing for {seconds:g} s (loop.stall_seconds): a device may hang; "
        "the same command resumes from the last checkpoint\n"
    )
    os.write(2, text.encode())
    os._exit(STATUS)
