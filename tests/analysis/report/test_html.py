"""The report is one file that asks for nothing, runs nothing it was given, and states
its numbers exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.checking.holdout import predict_runs
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.report.html import write_report

VOID = {"meta", "br", "link", "img", "input", "hr"}
HOSTILE = '"><img src=x onerror=alert(1)><script>alert(2)</script>'


class Page(HTMLParser):
    """Tags, attributes, ids and visible text of a page; notes elements that are closed
    out of order.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.crossed: list[str] = []
        self.cells: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def ids(self) -> list[str]:
        return [value for _, name, value in self.attributes if name == "id"]


@pytest.fixture(scope="module")
def parts(
    sweep: Callable[..., pd.DataFrame],
    true: dict[str, float],
    fit_at: Callable[..., Fit],
    bootstrap_at: Callable[[Fit], Bootstrap],
) -> dict[str, Any]:
    """What write_report takes, of a known law; one run is called something hostile, one
    row is refused.
    """
    table = sweep(noise=0.004, budgets=4, sizes=6)
    table["run_id"] = [HOSTILE, *(f"run-{i:02d}" for i in range(1, len(table)))]
    table["width"] = 64
    runs = analysis.load_runs(
        pd.concat([table, table.iloc[-1:].assign(loss=-1.0, run_id="refused-run")])
    )
    held = (runs.table["budget"] == runs.table["budget"].max()).to_numpy()
    fitted = runs.exclude(held, "held out")
    fit = fit_at(fitted, true)
    boot = bootstrap_at(fit)
    plan = pd.DataFrame({"run_id": ["next-1", HOSTILE], "flops": [1e21, 2e21]})
    return {
        "runs": runs,
        "fit": fit,
        "boot": boot,
        "isoflop": analysis.isoflop(fitted, n_bootstrap=50),
        "holdout": list(predict_runs(fit, boot, runs.table[held])),
        "plan": plan,
        "provenance": {"commit": "abc123", "versions": {"jax": "9.9"}, "note": HOSTILE},
        "title": f"Law {HOSTILE}",
    }


