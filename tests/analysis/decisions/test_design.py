"""The interval that a plan is expected to give, and the plans that give the narrowest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import (
    DesignPrior,
    Quantity,
    design,
    expect_intervals,
    fit,
    make_prior_from_fit,
)
from analysis.decisions.prior import read_default_prior
from analysis.decisions.quantity import parse_quantity
from analysis.laws.library import get_law
from experiments.coverage import (
    TRUTH,
    World,
    list_designs,
    simulate_sweep,
)
from scaling import PlanConfig, make_design_space, make_plan
from scaling.cli.plan_sweep import find_preset
from scaling.config import read_toml
from scaling.planning.design_space import DesignSpace

BUDGET = 1.16e13  # FLOPs of the preset `isoflop`


@pytest.fixture(scope="module")
def config() -> PlanConfig:
    """The recipe of the default prior."""
    return read_toml(find_preset("isoflop"), PlanConfig)


@pytest.fixture(scope="module")
def space(config: PlanConfig) -> DesignSpace:
    """What a design may choose from."""
    return make_design_space(config, BUDGET)


@pytest.fixture(scope="module")
def candidates(space: DesignSpace) -> pd.DataFrame:
    """The same as a table."""
    return space.table()


def expect(table: pd.DataFrame, want: str = "a") -> float:
    return expect_intervals(table, [want]).intervals[0].half_width


def test_the_expected_interval_is_what_least_squares_scatters() -> None:
    """Against losses drawn with effects of trunks and rows, to which the law is fitted
    by one step of generalized least squares with the whole covariance matrix.
    """
    plan = list_designs()["15 rows, 7 trunks"]
    law = get_law("chinchilla")
    prior = DesignPrior(law, TRUTH, 0.007, 0.003, "a test")
    points = {name: plan[name].to_numpy() for name in law.variables}
    columns = []
    for name, value in TRUTH.items():
        up = law.predict({**TRUTH, name: value * (1 + 1e-5)}, **points)
        down = law.predict({**TRUTH, name: value * (1 - 1e-5)}, **points)
        columns.append(np.log(up / down) / (2e-5 * value))
    J = np.column_stack(columns)
    same = plan["trunk"].to_numpy()[:, None] == plan["trunk"].to_numpy()[None, :]
    V = 0.003**2 * np.eye(len(plan)) + 0.007**2 * same
    weight = np.linalg.solve(V, J)
    noise = np.random.default_rng(0).multivariate_normal(np.zeros(len(plan)), V, 20_000)
    moves = np.linalg.solve(J.T @ weight, weight.T @ noise.T)
    quantile = stats.t.ppf(0.95, len(plan) - len(TRUTH))
    found = expect_intervals(plan, ["E", "alpha"], prior).intervals
    for interval in found:
        row = list(TRUTH).index(interval.quantity.name)
        assert interval.half_width == pytest.approx(
            quantile * moves[row].std(), rel=0.02
        )


@pytest.mark.slow
def test_fits_give_about_the_expected_interval() -> None:
    """The median width of fits is that which was expected, and at most 20 % more, for
    the sizes of the effects are estimated.
    """
    plan = list_designs()["25 rows, 11 trunks"]
    world = World(0.007)
    prior = DesignPrior(get_law("chinchilla"), TRUTH, 0.007, 0.003, "a test")
    rng = np.random.default_rng(0)
    widths = []
    for _ in range(40):
        boot = fit(simulate_sweep(world, plan, rng)).bootstrap(400)
        widths.append(np.ptp(boot.interval("a")) / 2)
    expected = expect_intervals(plan, ["a"], prior).intervals[0].half_width
    assert 0.9 < np.median(widths) / expected < 1.2


def test_a_design_costs_what_its_plan_says(
    space: DesignSpace, candidates: pd.DataFrame
) -> None:
    found = design(candidates, BUDGET, "a")
    plan = space.make_plan(found.table["candidate"])
    assert found.flops <= BUDGET
    assert plan.flops == pytest.approx(found.flops, rel=1e-12)
    assert len(plan) == len(found.table)


@pytest.mark.slow
def test_a_design_beats_isoflop_profiles_of_equal_cost(
    config: PlanConfig,
) -> None:
    profiles = make_plan(config)
    # As short, and as far from the compute-optimal ratio, as runs of the profiles.
    space = make_design_space(
        config,
        BUDGET,
        min_steps=700,
        min_tokens=0,
        min_tokens_per_parameter=4.0,
        max_tokens_per_parameter=200.0,
    )
    found = design(space.table(), profiles.flops, "a")
    assert found.half_width < 0.7 * expect(profiles.table())


def test_a_larger_budget_gives_a_narrower_interval(candidates: pd.DataFrame) -> None:
    widths = [
        design(candidates, flops, "a").half_width for flops in (4e12, 8e12, 1.6e13)
    ]
    assert widths == sorted(widths, reverse=True)


def test_what_is_wanted_decides(candidates: pd.DataFrame) -> None:
    """The design for a loss predicts it at least as well as the one for an exponent."""
    want = "loss@C=1e14"
    for_loss = design(candidates, BUDGET, want)
    for_exponent = design(candidates, BUDGET, "a")
    assert for_loss.half_width <= expect(for_exponent.table, want)


def test_existing_runs_count(candidates: pd.DataFrame, config: PlanConfig) -> None:
    """What is trained is not bought again, and what is added to it says more."""
    existing = make_plan(config).table()
    alone = design(candidates, BUDGET / 2, "a")
    added = design(candidates, BUDGET / 2, "a", existing=existing)
    assert added.half_width < alone.half_width
    assert added.half_width < expect(existing)


def test_copies_of_one_trunk_say_less_than_trunks_of_their_own() -> None:
    points = {
        "N": np.geomspace(1e4, 1e5, 4).repeat(4),
        "D": np.tile(np.geomspace(1e6, 8e6, 4), 4),
    }
    shared = pd.DataFrame({**points, "trunk": np.arange(16) // 4})
    own = pd.DataFrame(points)
    want = "loss@N=3e4,D=3e6"
    assert expect(shared, want) > 1.2 * expect(own, want)


def test_runs_that_determine_nothing_say_so() -> None:
    line = pd.DataFrame({"N": [1e4, 1e5, 1e6], "D": [2e5, 2e6, 2e7]})
    found = expect_intervals(line)
    assert np.isinf(found.intervals[0].half_width)
    assert "a not determined" in str(found)


def test_a_prior_from_a_fit_has_its_law_and_its_effects() -> None:
    rng = np.random.default_rng(0)
    found = fit(simulate_sweep(World(0.007), list_designs()["25 rows, 11 trunks"], rng))
    prior = make_prior_from_fit(found, "a test")
    assert prior.components == found.protocol.components
    assert prior.params == found.params


def test_the_default_prior_has_its_source() -> None:
    assert "isoflop" in str(read_default_prior())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("loss", "needs a place"),
        ("a@C=1e15", "has no place"),
        ("loss@C", "NAME=NUMBER"),
        ("loss@C=-1", "must be positive"),
    ],
)
def test_a_quantity_that_is_none_is_rejected(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_quantity(text)


def test_bad_requests_name_the_fix(candidates: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="raise it"):
        design(candidates, 1e9, "a")
    with pytest.raises(ValueError, match="must be positive"):
        design(candidates, -1.0, "a")
    with pytest.raises(ValueError, match="has no 'gamma'"):
        design(candidates, BUDGET, Quantity("gamma"))
    with pytest.raises(ValueError, match="has no column"):
        design(candidates.drop(columns="tokens"), BUDGET, "a")
