"""Laws of the loop: sharing a trunk, being interrupted or being killed never shows in
what is recorded.

All runs here are one compiled shape, with dropout, so that the random keys are resumed
too; chunks of 4 steps.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scaling import events as event_types
from scaling.config import ConfigError, RunConfig, Trunk, to_dict
from scaling.model.flops import flops_per_token
from scaling.planning.plan import Plan
from scaling.store import run_dirs
from scaling.store.columns import COLUMN_NAMES
from scaling.store.run_dirs import read_metrics
from scaling.store.table import run_table
from scaling.training.loop import LoopConfig, train_trunk
from scaling.training.step import Executable

MakeRun = Callable[..., RunConfig]
Event = event_types.Event
LOOP = LoopConfig(chunk_steps=4, checkpoint_seconds=0.0, sweep="test")
PROVENANCE = ("wall_seconds", "device", "versions", "commit")


def ladder(
    make_run: MakeRun, *cells: tuple[int, float], **changes: Any
) -> list[RunConfig]:
    """Runs of one trunk: (steps, cooldown fraction) of each."""
    base = {"model.dropout": 0.1, **changes}
    return [
        make_run(tokens=64 * n, **{**base, "optim.cooldown_fraction": f})
        for n, f in cells
    ]


def train(
    runs: Sequence[RunConfig], out: Path, report: Callable[[Event], None] | None = None
) -> None:
    train_trunk(Trunk(tuple(runs)), out, LOOP, report or (lambda event: None))


def result(out: Path, run: RunConfig) -> dict[str, Any]:
    """What is recorded of a run, without when and where."""
    row = json.loads((run_dirs.run_dir(out, run) / "result.json").read_text())
    return {name: value for name, value in row.items() if name not in PROVENANCE}


def metrics(out: Path) -> dict[str, pd.DataFrame]:
    return {
        path.parent.name: read_metrics(path)
        for path in sorted(out.glob("*/metrics.jsonl"))
    }


def assert_same(a: Path, b: Path, runs: Sequence[RunConfig]) -> None:
    """To the last bit: results and, step by step, metrics."""
    for run in runs:
        assert result(a, run) == result(b, run)
    ours, theirs = metrics(a), metrics(b)
    assert ours.keys() == theirs.keys()
    for name in ours:
        pd.testing.assert_frame_equal(ours[name], theirs[name], check_exact=True)


@pytest.fixture(scope="module")
def runs(make_run: MakeRun) -> list[RunConfig]:
    return ladder(make_run, (10, 0.3), (20, 0.3))


@pytest.fixture(scope="module")
def finished(
    runs: list[RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Event]]:
    """Both runs trained without interruption, and the events."""
    out, events = tmp_path_factory.mktemp("finished"), []
    train(runs, out, events.append)
    return out, events


# --- one trunk ------------------------------------------------------------------------------------------------


def test_a_run_off_a_shared_trunk_is_the_run_trained_alone(
    make_run: MakeRun, tmp_path: Path
) -> None:
    """Of several lengths, cooldowns and shapes of cooldown; the longest leaves the
    trunk before a shorter one.
    """
    runs = ladder(make_run, (10, 0.3), (20, 0.1), (25, 0.8), (14, 0.0))
    runs += ladder(make_run, (20, 0.5), **{"optim.schedule": "wsd_1sqrt"})
    assert len({run.trunk_id for run in runs}) == 1
    assert max(runs, key=lambda run: run.steps).branch_step < max(
        run.branch_step for run in runs
    )
    train(runs, tmp_path / "shared")
    for run in runs:
        train([run], tmp_path / run.run_id)
        assert result(tmp_path / "shared", run) == result(tmp_path / run.run_id, run)
    assert len({result(tmp_path / "shared", run)["loss"] for run in runs}) == len(runs)


def test_the_row_holds_what_the_run_was(
    finished: tuple[Path, list[Event]], runs: list[RunConfig]
) -> None:
    out, _ = finished
    table = run_table(out)
    assert list(table.columns) == list(COLUMN_NAMES) and list(table["run_id"]) == [
        run.run_id for run in runs
    ]
    assert (table["status"] == "finished").all() and not table["diverged"].any()
    assert (table["sweep"] == "test").all() and table["tokens"].tolist() == [640, 1280]
    assert (table["wall_seconds"] > 0).all() and (table["loss_se"] > 0).all()
    assert table["loss"].between(0.3, 2.8).all()
    assert (table["unique_tokens"] * table["epochs"] == table["tokens"]).all()
    assert json.loads(table["versions"][0]).keys() >= {
        "jax",
        "flax",
        "optax",
        "scaling",
    }


def test_a_run_that_repeats_its_data_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    run = ladder(make_run, (20, 0.3), **{"data.unique_tokens": 400})[0]
    train([run], tmp_path)
    row = run_table(tmp_path).iloc[0]
    assert row["unique_tokens"] == 399 // 16 * 16 and np.isclose(
        row["epochs"], 1280 / 384
    )


def test_flops_spent_are_those_of_the_steps_taken(
    finished: tuple[Path, list[Event]], runs: list[RunConfig]
) -> None:
    out, events = finished
    reported = sum(
        event.flops for event in events if isinstance(event, event_types.Progress)
    )
    assert np.isclose(run_table(out)["flops_spent"].sum(), reported, rtol=1e-12)
    steps = 14 + 3 + 6  # the longer trunk, two cooldowns
    assert np.isclose(reported, steps * 64 * flops_per_token(runs[0].model), rtol=1e-12)
    assert np.isclose(Plan("two", tuple(runs)).flops, reported, rtol=1e-12)


def test_every_step_is_in_the_metrics_once(
    finished: tuple[Path, list[Event]], runs: list[RunConfig]
) -> None:
    tables = metrics(finished[0])
    assert tables[f"trunk-{runs[0].trunk_id}"]["step"].tolist() == [4, 7, 11, 14]
    assert tables[runs[0].run_id]["step"].tolist() == [10]
    assert tables[runs[1].run_id]["step"].tolist() == [18, 20]
    for table in tables.values():
        assert (table["tokens"] == 64 * table["step"]).all()
        assert np.isfinite(table[["loss", "grad_norm"]]).all(axis=None)


def test_a_cosine_run_has_no_trunk(make_run: MakeRun, tmp_path: Path) -> None:
    run = ladder(make_run, (10, 0.3), **{"optim.schedule": "cosine"})[0]
    train([run], tmp_path)
    assert result(tmp_path, run)["status"] == "finished"
    assert not [
        path for path in tmp_path.glob("trunk-*") if (path / "metrics.jsonl").exists()
    ]
    assert metrics(tmp_path)[run.run_id]["step"].tolist() == [4, 8, 10]


def test_runs_of_different_trunks_and_models_too_small_are_refused(
    make_run: MakeRun, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="must all share one trunk_id"):
        train([make_run(), make_run(seed=1)], tmp_path)
    with pytest.raises(
        ConfigError, match=r"model.vocab = 8: source 'markov.*' has 16 token ids"
    ):
        train([make_run(**{"model.vocab": 8})], tmp_path)
    with pytest.raises(ConfigError, match=r"loop.chunk_steps = 0: must be at least 1"):
        LoopConfig(chunk_steps=0)


def test_what_is_finished_is_not_trained_again(
    finished: tuple[Path, list[Event]],
    runs: list[RunConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "scaling.training.loop.Trainer", lambda *_: pytest.fail("trained again")
    )
    train(runs, finished[0])


# --- interruption ---------------------------------------------------------------------------------------------


class Stop(KeyboardInterrupt):
    """Stands for Ctrl-C at one event."""


def interrupt_at(number: int) -> Callable[[Event], None]:
    count = 0

    def report(event: Event) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise Stop

    return report


@pytest.mark.parametrize("number", range(1, 9))
def test_an_interrupted_run_resumes_to_the_same_results(
    finished: tuple[Path, list[Event]],
    runs: list[RunConfig],
    tmp_path: Path,
    number: int,
) -> None:
    """At each event: chunks of trunk and cooldowns, and ends of runs."""
    with pytest.raises(Stop):
        train(runs, tmp_path, interrupt_at(number))
    train(runs, tmp_path)
    assert_same(tmp_path, finished[0], runs)


def test_a_longer_budget_added_later_continues_the_trunk(
    finished: tuple[Path, list[Event]], runs: list[RunConfig], tmp_path: Path
) -> None:
    train(runs[:1], tmp_path)
    events: list[Event] = []
    train(runs, tmp_path, events.append)
    assert result(tmp_path, runs[1]) == result(finished[0], runs[1])
    steps = sum(
        event.flops for event in events if isinstance(event, event_types.Progress)
    )
    assert np.isclose(
        steps, (7 + 6) * 64 * flops_per_token(runs[0].model)
    )  # from step 7 of the trunk to 14


@pytest.mark.parametrize("which", ["newest", "all"])
def test_damaged_checkpoints_cost_time_alone(
    finished: tuple[Path, list[Event]],
    runs: list[RunConfig],
    tmp_path: Path,
    which: str,
) -> None:
    with pytest.raises(Stop):
        train(runs, tmp_path, interrupt_at(6))
    folders = sorted(
        tmp_path.glob("trunk-*/checkpoints/*"), key=lambda path: int(path.name)
    )
    assert len(folders) >= 2
    for folder in folders[-1:] if which == "newest" else folders:
        for path in folder.rglob("*"):
            if path.is_file() and path.stat().st_size > 100:
                path.write_bytes(path.read_bytes()[:-50])
    train(runs, tmp_path)
    for run in runs:
        assert result(tmp_path, run) == result(finished[0], run)


SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from scaling.store import run_dirs
from scaling.config import RunConfig, Trunk, from_dict
from scaling.training.loop import LoopConfig, train_trunk

runs = [from_dict(RunConfig, run) for run in json.loads(sys.argv[1])]
loop = from_dict(LoopConfig, json.loads(sys.argv[2]))


def train(out, stop):
    count = 0

    def report(event):
        nonlocal count
        count += 1
        if count == stop:
            os.kill(os.getpid(), signal.SIGKILL)

    if stop == "result":  # between the last step and the record of it
        run_dirs.write_result = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    if stop == "checkpoint":  # a state is written, but not yet renamed into place
        os.rename = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
    train_trunk(Trunk(tuple(runs)), Path(out), loop, report)


signals = []
for out, stop in json.loads(sys.argv[3]):  # JAX starts in the children alone, so that forking is sound
    child = os.fork()
    if child == 0:
        train(out, stop)
        os._exit(0)
    signals.append(os.WTERMSIG(os.waitpid(child, 0)[1]))
    if stop == "checkpoint":
        assert list(Path(out).glob("trunk-*/checkpoints/*tmp*")), "no unfinished checkpoint"
print(json.dumps(signals))
"""


