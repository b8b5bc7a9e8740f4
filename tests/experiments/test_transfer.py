"""Slopes, best rates and their shifts are those of tables made to have them; the plans
hold what the scripts say.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments.coordinate_check import (
    fit_slopes,
    name_layers,
    summarize_slopes,
)
from experiments.transfer import find_best_steps, find_optima, fit_slope, measure_shifts
from experiments.transfer_lr import TransferLr, make_transfer_plan
from scaling import OptimConfig
from scaling.training.activation_changes import measure_activation_changes

RATES = 2.0 ** np.arange(-9, -4)
WIDTHS = np.array([32, 64, 128])


def sweep(
    moves: float, best: float = 2**-7, noise: float = 1e-3, seed: int = 0
) -> pd.DataFrame:
    """Two seeds at five rates and three widths; log2 of the best rate falls by `moves`
    with every doubling of width.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for width in WIDTHS:
        for lr in RATES:
            off = np.log2(lr / best) + moves * np.log2(width / 64)
            rows += [
                {
                    "parametrization": "p",
                    "width": width,
                    "lr": lr,
                    "seed": s,
                    "loss": 2 + 0.02 * off**2 + noise * z,
                }
                for s, z in enumerate(rng.normal(size=2))
            ]
    return pd.DataFrame(rows)


def test_the_slope_of_a_power_is_its_exponent_with_the_standard_error_of_least_squares() -> (
    None
):
    assert fit_slope([1, 2, 4, 8], [3.0, 1.5, 0.75, 0.375]) == pytest.approx(
        (-1.0, 0.0), abs=1e-12
    )
    x, y = np.log([1.0, 2.0, 4.0, 8.0]), np.array([0.0, 0.5, 0.3, 1.1])
    (b, _), covariance = np.polyfit(x, y, 1, cov=True)
    assert fit_slope(np.exp(x).tolist(), np.exp(y).tolist()) == pytest.approx(
        (b, np.sqrt(covariance[0, 0]))
    )


def test_a_slope_that_cannot_be_known_is_nan() -> None:
    assert np.isnan(fit_slope([1, 2], [1.0, 2.0])).all()
    assert np.isnan(fit_slope([1, 2, 4], [0.0, 1.0, 2.0])).all()


def test_the_vertex_is_found_between_the_values_tried_and_not_beyond_them() -> None:
    grid = np.arange(5.0)
    parabolas = (grid[None] - np.array([[1.3], [2.0], [3.4]])) ** 2
    np.testing.assert_allclose(find_best_steps(parabolas), [1.3, 2.0, 3.4])
    edges = np.array([[0.0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [3, 2, 1, np.inf, np.inf]])
    np.testing.assert_array_equal(find_best_steps(edges), [0, 4, 2])


def test_a_best_rate_that_does_not_move_stays() -> None:
    best = find_optima(sweep(0.0), "width")
    assert (best["low"] < best["best_lr"]).all() and (
        best["best_lr"] < best["high"]
    ).all()
    assert best["best_lr"].to_numpy() == pytest.approx(2**-7, rel=0.1)
    assert not best["untuned"].any()
    assert measure_shifts(best, "width")["verdict"].tolist() == ["stays"]


def test_a_best_rate_that_moves_is_found_with_its_shift() -> None:
    (row,) = measure_shifts(find_optima(sweep(0.7), "width"), "width").to_dict(
        "records"
    )
    assert row["verdict"] == "moves"
    assert row["low"] < -1.4 < row["high"] and row["shift"] == pytest.approx(
        -1.4, abs=0.2
    )


def test_the_interval_covers_the_best_rate() -> None:
    """Nine in ten, of 40 sweeps of three widths: within three standard errors of that."""
    inside = [
        (cell["low"] < 2**-7) & (cell["high"] > 2**-7)
        for seed in range(40)
        for _, cell in find_optima(
            sweep(0.0, noise=5e-3, seed=seed), "width"
        ).iterrows()
    ]
    assert 0.80 < np.mean(inside) < 0.98


def test_noise_and_the_edge_of_the_grid_leave_the_verdict_open() -> None:
    assert measure_shifts(find_optima(sweep(0.3, noise=0.1), "width"), "width")[
        "verdict"
    ].tolist() == ["open"]
    edge = find_optima(sweep(0.0, best=2**-12), "width")
    assert edge["untuned"].all()
    assert measure_shifts(edge, "width")["verdict"].tolist() == ["open"]


def test_runs_that_diverged_are_no_minimum() -> None:
    table = sweep(0.0)
    table.loc[table["lr"] == RATES[-1], "loss"] = np.nan
    assert find_optima(table, "width")["best_lr"].to_numpy() == pytest.approx(
        2**-7, rel=0.1
    )


def test_one_seed_carries_no_interval() -> None:
    with pytest.raises(ValueError, match="train at least two"):
        find_optima(sweep(0.0).query("seed == 0"), "width")


def test_the_plan_is_every_parametrization_shape_rate_and_seed_and_more_rates_keep_the_runs() -> (
    None
):
    args = TransferLr(width=("sp", "umup"), depth=("completep", "umup"))
    runs = make_transfer_plan(args, "depth").runs
    assert len(runs) == len(set(runs)) == 2 * 3 * 5 * 2
    assert {run.model.depth for run in runs} == {2, 4, 8} and {
        run.model.width for run in runs
    } == {32}
    assert set(runs) < set(
        make_transfer_plan(dataclasses.replace(args, rates=7), "depth")
    )
    shared = set(runs) & set(make_transfer_plan(args, "width").runs)
    assert {run.model.parametrization for run in shared} == {"umup"} and len(
        shared
    ) == 5 * 2  # the base shape is trained once


def test_layers_are_named_alike_at_every_depth_and_looked_at_after_the_same_share_of_it() -> (
    None
):
    assert name_layers(1).keys() == name_layers(2).keys() == name_layers(32).keys()
    assert [name_layers(depth)["middle block"] for depth in (2, 4, 32)] == [
        "block0",
        "block1",
        "block15",
    ]
    assert name_layers(32)["last attention"] == "block31.attention"


def test_the_worst_layer_is_named() -> None:
    table = pd.DataFrame(
        {
            "parametrization": "p",
            "axis": "width",
            "size": size,
            "layer": layer,
            "step": 1,
            "change": size**power,
        }
        for layer, power in (("embedding", 0.0), ("logits", -0.5))
        for size in (1.0, 2.0, 4.0)
    )
    shown = summarize_slopes(fit_slopes(table), 1)
    assert shown.loc["worst", "p"] == "-0.50 logits"
    assert shown.loc["embedding", "p"] == "+0.00 ± 0.00"


def test_one_step_of_adam_moves_every_embedding_by_the_rate(
    make_model,
) -> None:
    windows = np.random.default_rng(0).integers(0, 16, (2, 4, 17), dtype=np.int32)
    optim = OptimConfig(lr=1e-3, epsilon=1e-16, clip_norm=None)
    found = measure_activation_changes(
        make_model(zero_init_outputs=False),
        optim,
        jnp.asarray(windows),
        jnp.asarray(windows[0, :, :-1]),
        2,
    )
    assert found["embedding"][0] == pytest.approx(1e-3, rel=1e-3)
    assert set(name_layers(1).values()) == set(found)
