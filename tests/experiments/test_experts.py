"""Mixtures of experts are compared at equal FLOPs, and their laws are those that made the
losses.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from experiments.experts import (
    Experts,
    compare_arms,
    fit_laws,
    format_table,
    list_arms,
    plan_arm,
)
from scaling.store.run_dirs import describe_run

ARGS = Experts(budgets=(1e11, 3e11, 9e11, 2.7e12), granularities=(1, 2, 4, 8), draws=20)


def make_table(
    args: Experts, predict_loss: Callable[[float, float, int, int], float]
) -> pd.DataFrame:
    """The runs of all arms, with the losses of a function of N, D, sparsity and
    granularity.
    """
    rows = []
    for sparsity, granularity in list_arms(args):
        for run in plan_arm(args, sparsity, granularity):
            row = describe_run(run)
            n, d = row["n_non_embedding"], row["tokens"]
            loss = predict_loss(n, d, sparsity, granularity)
            rows.append(
                {
                    **row,
                    "loss": loss,
                    "status": "finished",
                    "diverged": False,
                    "experts_over_active": sparsity,
                    "granularity": granularity,
                }
            )
    return pd.DataFrame(rows)


def test_every_arm_has_the_sizes_tokens_and_flops_of_the_dense_one() -> None:
    args = Experts(budgets=(3e11,))
    dense = plan_arm(args, 1, 1)
    arms = list_arms(args)
    assert arms[0] == (1, 1) and len(arms) == len(set(arms)) == 7
    for sparsity, granularity in arms[1:]:
        for run, other in zip(
            plan_arm(args, sparsity, granularity), dense, strict=True
        ):
            assert (run.model.width, run.tokens) == (other.model.width, other.tokens)
            row, base = describe_run(run), describe_run(other)
            # The router has a column for each of up to 32 experts.
            assert 1 < row["flops"] / base["flops"] < 1.1
            assert row["n_total"] > base["n_total"]


@pytest.mark.slow
def test_the_law_of_granularity_is_recovered() -> None:
    """Of noiseless losses, by the parameters that made them."""

    def predict_loss(n: float, d: float, sparsity: int, granularity: int) -> float:
        return 0.5 + (9 / granularity**0.6 + 16) / n**0.3 + 60 / d**0.33

    (fit, _), _ = fit_laws(ARGS, make_table(ARGS, predict_loss))
    assert fit.certificate.ok
    expected = {"c": 0.5, "g": 9, "a": 16, "b": 60}
    expected |= {"gamma": 0.6, "alpha": 0.3, "beta": 0.33}
    for name, value in expected.items():
        assert float(np.asarray(fit.params[name])) == pytest.approx(value, rel=0.02)


@pytest.mark.slow
def test_experts_worth_their_tokens_twice_have_the_multiplier_two() -> None:
    """But for what the router costs."""
    args = Experts(budgets=ARGS.budgets, sparsities=(1, 2), granularities=(), draws=20)
    table = make_table(args, lambda n, d, sparsity, granularity: 1.0)
    # The law is one of active weights, which are those of the dense model.
    n = table.groupby(["width", "tokens"])["n_matmul"].transform("min")
    d = table["tokens"] * table["experts_over_active"]
    table = table.assign(n_matmul=n, loss=0.5 + 25 / n**0.3 + 60 / d**0.33)
    (row,) = compare_arms(args, table)
    assert row.multiplier == pytest.approx(2.0, rel=0.1)
    assert row.low <= row.multiplier <= row.high
    assert "| 2 | 1 | " in format_table([row])