@pytest.fixture(scope="module")
def text(parts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "new folder" / "report.html"
    assert write_report(path, **parts) == path
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def find_rows(page: Page, first: str) -> list[list[str]]:
    return [cells for cells in page.cells if cells and cells[0] == first]


def test_page_asks_for_nothing_outside_itself(text: str, page: Page) -> None:
    assert "http://" not in text and "https://" not in text and "@import" not in text
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            assert value.startswith(("#", "data:")), (tag, name, value)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(
        page.tags
    )


def test_page_is_well_formed_and_its_ids_are_unique(text: str, page: Page) -> None:
    assert text.startswith("<!DOCTYPE html>")
    assert not page.crossed and not page.open
    assert len(set(page.ids())) == len(page.ids())
    local = {value[1:] for _, name, value in page.attributes if name == "href"}
    assert local <= set(page.ids())  # every reference, of figures too, leads somewhere


def test_what_was_given_is_shown_and_not_executed(text: str, page: Page) -> None:
    assert page.tags.count("script") == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert (
        text.count("alert(2)") >= 5
        and "<script>alert" not in text
        and "<img" not in text
    )
    assert (
        find_rows(page, HOSTILE) and HOSTILE in page.text
    )  # run table; title, plan, provenance


def test_headline_says_law_exponent_and_held_out_error(
    parts: dict[str, Any], page: Page
) -> None:
    fit, boot, held = parts["fit"], parts["boot"], parts["holdout"]
    low, high = boot.interval("a", 0.90)
    assert (
        f"{fit.derived()['a']:.3f} (90 % interval {low:.3f} to {high:.3f})" in page.text
    )
    errors = [abs(row["predicted"] / row["measured"] - 1) for row in held]
    assert (
        f"error of {100 * np.mean(errors):.2f} % on average and "
        f"{100 * max(errors):.2f} %" in page.text
    )
    assert "up to 4 times the largest fitted compute" in page.text
    assert "1.7 + 400 / N 0.34 + 1200 / D 0.37" in page.text


def test_every_run_is_listed_with_its_numbers(
    parts: dict[str, Any], page: Page
) -> None:
    held = {row["run_id"] for row in parts["holdout"]}
    for run in parts["runs"].table.to_dict("records"):
        rows = find_rows(page, run["run_id"])
        listed = next(cells for cells in rows if len(cells) > 8 and cells[-1] == "64")
        assert {
            f"{run['N']:,.0f}",
            f"{run['D']:,.0f}" if run["D"] < 1e10 else listed[2],
        } <= set(listed)
        assert f"{run['loss']:.4f}" in listed
        assert listed[6] == ("no" if run["run_id"] in held else "yes")


def test_held_out_runs_show_prediction_beside_measurement(
    parts: dict[str, Any], page: Page
) -> None:
    for run in parts["holdout"]:
        wanted = {f"{run[name]:.4f}" for name in ("predicted", "measured")}
        wanted.add(f"{run['lower_90']:.4f} to {run['upper_90']:.4f}")
        assert any(wanted <= set(cells) for cells in find_rows(page, run["run_id"]))


def test_parameters_optimum_plan_provenance_and_refused_rows_are_there(
    parts: dict[str, Any], page: Page
) -> None:
    for name in parts["fit"].params:
        low, high = parts["boot"].interval(name, 0.90)
        (cells,) = find_rows(page, name)
        assert float(cells[1].replace(",", "")) == pytest.approx(
            parts["fit"].params[name], rel=1e-3
        )
        ends = [float(part.replace(",", "")) for part in cells[3].split(" to ")]
        assert ends == pytest.approx([low, high], rel=1e-3)
    best = analysis.allocate(
        parts["fit"], C=parts["runs"].table["budget"].max(), boot=parts["boot"]
    )
    assert (
        f"{best.loss:.3f} [{best.intervals['loss'][0]:.3f}, "
        f"{best.intervals['loss'][1]:.3f}]" in page.text
    )
    for words in (
        "refused-run",
        "loss is -1; it must be positive",
        "next-1",
        "abc123",
        '{"jax": "9.9"}',
    ):
        assert words in page.text
    assert find_rows(page, "certified")[0][1] == "yes"


def test_each_point_of_a_figure_has_a_hover_text(
    parts: dict[str, Any], text: str
) -> None:
    figures = text.split("<svg ")[1:]
    assert len(figures) == 4
    runs = parts["runs"].table
    held = len(parts["holdout"])
    expected = [
        len(runs),
        len(runs),
        2 * len(runs),
        len(runs) - held + 3 * held,
    ]  # two panels in the last two
    assert [
        figure.split("</svg>")[0].count("<title>") for figure in figures
    ] == expected
    for run_id in runs["run_id"][1:]:
        assert f"<title>run {run_id}\n" in figures[0]


def test_sortable_cells_carry_full_numbers(parts: dict[str, Any], page: Page) -> None:
    keys = {
        value
        for tag, name, value in page.attributes
        if tag == "td" and name == "data-key"
    }
    for loss in parts["runs"].table["loss"]:
        assert str(float(loss)) in keys


def test_a_fit_that_is_not_certified_says_so_first(
    parts: dict[str, Any], tmp_path: Path
) -> None:
    bad = dataclasses.replace(parts["fit"].certificate, ok=False, at_bound=("beta",))
    fit = dataclasses.replace(parts["fit"], certificate=bad)
    page = Page(
        write_report(tmp_path / "r.html", runs=parts["runs"], fit=fit).read_text()
    )
    assert page.text.index("not certified") < page.text.index("Figures")
    assert "The fitted value lies on a bound of its range: beta." in page.text


def test_missing_parts_are_named(parts: dict[str, Any], tmp_path: Path) -> None:
    page = Page(
        write_report(
            tmp_path / "r.html", runs=parts["runs"], fit=parts["fit"]
        ).read_text()
    )
    for words in (
        "No run was held out",
        "no table of budgets was given",
        "No plan was given",
        "no interval",
    ):
        assert words in page.text
    assert page.tags.count("svg") == 2 and not page.crossed


def test_same_input_same_bytes(
    parts: dict[str, Any], text: str, tmp_path: Path
) -> None:
    assert write_report(tmp_path / "again.html", **parts).read_text() == text


@pytest.mark.slow
def test_page_stays_below_a_megabyte(
    parts: dict[str, Any], text: str, tmp_path: Path
) -> None:
    assert len(text) < 300_000
    many = pd.concat([parts["runs"].table] * 60, ignore_index=True)
    many["loss"] *= np.exp(0.01 * np.random.default_rng(0).standard_normal(len(many)))
    runs = analysis.load_runs(many.drop(columns="source_row"))
    path = write_report(
        tmp_path / "many.html", runs=runs, fit=parts["fit"], holdout=parts["holdout"]
    )
    assert path.stat().st_size < 1_000_000
    assert f"{len(many)} runs, the first 500 shown" in Page(path.read_text()).text
