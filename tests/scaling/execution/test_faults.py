"""What happens when something breaks: the table of docs/concepts/reliability.md, with
one test for each row that no other file tests.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scaling import events as event_types
from scaling.cli.main import main
from scaling.config import RunConfig, Trunk
from scaling.data import DataError
from scaling.execution.base import explain_error
from scaling.execution.sweep import SweepError, sweep
from scaling.planning.plan import Plan
from scaling.store import run_dirs
from scaling.training import loop
from scaling.training.loop import LoopConfig, train_trunk
from scaling.training.preemption import Preempted

MakeRun = Callable[..., RunConfig]
LOOP = LoopConfig(chunk_steps=4, checkpoint_seconds=0.0)


def ignore(event: event_types.Event) -> None:
    del event


def row(out: Path, run: RunConfig) -> dict[str, Any]:
    """What is recorded of a run, but for its time."""
    found = json.loads((run_dirs.run_dir(out, run) / "result.json").read_text())
    return {
        name: value
        for name, value in found.items()
        if name not in ("wall_seconds", "sweep")
    }


@pytest.fixture(scope="module")
def runs(
    make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory
) -> list[RunConfig]:
    """Two seeds on a text file that may change."""
    folder = tmp_path_factory.mktemp("text")
    write_text(folder, "and")
    changes = {
        "model.vocab": 256,
        "data.source": str(folder),
        "data.heldout_fraction": 0.2,
    }
    return [make_run(seed=seed, **changes) for seed in (0, 1)]


def write_text(folder: Path, word: str) -> None:
    for number in range(60):
        line = (
            f"document {number} says that {number} {word} {number} make {2 * number}\n"
        )
        (folder / f"{number}.txt").write_text(line * 8)


@pytest.fixture(scope="module")
def undisturbed(
    runs: list[RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    sweep(runs, out, workers=0, loop=LOOP, show="quiet")
    return out


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EROFS, "make that disk writable"),
        (errno.ESTALE, "mount"),
    ],
)
def test_a_disk_that_cannot_be_written_fails_a_run_and_no_other(
    runs: list[RunConfig],
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    remedy: str,
) -> None:
    append = run_dirs.append_metrics
    bad = run_dirs.run_dir(tmp_path, runs[0])

    def refuse(path: Path, lines: Any) -> None:
        if path.parent == bad:
            raise OSError(number, os.strerror(number), str(path))
        append(path, lines)

    with monkeypatch.context() as patch:
        patch.setattr(run_dirs, "append_metrics", refuse)
        with pytest.raises(
            SweepError,
            match=rf"{runs[0].run_id} .*{remedy}.*scaling sweep --retry failed",
        ):
            sweep(runs, tmp_path, workers=0, loop=LOOP, show="quiet")
    assert row(tmp_path, runs[1]) == row(undisturbed, runs[1])
    assert remedy in (run_dirs.read_failure(tmp_path, runs[0]) or "")
    sweep(runs, tmp_path, workers=0, loop=LOOP, show="quiet", retry=True)
    assert row(tmp_path, runs[0]) == row(undisturbed, runs[0])
    assert run_dirs.read_failure(tmp_path, runs[0]) is None


def test_a_notice_saves_and_ends_and_the_next_start_ends_the_same(
    runs: list[RunConfig],
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(loop.preemption, "is_requested", lambda: len(seen) > 2)
        with pytest.raises(Preempted):
            train_trunk(
                Trunk(tuple(runs[:1])), tmp_path, LoopConfig(chunk_steps=4), seen.append
            )
    folder = run_dirs.trunk_dir(tmp_path, runs[0]) / "checkpoints"
    assert [path.name for path in folder.iterdir() if path.name.isdigit()] == ["12"]
    restored: list[event_types.Event] = []
    train_trunk(Trunk(tuple(runs[:1])), tmp_path, LOOP, restored.append)
    assert [type(event) for event in restored[:2]] == [
        event_types.Started,
        event_types.Restored,
    ]
    assert row(tmp_path, runs[0]) == row(undisturbed, runs[0])


def test_a_vanished_cache_of_data_is_made_again(
    runs: list[RunConfig],
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SCALING_CACHE", str(tmp_path / "cache"))
    sweep(runs[:1], tmp_path / "out", workers=0, loop=LOOP, show="quiet")
    shutil.rmtree(tmp_path / "cache")
    sweep(runs, tmp_path / "out", workers=0, loop=LOOP, show="quiet")
    assert [row(tmp_path / "out", run) for run in runs] == [
        row(undisturbed, run) for run in runs
    ]


def test_a_text_that_has_changed_is_not_trained_on(
    runs: list[RunConfig], undisturbed: Path, tmp_path: Path, make_run: MakeRun
) -> None:
    """Neither beside finished runs nor from a checkpoint."""
    folder = tmp_path / "text"
    shutil.copytree(runs[0].data.source, folder)
    changes = {
        "model.vocab": 256,
        "data.source": str(folder),
        "data.heldout_fraction": 0.2,
    }
    first, second = (make_run(seed=seed, **changes) for seed in (0, 1))
    out = tmp_path / "out"
    sweep([first], out, workers=0, loop=LOOP, show="quiet")
    write_text(folder, "times")
    message = r"its text has changed \(sha256 \w{12} when run \w{16} was trained, \w{12} now\); bring it back"
    with pytest.raises(DataError, match=message):
        sweep([first, second], out, workers=0, loop=LOOP, show="quiet")
    (run_dirs.run_dir(out, first) / "result.json").unlink()
    with pytest.raises(SweepError, match=message):
        sweep([first], out, workers=0, loop=LOOP, show="quiet")


def test_the_command_line_ends_with_a_table_and_status_3(
    runs: list[RunConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    Plan("mine", tuple(runs)).to_json(plan)
    (run_dirs.open_run(out, runs[0]) / "config.json").write_text("{")
    command = [
        "sweep",
        "--plan",
        str(plan),
        "--out",
        str(out),
        "--workers",
        "0",
        "--progress",
        "quiet",
    ]
    assert main(command) == 3
    told = capsys.readouterr().err
    assert (
        "1 runs failed; the finished runs are kept" in told
        and runs[0].run_id in told
        and "remove the folder" in told
    )
    assert run_dirs.is_finished(out, runs[1])
    (run_dirs.run_dir(out, runs[0]) / "config.json").unlink()
    assert main(command) == 3  # left alone
    assert main([*command, "--retry", "failed"]) == 0


def test_what_does_not_fit_is_told_with_its_remedies() -> None:
    for error in (MemoryError("no"), RuntimeError("RESOURCE_EXHAUSTED: 20 GiB")):
        assert (
            "raise optim.accumulate, set model.remat, or use --strategy fsdp"
            in explain_error(error)
        )
    assert explain_error(ValueError("no")) == "ValueError: no"


def test_a_result_that_is_there_is_never_replaced(
    runs: list[RunConfig], tmp_path: Path
) -> None:
    assert run_dirs.write_result(tmp_path, runs[0], {"loss": 1.0})
    assert not run_dirs.write_result(tmp_path, runs[0], {"loss": 2.0})
    assert json.loads(
        (run_dirs.run_dir(tmp_path, runs[0]) / "result.json").read_text()
    ) == {"loss": 1.0}
    assert [path.name for path in run_dirs.run_dir(tmp_path, runs[0]).iterdir()] == [
        "result.json"
    ]
