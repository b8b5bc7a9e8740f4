"""The figures contain what they claim, nothing runs off the page, and the files are the
same every time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

import analysis
from analysis.checking.holdout import HeldOutRun, predict_runs
from analysis.fitting.bootstrap import Bootstrap
from analysis.fitting.fit import Fit
from analysis.hoffmann.isoflop import IsoFlop
from analysis.plots.style import (
    MAX_LEGEND,
    STYLE,
    HoverPoints,
    RoundLocator,
    format_count,
    format_flops,
    make_figure,
    save_figure,
    set_log_axis,
)
from analysis.table.runs import Runs

SIZES, BUDGETS = 6, 4


@dataclass(frozen=True)
class Fitted:
    """All runs, the fit to all but the largest budget, its bootstrap, and the
    predictions of that budget.
    """

    runs: Runs
    fitted: Runs
    fit: Fit
    boot: Bootstrap
    holdout: list[HeldOutRun]


@pytest.fixture(scope="module")
def known(
    sweep: Callable[..., pd.DataFrame],
    true: dict[str, float],
    fit_at: Callable[..., Fit],
    bootstrap_at: Callable[[Fit], Bootstrap],
) -> Fitted:
    table = sweep(noise=0.004, budgets=BUDGETS, sizes=SIZES)
    table["run_id"] = [f"run-{i:02d}" for i in range(len(table))]
    table["trunk_id"] = "trunk-" + table["N"].rank(method="dense").astype(int).astype(
        str
    )
    runs = analysis.load_runs(table)
    held = (runs.table["budget"] == runs.table["budget"].max()).to_numpy()
    fitted = runs.exclude(held, "held out")
    fit = fit_at(fitted, true)
    boot = bootstrap_at(fit)
    return Fitted(
        runs, fitted, fit, boot, list(predict_runs(fit, boot, runs.table[held]))
    )


@pytest.fixture(scope="module")
def isoflop(known: Fitted) -> IsoFlop:
    return analysis.isoflop(known.fitted, n_bootstrap=50)


def find_lines(fig: Figure, start: str) -> list[Line2D]:
    return [
        line
        for line in fig.findobj(Line2D)
        if isinstance(line, Line2D) and (line.get_gid() or "").startswith(start)
    ]


def read_texts(fig: Figure) -> str:
    return "\n".join(t.get_text() for t in fig.findobj(Text) if isinstance(t, Text))


def read_points(fig: Figure, start: str) -> tuple[np.ndarray, np.ndarray]:
    lines = find_lines(fig, start)
    return tuple(
        np.concatenate([np.asarray(line.get_data()[k], float) for line in lines])
        for k in (0, 1)
    )  # type: ignore[return-value]


@pytest.fixture(scope="module")
def figures(known: Fitted, isoflop: IsoFlop) -> dict[str, Figure]:
    return {
        "frontier": analysis.plot_frontier(known.runs, known.fit),
        "isoflop": analysis.plot_isoflop(known.runs, isoflop),
        "fit": analysis.plot_fit(known.runs, known.fit, known.boot),
        "extrapolation": analysis.plot_extrapolation(
            known.fit, known.boot, known.holdout
        ),
    }


def test_nothing_runs_off_the_page_and_no_key_covers_data(
    figures: dict[str, Figure],
) -> None:
    for name, fig in figures.items():
        fig.draw_without_rendering()
        page = fig.bbox.padded(1)
        # Ticks outside the limits are not drawn.
        ticks = set()
        for ax in fig.axes:
            for axis in (ax.xaxis, ax.yaxis):
                ticks.update(id(tick) for tick in axis.get_ticklabels(which="both"))
        for text in fig.findobj(Text):
            assert isinstance(text, Text)
            box = text.get_window_extent()
            is_shown = text.get_visible() and text.get_text().strip()
            if is_shown and text.get_in_layout() and id(text) not in ticks:
                found = (name, text.get_text())
                assert page.x0 <= box.x0 and box.x1 <= page.x1, found
                assert page.y0 <= box.y0 and box.y1 <= page.y1, found
        for legend in [
            *fig.legends,
            *(ax.get_legend() for ax in fig.axes if ax.get_legend()),
        ]:
            assert legend is not None
            for ax in fig.axes:
                assert not legend.get_window_extent().padded(-1).overlaps(ax.bbox), name


def test_every_axis_names_its_quantity_and_unit(figures: dict[str, Figure]) -> None:
    units = {
        "frontier": ("FLOPs", "nats per token"),
        "isoflop": ("parameters", "nats per token"),
        "fit": ("", "nats per token"),
        "extrapolation": ("FLOPs", "nats per token"),
    }
    for name, fig in figures.items():
        x, y = units[name]
        assert x in fig.axes[0].get_xlabel() and y in fig.axes[0].get_ylabel(), name
    assert "tokens" in figures["fit"].axes[1].get_xlabel()


def test_frontier_has_a_line_per_size_an_envelope_and_the_fitted_optimum(
    known: Fitted, figures: dict[str, Figure]
) -> None:
    fig = figures["frontier"]
    assert len(find_lines(fig, "size-")) == SIZES
    for N in known.runs.table["N"].unique():
        assert format_count(N) in read_texts(fig)
    C, loss = read_points(fig, "envelope")
    for c, value in zip(
        C, loss, strict=True
    ):  # nothing measured at that compute or less is lower
        assert value <= known.runs.table.loc[known.runs.table["C"] <= c, "loss"].min()
    C, best = read_points(fig, "frontier")
    at_budget = np.interp(np.log(known.fit.data["C"]), np.log(C), best)
    law = known.fit.predict(N=known.fit.data["N"], D=known.fit.data["D"])
    assert np.all(
        at_budget <= law * 1.0005
    )  # the optimum lies below every run's own prediction


def test_runs_outside_the_fit_are_hollow(
    known: Fitted, figures: dict[str, Figure]
) -> None:
    fig = figures["frontier"]
    hollow = [p for p in fig.findobj(HoverPoints) if p.get_markerfacecolor() == "white"]  # type: ignore[attr-defined]
    assert sum(len(p.titles) for p in hollow) == SIZES  # type: ignore[attr-defined]
    assert "not in the fit" in read_texts(fig)
    assert "not in the fit" not in read_texts(
        analysis.plot_frontier(known.fitted, known.fit)
    )


def test_every_point_carries_its_run(known: Fitted, figures: dict[str, Figure]) -> None:
    shown = [
        title for p in figures["frontier"].findobj(HoverPoints) for title in p.titles
    ]  # type: ignore[attr-defined]
    for run_id, loss in zip(
        known.runs.table["run_id"], known.runs.table["loss"], strict=True
    ):
        assert any(run_id in title and f"{loss:.4f}" in title for title in shown)


def test_frontier_without_fit_or_compute(known: Fitted) -> None:
    assert not find_lines(analysis.plot_frontier(known.runs), "frontier")
    with pytest.raises(ValueError, match="needs C"):
        analysis.plot_frontier(known.runs.table[["N", "loss"]])


def test_many_sizes_get_a_color_bar(sweep: Callable[..., pd.DataFrame]) -> None:
    fig = analysis.plot_frontier(sweep(sizes=MAX_LEGEND + 2))
    assert "parameters" in fig.axes[1].get_ylabel()


def test_isoflop_has_a_parabola_and_a_minimum_per_budget(
    known: Fitted, isoflop: IsoFlop
) -> None:
    fig = analysis.plot_isoflop(known.runs, isoflop)
    assert len(find_lines(fig, "parabola-")) == BUDGETS - 1
    N, loss = read_points(fig, "minimum-used")
    used = isoflop.minima[isoflop.minima["used"]]
    np.testing.assert_allclose(np.sort(N), np.sort(used["N"]))
    np.testing.assert_allclose(np.sort(loss), np.sort(used["loss"]))
    assert f"{isoflop.a:.3f}" in read_texts(fig)
    assert (
        len(read_points(fig, "other-runs")[0]) == SIZES
    )  # the budget that was held out


def test_excluded_minima_are_hollow_and_named(known: Fitted) -> None:
    table = known.runs.table
    smallest, largest = table["budget"].min(), table["budget"].max()
    few = (table["budget"] == smallest) & (table["N"] > table["N"].unique()[2])
    edge = (table["budget"] == largest) & (table["N"] > 6e8)
    runs = known.runs.exclude(few | edge, "not trained")
    iso = analysis.isoflop(runs, n_bootstrap=20)
    out = iso.minima[~iso.minima["used"]]
    assert set(out["budget"]) == {smallest, largest}
    fig = analysis.plot_isoflop(runs, iso)
    hollow = find_lines(fig, "minimum-excluded")
    assert len(hollow) == 1 and hollow[0].get_markerfacecolor() == "white"
    assert f"{format_flops(largest)}: left out" in read_texts(fig)
    words = " ".join(read_texts(fig).split())
    for budget in (smallest, largest):
        assert f"{format_flops(budget)} FLOPs left out" in words
    assert "fewer than 4 sizes" in words and "train larger sizes" in words


def test_fit_shows_a_curve_per_size_and_the_residuals_in_per_cent(
    known: Fitted,
) -> None:
    fig = analysis.plot_fit(known.fitted, known.fit, known.boot)
    assert len(find_lines(fig, "law")) == SIZES
    assert len([c for c in fig.axes[0].collections if c.get_gid() == "band"]) == SIZES
    assert not [
        c
        for c in analysis.plot_fit(known.fitted, known.fit).axes[0].collections
        if c.get_gid() == "band"
    ]
    D, residual = read_points(fig, "residual-")
    t = known.fitted.table
    expected = 100 * (t["loss"] / known.fit.predict(N=t["N"], D=t["D"]) - 1)
    order = np.argsort(D)
    np.testing.assert_allclose(
        residual[order], expected.to_numpy()[np.argsort(t["D"].to_numpy())], atol=1e-9
    )
    assert f"rms {np.sqrt(np.mean(expected**2)):.2g} %" in read_texts(fig)
    assert "%" in fig.axes[1].get_ylabel()


def test_a_law_of_one_variable_has_one_curve(
    known: Fitted, fit_at: Callable[..., Fit]
) -> None:
    fit = fit_at(known.fitted, {"E": 1.7, "A": 2e5, "alpha": 0.3}, "power_law_C")
    fig = analysis.plot_fit(known.fitted, fit)
    assert len(find_lines(fig, "law")) == 1 and "FLOPs" in fig.axes[1].get_xlabel()
    held = known.runs.table.iloc[-2:]
    holdout: list[HeldOutRun] = []
    for row in held.to_dict("records"):
        holdout.append(
            {
                "run_id": row["run_id"],
                "N": row["N"],
                "D": row["D"],
                "C": row["C"],
                "predicted": 2.0,
                "lower_90": 1.9,
                "upper_90": 2.1,
                "measured": row["loss"],
            }
        )
    assert len(find_lines(analysis.plot_extrapolation(fit, None, holdout), "law")) == 1


def test_extrapolation_shows_each_relative_error_and_how_far_out_it_is(
    known: Fitted,
) -> None:
    holdout = [row.copy() for row in known.holdout]
    holdout[0]["lower_90"] = holdout[0]["measured"] * 1.01
    holdout[0]["upper_90"] = holdout[0]["measured"] * 1.03
    fig = analysis.plot_extrapolation(known.fit, known.boot, holdout)
    error, _ = read_points(fig, "error-")
    expected = [100 * (row["predicted"] / row["measured"] - 1) for row in holdout]
    np.testing.assert_allclose(np.sort(error), np.sort(expected))
    _, measured = read_points(fig, "measured-")
    np.testing.assert_allclose(
        np.sort(measured), np.sort([row["measured"] for row in holdout])
    )
    beyond = next(
        p for p in fig.axes[0].patches if p.get_gid() == "beyond"
    ).get_window_extent()
    edge = fig.axes[0].transData.transform([(known.fit.data["C"].max(), 2.0)])[0, 0]
    assert beyond.x0 > edge  # the tint begins past the largest fitted compute
    assert read_texts(fig).count(", outside") == 1 + sum(
        not row["lower_90"] <= row["measured"] <= row["upper_90"] for row in holdout[1:]
    )
    assert "4× C" in read_texts(fig).replace("\N{MULTIPLICATION SIGN}", "×")  # noqa: RUF001
    assert len(find_lines(fig, "law")) == SIZES


def test_extrapolation_needs_held_out_runs(known: Fitted) -> None:
    with pytest.raises(ValueError, match="holdout is empty"):
        analysis.plot_extrapolation(known.fit, known.boot, [])


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_saved_figures_are_the_same_every_time(
    known: Fitted, tmp_path: Path, suffix: str
) -> None:
    first, second = (
        save_figure(analysis.plot_frontier(known.runs), tmp_path / f"{i}.{suffix}")
        for i in (1, 2)
    )
    assert first.read_bytes() == second.read_bytes()


def test_saved_svg_keeps_text_as_text(known: Fitted, tmp_path: Path) -> None:
    text = save_figure(
        analysis.plot_frontier(known.runs), tmp_path / "new" / "f.svg"
    ).read_text()
    assert "Training compute C (FLOPs)" in text and "<dc:date>" not in text


def test_unknown_suffix_is_refused(known: Fitted, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.png, \.svg or \.pdf"):
        save_figure(analysis.plot_frontier(known.runs), tmp_path / "figure.gif")


@pytest.mark.parametrize("span", [1.02, 1.3, 2, 3.9, 4.1, 8, 30, 1e3, 1e6, 1e12, 1e30])
@pytest.mark.parametrize("low", [1.7e-3, 1.7, 9.9e11])
def test_log_ticks_are_few_and_never_absent(low: float, span: float) -> None:
    ticks = RoundLocator(7).tick_values(low, low * span)
    assert 2 <= len(ticks) <= 9 and np.all(ticks >= low) and np.all(ticks <= low * span)


@pytest.mark.parametrize("kind", ["count", "flops", "loss"])
@pytest.mark.parametrize("panels", [1, 5])
@pytest.mark.parametrize("low, high", [(3.1, 250), (1.3e3, 8.9e4), (1.2, 1.9), (1e8, 1e20)])  # fmt: skip
def test_labels_of_ticks_do_not_touch(
    kind: str, panels: int, low: float, high: float
) -> None:
    with mpl.rc_context(STYLE):
        figure = make_figure(2.9)
        canvas = FigureCanvasAgg(figure)
        axes = figure.subplots(1, panels, squeeze=False)[0]
        for ax in axes:
            ax.plot([low, high], [low, high])
            set_log_axis(ax, "x", kind)
            set_log_axis(ax, "y", kind)
        figure.draw_without_rendering()
        renderer = canvas.get_renderer()
        for ax in axes:
            for axis in (ax.xaxis, ax.yaxis):
                low_end, high_end = axis.get_view_interval()
                boxes = []
                for tick in axis.get_major_ticks():
                    if low_end <= tick.get_loc() <= high_end:
                        boxes.append(tick.label1.get_window_extent(renderer))
                assert len(boxes) > (panels < 5)
                for one, other in itertools.pairwise(boxes):
                    assert not one.padded(1).overlaps(other)


def test_numbers_read_as_people_write_them() -> None:
    assert [format_count(v) for v in (950, 14_336, 999_960, 1.25e6, 7e10, 1.5e13)] == [
        "950",
        "14.3k",
        "1M",
        "1.25M",
        "70B",
        "15T",
    ]
    assert [
        format_flops(v).replace("\N{MULTIPLICATION SIGN}", "x")
        for v in (1e12, 2.5e11, 9.996e20)
    ] == [
        "10¹²",
        "2.5x10¹¹",
        "10²¹",
    ]


def test_no_global_figure_state(figures: dict[str, Figure]) -> None:
    from matplotlib import pyplot

    assert not pyplot.get_fignums() and all(
        fig.canvas.manager is None for fig in figures.values()
    )
