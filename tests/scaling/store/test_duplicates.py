"""A folder that holds one configuration under two run ids is named as such."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scaling.cli.main import main
from scaling.store.duplicates import find_duplicate_runs
from scaling.store.table import run_table

DATA = Path(__file__).parents[2] / "data" / "d17ff75"
EARLIER_ID = "0123456789abcdef"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a swept folder."""
    return Path(shutil.copytree(DATA / "folder", tmp_path / "folder"))


def store_under_earlier_id(folder: Path) -> str:
    """Copy a finished run to the folder that another rule of ids would give it."""
    run_id = run_table(folder)["run_id"].iloc[0]
    shutil.copytree(folder / run_id, folder / EARLIER_ID)
    path = folder / EARLIER_ID / "result.json"
    row = json.loads(path.read_text())
    path.write_text(json.dumps(row | {"run_id": EARLIER_ID}))
    return run_id


def test_runs_of_different_configurations_are_no_duplicates(folder: Path) -> None:
    assert find_duplicate_runs(folder, run_table(folder)) == []


def test_one_configuration_under_two_ids_is_found(folder: Path) -> None:
    run_id = store_under_earlier_id(folder)
    found = find_duplicate_runs(folder, run_table(folder))
    assert found == [tuple(sorted([run_id, EARLIER_ID]))]


@pytest.mark.parametrize("verb", ["runs", "fit", "watch"])
def test_commands_say_that_a_configuration_stands_twice(
    folder: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"runs": [], "fit": ["--law", "kaplan_d"], "watch": ["--once"]}
    main([verb, str(folder), *flags[verb]])
    printed = capsys.readouterr()
    assert "twice" not in printed.out + printed.err
    run_id = store_under_earlier_id(folder)
    main([verb, str(folder), *flags[verb]])
    printed = capsys.readouterr()
    said = printed.out + printed.err
    assert "holds one configuration twice" in said
    assert run_id in said and EARLIER_ID in said
