"""The run table's columns are declared once, and everything else follows from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import analysis
from scaling.store.columns import COLUMN_NAMES, COLUMNS, format_reference

ROOT = Path(__file__).parents[3]


def test_the_analysis_reads_the_same_columns() -> None:
    assert tuple(analysis.COLUMNS) == COLUMN_NAMES
    for column in COLUMNS:
        assert column.meaning in analysis.COLUMNS[column.name]
        assert column.unit in analysis.COLUMNS[column.name]


def test_a_name_is_declared_once_and_only_numbers_have_units_or_limits() -> None:
    assert len(set(COLUMN_NAMES)) == len(COLUMN_NAMES)
    for column in COLUMNS:
        assert column.kind in ("id", "text", "flag", "number")
        if column.kind != "number":
            assert not (column.unit or column.positive or column.may_be_missing)
        assert not (column.positive and column.may_be_missing)


def test_the_documented_columns_are_current() -> None:
    page = ROOT / "docs/reference/columns.md"
    command = "python -m scaling.store.columns > docs/reference/columns.md"
    assert page.read_text(encoding="utf-8") == format_reference(), f"run {command}"


def test_reading_the_columns_in_the_analysis_executes_nothing_of_scaling() -> None:
    code = (
        "import sys, analysis; analysis.COLUMNS; "
        "assert not {'scaling', 'flax', 'jax'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=_environment(ROOT))


def test_a_new_column_is_one_declaration_and_the_place_that_computes_it(
    tmp_path: Path,
) -> None:
    for package in ("scaling", "analysis"):
        shutil.copytree(ROOT / package, tmp_path / package)
    with (tmp_path / "scaling/store/columns.toml").open("a", encoding="utf-8") as file:
        file.write(
            '\n[[column]]\nname = "aspect"\nkind = "number"\nunit = "ones"\n'
            'meaning = "width / depth"\noptional = true\n'
        )
    store = tmp_path / "scaling/store/run_dirs.py"
    text = store.read_text(encoding="utf-8")
    computed = '"seed": run.seed,\n        "aspect": model.width / model.depth,'
    assert text.count('"seed": run.seed,') == 1
    store.write_text(text.replace('"seed": run.seed,', computed), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-c", NEW_COLUMN, str(tmp_path / "out")],
        check=True,
        cwd=tmp_path,
        env=_environment(tmp_path),
    )


NEW_COLUMN = """
import shutil, sys
from pathlib import Path
import analysis
from scaling.config import RunConfig
from scaling.store import query, run_dirs, table
from scaling.store.columns import format_reference

out, run = Path(sys.argv[1]), RunConfig()
texts = dict.fromkeys(("sweep", "fingerprint", "device", "versions", "commit"), "")
row = texts | run_dirs.describe_run(run) | {
    "unique_tokens": 1, "epochs": 1.0, "wall_seconds": 1.0, "status": "finished",
    "diverged": False, "loss": 1.5, "loss_se": 0.1, "bits_per_byte": None,
}
run_dirs.open_run(out, run)
run_dirs.write_result(out, run, row)
expected = run.model.width / run.model.depth
assert list(table.run_table(out)["aspect"]) == [expected]
shown = query.filter_runs(query.list_runs(out, "all")[0], ["aspect>0"])
assert list(shown["aspect"]) == [expected]
assert "width / depth" in analysis.COLUMNS["aspect"]
assert "`aspect`" in format_reference()
"""


def _environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}
