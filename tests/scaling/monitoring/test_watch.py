"""What a watcher sees in a folder: every run once, FLOPs that add up, a rate between
looks, and no crash.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling.cli.main import main
from scaling.config import RunConfig
from scaling.monitoring import watch
from scaling.planning.plan import Plan
from scaling.store import leases, run_dirs

MakeRun = Callable[..., RunConfig]
RecordRun = Callable[..., Path]


def log(folder: Path, step: int) -> None:
    folder.mkdir(exist_ok=True)
    run_dirs.append_metrics(
        folder / "metrics.jsonl", [{"step": step, "tokens": 64 * step, "loss": 3.0}]
    )


@pytest.fixture
def plan(make_run: MakeRun) -> Plan:
    """Two trunks of two runs each: of 20 and 40 steps, that leave their trunk at 14 and
    28.
    """
    return Plan(
        "mine/../mine",
        tuple(make_run(tokens=n * 64, seed=seed) for seed in (0, 1) for n in (20, 40)),
    )


@pytest.fixture
def out(tmp_path: Path, plan: Plan) -> Path:
    plan.save(tmp_path)
    return tmp_path


def seen(watcher: watch.Watcher, now: float | None = None) -> tuple[int, int, int, int]:
    look = watcher.take_snapshot(now)
    return look.finished, len(look.running), look.waiting, len(look.failed)


def test_a_plan_stays_in_its_folder(out, plan):
    (path,) = out.rglob("*.json")
    assert path.parent == out / "plans" and list(Plan.from_json(path)) == list(plan)


def test_what_is_planned_waits_until_it_runs_and_ends(out, plan, record):
    watcher = watch.Watcher(out)
    assert seen(watcher) == (0, 0, 4, 0)
    with leases.Leases().hold(
        run_dirs.trunk_dir(out, plan.runs[0]), lambda event: None
    ) as lease:
        assert lease is not None and seen(watcher) == (0, 1, 3, 0)
        record(out, plan.runs[0])
        assert seen(watcher) == (1, 1, 2, 0)
        record(out, plan.runs[1], status="diverged", loss=None)
    look = watcher.take_snapshot()
    assert (look.finished, look.diverged, look.waiting, look.is_over) == (
        1,
        1,
        2,
        False,
    )
    for run in plan.runs[2:]:
        run_dirs.open_run(out, run)
        run_dirs.write_failure(out, run, "MemoryError:\nno room")
    look = watcher.take_snapshot()
    assert look.is_over and {reason for _, reason in look.failed} == {
        "MemoryError: no room"
    }
    assert main(["watch", str(out), "--once"]) == 3


def test_flops_add_up_to_the_plan_whatever_is_done(out, plan, record):
    watcher = watch.Watcher(out)
    looks = [watcher.take_snapshot()]
    for folder, step in (
        (run_dirs.trunk_dir(out, plan.runs[0]), 10),
        (run_dirs.trunk_dir(out, plan.runs[0]), 14),
        (run_dirs.run_dir(out, plan.runs[0]), 17),
        (run_dirs.trunk_dir(out, plan.runs[2]), 28),
        (run_dirs.run_dir(out, plan.runs[3]), 40),
    ):
        log(folder, step)
        looks.append(watcher.take_snapshot())
    for run in plan:
        record(out, run)
        looks.append(watcher.take_snapshot())
    assert all(
        math.isclose(look.flops + look.left, plan.flops, rel_tol=1e-12)
        for look in looks
    )
    done = [look.flops for look in looks]
    assert (
        done == sorted(done)
        and done[0] == 0
        and math.isclose(done[-1], plan.flops, rel_tol=1e-12)
    )


def test_the_time_left_is_at_the_rate_between_looks(out, plan):
    watcher = watch.Watcher(out)
    first = watcher.take_snapshot(100.0)
    log(run_dirs.trunk_dir(out, plan.runs[0]), 14)
    second = watcher.take_snapshot(110.0)
    assert first.seconds is None and second.seconds is not None
    assert math.isclose(
        second.seconds, second.left * 10.0 / (second.flops - first.flops)
    )


def test_a_holder_that_falls_silent_does_not_run(out, plan):
    folder = run_dirs.trunk_dir(out, plan.runs[0]) / "claims"
    folder.mkdir(parents=True)
    lease = folder / "1"
    lease.write_text(
        json.dumps({"host": "elsewhere", "machine": "another", "pid": 1, "started": 1})
    )
    watcher = watch.Watcher(out)
    assert [seen(watcher, now)[1] for now in (0.0, 80.0, 100.0)] == [1, 1, 0]
    assert watcher.take_snapshot(100.0).silent[0][0] == plan.runs[0].trunk_id
    with open(lease, "a") as file:
        file.write(".")
    assert seen(watcher, 120.0)[1] == 1
    os.utime(
        lease, (0, time.time() - 3600)
    )  # at the first look its age is all there is
    assert seen(watch.Watcher(out))[1] == 0


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "[" * 100_000, '{"name": 3, "runs": [{"tokens": 1e999}]}'],
)
def test_damage_costs_what_it_hits(out, plan, content, make_run, record):
    record(out, plan.runs[0])
    begun = make_run(seed=9)
    run_dirs.open_run(out, begun)
    for path in (*(out / "plans").iterdir(), out / plan.runs[0].run_id / "result.json"):
        path.write_text(content)
    trunk = run_dirs.trunk_dir(out, begun)
    (trunk / "claims").mkdir(parents=True)
    (trunk / "claims" / "1").write_text(content)
    (trunk / "metrics.jsonl").write_text(f'{content}\n{{"step": 1e999}}\n{{"st')
    look = watch.Watcher(out).take_snapshot()
    assert (
        look.unreadable == 1
        and len(look.running) == 1
        and look.running[0].run_id == begun.run_id
    )


def test_the_law_is_asked_for_when_there_are_enough_runs_and_may_fail(
    out, make_run, record
):
    asked: list[int] = []

    def fit(table: Any) -> str:
        asked.append(len(table))
        raise ZeroDivisionError("\x1bdegenerate")

    watcher = watch.Watcher(out, fit)
    for seed in range(watch.FEWEST_RUNS + 1):
        record(out, make_run(seed=seed))
        look = watcher.take_snapshot()
        watcher.take_snapshot()
        assert ("at least" in look.fit) == (seed + 1 < watch.FEWEST_RUNS)
    assert (
        asked == [watch.FEWEST_RUNS, watch.FEWEST_RUNS + 1]
        and look.fit == "no law yet: \N{REPLACEMENT CHARACTER}degenerate"
    )


@pytest.mark.slow
def test_runs_of_one_size_give_no_law_and_say_so(out, make_run, capsys, record):
    for seed in range(watch.FEWEST_RUNS):
        record(out, make_run(seed=seed, tokens=64 * 20 * (seed + 1)))
    assert main(["watch", str(out), "--once"]) == 0
    assert "no law yet" in capsys.readouterr().out


def test_a_look_is_a_line_of_json(out, capsys):
    assert main(["watch", str(out), "--once", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["waiting"] == 4
    assert main(["watch", str(out / "absent"), "--once"]) == 2


def test_a_view_ends_with_the_sweep(out, plan, capsys, record):
    from rich.console import Console

    for run in plan:
        record(out, run)
    assert main(["watch", str(out)]) == 0
    assert capsys.readouterr().out.startswith(
        "4 finished, 0 waiting, 0 failed; 100% of"
    )
    watch.show_sweep(watch.Watcher(out), 0.01, Console(force_terminal=True))
    assert "4 finished" in capsys.readouterr().out
