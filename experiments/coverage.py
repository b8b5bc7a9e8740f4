"""How often 90 % intervals hold the truth, on simulated sweeps.

    python -m experiments.coverage --out runs/coverage

Each world is a law, effects of trunks and effects of rows. Sweeps of several designs are
drawn from it and fitted by `analysis.fit` with its defaults. The table says how often the
intervals of a, E and the loss at 2 and 8 times the largest compute hold the truth, how
wide they are over the bound that generalized least squares sets when the sizes of the
effects are known, and how often the fit says that its runs leave the law. Where they do,
it also says how often the best test could.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from scipy.optimize import OptimizeResult, least_squares, minimize_scalar
from scipy.stats import chi2, ncx2, norm

import analysis
from analysis.decisions.expected import (
    compute_gradient,
    read_compute,
    read_points,
    read_trunks,
)
from analysis.decisions.frontier import make_frontier
from analysis.decisions.prior import DesignPrior
from analysis.decisions.quantity import Quantity, compute_log_jacobian
from analysis.fitting.effects import (
    Trunks,
    compute_gls_covariance,
    compute_ratio,
)
from analysis.laws.library import get_law
from scaling import PlanConfig, make_plan
from scaling.cli.plan_sweep import find_preset
from scaling.config import read_toml
from scaling.model.flops import count_parameters

# Near the law of the runs of the preset `isoflop`.
TRUTH = {"E": 1.1, "A": 37.6, "B": 1174.0, "alpha": 0.42, "beta": 0.58}
LEVEL = 0.90
TEST_LEVEL = 0.05  # of the flag that runs leave the law
QUANTITIES = ("a", "E", "loss at 2x", "loss at 8x")
GROWTH = -0.35  # power of N by which trunk effects grow toward small sizes
BUDGETS = {
    "15 rows, 7 trunks": [2e11, 4e11, 8e11],
    "25 rows, 11 trunks": [2e11, 4e11, 8e11, 1.6e12, 3.2e12],
}


@dataclass(frozen=True)
class World:
    """Where simulated sweeps come from.

    Attributes:
        trunk: standard deviation of a trunk's effect on the log loss.
        row: that of a row.
        growth: power of N, over its geometric mean, by which the trunk's effect varies.
        law: "chinchilla", or "broken": the exponent of D halves inside the range.
        params: of the law.
    """

    trunk: float
    row: float = 0.003
    growth: float = 0.0
    law: str = "chinchilla"
    params: Mapping[str, float] = field(default_factory=lambda: dict(TRUTH))

    @property
    def name(self) -> str:
        """The world in words."""
        words = f"trunks {100 * self.trunk:.1f} %, rows {100 * self.row:.1f} %"
        if self.growth:
            words += ", growing toward small sizes"
        if self.law != "chinchilla":
            words += ", exponent of D halves"
        return words


@dataclass(frozen=True)
class Coverage:
    """What to simulate.

    Attributes:
        out: folder of the results.
        sweeps: of each design in each world.
        draws: of each fit.
        seed: of the noise.
        designs: substrings of the names of the designs to simulate.
        worlds: substrings of the names of the worlds to simulate.
    """

    out: Path = Path("runs/coverage")
    sweeps: int = 300
    draws: int = 400
    seed: int = 0
    designs: tuple[str, ...] = ("",)
    worlds: tuple[str, ...] = ("",)


WORLDS = (
    World(0.003),
    World(0.007),
    World(0.010),
    World(0.007, growth=GROWTH),
    World(0.007, law="broken"),
)


def make_design(config: PlanConfig) -> pd.DataFrame:
    """N, D and trunk of every run of a plan."""
    rows = []
    for run in make_plan(config).runs:
        rows.append(
            {
                "N": float(count_parameters(run.model).n_matmul),
                "D": float(run.tokens),
                "trunk": run.trunk_id,
            }
        )
    return pd.DataFrame(rows)


def list_designs() -> dict[str, pd.DataFrame]:
    """The designs by name."""
    isoflop = read_toml(find_preset("isoflop"), PlanConfig)
    designs = {"20 rows, 9 trunks (isoflop)": make_design(isoflop)}
    for name, budgets in BUDGETS.items():
        config = replace(isoflop, budgets=tuple(budgets), sizes_per_budget=5)
        designs[name] = make_design(config)
    quickstart = read_toml(find_preset("quickstart"), PlanConfig)
    fitted = replace(
        quickstart, budgets=quickstart.budgets[:-1], largest_budget_seeds=None
    )
    designs["42 rows, 22 trunks (quickstart)"] = make_design(fitted)
    return designs


def predict_world(world: World, design: pd.DataFrame) -> np.ndarray:
    """[n] log loss of a design's runs in the world without noise."""
    N = design["N"].to_numpy(float)
    D = design["D"].to_numpy(float)
    return predict_points(world, find_middle(design), N, D)


