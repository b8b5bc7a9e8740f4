"""A worker process: jobs come as JSON lines on standard input, events leave as JSON
lines on standard output.

`{"job": "train", "runs": [...], "out": ..., "loop": {...}}` trains the runs of one
trunk; with "time" in place of "train" it measures seconds per step. If `"alone"` is
true, no other process watches this one, and it ends itself when training hangs. The
last event of a job is `done`, `failed`, or `busy` if another process holds the trunk.

`scaling.execution.local` starts workers. An argument names the one core to run on; the
environment names a GPU. A worker ends when the process that started it ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from scaling.config import RunConfig, Trunk, from_dict
from scaling.config.conversion import JsonObject
from scaling.events import (
    Busy,
    Done,
    Event,
    Failed,
    JobEnd,
    Programs,
    event_to_json,
)
from scaling.training.child import open_output_for_messages

if TYPE_CHECKING:
    # Imported when needed, since `main` must choose the core before JAX is imported.
    from scaling.store.leases import Leases

_ORPHANED = 143  # exit status of a process that SIGTERM ended


def main() -> None:
    """Serve jobs until standard input closes."""
    parent = os.getppid()
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    if len(sys.argv) > 1:
        # Before JAX counts the cores for its thread pools.
        os.sched_setaffinity(0, {int(sys.argv[1])})
    events = open_output_for_messages()
    from scaling.store.leases import Leases
    from scaling.training import preemption

    leases = Leases()
    with suppress(preemption.Preempted), preemption.sigterm_as_preemption():
        for line in sys.stdin:
            write_event(events, do_job(json.loads(line), leases, events))


def do_job(job: JsonObject, leases: Leases, events: TextIO) -> JobEnd:
    """Do a job and return its last event.

    Args:
        job: the JSON object described above.
        leases: takes the lease on the trunk.
        events: stream for the events before the last.

    Raises:
        Preempted: the process was told to end.
    """
    from scaling.execution.base import explain_error
    from scaling.store.leases import LeaseLost

    try:
        trunk = Trunk(tuple(from_dict(RunConfig, run) for run in job["runs"]))
        return _do_task(job, trunk, leases, events)
    except LeaseLost as lost:
        return Busy(str(lost))
    except Exception as error:
        # The worker goes on to the next job; the sweep ends with this message.
        return Failed(explain_error(error))


def _do_task(job: JsonObject, trunk: Trunk, leases: Leases, events: TextIO) -> JobEnd:
    from scaling.execution.watchdog import watch_training
    from scaling.planning.timing import measure_step
    from scaling.training import compile_cache
    from scaling.training.loop import LoopConfig, train_trunk

    loop = from_dict(LoopConfig, job["loop"])
    out = Path(job["out"])

    def report(event: Event) -> None:
        write_event(events, event)

    if job["job"] == "time":
        with compile_cache.compilation_cache(out):
            return Done([list(measure_step(run, loop)) for run in trunk.runs])
    with leases.hold(trunk.folder(out), report) as lease:
        if lease is None:
            return Busy()
        watch = nullcontext(report)
        if job.get("alone"):
            watch = watch_training(report, loop.stall_seconds)
        with compile_cache.compilation_cache(out) as programs, watch as watched_report:
            train_trunk(trunk, out, loop, lease.check_before(watched_report))
    report(Programs(**programs))
    return Done()


def write_event(events: TextIO, event: Event) -> None:
    """Write an event as a JSON line."""
    events.write(json.dumps(event_to_json(event)) + "\n")


def _end_with_parent(parent: int) -> None:
    """Exit when the parent is gone, so that a new sweep can have the trunk."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(_ORPHANED)


if __name__ == "__main__":
    main()
