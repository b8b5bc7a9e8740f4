"""Jobs that are trained elsewhere write their events to a file, and only the run
directories are believed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from scaling import events as event_types
from scaling.config import ConfigError, RunConfig, Trunk
from scaling.execution import job_files
from scaling.execution.base import Job
from scaling.execution.config import RayConfig
from scaling.execution.job_files import JobMailbox
from scaling.execution.sweep import sweep
from scaling.store import run_dirs
from scaling.store.files import write_atomically
from scaling.store.leases import Leases
from scaling.training import preemption
from scaling.training.loop import LoopConfig

MakeRun = Callable[..., RunConfig]
Event = event_types.Event
LOOP = LoopConfig(chunk_steps=4, checkpoint_seconds=0.0)


@pytest.fixture
def events() -> list[Event]:
    return []


@pytest.fixture
def post(tmp_path: Path, events: list[Event]) -> JobMailbox:
    return JobMailbox(tmp_path, "jobs", LOOP, events.append)


def says(path: Path, text: str) -> None:
    with open(job_files.events_path(path), "a") as file:
        file.write(text)


def test_a_job_served_from_its_file_is_done(
    post: JobMailbox,
    events: list[Event],
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [make_run(tokens=1280), make_run(tokens=2560)]
    posted = post.write_job(5, Job(Trunk(tuple(runs))))
    assert job_files.serve_job(posted.path) == "done"
    outcome = post.make_outcome(posted, "gone")
    assert outcome is not None and (outcome.ticket, outcome.kind) == (5, "done")
    assert [
        event.row["run_id"]
        for event in events
        if isinstance(event, event_types.Finished)
    ] == [run.run_id for run in runs]
    assert not any(post.folder.iterdir())


def test_a_job_that_fails_says_why(post: JobMailbox, make_run: MakeRun) -> None:
    posted = post.write_job(1, Job(Trunk((make_run(**{"model.vocab": 8}),))))
    assert job_files.serve_job(posted.path) == "failed"
    outcome = post.make_outcome(posted, "gone")
    assert (
        outcome is not None
        and outcome.kind == "failed"
        and "model.vocab = 8" in outcome.reason
    )


def test_a_job_that_is_not_wanted_saves_and_ends(
    post: JobMailbox, make_run: MakeRun, tmp_path: Path
) -> None:
    """No checkpoint is due for an hour, so the one that exists was requested."""
    post.loop = LoopConfig(chunk_steps=4, checkpoint_seconds=3600.0)
    run = make_run(tokens=64 * 50_000)
    posted = post.write_job(1, Job(Trunk((run,))))

    def recall() -> None:
        while not any(isinstance(event, event_types.Progress) for event in seen):
            seen.extend(
                event_types.event_from_json(json.loads(line))
                for line in job_files.events_path(posted.path)
                .read_text()
                .splitlines()[1:-1]
            )
            time.sleep(0.1)
        post.recall_job(posted)

    seen: list[Event] = []
    job_files.events_path(posted.path).touch()
    with ThreadPoolExecutor(1) as pool, preemption.sigterm_as_preemption():
        done = pool.submit(recall)
        with pytest.raises(preemption.Preempted):
            job_files.serve_job(posted.path)
        done.result()
    assert list((run_dirs.trunk_dir(tmp_path, run) / "checkpoints").glob("[0-9]*"))
    assert not run_dirs.is_finished(tmp_path, run) and not preemption.is_requested()


def test_a_job_whose_trunk_is_held_is_busy(
    post: JobMailbox, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_files, "_BUSY_WAIT_SECONDS", 0.1)
    job = Job(Trunk((make_run(),)))
    assert post.is_free(job)
    posted = post.write_job(1, job)
    with Leases().hold(job.trunk.folder(tmp_path), lambda event: None):
        assert not post.is_free(job)
        assert job_files.serve_job(posted.path) == "busy"
    assert post.is_free(job)
    outcome = post.make_outcome(posted, "gone")
    assert outcome is not None and outcome.kind == "busy"


def test_a_job_that_ends_without_a_word_has_died(
    post: JobMailbox, make_run: MakeRun, tmp_path: Path
) -> None:
    """Only a newer checkpoint is progress, whatever the job has said."""
    run = make_run()
    for step in (None, 8):
        posted = post.write_job(1, Job(Trunk((run,))))
        says(posted.path, '{"event": "progress", "trunk": "a", "flops": 1.0}\n')
        if step is not None:
            (run_dirs.trunk_dir(tmp_path, run) / "checkpoints" / str(step)).mkdir(
                parents=True
            )
        outcome = post.make_outcome(posted, "node lost")
        assert outcome is not None
        assert (outcome.kind, outcome.reason, outcome.advanced) == (
            "died",
            "node lost",
            step is not None,
        )


def test_done_is_believed_once_the_results_are_seen(
    post: JobMailbox, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system may show the results later than the event. If they never
    appear, the job has died.
    """
    run = make_run()
    posted = post.write_job(1, Job(Trunk((run,))))
    says(posted.path, '{"event": "done"}\n')
    assert post.make_outcome(posted, "gone") is None
    monkeypatch.setattr(job_files, "EXPIRY", 0.0)
    outcome = post.make_outcome(posted, "gone")
    assert outcome is not None and outcome.kind == "died"
    posted = post.write_job(2, Job(Trunk((run,))))
    write_atomically(run_dirs.run_dir(tmp_path, run) / "result.json", "{}")
    outcome = post.make_outcome(posted, "gone")  # though it has not said so
    assert outcome is not None and outcome.kind == "done"


def test_each_event_is_passed_on_once_and_torn_lines_are_skipped(
    post: JobMailbox, events: list[Event], make_run: MakeRun
) -> None:
    posted = post.write_job(1, Job(Trunk((make_run(),))))
    post.read_events(posted)
    for text, count in (
        ("", 0),
        ('{"event": "restarted", "reason": "a"}\n{"eve', 1),
        ('nt": "restarted", "reason": "b"}\n', 2),
        ('{"torn\n{"event": "restarted", "reason": "c"}\n', 3),
    ):
        says(posted.path, text)
        post.read_events(posted)
        post.read_events(posted)
        assert [event.reason for event in events] == ["a", "b", "c"][:count]


def test_a_timing_is_passed_back(post: JobMailbox, make_run: MakeRun) -> None:
    posted = post.write_job(1, Job(Trunk((make_run(),)), "time"))
    says(posted.path, json.dumps({"event": "done", "seconds": [[0.1, 2.0]]}) + "\n")
    outcome = post.make_outcome(posted, "gone")
    assert (
        outcome is not None
        and outcome.kind == "done"
        and outcome.seconds == [[0.1, 2.0]]
    )


def test_a_cluster_excludes_workers(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave out `workers`"):
        sweep([make_run()], tmp_path, workers=2, executor=RayConfig(), show="quiet")
