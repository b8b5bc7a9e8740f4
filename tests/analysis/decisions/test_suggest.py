"""Suggested runs: their widths are those of least squares, and the promise holds for
runs that are then made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import analysis
from analysis import Bootstrap, ExtrapolationError, Fit, allocate, fit
from analysis.decisions.design import MAX_EXISTING
from analysis.decisions.frontier import make_frontier
from analysis.decisions.suggest import Suggestion, default_candidates
from analysis.laws.library import LAWS, get_law
from experiments.coverage import World, list_designs, simulate_sweep

# The target lies 16 times beyond the sweep.
suggest = partial(analysis.suggest, extrapolate=True)
TARGET = 1e21
BUDGET = 2e20
NOISE = 0.004


@dataclass(frozen=True, eq=False)
class Trial:
    """One simulated sweep, the runs suggested for it, and the width of its interval
    once those were made.
    """

    table: pd.DataFrame
    fit: Fit
    boot: Bootstrap
    found: Suggestion
    now: float
    after: float


def measure_runs(
    true: dict[str, float], points: pd.DataFrame, rng: np.random.Generator
) -> pd.DataFrame:
    N, D = points["N"].to_numpy(float), points["D"].to_numpy(float)
    loss = LAWS["chinchilla"].predict(true, N=N, D=D) * np.exp(
        NOISE * rng.standard_normal(len(N))
    )
    return pd.DataFrame({"N": N, "D": D, "C": 6 * N * D, "loss": loss})


def measure_width(table: pd.DataFrame) -> tuple[float, Fit, Bootstrap]:
    found = fit(table, objective="least_squares")
    boot = found.bootstrap(150)
    best = allocate(found, TARGET, boot, extrapolate=True)
    return float(np.ptp(best.intervals["loss"])), found, boot


def compute_true_deviation(true: dict[str, float], points: pd.DataFrame) -> float:
    """Standard deviation, for large samples, of the loss at the target's optimum when
    the runs at those points are
    fitted by least squares: noise * sqrt(g' (J'J)^-1 g), J and g the derivatives of log
    loss and of that loss."""
    best, h = make_frontier(LAWS["chinchilla"]), 1e-5
    x = {v: points[v].to_numpy(float) for v in ("N", "D")}
    J, g = [], []
    for name, value in true.items():
        ends = [true | {name: value * (1 + step)} for step in (h, -h)]
        logs = [np.log(LAWS["chinchilla"].predict(params, **x)) for params in ends]
        losses = [
            best.best_loss({k: np.array([v]) for k, v in params.items()}, TARGET)[0]
            for params in ends
        ]
        J.append((logs[0] - logs[1]) / (2 * h))
        g.append((losses[0] - losses[1]) / (2 * h))
    return float(
        NOISE
        * np.sqrt(
            np.array(g) @ np.linalg.solve(np.array(J) @ np.array(J).T, np.array(g))
        )
    )


def choose_at_random(
    candidates: pd.DataFrame, flops: float, rng: np.random.Generator
) -> pd.DataFrame:
    """Random candidates of as many FLOPs together, or a few per cent less."""
    rows: list[int] = []
    for i in rng.permutation(len(candidates)).tolist():
        if candidates["C"].iloc[[*rows, i]].sum() <= 1.01 * flops:
            rows.append(i)
    return candidates.iloc[rows]


@pytest.fixture(scope="module")
def trials(true: dict[str, float]) -> list[Trial]:
    made = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        C, N = (
            g.ravel()
            for g in np.meshgrid(1e18 * 4.0 ** np.arange(4), np.geomspace(2e7, 3e9, 9))
        )
        table = measure_runs(true, pd.DataFrame({"N": N, "D": C / (6 * N)}), rng)
        now, found, boot = measure_width(table)
        chosen = suggest(
            found, default_candidates(found, BUDGET), TARGET, boot=boot, budget=BUDGET
        )
        after = measure_width(
            pd.concat([table, measure_runs(true, chosen.table, rng)])
        )[0]
        made.append(Trial(table, found, boot, chosen, now, after))
    return made


def average_geometrically(values: list[float]) -> float:
    return float(np.exp(np.mean(np.log(values))))


def test_suggested_runs_beat_random_ones_of_the_same_flops(
    trials: list[Trial], true: dict[str, float]
) -> None:
    """By the exact width at the true law, which the noise of one more simulated sweep
    does not blur.
    """
    for seed, trial in enumerate(trials):
        rng = np.random.default_rng(seed)
        candidates = default_candidates(trial.fit, BUDGET)
        runs = [choose_at_random(candidates, trial.found.flops, rng) for _ in range(20)]
        random = [
            compute_true_deviation(true, pd.concat([trial.table, points]))
            for points in runs
        ]
        suggested = compute_true_deviation(
            true, pd.concat([trial.table, trial.found.table])
        )
        assert suggested < 0.92 * np.mean(random)
        assert suggested < 0.8 * compute_true_deviation(true, trial.table)
        assert trial.found.flops <= BUDGET


def test_the_expected_width_is_the_width_found(
    trials: list[Trial], true: dict[str, float]
) -> None:
    """The bootstrap's width once the runs were made, on average, and its fall at the
    true law, in each.
    """
    ratio = average_geometrically(
        [trial.after / trial.found.width_final for trial in trials]
    )
    assert 1 / 1.5 < ratio < 1.5
    for trial in trials:
        assert trial.found.width_now == pytest.approx(trial.now)
        fall = compute_true_deviation(
            true, pd.concat([trial.table, trial.found.table])
        ) / compute_true_deviation(true, trial.table)
        assert trial.found.width_final / trial.now == pytest.approx(fall, rel=0.2)
    assert average_geometrically([trial.after / trial.now for trial in trials]) < 0.95


@pytest.fixture(scope="module")
def simulated() -> pd.DataFrame:
    """A sweep of the quickstart."""
    design = list_designs()["20 rows, 9 trunks (isoflop)"]
    return simulate_sweep(World(0.007), design, np.random.default_rng(1))


@pytest.fixture(scope="module")
def fitted(simulated: pd.DataFrame) -> Fit:
    """Its fit, with trunk effects by default."""
    return fit(simulated)


@pytest.fixture(scope="module")
def costs(simulated: pd.DataFrame) -> pd.DataFrame:
    """Its runs with what their trunks cost: a fifth of each run is its own."""
    C = 6 * simulated["N"] * simulated["D"]
    return simulated.assign(C=C, shared_flops=0.8 * C, own_flops=0.2 * C)


@pytest.fixture(scope="module")
def gaussian(trials: list[Trial]) -> tuple[Fit, Bootstrap]:
    """The fit with many draws that are Gaussian, small, and correlated."""
    base, rng = trials[0].fit, np.random.default_rng(0)
    mix = rng.standard_normal((5, 5))
    steps = 1e-3 * rng.standard_normal((4000, 5)) @ mix
    draws = {k: v * (1 + steps[:, i]) for i, (k, v) in enumerate(base.params.items())}
    return base, replace(trials[0].boot, draws=draws)


def test_widths_follow_from_the_runs_and_their_number(trials: list[Trial]) -> None:
    """They are in proportion to the standard deviations at the fitted law, times the
    quantile of Student's t that as many runs give.
    """
    trial = trials[0]
    found = suggest(trial.fit, None, TARGET, boot=trial.boot, count=4)
    assert found.order == "gain" and len(found.table) == 4

    def compute_width(added: pd.DataFrame) -> float:
        runs = pd.concat([trial.table, added])
        quantile = stats.t.ppf(0.95, len(runs) - 5)
        return float(quantile * compute_true_deviation(trial.fit.params, runs))

    now = compute_width(found.table.iloc[:0])
    for k in range(1, 5):
        after = compute_width(found.table.iloc[:k])
        alone = compute_width(found.table.iloc[k - 1 : k])
        ratio = float(found.table["width_after"].iloc[k - 1]) / found.width_now
        assert ratio == pytest.approx(after / now, rel=1e-4)
        ratio = float(found.table["width_alone"].iloc[k - 1]) / found.width_now
        assert ratio == pytest.approx(alone / now, rel=1e-4)
    assert np.all(np.diff(found.table["width_after"]) < 0)
    assert found.table["share"].sum() == pytest.approx(1)


def test_a_run_off_a_trunk_that_exists_costs_what_it_adds(
    simulated: pd.DataFrame, fitted: Fit, costs: pd.DataFrame
) -> None:
    """It resumes where the last run left the trunk, and shares its luck, which a run off
    a new trunk does not.
    """
    largest = costs.loc[costs["D"].idxmax()]
    longer = pd.DataFrame([2 * largest[["N", "D", "C", "shared_flops", "own_flops"]]])
    longer["N"] = largest["N"]
    boot = fitted.bootstrap(200)
    add = partial(suggest, fitted, quantity="E", budget=1e14, existing=costs, boot=boot)
    off_old = add(longer.assign(trunk=largest["trunk"]))
    off_new = add(longer.assign(trunk="new"))
    spent = longer["C"].iloc[0] - largest["shared_flops"]
    assert off_old.flops == pytest.approx(spent)
    assert off_new.flops == pytest.approx(longer["C"].iloc[0])
    assert off_old.width_final < off_old.width_now
    assert off_old.width_final != pytest.approx(off_new.width_final, rel=1e-3)


def test_default_candidates_share_and_continue_trunks(
    fitted: Fit, costs: pd.DataFrame
) -> None:
    table = default_candidates(fitted, 5e12, existing=costs)
    new = table.loc[table["trunk"].str.startswith("N=")]
    assert (new.groupby("trunk")["N"].nunique() == 1).all()
    assert new["trunk"].nunique() < len(new)
    assert set(table["trunk"]) - set(new["trunk"]) <= set(costs["trunk"])
    assert len(new) < len(table)
    assert np.allclose(table["own_flops"] / table["C"], 0.2)


@pytest.mark.slow
def test_a_large_table_is_searched_by_its_information(
    simulated: pd.DataFrame, fitted: Fit
) -> None:
    """Runs that are copies of each other leave the choice as it is."""
    plan = pd.DataFrame({"N": np.geomspace(2e4, 3e5, 8), "D": 2e6})
    few = suggest(fitted, plan, quantity="a", count=1, boot=fitted.bootstrap(100))
    copies = pd.concat(
        [simulated.assign(trunk=simulated["trunk"] + str(i)) for i in range(40)]
    )
    many = fit(copies)
    assert len(copies) > MAX_EXISTING
    found = suggest(many, plan, quantity="a", count=1, boot=many.bootstrap(100))
    assert found.table["candidate"].tolist() == few.table["candidate"].tolist()


def test_the_first_choice_is_the_best_single_run(
    gaussian: tuple[Fit, Bootstrap],
) -> None:
    base, boot = gaussian
    candidates = default_candidates(base, BUDGET)
    first = suggest(base, candidates, quantity="a", boot=boot, count=1)
    alone = [
        suggest(
            base, candidates.iloc[[i]], quantity="a", boot=boot, count=1
        ).width_final
        for i in range(0, len(candidates), 6)
    ]
    assert first.width_final <= min(alone) * (1 + 1e-9)
    assert first.target_C is None and "target" not in str(first)
    twice = suggest(
        base,
        candidates.iloc[first.table["candidate"].tolist() * 2],
        quantity="a",
        boot=boot,
    )
    gains = -np.diff([twice.width_now, *twice.table["width_after"]])
    assert np.all(np.diff(gains) < 0)


def test_a_few_wild_draws_do_not_decide(gaussian: tuple[Fit, Bootstrap]) -> None:
    base, boot = gaussian
    candidates = default_candidates(base, BUDGET)
    wild = {k: v.copy() for k, v in boot.draws.items()}
    wild["beta"][:4] *= 3
    calm, shaken = (
        suggest(base, candidates, TARGET, boot=replace(boot, draws=draws), count=3)
        for draws in (boot.draws, wild)
    )
    assert shaken.table["candidate"][0] == calm.table["candidate"][0]
    assert shaken.width_final == pytest.approx(calm.width_final, rel=0.05)


def test_a_plan_is_read_and_the_table_printed(gaussian: tuple[Fit, Bootstrap]) -> None:
    base, boot = gaussian
    plan = pd.DataFrame(
        {"n_matmul": [1e8, 1e9], "tokens": [1e10, 2e9], "flops": [7e18, 1.3e19]}
    )
    found = suggest(base, plan, TARGET, boot=boot, count=2)
    assert sorted(found.table["C"]) == [7e18, 1.3e19]
    text = str(found)
    for part in (
        "loss at 1e+21 FLOPs",
        "90 % interval",
        "width_after",
        "share",
        "1.3e+19",
    ):
        assert part in text
    limited = suggest(base, plan, TARGET, boot=boot, budget=1e19)
    assert limited.table["C"].tolist() == [7e18] and "1 of 2 candidates" in str(limited)
    counted = suggest(
        base,
        plan.drop(columns="flops"),
        TARGET,
        boot=boot,
        flops_per_token=lambda n: 7 * n,
    )
    assert set(counted.table["C"]) <= {7e18, 1.4e19}
    assert len(suggest(base, None, TARGET, boot=boot).table) == 5


def test_a_law_of_compute_alone(gaussian: tuple[Fit, Bootstrap]) -> None:
    base, boot = gaussian
    law = get_law("power_law_C")
    params = {"E": 1.7, "A": 2000.0, "alpha": 0.16}
    rng = np.random.default_rng(0)
    draws = {k: v * (1 + 0.01 * rng.standard_normal(500)) for k, v in params.items()}
    own = replace(boot, law=law, draws=draws, scatter=0.02)
    found = suggest(
        replace(base, law=law, params=params), None, TARGET, boot=own, count=2
    )
    assert len(found.table) == 2 and found.width_final < found.width_now


def test_what_cannot_be_ranked_is_refused(gaussian: tuple[Fit, Bootstrap]) -> None:
    base, boot = gaussian
    plan = pd.DataFrame({"N": [1e8], "D": [1e10]})
    cases: list[tuple[Callable[[], Suggestion], str]] = [
        (lambda: suggest(base, plan, boot=boot), "target_C is None"),
        (
            lambda: suggest(base, plan, TARGET, boot=boot, quantity="gamma"),
            "has no 'gamma'",
        ),
        (
            lambda: suggest(base, plan, TARGET, boot=boot, budget=1e10),
            "cheapest candidate takes 6e",
        ),
        (lambda: suggest(base, plan, TARGET, boot=boot, budget=-1.0), "budget is -1"),
        (
            lambda: suggest(base, plan.drop(columns="D"), TARGET, boot=boot),
            "no column 'D' or 'tokens'",
        ),
        (lambda: suggest(base, plan.assign(D=-1.0), TARGET, boot=boot), "row 0: D is"),
        (lambda: suggest(base, plan, TARGET, boot=boot, count=0), "count is 0"),
        (lambda: suggest(base, plan.iloc[:0], TARGET, boot=boot), "no row"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="less than the smallest fitted run"):
        default_candidates(base, 1e15)


def test_a_target_outside_the_runs_is_said_first_and_far_outside_refused(
    sweep, fit_at, bootstrap_at
) -> None:
    base = fit_at(sweep(), dict(E=1.7, A=400.0, B=1200.0, alpha=0.34, beta=0.37))
    boot = bootstrap_at(base)
    near = analysis.suggest(base, target_C=2 * 6.4e19, boot=boot)
    assert str(near).startswith("target extrapolated: C is 2 times the largest fitted")
    with pytest.warns(analysis.ExtrapolationWarning, match="C is 16 times"):
        analysis.suggest(base, target_C=16 * 6.4e19, boot=boot)
    with pytest.raises(ExtrapolationError, match="--extrapolate"):
        analysis.suggest(base, target_C=1e24, boot=boot)
    assert "asked for" in str(suggest(base, target_C=1e24, boot=boot)).splitlines()[0]