def test_a_killed_run_resumes_to_the_same_bits(
    runs: list[RunConfig], tmp_path: Path
) -> None:
    """SIGKILL in the trunk, in the middle of a checkpoint, and after a cooldown, just
    before the result is written; then to the end. Against a process that nothing
    happened to."""
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    stages = [
        (whole, 0),
        (killed, 2),
        (killed, "checkpoint"),
        (killed, "result"),
        (killed, 0),
    ]
    arguments = [[to_dict(run) for run in runs], dataclasses.asdict(LOOP), stages]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(json.dumps, arguments)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    kill = int(signal.SIGKILL)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, kill, kill, kill, 0], (
        done.stderr
    )
    assert_same(Path(killed), Path(whole), runs)


# --- divergence -----------------------------------------------------------------------------------------------


def test_a_diverged_run_is_recorded_as_such(make_run: MakeRun, tmp_path: Path) -> None:
    """With its trunk, so the longer run on it too; and not trained again."""
    runs = ladder(make_run, (10, 0.3), (20, 0.3), **{"optim.weight_decay": 1e30})
    events: list[Event] = []
    train(runs, tmp_path, events.append)
    table = run_table(tmp_path)
    assert (
        (table["status"] == "diverged").all()
        and table["diverged"].all()
        and table["loss"].isna().all()
    )
    stopped = [
        event.step for event in events if isinstance(event, event_types.Diverged)
    ]
    assert len(stopped) == 2 and stopped[0] == stopped[1] < 7
    train(runs, tmp_path, lambda event: pytest.fail("trained again"))


def test_a_cooldown_that_diverges_leaves_the_trunk_alone(
    finished: tuple[Path, list[Event]],
    runs: list[RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first run's held-out loss is not finite; the second is as if nothing had
    happened.
    """
    evaluate = Executable.evaluate
    calls = iter([True, False])

    def broken(self: Executable, state: Any, windows: np.ndarray) -> Any:
        evaluation = evaluate(self, state, windows)
        return (
            dataclasses.replace(evaluation, loss=float("inf"))
            if next(calls)
            else evaluation
        )

    monkeypatch.setattr(Executable, "evaluate", broken)
    train(runs, tmp_path)
    assert result(tmp_path, runs[0])["status"] == "diverged"
    assert result(tmp_path, runs[1]) == result(finished[0], runs[1])
