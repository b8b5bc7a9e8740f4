"""The rules of the learning rate are read off a table of known best rates, and are
lines that a preset takes.
"""

from __future__ import annotations

import tomllib

import numpy as np
import pandas as pd
import pytest

from experiments.calibrate_lr import (
    find_best_rates,
    format_power_rule,
    format_width_rule,
)
from scaling import PlanConfig
from scaling.config import from_dict

RATES = 1e-3 * 2.0 ** np.arange(5)  # up to 0.016: the best of width 16 lies beyond


def grid(noise: float = 1e-3) -> pd.DataFrame:
    """Losses about a best rate of 0.004 (N / 1e5)^-0.4 (D / 1e6)^-0.2, N = 16 width^2,
    the noise on its logarithm.
    """
    rng = np.random.default_rng(0)
    rows = []
    for width in (16, 32, 64, 128):
        for tokens in (500_000, 1_000_000, 2_000_000):
            N = 16 * width**2
            best = (
                4e-3
                * (N / 1e5) ** -0.4
                * (tokens / 1e6) ** -0.2
                * np.exp(noise * rng.normal())
            )
            cell = {"width": width, "tokens": tokens, "n_matmul": N}
            rows += [
                cell | {"lr": lr, "loss": 2.0 + 0.05 * np.log(lr / best) ** 2}
                for lr in RATES
            ]
    return pd.DataFrame(rows)


def read(rule: str) -> PlanConfig:
    """A rule as part of a preset."""
    return from_dict(PlanConfig, {"tokens": [1]} | tomllib.loads(rule))


def test_the_power_law_is_found_and_is_what_a_plan_takes() -> None:
    plan = read(format_power_rule(find_best_rates(grid())))
    assert plan.lr_N is not None and plan.lr_D is not None
    assert (plan.lr_N_exponent, plan.lr_D_exponent) == pytest.approx(
        (0.4, 0.2), abs=5e-3
    )
    expected = 4e-3 * (plan.lr_N / 1e5) ** -0.4 * (plan.lr_D / 1e6) ** -0.2
    assert plan.optim.lr == pytest.approx(
        expected, rel=5e-3
    )  # three digits are printed


def test_the_rule_in_the_width_is_of_the_largest_budget() -> None:
    plan = read(format_width_rule(find_best_rates(grid())))
    assert plan.lr_width_exponent == pytest.approx(0.8, abs=0.01)
    assert plan.optim.lr == pytest.approx(
        4e-3 * (16 * 64**2 / 1e5) ** -0.4 * 2**-0.2, rel=0.05
    )  # two digits


def test_cells_at_the_edge_are_flagged_and_left_out() -> None:
    cells = find_best_rates(grid())
    assert cells.loc[cells["untuned"], "width"].tolist() == [16, 16, 16]
    assert format_power_rule(cells).startswith("# over 9 tuned cells")


def test_the_interval_is_students() -> None:
    """Of a least-squares line in the logarithms, whose standard error is known."""
    cells = find_best_rates(grid(noise=0.1))
    rule, cells = format_power_rule(cells), cells[~cells["untuned"]]
    x = np.column_stack(
        [np.ones(len(cells)), *np.log(cells[["n_matmul", "tokens"]].to_numpy().T)]
    )
    y = np.log(cells["best_lr"].to_numpy())
    fitted, rss = np.linalg.lstsq(x, y)[:2]
    error = np.sqrt(rss[0] / 6 * np.linalg.inv(x.T @ x)[1, 1])
    line = next(line for line in rule.splitlines() if line.startswith("lr_N_exponent"))
    low, high = (float(v) for v in line.partition("[")[2].rstrip("]").split(","))
    assert (low + high) / 2 == pytest.approx(-fitted[1], abs=2e-3)
    assert (high - low) / 2 == pytest.approx(
        1.943 * error, rel=0.06
    )  # t of 6 degrees of freedom; 1,000 draws


def test_what_the_cells_cannot_carry_is_said() -> None:
    one = find_best_rates(grid().query("tokens == 1_000_000"))
    assert format_power_rule(one).startswith(
        "# no power law in N and D over 3 tuned cells: "
    )
    assert "no rule in the width" in format_width_rule(one.query("width == 32"))
