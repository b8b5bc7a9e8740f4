"""Laws are told apart by what they predict; distances, influence and thresholds are
those of known cases.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.spatial
import scipy.stats
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import (
    audit,
    delta_sweep,
    fit,
    hull_distance,
    influence,
    information,
    load_runs,
    plot_audit,
    select,
)
from analysis.checking.audit import Audit, predict_left_out
from analysis.checking.selection import Selection, compute_log_errors, mask_holdouts
from analysis.fitting.certify import Certificate
from analysis.fitting.fit import Fit
from analysis.fitting.protocol import Protocol
from analysis.laws.library import LAWS
from analysis.plots.style import HoverPoints
from analysis.table.runs import Runs

LAWS_COMPARED = ("power_law_C", "chinchilla")


def plain(
    data: dict[str, np.ndarray],
    law: str = "chinchilla",
    objective: str = "huber",
    delta: float | None = 1e-3,
) -> Fit:
    """A fit whose residuals are the logs of `data["loss"]`: only its numbers are asked."""
    params = dict.fromkeys(LAWS[law].params, 0.5)
    n = len(data["loss"])
    protocol = Protocol(objective, delta, {}, "table", n, (), "row", {}, {})
    certificate = Certificate(True, 0.0, 1, 1, 1.0, (), (), (), n - len(params))
    r = np.log(data["loss"])
    return Fit(
        LAWS[law],
        protocol,
        params,
        tuple(params),
        np.eye(len(params)),
        0.0,
        certificate,
        r,
        data,
    )


def test_errors_are_of_what_the_law_predicts() -> None:
    """A law of the downstream error is held against the error, not against the loss it
    reads.
    """
    loss = np.linspace(2.0, 3.0, 6)
    found = plain({"loss": loss, "error": np.ones(6)}, "downstream")
    table = pd.DataFrame(
        {"loss": loss, "error": found.predict(loss=loss), "source_row": range(6)}
    )
    np.testing.assert_allclose(compute_log_errors(found, table), 0.0, atol=1e-12)
    np.testing.assert_allclose(
        predict_left_out(found, table)["measured"], table["error"]
    )


def with_residuals(r: np.ndarray, objective: str, delta: float | None = None) -> Fit:
    points = {"N": np.arange(1.0, len(r) + 1), "D": np.arange(1.0, len(r) + 1) ** 2}
    return plain(points | {"loss": np.exp(r)}, objective=objective, delta=delta)


@pytest.fixture(scope="module")
def runs(sweep: Callable[..., pd.DataFrame]) -> Runs:
    return load_runs(sweep(noise=0.002))


@pytest.fixture(scope="module")
def whole(runs: Runs) -> Fit:
    return fit(runs)


@pytest.fixture(scope="module")
def selection(runs: Runs) -> Selection:
    return select(runs, LAWS_COMPARED)


@pytest.fixture(scope="module")
def audited(runs: Runs) -> Audit:
    return audit(runs, LAWS_COMPARED)


def test_criteria_are_those_of_the_likelihood() -> None:
    r = 0.01 * np.random.default_rng(0).standard_normal(40)
    found = information(with_residuals(r, "least_squares"))
    normal = -2 * scipy.stats.norm(0, np.sqrt(np.mean(r**2))).logpdf(r).sum()
    assert (found["k"], found["n"]) == (6, 40)
    assert found["aic"] == pytest.approx(normal + 12)
    assert found["aicc"] == pytest.approx(normal + 12 + 2 * 6 * 7 / 33)
    assert found["bic"] == pytest.approx(normal + 6 * np.log(40))
    laplace = -2 * scipy.stats.laplace(0, np.mean(np.abs(r))).logpdf(r).sum()
    assert information(with_residuals(r, "lad"))["aic"] == pytest.approx(laplace + 12)


def test_hubers_likelihood_lies_between_the_normal_and_laplaces() -> None:
    r = 0.01 * np.random.default_rng(0).standard_t(3, 40)
    wide, narrow = (
        information(with_residuals(r, "huber", delta))["aic"] for delta in (1.0, 1e-7)
    )
    assert wide == pytest.approx(
        information(with_residuals(r, "least_squares"))["aic"], abs=1e-3
    )
    assert narrow == pytest.approx(
        information(with_residuals(r, "lad"))["aic"], abs=1e-2
    )

    def minus(ln_s: float) -> float:  # the density summed numerically
        rho = lambda v: (
            np.minimum(np.abs(v), 0.01) * (np.abs(v) - np.minimum(np.abs(v), 0.01) / 2)
        )
        grid = np.linspace(-1, 1, 400_001)
        total = np.exp(-rho(grid) / np.exp(ln_s)).sum() * (grid[1] - grid[0])
        return float(2 * (rho(r) / np.exp(ln_s)).sum() + 2 * len(r) * np.log(total))

    by_sum = scipy.optimize.minimize_scalar(
        minus, bounds=(-14, -6), method="bounded"
    ).fun  # type: ignore[union-attr]
    assert information(with_residuals(r, "huber", 0.01))["aic"] == pytest.approx(
        by_sum + 12, abs=1e-2
    )


def test_criteria_of_exact_fits_and_few_rows() -> None:
    for objective, delta in (("huber", 1e-3), ("least_squares", None), ("lad", None)):
        assert np.isfinite(
            information(with_residuals(np.zeros(20), objective, delta))["bic"]
        )
    assert (
        information(with_residuals(np.full(7, 0.01), "least_squares"))["aicc"] == np.inf
    )
    with pytest.raises(ValueError, match="no likelihood"):
        information(with_residuals(np.ones(9), "quantile"))


def test_the_true_law_is_chosen_by_every_rule(selection: Selection) -> None:
    assert set(selection.best.values()) == {"chinchilla"}
    table = selection.table.set_index("law")
    assert table.loc["chinchilla", "delta"] == 0
    assert table["weight"].sum() == pytest.approx(1)
    assert (
        table.loc["chinchilla", "largest_N"]
        < 0.01
        < table.loc["power_law_C", "largest_N"]
    )
    assert (
        selection.table["objective"].iloc[0] == selection.fits["chinchilla"].objective
    )
    assert selection.disagreement == ""


def test_refused_refits_are_listed_and_cannot_win(selection: Selection) -> None:
    """Three budgets are left for the three parameters of a power law of C."""
    refused = selection.refused.iloc[0]
    assert (refused["law"], refused["what"]) == ("power_law_C", "largest_C")
    assert "distinct points" in refused["reason"]
    assert np.isnan(selection.table.set_index("law").loc["power_law_C", "holdout"])
    assert "refused: power_law_C, largest_C" in str(selection)


def test_criteria_and_holdouts_that_disagree_are_said_to(selection: Selection) -> None:
    table = selection.table.assign(holdout=[0.02, 0.01])
    other = replace(selection, table=table)
    assert (
        other.best["bic"] == table["law"].iloc[0]
        and other.best["holdout"] == table["law"].iloc[1]
    )
    assert "extrapolate with the second" in str(other)


def test_holdouts_keep_whole_groups(runs: Runs) -> None:
    masks, notes = mask_holdouts(runs, 0.2, None, 0.1)
    table = runs.table
    assert np.array_equal(masks["largest_C"], table["C"] == table["C"].max())
    assert (
        masks["largest_N"].sum() == 8
    )  # two sizes of four runs are the least that make a fifth of 28
    assert "last" not in masks and any(
        "same rows as largest_C" in note for note in notes
    )
    later = load_runs(table.assign(step=np.arange(len(table))))
    assert np.array_equal(
        mask_holdouts(later, 0.1, "step", 0.1)[0]["last"], np.arange(28) >= 25
    )
    with pytest.raises(ValueError, match="no column of numbers"):
        mask_holdouts(runs, 0.2, "date", 0.1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        mask_holdouts(runs, 20.0, None, 0.1)


def test_no_law_and_all_refused(runs: Runs) -> None:
    with pytest.raises(ValueError, match="each once"):
        select(runs, [])
    short = runs.exclude(np.arange(len(runs)) >= 3, "too many")
    with pytest.raises(ValueError, match="every law was refused: chinchilla"):
        select(short, ["chinchilla"])


def test_distance_from_the_hull_is_that_of_geometry() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(30, 2)) * [2, 5] + [18, 22]
    found = plain(
        {"N": np.exp(points[:, 0]), "D": np.exp(points[:, 1]), "loss": np.full(30, 2.0)}
    )
    queries = rng.normal(size=(200, 2)) * [5, 12] + [18, 22]
    distance = hull_distance(found, N=np.exp(queries[:, 0]), D=np.exp(queries[:, 1]))
    inside = scipy.spatial.Delaunay(points).find_simplex(queries) >= 0
    assert 10 < inside.sum() < 190
    assert np.array_equal(distance == 0, inside)
    hull = points[scipy.spatial.ConvexHull(points).vertices]
    for query, d in zip(queries[~inside], distance[~inside], strict=True):
        edges = np.roll(hull, -1, axis=0) - hull
        t = np.clip(((query - hull) * edges).sum(1) / (edges**2).sum(1), 0, 1)
        assert d == pytest.approx(
            np.linalg.norm(hull + t[:, None] * edges - query, axis=1).min(), rel=1e-6
        )


def test_hulls_that_are_a_line_a_point_or_an_interval() -> None:
    N = np.array([1e6, 1e7, 1e8])
    line = plain({"N": N, "D": 20 * N, "loss": np.full(3, 2.0)})
    assert hull_distance(line, N=3e7, D=6e8) == 0
    assert hull_distance(line, N=1e9, D=2e10) == pytest.approx(np.log(10) * np.sqrt(2))
    assert hull_distance(line, N=1e7 * np.e, D=2e8 / np.e) == pytest.approx(np.sqrt(2))
    point = plain({"N": N[:1], "D": N[:1], "loss": np.array([2.0])})
    assert hull_distance(point, N=[1e6, 2e6], D=1e6) == pytest.approx([0, np.log(2)])
    interval = plain({"C": N, "loss": np.full(3, 2.0)}, "power_law_C")
    assert hull_distance(interval, C=np.array([1e5, 5e6, 2e8])) == pytest.approx(
        [np.log(10), 0, np.log(2)]
    )
    with pytest.raises(ValueError, match="needs it, and positive"):
        hull_distance(line, N=1e6)


def test_the_audit_leaves_every_group_out_once(audited: Audit, runs: Runs) -> None:
    own = audited.groups[audited.groups["law"] == "chinchilla"]
    assert list(own["kind"]) == ["budget"] * 4 + ["size"] * 7
    assert own["runs"].sum() == 2 * len(runs)
    assert list(own["distance"] > 0) == [
        True,
        False,
        False,
        True,
        True,
        *[False] * 5,
        True,
    ]
    assert own.loc[own["kind"] == "budget", "distance"].iloc[-1] == pytest.approx(
        np.log(4)
    )  # D, at the largest N
    assert np.all(own["rms"] < 0.01)
    rows = audited.rows[audited.rows["law"] == "chinchilla"]
    assert np.allclose(np.log(rows["predicted"] / rows["measured"]), rows["error"])


def test_the_audit_refits_without_what_it_leaves_out(
    audited: Audit, runs: Runs
) -> None:
    held = (runs.table["C"] == runs.table["C"].max()).to_numpy()
    again = fit(runs.exclude(held, "largest"))
    rows = audited.rows[
        (audited.rows["law"] == "chinchilla")
        & (audited.rows["left_out"] == "budget 6.4e+19 FLOPs")
    ]
    assert np.allclose(
        rows["predicted"],
        again.predict(N=rows["N"].to_numpy(), D=rows["D"].to_numpy()),
        rtol=1e-12,
    )


def test_interpolation_stands_beside_extrapolation(audited: Audit) -> None:
    summary = audited.summary.set_index("law")
    own = summary.loc["chinchilla"]
    assert own["interpolated"] + own["extrapolated"] == 56
    assert own["interpolation_rms"] < own["extrapolation_rms"] < 0.01
    assert summary.loc["power_law_C", "refused"] == 4
    assert "distinct points" in audited.refused["reason"].iloc[0]
    assert "power_law_C refused without budget 1e+18 FLOPs, " in str(audited)


def test_nothing_to_leave_out_is_refused() -> None:
    with pytest.raises(ValueError, match="one budget and one size"):
        audit(pd.DataFrame({"N": [1e6] * 3, "C": [1e15] * 3, "loss": [3.0, 3.1, 3.2]}))


def test_the_audits_figure_shows_every_refit(audited: Audit) -> None:
    fig = plot_audit(audited)
    assert isinstance(fig, Figure)
    shown = [title for p in fig.findobj(HoverPoints) for title in p.titles]  # type: ignore[attr-defined]
    assert len(shown) == (audited.groups["refused"] == "").sum()
    assert any("chinchilla without size 20M" in title for title in shown)
    texts = "\n".join(t.get_text() for t in fig.findobj(Text) if isinstance(t, Text))
    assert "4 of its refits failed" in texts and "natural logarithms" in texts
    refused = audited.groups.assign(refused="no")
    with pytest.raises(ValueError, match="no refit that succeeded"):
        plot_audit(replace(audited, groups=refused))


def test_an_outlier_is_found_by_its_influence(runs: Runs, whole: Fit) -> None:
    spoilt = load_runs(
        runs.table.assign(
            loss=runs.table["loss"] * np.where(np.arange(28) == 27, 1.1, 1.0)
        )
    )
    found = influence(spoilt, objective="least_squares", m=2)
    assert found.table["left_out"].tolist() == [
        "none",
        "row 27",
        found.table["left_out"][2],
        "these 2 runs",
    ]
    assert found.table["source_row"].iloc[1] == 27
    moved = found.shifts.set_index("left_out")
    assert abs(moved.loc["row 27", "a"]) > 5 * abs(moved["a"].iloc[1])
    clean = whole.derived()["a"]
    assert abs(found.table["a"].iloc[1] - clean) < abs(found.table["a"].iloc[0] - clean)
    assert "without row 27" in str(found)


def test_influence_of_a_fit_uses_its_own_rows_and_protocol(
    runs: Runs, whole: Fit
) -> None:
    found = influence(whole, m=1)
    by_hand = fit(
        runs.exclude(np.arange(28) == np.argmax(np.abs(whole.residuals)), "one")
    )
    assert found.table["a"].iloc[1] == pytest.approx(by_hand.derived()["a"], rel=1e-9)
    assert found.fit is whole
    with pytest.raises(ValueError, match="brings its own options"):
        influence(whole, delta=1e-2)
    with pytest.raises(ValueError, match="between 1 and 27"):
        influence(whole, m=28)


def test_the_threshold_runs_from_outliers_to_none(runs: Runs, whole: Fit) -> None:
    table = delta_sweep(runs, deltas=(1e-3, 1e-1, np.inf))
    assert table["objective"].tolist() == ["huber", "huber", "least_squares"]
    assert table["a"].iloc[0] == pytest.approx(whole.derived()["a"], rel=1e-9)
    assert table["a"].iloc[1] == pytest.approx(table["a"].iloc[2], rel=1e-6)
    assert table["outliers"].iloc[0] > table["outliers"].iloc[1] == 0
    with pytest.raises(ValueError, match="positive thresholds"):
        delta_sweep(runs, deltas=(0.0,))
    with pytest.raises(ValueError, match="delta_sweep sets it"):
        delta_sweep(runs, objective="lad")


ACCURACIES = {
    "emergence": {"b": 0.25, "a": 0.5, "L_0": 2.9},
    "task_accuracy": {"b": 0.25, "a": 0.6, "k": 6.0, "L_0": 2.7},
    "exponential_accuracy": {"b": 0.1, "k": 12.0, "gamma": 1.4},
}


@pytest.mark.parametrize("truth", ACCURACIES)
def test_how_accuracy_follows_from_loss_is_told_by_runs_held_out(truth: str) -> None:
    loss = np.linspace(2.1, 3.6, 24)
    accuracy = LAWS[truth].predict(ACCURACIES[truth], loss=loss)
    accuracy = accuracy + 0.004 * np.random.default_rng(1).standard_normal(24)
    table = pd.DataFrame({"loss": loss, "accuracy": accuracy})
    runs = load_runs(table, loss="loss", accuracy="accuracy")
    found = select(runs, list(ACCURACIES), residual="raw", allow_unidentified=True)
    assert found.best["holdout"] == truth
    held = found.holdouts.set_index("law")
    assert set(held["holdout"]) == {"lowest_loss"}
    assert set(held["held"]) == {5}
    # In accuracy itself: a few times the noise.
    assert held.loc[truth, "rms"] < 0.02


def test_the_rows_of_lowest_loss_are_held_out_once() -> None:
    """Where they are also those of the largest models, they count once."""
    loss = np.linspace(3.6, 2.1, 20)
    table = pd.DataFrame({"N": np.geomspace(1e6, 1e9, 20), "loss": loss})
    masks, notes = mask_holdouts(load_runs(table), 0.2, None, 0.1, by_loss=True)
    np.testing.assert_array_equal(masks["largest_N"], np.arange(20) >= 16)
    assert "lowest_loss" not in masks
    assert any("lowest_loss: it would keep the same rows" in note for note in notes)


def test_laws_of_two_quantities_are_not_compared() -> None:
    table = pd.DataFrame({"loss": [2.0, 2.5, 3.0], "error": 0.5, "accuracy": 0.5})
    runs = load_runs(table, loss="loss", accuracy="accuracy", error="error")
    with pytest.raises(
        ValueError, match="downstream predicts error, emergence predicts"
    ):
        select(runs, ["downstream", "emergence"])
