"""The page on how a table was read accounts for every row and every guess, and holds
nothing that a file could smuggle in.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.plots.rows import list_rejected_points, plot_rows
from analysis.report.review import MAX_ACCEPTED, MAX_REJECTED, write_review
from analysis.table.choices import list_choices, list_unused_columns
from analysis.table.runs import NoUsableRowError, Runs, load_runs
from analysis.table.tuned import tuned

MESSY = """Run;Params;Tokens;Loss;Loss;rate;note
;M;B;nats;;;
a;70;1,5;3,213;3,3;0,001;ok
b;70;3;3,05;3,1;0,002;
c;160;12,25;2,981;;0,001;
d;160;;2,9;;0,001;
e;410;8,2;-1;;0,002;
f;410;8,2;n/a;;0,002;crashed at 1.000
g;1410;8,2;2,7;;0,002;
h;1410;16,4;2,65;;0,002;
"""
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>'


class Page(HTMLParser):
    """Tags, the state of each row that is listed, and the text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str]] = []
        self.rows: list[tuple[str, int]] = []
        self.command = ""
        self.in_command = False
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        found = dict(attrs)
        self.attributes += [(name, value or "") for name, value in attrs]
        if "data-row" in found:
            self.rows.append((found["data-state"] or "", int(found["data-row"] or "")))
        self.in_command = found.get("id") == "line"

    def handle_endtag(self, tag: str) -> None:
        self.in_command = False

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.in_command:
            self.command += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def load_messy(folder: Path, **options) -> Runs:
    path = folder / "messy table.csv"
    path.write_text(MESSY)
    return load_runs(path, **{"N": "Params", "D": "Tokens", "loss": "Loss", **options})


def review(runs: Runs, folder: Path) -> Page:
    return Page(write_review(folder / "pages" / "review.html", runs))


def test_every_row_is_listed_once_as_what_it_is(tmp_path: Path) -> None:
    runs = load_messy(tmp_path)
    page = review(runs, tmp_path)
    assert sorted(row for _, row in page.rows) == list(range(1, 9))
    rejected = {row for state, row in page.rows if state == "rejected"}
    assert rejected == {row for row, _ in runs.reasons()} == {4, 5, 6}
    for _, reason in runs.reasons():
        assert reason in page.text
    for note in runs.notes:
        assert note[1:] in page.text


def test_rows_that_later_steps_reject_are_listed_too(
    sweep: Callable[..., pd.DataFrame], tmp_path: Path
) -> None:
    table = pd.concat([sweep(0.01, seed=seed).assign(lr=seed + 1) for seed in (0, 1)])
    runs = tuned(load_runs(table.reset_index(drop=True)))
    page = review(runs, tmp_path)
    assert sorted(row for _, row in page.rows) == list(range(len(table)))
    assert "--tuned lr" in page.command


def test_cells_are_shown_as_written_and_as_read(tmp_path: Path) -> None:
    page = review(load_messy(tmp_path), tmp_path)
    assert "12,25 \N{RIGHTWARDS ARROW} 1.225e+10" in page.text
    # A missing value is shown as the file has it.
    assert "n/a" in page.text
    assert "crashed at 1.000" in page.text


def test_each_guess_has_the_option_that_states_it(tmp_path: Path) -> None:
    runs = load_messy(tmp_path)
    assert runs.provenance is not None
    guesses = {c.subject: c for c in list_choices(runs.provenance) if not c.is_stated}
    assert guesses["separator"].option == ("--separator", ";")
    assert guesses["decimal mark"].option == ("--decimal", ",")
    assert guesses["unit of N"].option == ("--unit", "N=millions")
    assert guesses["unit of N"].reason == "the header"
    assert guesses["C"].value == "6*N*D"
    assert "N" not in guesses
    stated = load_messy(
        tmp_path,
        separator=";",
        decimal=",",
        units={"N": "millions", "D": "billions", "loss": "nats"},
    )
    assert stated.provenance is not None
    left = [c for c in list_choices(stated.provenance) if not c.is_stated]
    # Nothing that is left has a value that an option could state.
    assert all(len(choice.option) < 2 for choice in left)
    assert len(left) < len(guesses)


def test_a_unit_that_is_probably_wrong_is_not_stated(tmp_path: Path) -> None:
    frame = pd.DataFrame({"N": [10, 20, 40], "D": [2e9, 4e9, 8e9], "loss": [4, 3.5, 3]})
    runs = load_runs(frame, N="N", D="D", loss="loss")
    assert runs.provenance is not None
    units = {c.role: c for c in list_choices(runs.provenance) if "unit" in c.subject}
    assert units["N"].is_doubtful and not units["D"].is_doubtful
    assert units["N"].option == ("--unit", "N=millions")
    page = review(runs, tmp_path)
    assert "look like millions or billions" in page.text
    assert "--unit D=ones" in page.command
    assert "--unit N=" not in page.command


