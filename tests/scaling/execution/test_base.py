"""Events are passed on, dead workers are replaced, and no process is left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from scaling import events as event_types
from scaling.config import RunConfig, Trunk
from scaling.execution import in_process, local
from scaling.execution.in_process import train_in_process
from scaling.execution.local import train_in_workers
from scaling.execution.sweep import SweepError, sweep
from scaling.training.child import Child
from scaling.training.loop import LoopConfig

MakeRun = Callable[..., RunConfig]
Event = event_types.Event

# a worker in a few lines: what it does follows from the seed of the job's first run
WORKER = """
import json, os, sys, time
for line in sys.stdin:
    seed = json.loads(line)["runs"][0]["seed"]
    if seed != 2:
        print(json.dumps({"event": "progress", "trunk": str(os.getpid()), "flops": float(seed)}), flush=True)
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
def started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> list[subprocess.Popen[bytes]]:
    """The processes that were started, each in place of a worker that would load JAX."""
    processes = []

    def start(log: Path, number: int, count: int) -> Child:
        del log, number, count
        command = [sys.executable, "-c", WORKER, str(tmp_path / "died")]
        child = Child(command)
        processes.append(child.process)
        return child

    monkeypatch.setattr(local, "start_worker", start)
    return processes


def trunks(make_run: MakeRun, *seeds: int) -> list[Trunk]:
    return [Trunk((make_run(seed=seed),)) for seed in seeds]


def test_every_job_is_done_once_and_its_events_passed_on(
    started: list[Any], make_run: MakeRun, tmp_path: Path
) -> None:
    events: list[Event] = []
    failures = train_in_workers(
        trunks(make_run, 10, 11, 12, 13), tmp_path, LoopConfig(), events.append, 2
    )
    assert not failures
    assert sorted(event.flops for event in events) == [10, 11, 12, 13]
    assert len(started) == 2 == len({event.trunk for event in events})
    assert all(process.returncode is not None for process in started)


def test_a_job_that_fails_stops_no_other(
    started: list[Any], make_run: MakeRun, tmp_path: Path
) -> None:
    jobs = trunks(make_run, 10, 1, 11)
    failures = train_in_workers(jobs, tmp_path, LoopConfig(), lambda event: None, 1)
    assert [(failure.runs, failure.reason) for failure in failures] == [
        (jobs[1].runs, "ValueError: seed 1")
    ]
    assert len(started) == 1


def test_a_dead_worker_is_replaced_and_its_job_taken_up_again(
    started: list[Any], make_run: MakeRun, tmp_path: Path
) -> None:
    events: list[Event] = []
    assert not train_in_workers(
        trunks(make_run, 3, 10), tmp_path, LoopConfig(), events.append, 1
    )
    assert [
        event.flops for event in events if isinstance(event, event_types.Progress)
    ] == [
        3,
        3,
        10,
    ]
    reasons = [
        event.reason for event in events if isinstance(event, event_types.Restarted)
    ]
    assert reasons == [f"the worker ended (exit status 7); see {tmp_path / 'logs'}"]
    assert len(started) == 2


def test_a_job_that_kills_its_worker_every_time_is_given_up(
    started: list[Any], make_run: MakeRun, tmp_path: Path
) -> None:
    jobs = trunks(make_run, 2, 10)
    failures = train_in_workers(jobs, tmp_path, LoopConfig(), lambda event: None, 1)
    assert [failure.runs for failure in failures] == [jobs[0].runs]
    assert (
        f"the worker ended (exit status 7); see {tmp_path / 'logs'} (3 times without "
        "progress)" in failures[0].reason
    )
    assert len(started) == 4


def test_a_worker_that_falls_silent_is_replaced(
    started: list[Any], make_run: MakeRun, tmp_path: Path
) -> None:
    loop = LoopConfig(stall_seconds=0.5, attempts=1)
    failures = train_in_workers(
        trunks(make_run, 4, 10), tmp_path, loop, lambda event: None, 1
    )
    assert [failure.runs[0].seed for failure in failures] == [4]
    assert (
        "sent no event for 0 s" in failures[0].reason
        or "sent no event for 1 s" in failures[0].reason
    )
    assert len(started) == 2 and all(
        process.returncode is not None for process in started
    )


