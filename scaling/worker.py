"""A worker process: reads jobs as JSON lines from standard input, writes events as JSON lines to standard output.

Jobs: `{"job": "train", "runs": [...], "out": ..., "loop": {...}}` trains the runs of one trunk;
`{"job": "time", "runs": [...], "out": ..., "loop": {...}}` measures seconds per step. The last event of a job is `done`
or `failed`. Started by `scaling.executors`; an argument names the one core to run on.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from scaling.config import RunConfig, from_dict


def main() -> None:
    """Serve jobs until standard input closes."""
    if len(sys.argv) > 1:
        os.sched_setaffinity(0, {int(sys.argv[1])})  # before JAX counts the cores for its thread pools
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log, not among the events
    for line in sys.stdin:
        job = json.loads(line)
        try:
            runs = [from_dict(RunConfig, run) for run in job["runs"]]
            result = _serve(job, runs, events)
            _send(events, {"event": "done", **result})
        except Exception as error:  # whatever it is, the worker lives on and the sweep ends with its name
            _send(events, {"event": "failed", "error": f"{type(error).__name__}: {error}"})


def _serve(job: dict[str, Any], runs: list[RunConfig], events: TextIO) -> dict[str, Any]:
    from scaling import compilation
    from scaling.calibration import seconds_per_step
    from scaling.trunk import LoopConfig, train_trunk

    loop, out = from_dict(LoopConfig, job["loop"]), Path(job["out"])
    with compilation.kept(out) as programs:
        if job["job"] == "time":
            return {"seconds": [seconds_per_step(run, loop) for run in runs]}
        train_trunk(runs, out, loop, lambda event: _send(events, event))
    _send(events, {"event": "programs", **programs})
    return {}


def _send(events: TextIO, event: dict[str, Any]) -> None:
    events.write(json.dumps(event) + "\n")


if __name__ == "__main__":
    main()