def test_columns_that_are_not_used_and_could_be_a_role_are_marked(
    tmp_path: Path,
) -> None:
    runs = load_messy(tmp_path)
    assert runs.provenance is not None
    unused = list_unused_columns(runs.provenance)
    assert unused == {"Run": (), "Loss.1": ("loss",), "rate": (), "note": ()}
    path = tmp_path / "unnamed.csv"
    path.write_text(
        "Model size (B),trainTokens,eval loss\n1,2e9,3.5\n2,4e9,3.25\n2,8e9,crashed\n"
    )
    page = review(load_runs(path), tmp_path)
    assert "No column is taken for N, D, loss" in page.text
    words = shlex.split(page.command)
    for flag, column in (
        ("--columns.N", "Model size (B)"),
        ("--columns.D", "trainTokens"),
        ("--columns.loss", "eval loss"),
    ):
        assert words[words.index(flag) + 1] == column


def test_nothing_of_a_file_becomes_markup(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            f"N {HOSTILE}": [1e6, 2e6, 3e6, 4e6],
            "D": [1e9, 2e9, 3e9, HOSTILE],
            f"loss {HOSTILE}": [3.0, 2.9, -1.0, 2.8],
            HOSTILE: [HOSTILE] * 4,
            "run_id": [HOSTILE] * 4,
            "status": ["finished", HOSTILE, "finished", "finished"],
        }
    )
    path = tmp_path / "<b>.csv"
    frame.to_csv(path, index=False)
    runs = load_runs(path, N=f"N {HOSTILE}", loss=f"loss {HOSTILE}")
    page = review(runs, tmp_path)
    assert page.tags["script"] == 1
    assert page.tags["img"] == 0 and page.tags["b"] == 0
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert sorted(row for _, row in page.rows) == [0, 1, 2, 3]
    assert HOSTILE in page.command


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    page = review(load_messy(tmp_path), tmp_path)
    for name, value in page.attributes:
        if name in ("src", "href"):
            assert value.startswith(("#", "data:")), value
    assert page.tags["link"] == page.tags["iframe"] == 0
    assert not re.search(r"https?://", page.text)


@pytest.mark.slow
def test_a_large_table_has_a_small_page_that_says_what_it_leaves_out(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    n_rows = 100_000
    frame = pd.DataFrame({"N": rng.uniform(1e7, 1e9, n_rows), "D": 1e9})
    frame["loss"] = 1.7 + 400 / frame["N"] ** 0.34
    frame.loc[::3, "loss"] = -np.arange(1, len(frame.loc[::3]) + 1)
    for i in range(40):
        frame[f"other {i}"] = "x" * 200
    frame["status"] = "finished"
    frame.loc[1::3, "status"] = [f"crashed {i}" for i in range(len(frame.loc[1::3]))]
    path = write_review(tmp_path / "review.html", load_runs(frame))
    assert path.stat().st_size < 2e6
    page = Page(path)
    states = Counter(state for state, _ in page.rows)
    assert states == {"accepted": MAX_ACCEPTED, "rejected": 2 * MAX_REJECTED}
    assert f"33,334 rows, the first {MAX_REJECTED} shown" in page.text
    assert f"33,333, the first {MAX_ACCEPTED} shown" in page.text


def test_rejected_rows_with_coordinates_are_drawn(
    sweep: Callable[..., pd.DataFrame], tmp_path: Path
) -> None:
    frame = sweep(0.01).drop(columns=["C", "budget"]).assign(status="finished")
    frame.loc[3, ["status", "loss"]] = ["failed", 1e9]
    frame.loc[4, "loss"] = -1.0
    runs = load_runs(frame)
    for x in ("N", "D", "C"):
        points = list_rejected_points(runs, x)
        assert list(points["row"]) == [3]
        (ax,) = plot_rows(runs, x).axes
        accepted, rejected = (line.get_ydata() for line in ax.lines)
        assert len(np.asarray(accepted)) == len(runs)
        # Far outside it is drawn at the edge, so that the others stay apart.
        assert np.max(rejected) < 1.2 * runs.table["loss"].max()
    page = review(runs, tmp_path)
    assert "row 3 loss 1e+09 status is 'failed', not 'finished'" in page.text
    assert "1 of 2 rejected rows have no positive N and loss" in page.text


def test_a_table_without_a_usable_row_is_reviewed(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"N": 1e6, "D": 1e9, "loss": -1}\n{"N": 1e6, "D"\n')
    with pytest.raises(NoUsableRowError, match="no usable row left of 1") as error:
        load_runs(path)
    page = review(error.value.runs, tmp_path)
    assert page.rows == [("rejected", 0), ("rejected", 1)]
    assert "No row can be used" in page.text


def test_a_mark_that_no_option_can_state_is_not_stated(tmp_path: Path) -> None:
    path = tmp_path / "mixed.csv"
    path.write_text('N,D,loss\n1e6,1e9,"3,25"\n2e6,2.5e9,"3,2"\n4e6,2e9,"3,1"\n')
    runs = load_runs(path)
    page = review(runs, tmp_path)
    assert "D: ., loss: ," in page.text
    assert "--decimal" not in page.command


def test_runs_that_were_not_read_have_no_review(tmp_path: Path) -> None:
    empty = pd.DataFrame({"row": [], "reason": []})
    runs = Runs(table=pd.DataFrame({"N": []}), rejected=empty, columns={}, source="x")
    with pytest.raises(ValueError, match="do not say how they were read"):
        write_review(tmp_path / "review.html", runs)
