"""Two-step predictions of the error on a task, on worlds with a known law."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

import analysis
from analysis.decisions.downstream import DownstreamPrediction, predict_downstream
from analysis.fitting.fit import Fit

LAW = analysis.monomial(target="loss", variables=("N", "D"), name="loss_of_N_D")
CEILING = 0.9
NOISE = 0.02
"""Standard deviation of the log loss and of the error."""
LARGEST = {"N": 2e6, "D": 4e6}


class World(NamedTuple):
    """Eight small models, and the largest one that no law has seen."""

    loss_fit: Fit
    error_fit: Fit
    largest_loss: float
    largest_error: float


def compute_loss(N: np.ndarray | float, D: np.ndarray | float) -> np.ndarray:
    return np.asarray(
        2.0 * (np.asarray(N) / 1e5) ** -0.12 * (np.asarray(D) / 1e6) ** -0.1
    )


def compute_error(loss: np.ndarray | float) -> np.ndarray:
    return np.asarray(CEILING - 2.0 * np.exp(-1.2 * np.asarray(loss)))


def draw_world(seed: int) -> World:
    rng = np.random.default_rng(seed)
    sizes, tokens = np.meshgrid([1e5, 2e5, 4e5, 8e5], [1e6, 4e6])
    N = np.append(sizes.ravel(), LARGEST["N"])
    D = np.append(tokens.ravel(), LARGEST["D"])
    loss = compute_loss(N, D) * np.exp(NOISE * rng.standard_normal(len(N)))
    error = compute_error(loss) + NOISE * rng.standard_normal(len(N))
    table = pd.DataFrame({"N": N, "D": D, "loss": loss, "error": error})
    small = table.iloc[:-1]
    loss_fit = analysis.fit(small, LAW, objective="least_squares", effects="row")
    error_fit = analysis.fit(
        small,
        "downstream",
        objective="least_squares",
        residual="raw",
        effects="row",
        fixed={"epsilon": CEILING},
    )
    return World(loss_fit, error_fit, float(loss[-1]), float(error[-1]))


def predict_largest(world: World, sampling_error: float = 0.0) -> DownstreamPrediction:
    return predict_downstream(
        world.loss_fit, world.error_fit, LARGEST, n=200, sampling_error=sampling_error
    )


def get_width(interval: tuple[float, float]) -> float:
    return interval[1] - interval[0]


@pytest.mark.slow
def test_the_held_out_error_is_covered_as_often_as_promised() -> None:
    covered_losses = []
    covered_errors = []
    widths = []
    for seed in range(60):
        world = draw_world(seed)
        found = predict_largest(world)
        low, high = found.loss_interval
        covered_losses.append(low <= world.largest_loss <= high)
        low, high = found.error_interval
        covered_errors.append(low <= world.largest_error <= high)
        widths.append(high - low)
    # 90 % of 60 worlds, give or take 2.5 standard errors of 4 %.
    assert np.mean(covered_losses) >= 0.80
    assert np.mean(covered_errors) >= 0.80
    # An error that is known to NOISE has an interval of 3.3 NOISE; no idle interval.
    assert 3.3 * NOISE < np.median(widths) < 10 * NOISE


def test_a_coarse_measurement_widens_the_interval_of_the_error_alone() -> None:
    world = draw_world(0)
    fine = predict_largest(world)
    coarse = predict_largest(world, sampling_error=0.2)
    assert coarse.error == fine.error
    assert get_width(coarse.error_interval) > 3 * get_width(fine.error_interval)
    assert coarse.loss_interval == fine.loss_interval


def test_a_loss_below_all_fitted_ones_is_said_to_be_outside() -> None:
    found = predict_largest(draw_world(1))
    assert found.is_outside and "outside" in str(found)
    world = draw_world(1)
    inside = predict_downstream(
        world.loss_fit, world.error_fit, {"N": 2e5, "D": 2e6}, n=50
    )
    assert not inside.is_outside and "outside" not in str(inside)


def test_the_second_law_must_be_one_of_the_loss() -> None:
    world = draw_world(0)
    with pytest.raises(ValueError, match="one of the loss alone"):
        predict_downstream(world.loss_fit, world.loss_fit, LARGEST)
