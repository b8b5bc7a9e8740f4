"""Laws of the executors: events are passed on, the dead are replaced, and nothing is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scaling import executors, workers
from scaling.config import RunConfig
from scaling.executors import run_here
from scaling.trunk import LoopConfig
from scaling.workers import run_workers

MakeRun = Callable[..., RunConfig]
Event = dict[str, Any]

# a worker in a few lines: what it does follows from the seed of the job's first run
WORKER = """
import json, os, sys, time
for line in sys.stdin:
    seed = json.loads(line)["runs"][0]["seed"]
    if seed != 2:
        print(json.dumps({"event": "progress", "flops": float(seed), "pid": os.getpid()}), flush=True)
    if seed == 1:
        print(json.dumps({"event": "failed", "error": "ValueError: seed 1"}), flush=True)
    elif seed == 2 or (seed == 3 and not os.path.exists(sys.argv[1])):
        open(sys.argv[1], "w").close()
        os._exit(7)
    elif seed == 4:
        time.sleep(60)
    elif seed == 5 and not os.path.exists(sys.argv[1]):
        open(sys.argv[1], "w").close()
        print(json.dumps({"event": "busy"}), flush=True)
    else:
        print(json.dumps({"event": "done"}), flush=True)
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[subprocess.Popen[bytes]]:
    """The processes started, each in place of a worker that would load JAX."""
    processes = []

    def start(log: Path, core: int | None) -> subprocess.Popen[bytes]:
        del log, core
        command = [sys.executable, "-c", WORKER, str(tmp_path / "died")]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return processes[-1]

    monkeypatch.setattr(workers, "start", start)
    return processes


def trunks(make_run: MakeRun, *seeds: int) -> list[list[RunConfig]]:
    return [[make_run(seed=seed)] for seed in seeds]


def test_every_job_is_done_once_and_its_events_passed_on(started: list[Any], make_run: MakeRun, tmp_path: Path) -> None:
    events: list[Event] = []
    failures = run_workers(trunks(make_run, 10, 11, 12, 13), tmp_path, LoopConfig(), events.append, 2)
    assert not failures
    assert sorted(event["flops"] for event in events) == [10, 11, 12, 13]
    assert len(started) == 2 == len({event["pid"] for event in events})
    assert all(process.returncode is not None for process in started)


def test_a_job_that_fails_stops_no_other(started: list[Any], make_run: MakeRun, tmp_path: Path) -> None:
    jobs = trunks(make_run, 10, 1, 11)
    failures = run_workers(jobs, tmp_path, LoopConfig(), lambda event: None, 1)
    assert [(failure.runs, failure.reason) for failure in failures] == [(jobs[1], "ValueError: seed 1")]
    assert len(started) == 1


def test_a_dead_worker_is_replaced_and_its_job_taken_up_again(
    started: list[Any], make_run: MakeRun, tmp_path: Path
) -> None:
    events: list[Event] = []
    assert not run_workers(trunks(make_run, 3, 10), tmp_path, LoopConfig(), events.append, 1)
    assert [event.get("flops") for event in events if event["event"] == "progress"] == [3, 3, 10]
    reasons = [event["reason"] for event in events if event["event"] == "restarted"]
    assert reasons == [f"the worker ended (exit status 7); see {tmp_path / 'logs'}"]
    assert len(started) == 2


def test_a_job_that_kills_its_worker_every_time_is_given_up(
    started: list[Any], make_run: MakeRun, tmp_path: Path
) -> None:
    jobs = trunks(make_run, 2, 10)
    failures = run_workers(jobs, tmp_path, LoopConfig(), lambda event: None, 1)
    assert [failure.runs for failure in failures] == [jobs[0]]
    assert f"the worker ended (exit status 7); see {tmp_path / 'logs'} (3 times without progress)" in failures[0].reason
    assert len(started) == 4


def test_a_worker_that_falls_silent_is_replaced(started: list[Any], make_run: MakeRun, tmp_path: Path) -> None:
    loop = LoopConfig(stall_seconds=0.5, attempts=1)
    failures = run_workers(trunks(make_run, 4, 10), tmp_path, loop, lambda event: None, 1)
    assert [failure.runs[0].seed for failure in failures] == [4]
    assert "said nothing for 0 s" in failures[0].reason or "said nothing for 1 s" in failures[0].reason
    assert len(started) == 2 and all(process.returncode is not None for process in started)


def test_a_trunk_that_another_process_holds_is_asked_for_again(
    started: list[Any], make_run: MakeRun, tmp_path: Path
) -> None:
    events: list[Event] = []
    assert not run_workers(trunks(make_run, 5, 10), tmp_path, LoopConfig(), events.append, 1)
    assert [event["flops"] for event in events] == [5, 10, 5]
    assert len(started) == 1


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own answer to Ctrl-C, also where the tests were started in the background, with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_no_process_behind(started: list[Any], make_run: MakeRun, tmp_path: Path) -> None:
    seen = []

    def report(event: Event) -> None:
        seen.append(event)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C

    with pytest.raises(KeyboardInterrupt):
        run_workers(trunks(make_run, 4, 4, 4), tmp_path, LoopConfig(), report, 2)
    assert len(started) == 2 and all(process.returncode is not None for process in started)


def test_in_this_process_a_trunk_that_fails_stops_no_other(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def train_trunk(runs: list[RunConfig], *_: Any) -> None:
        if runs[0].seed == 1:
            raise OSError("disk full")
        trained.append(runs)

    monkeypatch.setattr(executors, "train_trunk", train_trunk)
    jobs = trunks(make_run, 0, 1, 2)
    failures = run_here(jobs, tmp_path, LoopConfig(), lambda event: None)
    assert trained == [jobs[0], jobs[2]]
    assert [(failure.runs, failure.reason) for failure in failures] == [(jobs[1], "OSError: disk full")]