def predict_points(
    world: World, middle: float, N: np.ndarray, D: np.ndarray
) -> np.ndarray:
    """[n] log loss of the world without noise.

    Args:
        world: the world.
        middle: tokens at which the exponent of D halves in the broken world.
        N: [n] parameters.
        D: [n] tokens.
    """
    loss = get_law("chinchilla").predict(world.params, N=N, D=D)
    if world.law == "broken":
        # The exponent falls by half within about a factor of 1.2 (Caballero et al. 2022,
        # arXiv:2210.14891).
        sharpness = 0.15
        term = world.params["B"] * D ** -world.params["beta"]
        bend = 0.5 * world.params["beta"] * sharpness
        bend = bend * np.logaddexp(0.0, np.log(D / middle) / sharpness)
        loss = loss - term + term * np.exp(bend)
    return np.log(loss)


def find_middle(design: pd.DataFrame) -> float:
    """Tokens in the middle of a design, by their logarithm."""
    return float(np.exp(np.mean(np.log(design["D"].to_numpy(float)))))


def find_truth(world: World, design: pd.DataFrame) -> dict[str, float]:
    """The true value of each quantity; losses as logarithms. The broken world has no one
    exponent: NaN.
    """
    middle = find_middle(design)
    largest = find_largest_flops(design)

    def find_best_loss(C: float) -> float:
        def predict(log_size: float) -> float:
            N = np.exp(np.array([log_size]))
            return float(predict_points(world, middle, N, C / (6 * N))[0])

        found = minimize_scalar(predict, bounds=(0.0, np.log(C)), method="bounded")
        assert isinstance(found, OptimizeResult)
        return float(found.fun)

    exponent = world.params["beta"] / (world.params["alpha"] + world.params["beta"])
    return {
        "a": exponent if world.law == "chinchilla" else np.nan,
        "E": world.params["E"],
        "loss at 2x": find_best_loss(2 * largest),
        "loss at 8x": find_best_loss(8 * largest),
    }


def simulate_sweep(
    world: World, design: pd.DataFrame, rng: np.random.Generator
) -> pd.DataFrame:
    """The design with losses."""
    trunks = Trunks.from_names(design["trunk"].to_numpy(str))
    N = design["N"].to_numpy()
    size = (N / np.exp(np.mean(np.log(N)))) ** world.growth
    of_trunks = world.trunk * rng.standard_normal(len(trunks.size))[trunks.label]
    of_rows = world.row * rng.standard_normal(len(design))
    log_loss = predict_world(world, design) + size * of_trunks + of_rows
    return design.assign(loss=np.exp(log_loss))


def find_largest_flops(design: pd.DataFrame) -> float:
    """FLOPs of the largest run."""
    return float(read_compute(design).max())


