"""Whatever a folder of runs holds, the run table has checked rows or names the file at
fault.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.config import ConfigError, RunConfig, from_dict
from scaling.planning.plan import Plan
from scaling.store import results, run_dirs
from scaling.store.columns import COLUMN_NAMES
from scaling.store.files import MAX_BYTES, StoreError
from scaling.store.table import read_results, run_table

MakeRun = Callable[..., RunConfig]
MakeRow = Callable[..., dict[str, Any]]
SCRIPT = "<script>alert(1)</script>"
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        [
            10**400,
            -(2**63),
            2**63,
            1e308,
            "../../etc",
            "\x1b[2J",
            "\ud800",
            SCRIPT,
            "",
            "0" * 16,
            "1e9",
        ]
    ),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.lists(st.none(), max_size=2), max_size=2),
)


@pytest.fixture
def there(tmp_path: Path, make_run: MakeRun, make_row: MakeRow) -> Path:
    """The intact result of one run."""
    run_dirs.write_result(tmp_path, make_run(), make_row(make_run()))
    return run_dirs.run_dir(tmp_path, make_run()) / "result.json"


def refused(path: Path) -> str:
    with pytest.raises(StoreError) as error:
        run_table(path.parents[1])
    message = str(error.value)
    assert (
        str(path) in message
        and "the next sweep trains the run again" in message
        and message.isprintable()
    )
    return message


def check(table: pd.DataFrame, out: Path) -> None:
    """Check that a table can be written and has one row per folder."""
    assert list(table.columns) == list(COLUMN_NAMES) and table["run_id"].is_unique
    assert all(
        (out / run_id).is_dir() and run_id.isalnum() for run_id in table["run_id"]
    )
    table.to_parquet(io.BytesIO())
    assert table.to_csv().encode() and table.to_json(orient="records").encode()
    for column in table.select_dtypes(exclude="number"):
        assert all(str(value).isprintable() for value in table[column])


@settings(deadline=None, max_examples=60)
@given(
    changes=st.dictionaries(
        st.sampled_from([*COLUMN_NAMES, "extra"]), JUNK, max_size=3
    ),
    gone=st.sampled_from(COLUMN_NAMES),
)
def test_any_value_in_any_column_is_checked(
    tmp_path_factory: pytest.TempPathFactory,
    make_run: MakeRun,
    changes: dict[str, Any],
    gone: str,
    make_row: MakeRow,
) -> None:
    out = tmp_path_factory.mktemp("junk", numbered=True)
    run, other = make_run(), make_run(tokens=2560)
    run_dirs.write_result(
        out, other, make_row(other)
    )  # on the same trunk: its compute depends on the other's row
    folder = run_dirs.run_dir(out, run)
    folder.mkdir()
    row = make_row(run) | changes
    if len(changes) == 3:
        row.pop(gone, None)
    (folder / "result.json").write_text(json.dumps(row))
    try:
        check(run_table(out), out)
    except StoreError as error:
        assert "result.json" in str(error) and str(error).isprintable()


@settings(deadline=None, max_examples=40)
@given(
    content=st.binary(max_size=40)
    | st.text(alphabet='{}[]":,0123456789eE.-+ntfNaI\n', max_size=40).map(str.encode)
)
def test_any_bytes_are_a_result_a_configuration_a_log_or_refused(
    tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun, content: bytes
) -> None:
    out, run = tmp_path_factory.mktemp("bytes", numbered=True), make_run()
    folder = run_dirs.run_dir(out, run)
    folder.mkdir()
    for name in ("config.json", "result.json", "metrics.jsonl"):
        (folder / name).write_bytes(content)
    refused(folder / "result.json")
    with pytest.raises(StoreError, match=r"config\.json"):
        run_dirs.open_run(out, run)
    assert len(run_dirs.read_metrics(folder / "metrics.jsonl")) <= 40
    (folder / "result.json").unlink()
    (folder / "failure.json").write_bytes(content)
    assert run_dirs.read_failure(out, run) == "failure.json cannot be read"
    with pytest.raises(ConfigError, match=r"config\.json"):
        Plan.from_json(folder / "config.json")


DEEP = {
    "list": "[" * 100_000,
    "object": '{"a":' * 100_000,
    "closed": "[" * 20_000 + "]" * 20_000,
}


@pytest.mark.parametrize(
    "content",
    [*DEEP.values(), "9" * 5000, '{"run_id": NaN}', '{"a": 1, "a": 2}'],
    ids=str.__len__,
)
def test_json_that_is_none_or_has_no_bottom_is_refused(
    there: Path, make_run: MakeRun, content: str
) -> None:
    there.write_text(content)
    refused(there)
    config = there.with_name("config.json")
    config.write_text(content)
    with pytest.raises(StoreError, match=r"config\.json: cannot be read"):
        run_dirs.open_run(there.parents[1], make_run())
    with pytest.raises(ConfigError, match="not a plan"):
        Plan.from_json(config)
    config.write_text(f'{{"step": 1, "loss": {content}}}\n{{"step": 2, "loss": 1.0}}\n')
    assert 2 in list(run_dirs.read_metrics(config)["step"])


@pytest.mark.parametrize("column", ["versions", "run_id", "tokens", "diverged"])
def test_depth_inside_a_column_is_refused(there: Path, column: str) -> None:
    row = json.loads(there.read_text()) | {column: "HERE"}
    there.write_text(json.dumps(row).replace('"HERE"', "[" * 900 + "]" * 900))
    refused(there)


@pytest.mark.parametrize(
    "value", ["NaN", "-Infinity", "1e999", "1" + "0" * 400, "true", '"2.0"', "[2.0]"]
)
def test_a_loss_is_a_finite_number_or_nothing(there: Path, value: str) -> None:
    there.write_text(
        json.dumps(json.loads(there.read_text()) | {"loss": 12345}).replace(
            "12345", value
        )
    )
    refused(there)


@pytest.mark.parametrize(
    "name",
    ["../../../tmp/x", "/etc/passwd", "..", "", SCRIPT, "0" * 16, "A" * 16, 7, None],
)
def test_a_row_counts_only_under_its_own_id(there: Path, name: Any) -> None:
    there.write_text(json.dumps(json.loads(there.read_text()) | {"run_id": name}))
    assert "holds run" in refused(there)


def test_a_copy_of_a_run_is_no_second_run(there: Path) -> None:
    shutil.copytree(there.parent, there.parents[1] / "copy")
    assert "not 'copy'" in refused(there.parents[1] / "copy" / "result.json")


def test_what_is_no_plain_file_is_not_opened(there: Path, tmp_path: Path) -> None:
    content = there.read_text()
    secret = tmp_path / "secret.json"
    secret.write_text(content)
    makers: list[Callable[[], object]] = [
        lambda: there.symlink_to(secret),
        lambda: there.symlink_to("/dev/zero"),
        lambda: there.symlink_to(there),
        lambda: there.mkdir(),
        lambda: os.mkfifo(there),
        lambda: there.write_text(" " * MAX_BYTES + content),
    ]
    for make in makers:
        there.unlink()
        make()
        refused(there)
        if there.is_dir():
            there.rmdir()
            there.touch()


def test_text_loses_what_a_terminal_would_obey(there: Path) -> None:
    hostile = {"source": "\x1b[2Jcode\n\x00\u202e", "sweep": SCRIPT, "device": "\ud800"}
    there.write_text(json.dumps(json.loads(there.read_text()) | hostile))
    table = run_table(there.parents[1])
    check(table, there.parents[1])
    assert (
        table["source"][0]
        == "\N{REPLACEMENT CHARACTER}[2Jcode" + 3 * "\N{REPLACEMENT CHARACTER}"
    )
    assert table["sweep"][0] == SCRIPT  # a page escapes it


def test_of_many_runs_the_order_is_that_of_their_names_and_the_first_fault_is_told(
    tmp_path: Path,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
    make_row: MakeRow,
) -> None:
    monkeypatch.setattr(results, "_BATCH", 3)
    runs = [make_run(seed=seed) for seed in range(40)]
    for run in runs:
        run_dirs.write_result(tmp_path, run, make_row(run))
    names = sorted(run.run_id for run in runs)
    assert [row["run_id"] for row in read_results(tmp_path)] == names
    assert [row["run_id"] for row in read_results(tmp_path, runs[:5])] == sorted(
        run.run_id for run in runs[:5]
    )
    for name in names[20:30]:
        (tmp_path / name / "result.json").write_text("{")
    with pytest.raises(StoreError, match=names[20]):
        run_table(tmp_path)


@settings(deadline=None, max_examples=60)
@given(
    values=st.recursive(
        JUNK,
        lambda inner: st.dictionaries(
            st.sampled_from(["model", "optim", "tokens", "lr"]), inner
        ),
    )
)
def test_junk_is_no_configuration(values: Any) -> None:
    try:
        run = from_dict(RunConfig, values)
    except ConfigError:
        return
    assert len(run.run_id) == 16 and math.isfinite(run.tokens)
