"""Published numbers are reproduced, or the line says why not; what cannot be had is
skipped and said to be.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.literature import reproduce
from experiments.literature.entries import ENTRIES
from experiments.literature.lines import (
    BETTER,
    DIFFERS,
    REJECTED,
    REPRODUCED,
    ROUNDED,
    WITHIN,
    Line,
    judge_number,
)


def _lines(name: str, folder: Path, draws: int = 200) -> list[Line]:
    return ENTRIES[name](lambda file: folder / file, draws)


@pytest.mark.parametrize(
    ("published", "ours", "verdict"),
    [
        (".347", 0.34731, REPRODUCED),
        (".347", 0.34652, REPRODUCED),
        (".347", 0.3476, DIFFERS),
        ("482.01", 481.93, DIFFERS),
        ("1.5e2", 154.0, REPRODUCED),
        ("1.5e2", 156.0, DIFFERS),
    ],
)
def test_a_line_is_reproduced_to_the_digits_printed(
    published: str, ours: float, verdict: str
) -> None:
    assert judge_number(published, ours) == verdict


def test_what_only_resampling_explains_is_not_called_reproduced() -> None:
    assert judge_number("124.58", 121.9, resampling_error=6.5) == WITHIN
    assert judge_number("124.58", 121.9, resampling_error=1.0) == DIFFERS


@pytest.mark.parametrize("name", ["hoffmann", "llama3", "constant_ratio"])
def test_quick_entries(name: str, data_dir) -> None:
    assert all(one.verdict != DIFFERS for one in _lines(name, data_dir))


@pytest.mark.slow
def test_learning_curves_give_the_error_of_the_published_parameters(data_dir) -> None:
    for size in ("25M", "100M"):
        if not (data_dir / f"lr_schedule_curves_{size}.csv").is_file():
            pytest.skip("the learning curves are not there")
    lines = _lines("luo", data_dir)
    of_theirs = [one for one in lines if "their parameters" in one.quantity]
    assert [one.verdict for one in of_theirs] == [ROUNDED, ROUNDED]
    assert all(one.verdict == BETTER for one in lines if one.quantity.endswith("beta"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["besiroglu", "gadre", "muennighoff", "nanochat"])
def test_every_line_reproduces_or_says_why(name: str, data_dir) -> None:
    lines = _lines(name, data_dir, draws=1000)
    assert [one for one in lines if one.verdict == DIFFERS] == []
    assert all(one.remark for one in lines if one.verdict == BETTER)


@pytest.mark.slow
def test_the_broken_law_extrapolates_the_broken_curve(data_dir) -> None:
    (found,) = _lines("caballero", data_dir)
    assert found.remark == "best: broken"


def test_tables_that_are_not_there_are_skipped_with_the_reason(
    tmp_path, data_dir
) -> None:
    (tmp_path / "constant_ratio_runs.csv").write_bytes(
        (data_dir / "constant_ratio_runs.csv").read_bytes()
    )
    out = tmp_path / "out"
    arguments = [
        "--data-dir",
        str(tmp_path),
        "--out",
        str(out),
        "--entries",
        "constant_ratio",
        "hoffmann",
    ]
    assert reproduce.main(arguments) == 0
    written = json.loads((out / "literature.json").read_text())
    assert [one["verdict"] for one in written["lines"]] == [REJECTED]
    assert "hoffmann_tables.csv is not in" in written["skipped"][0]
    page = (out / "report.html").read_text()
    assert "D = 20 N" in page and "hoffmann_tables.csv" in page


def test_without_a_folder_only_files_with_an_address_are_fetched() -> None:
    with pytest.raises(FileNotFoundError, match="give --data-dir"):
        reproduce.find_table("gadre_104_models.csv", None)


def test_an_unknown_entry_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="no entry 'chinchila'"):
        reproduce.refit_entries(
            reproduce.Literature(data_dir=tmp_path, entries=("chinchila",))
        )
