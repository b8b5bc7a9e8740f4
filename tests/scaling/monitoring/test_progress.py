"""What a sweep shows without a terminal: one plain line per run, and nothing when asked
to be quiet.
"""

from __future__ import annotations

import pytest

from scaling import Plan
from scaling import events as event_types
from scaling.monitoring.progress import show_progress


def events(plan: Plan) -> list[event_types.Event]:
    shape = {"width": 8, "depth": 1, "tokens": 1280, "flops": plan.flops}
    return [
        event_types.Progress("a", plan.flops / 2),
        event_types.Finished(
            {"run_id": "a" * 16, "loss": 2.5, "diverged": False, **shape}
        ),
        event_types.Restarted("the worker ended (signal 9)"),
        event_types.Programs(5, 2),
        event_types.Progress("a", plan.flops / 2),
        event_types.Finished(
            {"run_id": "b" * 16, "loss": None, "diverged": True, **shape}
        ),
    ]


@pytest.fixture
def plan(make_run) -> Plan:
    return Plan("two", (make_run(), make_run(seed=1)))


def test_a_line_per_run_with_its_share_and_loss(plan, capsys):
    with show_progress(plan, show="plain") as shown:
        for event in events(plan):
            shown.report(event)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("[1/2   50%")
    assert "aaaaaaaa" in lines[0]
    assert "loss 2.5000" in lines[0]
    assert "signal 9" in lines[1]
    assert lines[2].startswith("[2/2  100%")
    assert "diverged" in lines[2]
    assert lines[3].endswith(
        "1 shape of model and batch: 5 executables compiled, 2 reused"
    )


def test_quiet_is_quiet(plan, capsys):
    with show_progress(plan, show="quiet") as shown:
        for event in events(plan):
            shown.report(event)
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""


def test_a_trunk_that_starts_again_counts_what_its_checkpoint_has(plan, capsys):
    with show_progress(plan, show="plain") as shown:
        for kind, share in (
            (event_types.Started, 0),
            (event_types.Progress, 0.5),
            (event_types.Started, 0),
            (event_types.Restored, 0.25),
            (event_types.Progress, 0.25),
        ):
            shown.report(kind("a", plan.flops * share))
        assert shown.flops == pytest.approx(0.5 * plan.flops)
        shown.report(event_types.Restored("b", plan.flops * 0.5))
        assert shown.flops == pytest.approx(plan.flops)