def test_a_trunk_that_another_process_holds_is_asked_for_again(
    started: list[Any], make_run: MakeRun, tmp_path: Path
) -> None:
    events: list[Event] = []
    assert not train_in_workers(
        trunks(make_run, 5, 10), tmp_path, LoopConfig(), events.append, 1
    )
    assert [event.flops for event in events] == [5, 10, 5]
    assert len(started) == 1


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own answer to Ctrl-C, also where the tests were started in the
    background, with it ignored.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_no_process_behind(
    started: list[Any], make_run: MakeRun, tmp_path: Path
) -> None:
    seen = []

    def report(event: Event) -> None:
        seen.append(event)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGINT)  # Ctrl-C

    with pytest.raises(KeyboardInterrupt):
        train_in_workers(trunks(make_run, 4, 4, 4), tmp_path, LoopConfig(), report, 2)
    assert len(started) == 2 and all(
        process.returncode is not None for process in started
    )


def test_in_this_process_a_trunk_that_fails_stops_no_other(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def train_trunk(trunk: Trunk, *_: Any) -> None:
        if trunk.runs[0].seed == 1:
            raise OSError("disk full")
        trained.append(trunk)

    monkeypatch.setattr(in_process, "train_trunk", train_trunk)
    jobs = trunks(make_run, 0, 1, 2)
    failures = train_in_process(jobs, tmp_path, LoopConfig(), lambda event: None)
    assert trained == [jobs[0], jobs[2]]
    assert [(failure.runs, failure.reason) for failure in failures] == [
        (jobs[1].runs, "OSError: disk full")
    ]


# --- places for workers ---------------------------------------------------------------------------------------


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """JAX's plugin for CUDA is installed, and nothing else is said."""
    monkeypatch.setattr(
        local, "find_spec", lambda name: name == "jax_cuda12_plugin" or None
    )
    for name in (
        "JAX_PLATFORMS",
        "CUDA_VISIBLE_DEVICES",
        "XLA_PYTHON_CLIENT_MEM_FRACTION",
    ):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("platforms", "visible", "found"),
    [
        (None, "0,1", ["0", "1"]),
        ("cuda,cpu", " 3,GPU-8f", ["3", "GPU-8f"]),
        (None, "", []),
        (None, "-1", []),
        ("cpu", "0,1", []),
    ],
)
def test_gpus_are_those_that_jax_may_use(
    cuda: pytest.MonkeyPatch, platforms: str | None, visible: str, found: list[str]
) -> None:
    cuda.setenv("CUDA_VISIBLE_DEVICES", visible)
    if platforms is not None:
        cuda.setenv("JAX_PLATFORMS", platforms)
    assert local.list_gpus() == found
    cuda.setattr(local, "find_spec", lambda name: None)
    assert local.list_gpus() == []


def test_each_worker_has_a_gpu_or_its_share_of_one(cuda: pytest.MonkeyPatch) -> None:
    alone = [local.select_gpu(["0", "1"], number, 2) for number in range(2)]
    assert alone == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    shared = [local.select_gpu(["0", "1"], number, 3) for number in range(3)]
    assert [own["CUDA_VISIBLE_DEVICES"] for own in shared] == ["0", "1", "0"]
    assert {own["XLA_PYTHON_CLIENT_MEM_FRACTION"] for own in shared} == {"0.450"}
    cuda.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".2")
    assert local.select_gpu(["0"], 0, 4) == {"CUDA_VISIBLE_DEVICES": "0"}


def test_a_worker_is_told_of_its_place(
    cuda: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A GPU and no core, or one thread on one core."""
    show = "import json, os, sys; print(json.dumps({'place': [sys.argv[1:], os.environ.get('CUDA_VISIBLE_DEVICES')]}))"
    real = subprocess.Popen
    cuda.setattr(
        subprocess,
        "Popen",
        lambda command, **pipes: real([command[0], "-c", show, *command[4:]], **pipes),
    )
    for visible, place in (
        ("5,6", [[], "6"]),
        ("", [[str(sorted(os.sched_getaffinity(0))[-1])], ""]),
    ):
        cuda.setenv("CUDA_VISIBLE_DEVICES", visible)
        cores = len(os.sched_getaffinity(0))
        child = local.start_worker(tmp_path / "log", 1 if visible else cores - 1, cores)
        assert child.receive() == {"place": place}
        child.kill()


def test_a_sweep_with_workers_leaves_the_devices_alone(
    started: list[Any],
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """JAX would take most of a GPU's memory as soon as it is asked how many there are."""
    for name in (
        "devices",
        "local_devices",
        "device_count",
        "process_count",
        "process_index",
        "default_backend",
    ):
        monkeypatch.setattr(
            jax, name, lambda *_, name=name: pytest.fail(f"jax.{name}()")
        )
    with pytest.raises(SweepError, match="exit status 7"):
        sweep([make_run(seed=2)], tmp_path, workers=2, show="quiet")
