"""Approach 2 finds the minima of parabolas, and leaves out those that its sizes do not
bracket.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import isoflop, load_runs
from analysis.hoffmann.isoflop import format_size


def _parabolas(
    a: float = 0.45, noise: float = 0.0, centre: float = 1.0
) -> pd.DataFrame:
    """Losses that are parabolas in ln N about N* = 0.1 C^a."""
    rng, rows = np.random.default_rng(0), []
    for C in (1e18, 4e18, 1.6e19, 6.4e19):
        for step in (-1.0, -0.5, 0.0, 0.5, 1.0):
            best = 0.1 * C**a
            N = best * centre * np.exp(step)
            loss = (
                3.0 * C**-0.05
                + 0.02 * np.log(N / best) ** 2
                + noise * rng.standard_normal()
            )
            rows.append({"N": N, "D": C / 6 / N, "C": C, "loss": loss, "budget": C})
    return pd.DataFrame(rows)


def test_exact_parabolas_give_the_exponents() -> None:
    iso = isoflop(_parabolas(), n_bootstrap=50)
    assert iso.a == pytest.approx(0.45, abs=1e-9)
    assert iso.b == pytest.approx(0.55, abs=1e-9)
    N, D = iso.optimum(1e20)
    assert pytest.approx(0.1 * 1e20**0.45, rel=1e-6) == N
    assert pytest.approx(1e20, rel=1e-6) == 6 * N * D
    assert np.all(iso.minima["used"])


def test_the_vertex_lies_on_its_parabola() -> None:
    for row in isoflop(_parabolas(noise=1e-3), n_bootstrap=1).minima.to_dict("records"):
        u = np.log(row["N"]) - row["center"]
        assert row["c0"] + row["c1"] * u + row["c2"] * u**2 == pytest.approx(
            row["loss"]
        )
        assert row["c1"] + 2 * row["c2"] * u == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("centre", "word"),
    [
        (0.2, "train larger sizes"),
        (5.0, "train smaller sizes"),
        (1e-4, "minimum far above the largest size"),
        (1e6, "minimum far below the smallest size"),
    ],
)
def test_minima_outside_the_grid_are_left_out_and_said_so(
    centre: float, word: str
) -> None:
    table = _parabolas()
    off = _parabolas(centre=centre)
    last = table["budget"] == table["budget"].max()
    table = pd.concat([table[~last], off[last]])
    iso = isoflop(table, n_bootstrap=50)
    out = iso.minima.iloc[-1]
    assert not out["used"]
    assert word in out["reason"]
    assert ("N = " in out["reason"]) == (0.1 < centre < 10)
    assert iso.a == pytest.approx(0.45, abs=1e-9)
    assert word in str(iso)


def test_too_few_sizes_and_hills_are_left_out() -> None:
    table = _parabolas()
    three = table[(table["budget"] != 1e18) | (table["N"].rank() <= 4)]
    assert "3 sizes" in isoflop(three, n_bootstrap=5).minima.iloc[0]["reason"]
    hill = table.assign(
        loss=np.where(table["budget"] == 1e18, 9 - table["loss"], table["loss"])
    )
    assert "no minimum" in isoflop(hill, n_bootstrap=5).minima.iloc[0]["reason"]


def test_without_two_minima_there_is_no_exponent() -> None:
    table = _parabolas()
    iso = isoflop(table[table["budget"] == 1e18], n_bootstrap=5)
    assert np.isnan(iso.a)
    assert np.isnan(iso.interval("a")[0])
    assert any("at least two budgets" in note for note in iso.notes)


def test_budgets_are_recovered_from_C() -> None:
    table = _parabolas(noise=1e-3)
    wobble = np.exp(0.02 * np.random.default_rng(0).uniform(-1, 1, len(table)))
    grouped = isoflop(
        table.drop(columns="budget").assign(C=table["C"] * wobble), n_bootstrap=5
    )
    assert len(grouped.minima) == 4
    assert grouped.a == pytest.approx(isoflop(table, n_bootstrap=5).a, abs=0.01)
    assert "within 10%" in grouped.grouping


def test_power_laws_use_counted_flops_not_the_nominal_budget() -> None:
    table = _parabolas()
    off = isoflop(table.assign(budget=np.round(table["budget"], -18)), n_bootstrap=5)
    assert off.a == pytest.approx(0.45, abs=1e-9)


def test_intervals_hold_the_truth_and_widen_with_noise() -> None:
    little, much = (isoflop(_parabolas(noise=s), n_bootstrap=400) for s in (1e-4, 1e-3))
    assert little.interval("a")[0] <= 0.45 <= little.interval("a")[1]
    assert np.ptp(much.interval("a")) > 2 * np.ptp(little.interval("a"))
    (low, high), _ = much.optimum_interval(np.array([1e19, 1e22]))
    assert high[1] / low[1] > high[0] / low[0] > 1


def test_grattafiori_2024(data_dir) -> None:
    """Llama 3 (arXiv:2407.21783): D* = 0.299 C^0.537; at 3.8e25 FLOPs 402B parameters,
    16.55T tokens.
    """
    runs = load_runs(
        data_dir / "llama3_isoflops.csv",
        D="training_tokens",
        C="compute_budget",
        loss="validation_loss",
    )
    iso = isoflop(runs, n_bootstrap=50)
    assert iso.b == pytest.approx(0.537, abs=5e-4)
    assert np.exp(iso.ln_G_D) == pytest.approx(0.299, abs=1e-3)


def test_reasons_write_sizes_as_people_do() -> None:
    table = _parabolas(centre=5.0)
    reason = isoflop(table, n_bootstrap=5).minima.iloc[0]["reason"]
    assert "e+" not in reason and "M" in reason
    assert [format_size(v) for v in (12, 1.67e5, 1.25e6, 7e10, 1.5e13)] == [
        "12",
        "167k",
        "1.25M",
        "70B",
        "15T",
    ]


def test_missing_columns_are_named() -> None:
    with pytest.raises(ValueError, match="approach 2 needs D, C"):
        isoflop(pd.DataFrame({"N": [1e6], "loss": [3.0]}))