def list_quantities(
    design: pd.DataFrame,
) -> dict[str, Callable[[Mapping[str, np.ndarray]], np.ndarray]]:
    """Functions of the parameters, [R] each -> [R]; losses as logarithms."""
    law = get_law("chinchilla")
    frontier = make_frontier(law)
    largest = find_largest_flops(design)

    def compute_loss(factor: float, params: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.log(frontier.best_loss(params, factor * largest))

    return {
        "a": dict(law.derived)["a"],
        "E": lambda params: params["E"],
        "loss at 2x": functools.partial(compute_loss, 2.0),
        "loss at 8x": functools.partial(compute_loss, 8.0),
    }


def compute_bound(world: World, design: pd.DataFrame) -> dict[str, float]:
    """Half-widths of the intervals if the sizes of the effects were known, to first
    order in the parameters at the truth.
    """
    law = get_law("chinchilla")
    largest = find_largest_flops(design)
    places = {
        "a": Quantity("a"),
        "E": Quantity("E"),
        "loss at 2x": Quantity("loss", {"C": 2 * largest}),
        "loss at 8x": Quantity("loss", {"C": 8 * largest}),
    }
    prior = DesignPrior(law, world.params, world.trunk, world.row, "the truth")
    jacobian = compute_log_jacobian(
        law, prior.binding, prior.params, read_points(design, law)
    )
    trunks = Trunks.from_names(read_trunks(design))
    covariance = compute_gls_covariance(jacobian, trunks, prior.components)
    widths = {}
    for key, quantity in places.items():
        _, gradient = compute_gradient(quantity, prior, None)
        variance = float(gradient @ covariance @ gradient)
        widths[key] = float(norm.isf((1 - LEVEL) / 2)) * float(np.sqrt(variance))
    return widths


def compute_attainable_power(world: World, design: pd.DataFrame) -> float:
    """The share of sweeps in which the best test at 5 % says that the law does not hold.

    It knows the sizes of the effects and in what direction the world leaves the law. Its
    statistic is a noncentral chi-squared variable of one degree of freedom. The
    noncentrality is the squared distance of the world from the nearest law, the log
    losses whitened.
    """
    law = get_law("chinchilla")
    N = design["N"].to_numpy(float)
    D = design["D"].to_numpy(float)
    trunks = Trunks.from_names(design["trunk"].to_numpy(str))
    ratio = compute_ratio({"trunk": world.trunk, "row": world.row})
    truth = predict_world(world, design)

    def compute_distances(logs: np.ndarray) -> np.ndarray:
        params = dict(zip(law.params, np.exp(logs), strict=True))
        difference = np.log(law.predict(params, N=N, D=D)) - truth
        return trunks.whiten(difference, ratio) / world.row

    start = np.log([world.params[name] for name in law.params])
    nearest = least_squares(compute_distances, start, max_nfev=10_000)
    noncentrality = 2 * float(nearest.cost)
    return float(ncx2.sf(chi2.isf(TEST_LEVEL, 1), 1, noncentrality))


def cover_design(
    world: World, name: str, design: pd.DataFrame, args: Coverage
) -> dict[str, float | str]:
    """A row of the table."""
    quantities = list_quantities(design)
    truth = find_truth(world, design)
    bound = compute_bound(world, design)
    rng = np.random.default_rng(args.seed)
    covered: dict[str, list[float]] = {key: [] for key in quantities}
    widths: dict[str, list[float]] = {key: [] for key in quantities}
    flagged = []
    trunk_sizes = []
    for _ in range(args.sweeps):
        runs = simulate_sweep(world, design, rng)
        fit = analysis.fit(runs)
        boot = fit.bootstrap(args.draws, seed=0)
        flagged.append(any("leave the law" in note for note in fit.protocol.notes))
        trunk_sizes.append(fit.protocol.components["trunk"])
        for key, function in quantities.items():
            values = boot.values(key) if key in ("a", "E") else boot.evaluate(function)
            low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            is_known = np.isfinite(truth[key])
            covered[key].append(low <= truth[key] <= high if is_known else np.nan)
            widths[key].append(float(high - low) / 2)
    row: dict[str, float | str] = {"design": name, "world": world.name}
    for key in QUANTITIES:
        row[f"{key}: coverage"] = float(np.mean(covered[key]))
        row[f"{key}: width"] = float(np.median(widths[key])) / bound[key]
    row["flagged"] = float(np.mean(flagged))
    row["attainable"] = compute_attainable_power(world, design)
    row["trunk effect found"] = float(np.median(trunk_sizes))
    return row


def cover_designs(args: Coverage) -> pd.DataFrame:
    """One row per design and world."""
    rows = []
    for name, design in list_designs().items():
        if not any(word in name for word in args.designs):
            continue
        for world in WORLDS:
            if not any(word in world.name for word in args.worlds):
                continue
            row = cover_design(world, name, design, args)
            rows.append(row)
            print(json.dumps(row), flush=True)
    return pd.DataFrame(rows)


def write_markdown(table: pd.DataFrame) -> str:
    """The table for a page: coverage and width of each quantity in one cell."""
    header = ["design", "world", *QUANTITIES, "flagged"]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in table.to_dict("records"):
        cells = [str(row["design"]), str(row["world"])]
        for key in QUANTITIES:
            coverage = row[f"{key}: coverage"]
            share = "no truth" if np.isnan(coverage) else f"{100 * coverage:.0f} %"
            cells.append(f"{share}, {row[f'{key}: width']:.2f}")
        flagged = f"{100 * row['flagged']:.0f} %"
        if row["attainable"] > 2 * TEST_LEVEL:
            flagged += f" of at most {100 * row['attainable']:.0f} %"
        cells.append(flagged)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(args: Coverage) -> None:
    """Simulate, print the table and write it."""
    table = cover_designs(args)
    args.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out / "coverage.csv", index=False)
    markdown = write_markdown(table)
    (args.out / "coverage.md").write_text(markdown + "\n", encoding="utf-8")
    print(markdown)


if __name__ == "__main__":
    main(tyro.cli(Coverage, description=__doc__))
