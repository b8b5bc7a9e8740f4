"""Whatever a file calls its columns and runs, a table, a figure and a page show it and
do no more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import analysis
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.plots.fit import plot_frontier
from analysis.plots.style import describe_runs, save_figure
from analysis.report import tables
from analysis.report.html import inline_svg
from analysis.table.readers import read_table, replace_unseen
from analysis.table.runs import load_runs

SCRIPT = (
    '"><img src=x onerror=alert(1)><script>alert(2)</script><!-- ]]> &amp; $\\frac{$'
)
UNSEEN = "\x00\x1b[2J\x07\x9b\u202e\uffff"
TEXT = st.text(max_size=12) | st.sampled_from(
    [SCRIPT, UNSEEN, "\ud800", "../../etc/passwd", "1e999", "", "9" * 400]
)
VALUES = st.one_of(
    TEXT,
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.sampled_from([10**400, -(10**400), 1j, b"\xff", [1, [2]], {"a": 1}]),
)


class Tags(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.names: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.names += [name for name, _ in attrs]


def hostile_table(sweep: Callable[..., pd.DataFrame]) -> pd.DataFrame:
    """Runs of a known law under hostile names, and a number that is none."""
    table = sweep(noise=0.004, budgets=4, sizes=4)
    table["run_id"] = [f"{SCRIPT}{UNSEEN}{i}" for i in range(len(table))]
    table["width"] = pd.Series([10**400] * len(table), dtype=object)
    return table.rename(columns={"N": SCRIPT + UNSEEN})


def test_a_figure_of_hostile_names_is_whole_in_every_format(
    sweep: Callable[..., pd.DataFrame], tmp_path: Path
) -> None:
    runs = load_runs(hostile_table(sweep), N=SCRIPT + UNSEEN)
    figure = plot_frontier(runs)
    for suffix in ("svg", "png", "pdf"):
        assert save_figure(figure, tmp_path / f"figure.{suffix}").stat().st_size > 1000
    saved = ElementTree.parse(tmp_path / "figure.svg")
    assert not {element.tag.rpartition("}")[2] for element in saved.iter()} & {
        "script",
        "img",
    }
    page = Tags(inline_svg(plot_frontier(runs), "f", "frontier"))
    assert page.tags.count("title") == len(runs) and not {"script", "img"} & set(
        page.tags
    )
    assert not [name for name in page.names if name.startswith("on")]


@settings(deadline=None, max_examples=150)
@given(
    values=st.lists(VALUES, min_size=1, max_size=4),
    names=st.lists(TEXT, min_size=1, max_size=3, unique=True),
)
def test_any_value_has_a_cell(values: list[Any], names: list[str]) -> None:
    table = tables.table_from_pairs(dict.fromkeys(names, values))
    frame = tables.table_from_frame(
        pd.DataFrame({"x": pd.Series(values, dtype=object)})
    )
    for cell in (cell for row in (*table.rows, *frame.rows) for cell in row):
        assert replace_unseen(cell.text).encode() is not None
        assert not cell.is_number or cell.key == "" or np.isfinite(float(cell.key))


@settings(deadline=None, max_examples=60)
@given(
    extra=st.dictionaries(
        TEXT,
        VALUES.filter(lambda value: not isinstance(value, complex | bytes)),
        max_size=4,
    )
)
def test_any_line_of_json_is_read_or_refused_with_its_number(
    tmp_path_factory: pytest.TempPathFactory, extra: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("lines", numbered=True) / "runs.jsonl"
    good = {"N": 1e6, "D": 1e8, "loss": 3.0, "run_id": "a"}
    path.write_text(
        "".join(
            json.dumps(row) + "\n"
            for row in (good, good | {"run_id": "b"}, good | extra)
        )
    )
    try:
        read = read_table(path)
    except ValueError as error:
        assert "two columns of one name" in str(error)
        return
    assert len(read.frame) + len(read.unread) == 3
    shown = [
        *read.frame.columns,
        *(v for name in read.frame for v in read.frame[name] if isinstance(v, str)),
    ]
    assert all(
        text == replace_unseen(text) and text.encode() is not None for text in shown
    )
    runs = load_runs(path)
    assert (
        str(runs) and describe_runs(runs.table) and len(runs) + len(runs.rejected) == 3
    )


@settings(deadline=None, max_examples=60)
@given(
    cells=st.lists(
        st.text(max_size=6) | st.sampled_from([SCRIPT, UNSEEN, "=cmd()", "9" * 5000]),
        max_size=6,
    )
)
def test_any_field_of_a_csv_is_text_or_a_number(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str]
) -> None:
    path = tmp_path_factory.mktemp("fields", numbered=True) / "runs.csv"
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    path.write_bytes(
        "\n".join(["N,D,loss,x", *(f"1e6,1e8,3.0,{cell}" for cell in quoted)]).encode(
            errors="replace"
        )
    )
    try:
        runs = load_runs(path)
    except ValueError as error:
        assert "runs.csv" in str(error)
        return
    assert all(
        text == replace_unseen(text)
        for text in runs.table["x"]
        if isinstance(text, str)
    )


DEEP = '{"N": 1e6, "D": 1e8, "loss": ' + "[" * 100_000


@pytest.mark.parametrize(
    "line",
    [DEEP, DEEP[:900] + "]" * 871 + "}", '{"N": ' + "9" * 5000 + "}", "[" * 50_000],
)
def test_a_line_without_a_bottom_costs_that_line_alone(
    tmp_path: Path, line: str
) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text(f'{line}\n{{"N": 1e6, "D": 1e8, "loss": 3.0}}\n')
    runs = load_runs(path)
    assert (
        len(runs) == 1
        and [row for row, _ in runs.reasons()] == [0]
        and len(runs.reasons()[0][1]) < 200
    )


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"a": ' * 100_000,
        '{"a": ' + "9" * 5000 + "}",
        "{}",
        '{"law": "chinchilla"}',
    ],
)
def test_what_is_no_fit_is_an_error_that_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "fit.json").write_text(text)
    for kind in (Fit, Bootstrap):
        for source in (text, tmp_path / "fit.json"):
            with pytest.raises(
                ValueError, match=f"give what {kind.__name__}.to_json wrote"
            ):
                kind.from_json(source)
    whole = (
        '{"law": "chinchilla", "protocol": {}, "params": {}, "data": {}, "draws": []}'
    )
    for kind in (Fit, Bootstrap):
        with pytest.raises(ValueError, match="not a "):
            kind.from_json(whole)


def test_a_page_shows_hostile_names_and_no_more(
    sweep: Callable[..., pd.DataFrame], tmp_path: Path
) -> None:
    runs = load_runs(hostile_table(sweep), N=SCRIPT + UNSEEN)
    fit = analysis.fit(runs, "power_law_C")
    plan = pd.DataFrame(
        {SCRIPT: pd.Series([SCRIPT, 10**400, None, "\ud800"], dtype=object)}
    )
    path = tmp_path / "report.html"
    analysis.write_report(
        path,
        runs=runs,
        fit=fit,
        plan=plan,
        provenance={UNSEEN: {"a": 10**400}},
        title=UNSEEN,
    )
    text = path.read_text(encoding="utf-8")
    page = Tags(text)
    assert (
        text == replace_unseen(text)
        and page.tags.count("script") == 1
        and "img" not in page.tags
    )
    assert not [name for name in page.names if name.startswith("on")]
