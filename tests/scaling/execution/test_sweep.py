"""Whatever fails, dies or is interrupted, a sweep ends with every run trained once that
can be trained.
"""

from __future__ import annotations

import importlib
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling import data
from scaling import events as event_types
from scaling.config import ConfigError, DataConfig, ModelConfig, OptimConfig, RunConfig
from scaling.execution import local
from scaling.execution.sweep import SweepError, drop_finished, sweep
from scaling.monitoring.progress import Progress
from scaling.planning.plan import Plan
from scaling.store import run_dirs
from scaling.store.files import StoreError
from scaling.store.table import run_table
from scaling.training.child import Child
from scaling.training.loop import LoopConfig

MakeRun = Callable[..., RunConfig]
Event = event_types.Event
module = importlib.import_module(
    "scaling.execution.sweep"
)  # the package's attribute of that name is the function
LOOP = LoopConfig(chunk_steps=4, checkpoint_seconds=0.0)


@pytest.fixture(scope="module")
def plan(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Three trunks on a folder of .txt files: two runs on the first trunk, one on each
    other.
    """
    folder = tmp_path_factory.mktemp("text")
    for number in range(60):
        line = f"document {number} says that {number} and {number} make {2 * number}\n"
        (folder / f"{number}.txt").write_text(line * 8)
    text = {
        "model.vocab": 256,
        "data.source": str(folder),
        "data.heldout_fraction": 0.2,
    }
    cells = ((10, 0), (20, 0), (10, 1), (10, 2))
    return Plan(
        "tiny",
        tuple(make_run(tokens=64 * steps, seed=seed, **text) for steps, seed in cells),
    )


@pytest.fixture(scope="module")
def here(
    plan: Plan, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, pd.DataFrame]:
    """The plan trained in this process."""
    out = tmp_path_factory.mktemp("here")
    return out, sweep(plan, out, workers=0, loop=LOOP, show="quiet")


def test_the_table_is_that_of_the_plan(
    plan: Plan, here: tuple[Path, pd.DataFrame]
) -> None:
    out, table = here
    assert set(table["run_id"]) == {run.run_id for run in plan} and len(table) == len(
        plan
    )
    assert (table["sweep"] == "tiny").all() and (table["tokenizer"] == "bytes").all()
    assert table["loss"].between(2.0, np.log(256)).all()
    np.testing.assert_allclose(table["bits_per_byte"], table["loss"] / np.log(2))
    assert np.isclose(table["flops_spent"].sum(), plan.flops, rtol=1e-12)
    pd.testing.assert_frame_equal(pd.read_parquet(out / "runs.parquet"), table)


def test_a_second_call_trains_nothing(
    plan: Plan, here: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, table = here
    assert len(drop_finished(plan, out)) == 0
    monkeypatch.setattr(module, "_train_plan", lambda *_: pytest.fail("trained again"))
    pd.testing.assert_frame_equal(sweep(plan, out, workers=0, show="quiet"), table)
    part = sweep([plan.runs[0]], out, workers=0, show="quiet")
    assert part["run_id"].tolist() == [plan.runs[0].run_id]


def test_a_plan_that_cannot_be_trained_starts_nothing(
    plan: Plan, make_run: MakeRun, tmp_path: Path
) -> None:
    wrong = make_run(**{"model.vocab": 8})
    with pytest.raises(ConfigError, match=r"model.vocab = 8"):
        sweep([*plan, wrong], tmp_path / "out", workers=0, show="quiet")
    with pytest.raises(data.DataError, match="no/such/folder"):
        sweep(
            [make_run(**{"data.source": "no/such/folder"})],
            tmp_path / "out",
            workers=0,
            show="quiet",
        )
    assert not (tmp_path / "out").exists()


def test_a_damaged_result_is_reported_and_its_remedy_works(
    plan: Plan, here: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, _ = here
    path = run_dirs.run_dir(out, plan.runs[0]) / "result.json"
    whole = path.read_text()
    path.write_text(whole[:100])
    with pytest.raises(
        StoreError,
        match=r"result\.json: cannot be read .*; remove .* and the next sweep trains",
    ):
        sweep(plan, out, workers=0, show="quiet")
    path.unlink()
    assert drop_finished(plan, out).runs == (plan.runs[0],)
    path.write_text(whole)


# --- worker processes -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workers(
    plan: Plan, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, list[Event]]:
    """The plan on two workers. The second trunk's folder holds a broken configuration;
    when training has begun one worker is killed. (Store, the error, the events.)"""
    out, events = tmp_path_factory.mktemp("workers"), []
    (run_dirs.open_run(out, plan.runs[2]) / "config.json").write_text("{")
    processes: list[subprocess.Popen[bytes]] = []
    start = local.start_worker

    def recorded(*place: Any) -> Child:
        child = start(*place)
        processes.append(child.process)
        return child

    class Shown(Progress):
        def report(self, event: Event) -> None:
            if isinstance(event, event_types.Progress) and not any(
                isinstance(e, event_types.Progress) for e in events
            ):
                processes[0].kill()
            events.append(event)

    @contextmanager
    def show_progress(*_: Any, **__: Any) -> Iterator[Shown]:
        yield Shown(plan, None, "quiet")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "start_worker", recorded)
        patch.setattr(module, "show_progress", show_progress)
        with pytest.raises(SweepError) as error:
            sweep(plan, out, workers=2, loop=LOOP)
    assert all(process.returncode is not None for process in processes)
    return out, str(error.value), events


def test_a_failing_job_is_named_and_stops_no_other(
    plan: Plan, workers: tuple[Path, str, list[Event]]
) -> None:
    out, message, _ = workers
    failed = plan.runs[2].run_id
    assert (
        "1 runs failed; the finished runs are kept:" in message
        and "scaling sweep --retry failed" in message
    )
    assert re.search(rf"{failed} +\d+ +\d+ +[\d,]+ +\d+  StoreError: ", message)
    assert "config.json: cannot be read" in message and "remove the folder" in message
    assert [run.run_id for run in drop_finished(plan, out)] == [failed]


def test_a_killed_worker_is_replaced(workers: tuple[Path, str, list[Event]]) -> None:
    _, _, events = workers
    assert [
        "killed" in event.reason
        for event in events
        if isinstance(event, event_types.Restarted)
    ] == [True]
    assert sum(isinstance(event, event_types.Finished) for event in events) == 3


def test_workers_train_what_this_process_trains(
    plan: Plan, here: tuple[Path, pd.DataFrame], workers: tuple[Path, str, list[Event]]
) -> None:
    """One thread against several: the same sums in perhaps another order. Equal to the
    last bit at this size, to 1e-8 nats at width 64; the law is 1e-6."""
    ours = here[1].set_index("run_id")["loss"]
    theirs = run_table(workers[0]).set_index("run_id")["loss"]
    assert len(theirs) == 3
    np.testing.assert_allclose(theirs, ours[theirs.index], atol=1e-6)


def test_the_remedy_of_a_failed_job_is_enough(
    plan: Plan, workers: tuple[Path, str, list[Event]], here: tuple[Path, pd.DataFrame]
) -> None:
    out = workers[0]
    (run_dirs.run_dir(out, plan.runs[2]) / "config.json").unlink()
    with pytest.raises(
        SweepError, match=r"config.json: cannot be read .* \(before\)"
    ):  # not tried again unasked
        sweep(plan, out, workers=0, loop=LOOP, show="quiet")
    table = sweep(plan, out, workers=0, loop=LOOP, show="quiet", retry=True)
    assert table["run_id"].tolist() == here[1]["run_id"].tolist()
    np.testing.assert_allclose(table["loss"], here[1]["loss"], atol=1e-6)


# --- ground truth ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_trained_markov_source_ends_at_its_entropy(tmp_path: Path) -> None:
    """Data, model, optimizer, schedule, evaluation and record against a loss that is
    known exactly: within 0.02 nats of the source's own log probability of the same
    held-out tokens (about 0.008 here), and not below it."""
    source = "markov:states=64,branching=4,tokens=1000000"
    run = RunConfig(
        ModelConfig(width=32, depth=1, n_heads=2, ff_ratio=2.0, vocab=64, context=32),
        DataConfig(source),
        OptimConfig(
            lr=1e-2, batch_size=16, warmup_tokens=32_768, cooldown_fraction=0.5
        ),
        tokens=900_000,
        eval_tokens=65_536,
    )
    row = sweep([run], tmp_path, workers=0, show="quiet").iloc[0]
    windows = data.heldout_windows(
        data.load_dataset(run.data).heldout, run.model.context, run.eval_tokens
    )
    markov = data.open_synthetic(source)
    exact = -markov.oracle_logprob(windows).mean()
    assert -0.001 < row["loss"] - exact < 0.02
    assert (
        abs(row["loss"] - markov.entropy) < 0.02
    )  # 65,504 tokens: a standard error of 0.0025
