"""A worker process: reads jobs as JSON lines from standard input, writes events as JSON
lines to standard output.

Jobs: `{"job": "train", "runs": [...], "out": ..., "loop": {...}}` trains the runs of
one trunk; `{"job": "time", "runs": [...], "out": ..., "loop": {...}}` measures seconds
per step. Where `"alone"` is true nobody watches the process, and it ends itself when
training hangs. The last event of a job is `done`, `failed`, or `busy` where another
process holds the trunk. Started by `scaling.execution.local`; an argument names the one
core to run on, the environment a GPU. A worker ends with the process that started it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, TextIO

from scaling.config import RunConfig, from_dict

_ORPHANED = 143  # exit status of what is ended by SIGTERM


def main() -> None:
    """Serve jobs until standard input closes."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    if len(sys.argv) > 1:
        os.sched_setaffinity(
            0, {int(sys.argv[1])}
        )  # before JAX counts the cores for its thread pools
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log, not among the events
    from scaling.store.leases import Claims
    from scaling.training import preemption

    claims = Claims()
    with suppress(preemption.Preempted), preemption.heeded():
        for line in sys.stdin:
            _send(events, answer(json.loads(line), claims, events))


def answer(job: dict[str, Any], claims: Any, events: TextIO) -> dict[str, Any]:
    """Do a job; its last event. Raises Preempted where the process was told to end."""
    from scaling.execution.base import explain
    from scaling.store.leases import ClaimLost

    try:
        runs = [from_dict(RunConfig, run) for run in job["runs"]]
        return _serve(job, runs, claims, events)
    except ClaimLost as lost:
        return {"event": "busy", "error": str(lost)}
    except (
        Exception
    ) as error:  # whatever it is, the worker lives on and the sweep ends with its name
        return {"event": "failed", "error": explain(error)}


def _serve(
    job: dict[str, Any], runs: list[RunConfig], claims: Any, events: TextIO
) -> dict[str, Any]:
    from scaling.execution.watchdog import watched
    from scaling.planning.timing import measure_step
    from scaling.store import run_dirs
    from scaling.training import compile_cache
    from scaling.training.loop import LoopConfig, train_trunk

    loop, out = from_dict(LoopConfig, job["loop"]), Path(job["out"])

    def report(event: dict[str, Any]) -> None:
        _send(events, event)

    if job["job"] == "time":
        with compile_cache.compilation_cache(out):
            return {
                "event": "done",
                "seconds": [measure_step(run, loop) for run in runs],
            }
    with claims.held(run_dirs.trunk_dir(out, runs[0]), report) as claim:
        if claim is None:
            return {"event": "busy"}
        watch = (
            watched(report, loop.stall_seconds)
            if job.get("alone")
            else nullcontext(report)
        )
        with compile_cache.compilation_cache(out) as programs, watch as heard:
            train_trunk(runs, out, loop, claim.checking(heard))
    report({"event": "programs", **programs})
    return {"event": "done"}


def _end_with(parent: int) -> None:
    """Exit when the parent is gone: nobody listens any more, and its successor wants
    the trunk.
    """
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(_ORPHANED)


def _send(events: TextIO, event: dict[str, Any]) -> None:
    events.write(json.dumps(event) + "\n")


if __name__ == "__main__":
    main()
