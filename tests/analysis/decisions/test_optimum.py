"""Best hyper-parameters: found where they are, with intervals that say what the runs
know, and laws that follow them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.decisions.optimum import Optimum, optimum

Rate = Callable[[np.ndarray, np.ndarray], np.ndarray]


def make_table(
    rate: Rate,
    sizes: tuple[float, ...] = (1e7, 3e7, 1e8, 3e8),
    ratios: tuple[float, ...] = (20.0,),
    rates: tuple[float, ...] = tuple(2.0 ** np.arange(-14, -4)),
    noise: float = 0.0,
    cubic: float = 0.0,
    seed: int = 0,
) -> pd.DataFrame:
    """Runs at all sizes, tokens per parameter and rates, whose log loss is a parabola in
    ln lr, a little steeper towards high rates.
    """
    N, ratio, lr = (
        values.ravel() for values in np.meshgrid(sizes, ratios, rates, indexing="ij")
    )
    D = ratio * N
    u = np.log(lr / rate(N, D))
    loss = 2 + 300 / N**0.33
    rng = np.random.default_rng(seed)
    log_loss = np.log(loss) + 0.01 * u**2 + cubic * u**3
    log_loss += noise * rng.standard_normal(len(N))
    return pd.DataFrame({"N": N, "D": D, "lr": lr, "loss": np.exp(log_loss)})


def step_law(N: np.ndarray, D: np.ndarray) -> np.ndarray:
    return 1.79 * N**-0.713 * D**0.307


def read_exponents(found: Optimum) -> dict[str, tuple[float, float, float]]:
    rows = found.laws.to_dict("records")
    return {row["by"]: (row["exponent"], row["low"], row["high"]) for row in rows}


def test_exact_losses_give_the_optimum_and_its_law() -> None:
    table = make_table(step_law, ratios=(10.0, 40.0))
    found = optimum(table)
    cells = found.cells
    expected = step_law(cells["N"].to_numpy(), cells["D"].to_numpy())
    np.testing.assert_allclose(cells["lr"], expected, rtol=1e-6)
    assert set(cells["status"]) == {"inside"}
    exponents = read_exponents(found)
    assert exponents["N"][0] == pytest.approx(-0.713, rel=1e-6)
    assert exponents["D"][0] == pytest.approx(0.307, rel=1e-6)


def test_the_order_of_rows_and_the_unit_of_the_rate_change_nothing() -> None:
    table = make_table(step_law, noise=2e-3)
    plain = optimum(table, by="N")
    shuffled = table.sample(frac=1.0, random_state=1).assign(lr=lambda t: 1e3 * t["lr"])
    other = optimum(shuffled, by="N")
    np.testing.assert_allclose(other.cells["lr"], 1e3 * plain.cells["lr"], rtol=1e-9)
    np.testing.assert_allclose(
        other.cells["lr_low"], 1e3 * plain.cells["lr_low"], rtol=1e-6
    )
    pd.testing.assert_frame_equal(other.laws, plain.laws, rtol=1e-6)


@pytest.mark.slow
def test_intervals_hold_the_optimum_as_often_as_they_say() -> None:
    inside = 0
    exponent_inside = 0
    trials = 60
    for seed in range(trials):
        table = make_table(step_law, noise=2e-3, seed=seed)
        found = optimum(table, by="N")
        cells = found.cells
        true = step_law(cells["N"].to_numpy(), 20 * cells["N"].to_numpy())
        holds = (cells["lr_low"] <= true) & (true <= cells["lr_high"])
        inside += int(holds.sum())
        _, low, high = read_exponents(found)["N"]
        exponent_inside += low <= -0.713 + 0.307 <= high
    assert 0.82 <= inside / (4 * trials) <= 0.97
    assert exponent_inside / trials >= 0.82


@pytest.mark.parametrize(
    ("rate", "answer"),
    [
        (lambda N, D: 0.01 * (N / 1e7) ** -0.5, "moves"),
        (lambda N, D: 2e-3 + 0 * N, "stays"),
    ],
)
def test_the_verdict_says_whether_the_optimum_moves(rate: Rate, answer: str) -> None:
    found = optimum(make_table(rate, noise=5e-4), by="N")
    assert found.verdicts["lr"].startswith(answer)


def test_runs_that_cannot_tell_say_so() -> None:
    """A flat loss under noise: the interval of the law holds both answers."""
    found = optimum(make_table(step_law, noise=0.05), by="N")
    assert found.verdicts["lr"].startswith("whether it moves is not known")


def test_widths_under_an_attempt_at_mup() -> None:
    """Losses of a public thread, at rates of 2^-8 to 2^-12: the optimum moves by about
    two factors of two, and more than one, over eight times the width.
    """
    losses = {
        96: (4.1291, 4.1184, 4.1627, 4.2398, 4.3393),
        192: (3.7287, 3.7086, 3.7074, 3.7363, 3.8111),
        384: (3.4713, 3.4041, 3.3809, 3.3776, 3.4135),
        768: (np.nan, np.inf, 3.1226, 3.1009, 3.1074),
    }
    rows = []
    for width, at_rates in losses.items():
        for exponent, loss in zip(range(-8, -13, -1), at_rates, strict=True):
            if loss != np.inf:  # that rate was not tried
                rows.append({"width": width, "lr": 2.0**exponent, "loss": loss})
    found = optimum(pd.DataFrame(rows), over="lr", by="width")
    assert found.verdicts["lr"].startswith("moves by a factor of")
    first, last = found.cells["lr"].iloc[[0, -1]]
    assert 1.0 < np.log2(first / last) < 3.0
    assert found.runs.reasons() == [(15, "loss is missing")]
    assert "row 15 was left out: loss is missing" in str(found)


def test_a_best_value_at_the_edge_is_said_and_is_in_no_law() -> None:
    """The largest size has its optimum below all rates that were tried."""
    table = make_table(lambda N, D: 0.01 * (N / 1e7) ** -1.0, noise=1e-4)
    table = table.loc[(table["N"] < 2e8) | (table["lr"] > 1e-3)]
    found = optimum(table, by="N")
    assert found.cells["status"].tolist() == ["inside"] * 3 + ["at the edge"]
    assert "1 of 4 cells" in found.notes[0]
    assert read_exponents(found)["N"][0] == pytest.approx(-1.0, abs=0.05)


def test_two_hyper_parameters_have_one_optimum() -> None:
    """The best batch depends on the rate: neither is found with the other held."""
    lr, batch, N = (
        values.ravel()
        for values in np.meshgrid(
            2.0 ** np.arange(-12, -5), 2.0 ** np.arange(12, 19), (1e7, 1e8, 1e9)
        )
    )
    u = np.log(lr / (0.004 * (N / 1e8) ** -0.3))
    v = np.log(batch / (3e4 * (N / 1e8) ** 0.4))
    log_loss = np.log(3.0) + 0.01 * u**2 - 0.008 * u * v + 0.01 * v**2
    rng = np.random.default_rng(0)
    loss = np.exp(log_loss + 1e-4 * rng.standard_normal(len(N)))
    table = pd.DataFrame({"N": N, "lr": lr, "batch": batch, "loss": loss})
    found = optimum(table, over=("lr", "batch"), by="N")
    middle = found.cells.loc[found.cells["N"] == 1e8].iloc[0]
    assert middle["lr"] == pytest.approx(0.004, rel=0.02)
    assert middle["batch"] == pytest.approx(3e4, rel=0.02)
    exponents = {row["over"]: row["exponent"] for row in found.laws.to_dict("records")}
    assert exponents["lr"] == pytest.approx(-0.3, abs=0.01)
    assert exponents["batch"] == pytest.approx(0.4, abs=0.01)


def test_one_run_that_diverged_late_does_not_decide() -> None:
    """Huber's weights: a run that is 5 % off moves the optimum by less than a step of
    the grid, which least squares would not hold.
    """
    table = make_table(step_law, noise=5e-4)
    true = optimum(table, by="N").cells["lr"].to_numpy()
    cell = table.loc[table["N"] == 1e8]
    best = cell["loss"].idxmin()
    table.loc[best + 1, "loss"] *= 1.05
    moved = optimum(table, by="N").cells["lr"].to_numpy()
    assert np.all(np.abs(np.log2(moved / true)) < 0.5)


@pytest.mark.parametrize("rates", [(0.01,), (0.01, 0.02), (0.01, 0.01, 0.02)])
def test_too_few_values_are_no_optimum(rates: tuple[float, ...]) -> None:
    found = optimum(make_table(step_law, rates=rates), by="N")
    assert found.cells["lr"].isna().all()
    assert found.cells["status"].str.contains("do not determine a quadratic").all()
    assert found.verdicts["lr"].startswith("whether it moves is not known: 0 of 4")


def test_losses_without_a_minimum_have_none() -> None:
    table = make_table(step_law)
    table["loss"] = 20 / table["loss"]
    found = optimum(table, by="N")
    assert found.cells["status"].str.startswith("the losses have no minimum").all()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"over": "rate"}, "optimum needs rate"),
        ({"over": "lr", "by": "lr"}, "none twice"),
        ({"span": 1.0}, "span is 1.0; give a factor above 1"),
    ],
)
def test_what_cannot_be_asked(keywords: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analysis.optimum(make_table(step_law), **keywords)


def test_a_rate_of_zero_names_its_row() -> None:
    table = make_table(step_law)
    table.loc[3, "lr"] = 0.0
    with pytest.raises(ValueError, match=r"lr is 0\.0 in row 3"):
        optimum(table)
