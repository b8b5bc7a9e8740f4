"""The compute multiplier of two recipes, on sweeps whose multiplier is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis import (
    Bootstrap,
    Comparison,
    Fit,
    compare,
    fit,
    load_runs,
    plot_comparison,
)
from analysis.decisions.compare import Side, _compute_multiplier, _compute_row
from analysis.decisions.frontier import make_frontier
from analysis.laws.library import LAWS, get_law

DRAWS = 200


@dataclass(frozen=True, eq=False)
class Sweeps:
    """Fits of one recipe, of another in which every token counts 1.5 times, of one with
    a steeper beta, and of the first again with other noise."""

    plain: Fit
    better: Fit
    steeper: Fit
    again: Fit


def simulate_sweep(params: dict[str, float], seed: int) -> pd.DataFrame:
    C, N = np.meshgrid(
        1e18 * 4.0 ** np.arange(5), np.geomspace(2e7, 3e9, 7), indexing="ij"
    )
    C, N = C.ravel(), N.ravel()
    D = C / (6 * N)
    loss = LAWS["chinchilla"].predict(params, N=N, D=D)
    loss = loss * np.exp(0.003 * np.random.default_rng(seed).standard_normal(len(loss)))
    return pd.DataFrame({"N": N, "D": D, "C": C, "loss": loss})


@pytest.fixture(scope="module")
def sweeps(true: dict[str, float]) -> Sweeps:
    better = true | {"B": true["B"] * 1.5 ** -true["beta"]}
    steeper = true | {"beta": true["beta"] + 0.03, "B": true["B"] * 1e10**0.03}
    recipes = ((true, 0), (better, 1), (steeper, 2), (true, 3))
    return Sweeps(*(fit(simulate_sweep(params, seed)) for params, seed in recipes))


@pytest.fixture(scope="module")
def constant(sweeps: Sweeps) -> Comparison:
    return compare(sweeps.plain, sweeps.better, draws=DRAWS)


def is_covered(comparison: Comparison, value: float) -> np.ndarray:
    table = comparison.table
    return ((table["low"] <= value) & (value <= table["high"])).to_numpy(bool)


def test_a_constant_multiplier_is_covered_and_no_exponent_differs(
    constant: Comparison,
) -> None:
    """Tokens that count 1.5 times make a run of C FLOPs one of 1.5 C, at every C."""
    assert is_covered(constant, 1.5).all()
    assert not is_covered(constant, 1.0).any()
    assert not constant.exponents["differs"].any()
    assert constant.slope[1] < 0 < constant.slope[2]
    assert (
        "b needs 63" in constant.verdict
        and "% of a's compute at 2.56e+20 FLOPs" in constant.verdict
    )
    assert (
        "exponents cannot be told apart" in constant.verdict
        and "is steady with scale" in constant.verdict
    )


def test_the_point_estimate_solves_its_definition(constant: Comparison) -> None:
    a, b = constant.a, constant.b
    for row in constant.table.to_dict("records"):
        assert row["loss_b"] == pytest.approx(
            b.frontier.best_loss(b.point, row["C"])[0]
        )
        there = a.frontier.best_loss(a.point, row["multiplier"] * row["C"])[0]
        assert there == pytest.approx(row["loss_b"], rel=1e-10)


def test_a_steeper_recipe_is_flagged(sweeps: Sweeps) -> None:
    found = compare(sweeps.plain, sweeps.steeper, draws=DRAWS)
    differs = dict(
        zip(found.exponents["quantity"], found.exponents["differs"], strict=True)
    )
    assert differs["beta"] and not differs["alpha"] and not differs["E"]
    assert "beta" in found.verdict and "differ" in found.verdict
    assert found.slope[1] > 0 and "grows with scale" in found.verdict
    shrinking = compare(sweeps.steeper, sweeps.plain, draws=DRAWS, budgets=[1e18, 1e20])
    assert "shrinks with scale" in shrinking.verdict


def test_one_recipe_is_no_better_than_itself(sweeps: Sweeps) -> None:
    found = compare(sweeps.plain, sweeps.again, draws=DRAWS)
    assert is_covered(found, 1.0).all()
    assert not found.exponents["differs"].any()
    assert "cannot be told apart there" in found.verdict


def test_budgets_beyond_a_sweep_are_marked(
    constant: Comparison, sweeps: Sweeps
) -> None:
    assert constant.table["C"].iloc[[0, -2, -1]].tolist() == pytest.approx(
        [1e18, 2.56e20, 2.56e21]
    )
    assert constant.table["reach"].iloc[[-2, -1]].tolist() == pytest.approx([1, 10])
    assert any("a's extrapolated law" in note for note in constant.notes)
    far = compare(sweeps.plain, sweeps.better, budgets=[1e23], draws=20)
    assert "beyond a sweep" in far.verdict and "unknown" in far.verdict
    assert np.isnan(far.slope).all()


def test_a_table_is_fitted_and_the_text_is_complete(
    sweeps: Sweeps, true: dict[str, float]
) -> None:
    runs = load_runs(
        simulate_sweep(true, 0).rename(columns={"N": "params"}).assign(tokenizer="bpe"),
        N="params",
    )
    other = simulate_sweep(true, 3).assign(tokenizer="bytes")
    found = compare(runs, other, draws=20)
    assert found.a.fit.params == pytest.approx(sweeps.plain.params, rel=1e-5)
    text = str(found)
    for part in (
        "multiplier",
        "reach",
        "differs",
        "alpha",
        "N is params in a and N in b",
        "tokenizer is bpe in a",
    ):
        assert part in text
    assert compare(runs, other, draws=20).table.equals(found.table)


def make_side(
    law: str, params: dict[str, float], draws: dict[str, Any], like: Fit
) -> Side:
    """A recipe whose law and draws are given."""
    found = get_law(law)
    own = replace(like, law=found, params=params)
    drawn = {k: np.asarray(draws.get(k, [v] * 5), float) for k, v in params.items()}
    boot = Bootstrap(found, drawn, "row", 35, 0, 0, 0.0, 30)
    return Side(own, boot, make_frontier(found))


def test_below_the_irreducible_loss_the_multiplier_is_infinite(
    sweeps: Sweeps, true: dict[str, float]
) -> None:
    lower = true | {"E": 1.2}
    a = make_side("chinchilla", true, {}, sweeps.plain)
    some = make_side("chinchilla", true, {"E": [1.7, 1.7, 1.7, 1.7, 1.2]}, sweeps.plain)
    row = _compute_row(a, some, 1e23, 0.9)
    assert row["multiplier"] == pytest.approx(1) and row["low"] == pytest.approx(1)
    assert np.isinf(row["high"]) and row["beyond_floor"] == 0.2
    always = make_side("chinchilla", lower, {}, sweeps.plain)
    assert np.isinf(_compute_multiplier(a, always, 1e23, of_fits=True).value[0])
    found = compare(
        sweeps.plain, simulate_sweep(lower, 4), budgets=[1e18, 1e23], draws=20
    )
    assert np.isinf(found.table["multiplier"][1]) and "b needs" in found.verdict
    assert any(
        "below a's irreducible loss in 100 % of the draws at 1e+23 FLOPs" in note
        for note in found.notes
    )
    assert isinstance(plot_comparison(found), Figure)


def test_laws_of_compute_and_given_flops(sweeps: Sweeps) -> None:
    params = {"E": 1.7, "A": 2000.0, "alpha": 0.16}
    a = make_side("power_law_C", params, {}, sweeps.plain)
    b = make_side("power_law_C", params | {"A": 2000.0 * 2**-0.16}, {}, sweeps.plain)
    assert _compute_multiplier(a, b, 1e20, of_fits=True).value[0] == pytest.approx(
        2, rel=1e-6
    )
    with pytest.raises(ValueError, match="or one of C"):
        make_frontier(get_law("power_law_N"))
    costly = compare(
        sweeps.plain,
        sweeps.plain,
        budgets=[1e20],
        draws=10,
        flops_per_token=(None, lambda n: 12 * n),
    )  # each token of b costs twice as much
    assert costly.table["multiplier"][0] == pytest.approx(0.5, rel=1e-6)
    with pytest.raises(ValueError, match="budgets is"):
        compare(sweeps.plain, sweeps.again, budgets=[-1.0], draws=10)


def test_the_figure_says_what_it_shows(constant: Comparison) -> None:
    fig = plot_comparison(constant, ("AdamW", "Muon with a long name"))
    fig.draw_without_rendering()
    gids = {child.get_gid() for ax in fig.axes for child in ax.get_children()}
    assert {
        "m",
        "band",
        "equal",
        "budgets",
        "frontier-a",
        "frontier-b",
        "band-a",
        "band-b",
        "beyond",
    } <= gids
    text = "\n".join(t.get_text() for t in fig.findobj(Text) if isinstance(t, Text))
    for part in ("Muon", "AdamW", "FLOPs", "nats per token", "90 % interval"):
        assert part in text
    for ax in fig.axes:
        assert ax.title.get_window_extent().x1 <= fig.bbox.x1
        legend = ax.get_legend()
        assert legend is not None
        assert not any(
            legend.get_window_extent().padded(-1).overlaps(other.bbox)
            for other in fig.axes
        )
