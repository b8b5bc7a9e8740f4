"""The curves of a sweep: no step of a shared trunk is read twice, and every step has its
learning rate.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scaling.cli.fit_curves import CurveColumns
from scaling.config import ModelConfig, OptimConfig, RunConfig
from scaling.store import run_dirs
from scaling.store.curves import read_curves
from scaling.store.files import StoreError

CHUNK = 4


def write_chunks(folder: Path, begin: int, end: int) -> None:
    """A log of steps whose loss is 8 - step / 100 at the middle of each chunk."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, object]] = []
    for start in range(begin, end, CHUNK):
        stop = min(start + CHUNK, end)
        loss = 8.0 - np.mean(np.arange(start + 1, stop + 1)) / 100
        lines.append({"step": stop, "tokens": 64 * stop, "loss": loss})
    run_dirs.append_metrics(folder / "metrics.jsonl", lines)


@pytest.fixture
def runs() -> list[RunConfig]:
    """Runs of 20 and 40 steps on one trunk, that branch off at steps 14 and 28."""
    optim = OptimConfig(lr=0.01, batch_size=4, warmup_tokens=256, cooldown_fraction=0.3)
    short = RunConfig(ModelConfig(width=16, context=16), optim=optim, tokens=20 * 64)
    return [short, replace(short, tokens=40 * 64)]


def test_steps_of_a_trunk_are_rows_of_its_longest_run(
    record, runs: list[RunConfig], tmp_path: Path
) -> None:
    short, long = runs
    write_chunks(run_dirs.trunk_dir(tmp_path, long), 0, 14)
    write_chunks(run_dirs.trunk_dir(tmp_path, long), 14, 28)
    for run in runs:
        record(tmp_path, run)
        write_chunks(run_dirs.run_dir(tmp_path, run), run.branch_step, run.steps)
    table, rates = read_curves(tmp_path)
    assert set(table["trunk"]) == {short.trunk_id}
    of_long = table.loc[table["run"] == long.run_id]
    of_short = table.loc[table["run"] == short.run_id]
    assert list(of_long["step"]) == [2, 6, 10, 13, 16, 20, 24, 27, 30, 34, 38]
    assert list(of_short["step"]) == [16, 19]
    # The loss of a chunk stands at its middle.
    np.testing.assert_allclose(table["loss"], 8.0 - table["step"] / 100, atol=0.006)
    for run in runs:
        rate = rates[run.run_id]
        assert len(rate) == run.steps + 1
        assert rate[0] == 0.0
        assert rate[4] == rate[run.branch_step] == 0.01
        assert 0.0 < rate[-1] < rate[run.branch_step + 1] <= 0.01
    for row in table.to_dict("records"):
        assert row["lr"] == rates[row["run"]][row["step"]]
        assert row["tokens"] == 64 * row["step"]


def test_the_command_line_reads_a_folder(
    record, runs: list[RunConfig], tmp_path: Path
) -> None:
    (_, long) = runs
    record(tmp_path, long)
    write_chunks(run_dirs.trunk_dir(tmp_path, long), 0, long.branch_step)
    write_chunks(run_dirs.run_dir(tmp_path, long), long.branch_step, long.steps)
    curves = CurveColumns().read(tmp_path)
    assert curves.runs == (long.run_id,)
    assert curves.schedules[long.run_id].steps == long.steps
    assert not curves.reasons()
    assert curves.source == str(tmp_path)


def test_a_folder_without_curves_is_named(
    record, runs: list[RunConfig], tmp_path: Path
) -> None:
    record(tmp_path, runs[0])
    with pytest.raises(StoreError, match="no finished run with logged losses"):
        read_curves(tmp_path)
