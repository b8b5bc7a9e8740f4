"""Silence ends the process with a message, events keep it alive, and every process that
trains alone is watched.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scaling import events as event_types
from scaling.config import RunConfig, Trunk, to_dict
from scaling.execution import in_process
from scaling.execution import watchdog as watchdog_module
from scaling.execution.base import Job
from scaling.execution.in_process import train_in_process
from scaling.execution.job_files import JobMailbox
from scaling.execution.watchdog import watch_training
from scaling.execution.worker import do_job
from scaling.store.leases import Leases
from scaling.training.loop import LoopConfig

MakeRun = Callable[..., RunConfig]

SILENT = """
import time
from scaling.events import Progress
from scaling.execution.watchdog import watch_training

def waits_for_a_device():
    time.sleep(60)

with watch_training(print, 0.2) as report:
    report(Progress("trunk", 1.0))
    waits_for_a_device()
"""


def test_silence_ends_the_process_and_shows_what_it_waits_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SILENT], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == watchdog_module.STATUS
    assert "waits_for_a_device" in done.stderr and done.stderr.endswith(
        "the same command resumes from the last checkpoint\n"
    )
    assert "training sent no event for 0.2 s (loop.stall_seconds)" in done.stderr


def test_events_keep_it_alive_and_are_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[float] = []
    monkeypatch.setattr(watchdog_module, "_end_process", ended.append)
    events: list[event_types.Event] = []
    with watch_training(events.append, 1.0) as report:
        for number in range(8):
            report(event_types.Progress("trunk", number))
            time.sleep(0.25)
    assert events == [event_types.Progress("trunk", i) for i in range(8)] and not ended
    with watch_training(events.append, 0.1):
        time.sleep(0.5)
    assert ended and set(ended) == {0.1}


def test_who_trains_alone_is_watched(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process and a job of a cluster are watched; a worker is not, because its
    sweep watches it.
    """
    seen: list[float] = []
    monkeypatch.setattr(watchdog_module, "_end_process", seen.append)
    hang = lambda runs, out, loop, report: time.sleep(0.5)
    monkeypatch.setattr(in_process, "train_trunk", hang)
    monkeypatch.setattr("scaling.training.loop.train_trunk", hang)
    run, loop = make_run(), LoopConfig(stall_seconds=0.1)
    train_in_process([Trunk((run,))], tmp_path, loop, lambda event: None)
    assert seen
    for alone in (True, False):
        seen.clear()
        job = {
            "job": "train",
            "runs": [to_dict(run)],
            "out": str(tmp_path),
            "loop": {"stall_seconds": 0.1},
            "alone": alone,
        }
        with open(tmp_path / "events", "w") as events:
            assert (
                do_job(job | {"alone": alone}, Leases(), events) == event_types.Done()
            )
        assert bool(seen) == alone
    posted = JobMailbox(tmp_path, "jobs", loop, lambda event: None).write_job(
        1, Job(Trunk((run,)))
    )
    assert json.loads(posted.path.read_text())["alone"] is True
