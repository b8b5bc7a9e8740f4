"""How often 90 % intervals of `analysis.compare` hold the compute multiplier, on simulated
pairs of sweeps.

    python -m experiments.compare_coverage --out runs/compare_coverage

A pair is the design of `isoflop` drawn twice, from a law and from that of a better recipe,
with effects of trunks and of rows. `analysis.compare` does as by default: it fits one
shape to both, tests it, and fits each by itself where the test rejects it. The table says
how often the interval of the multiplier holds the truth at the largest compute and at 8
times that, the median ratio of its ends, and how often the test rejects one shape.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

import analysis
from analysis.decisions.frontier import make_frontier
from analysis.laws.library import get_law
from experiments.coverage import (
    TRUTH,
    World,
    find_largest_flops,
    list_designs,
    simulate_sweep,
)

DESIGN = "20 rows, 9 trunks (isoflop)"
REACHES = (1, 8)  # times the largest compute
SIZE = 6e4  # parameters at which recipes of another exponent are equally good


def improve_recipe(N: float, D: float) -> dict[str, float]:
    """The law of a recipe whose parameters count N times and tokens D times."""
    A = TRUTH["A"] * N ** -TRUTH["alpha"]
    B = TRUTH["B"] * D ** -TRUTH["beta"]
    return {**TRUTH, "A": A, "B": B}


def steepen_recipe(step: float) -> dict[str, float]:
    """The law of a recipe whose exponent of N is larger."""
    A = TRUTH["A"] * SIZE**step
    return {**TRUTH, "A": A, "alpha": TRUTH["alpha"] + step}


RECIPES = {
    "one shape, parameters worth 1.1, tokens 1.4": improve_recipe(1.1, 1.4),
    "exponent of N larger by .02": steepen_recipe(0.02),
    "exponent of N larger by .05": steepen_recipe(0.05),
}


@dataclass(frozen=True)
class CompareCoverage:
    """What to simulate.

    Attributes:
        out: folder of the results.
        pairs: of sweeps for each recipe.
        draws: of each comparison.
        trunk: standard deviation of a trunk's effect; that of a row is 0.3 %.
        seed: of the noise.
    """

    out: Path = Path("runs/compare_coverage")
    pairs: int = 300
    draws: int = 400
    trunk: float = 0.007
    seed: int = 0


def find_multiplier(recipe: dict[str, float], C: float) -> float:
    """FLOPs that the baseline needs for the recipe's loss at C, over C."""
    frontier = make_frontier(get_law("chinchilla"))
    baseline = {name: np.array([value]) for name, value in TRUTH.items()}
    own = {name: np.array([value]) for name, value in recipe.items()}
    return float(frontier.least_flops(baseline, frontier.best_loss(own, C))[0]) / C


def cover_recipe(
    name: str, recipe: dict[str, float], args: CompareCoverage
) -> dict[str, float | str]:
    """A row of the table."""
    design = list_designs()[DESIGN]
    largest = find_largest_flops(design)
    budgets = [reach * largest for reach in REACHES]
    truth = np.array([find_multiplier(recipe, C) for C in budgets])
    world = World(args.trunk)
    rng = np.random.default_rng(args.seed)
    covered, widths, rejected = [], [], []
    for _ in range(args.pairs):
        first = simulate_sweep(world, design, rng)
        second = simulate_sweep(replace(world, params=recipe), design, rng)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", analysis.ExtrapolationWarning)
            found = analysis.compare(first, second, budgets=budgets, draws=args.draws)
        low = found.table["low"].to_numpy(float)
        high = found.table["high"].to_numpy(float)
        covered.append((low <= truth) & (truth <= high))
        widths.append(high / low)
        rejected.append(not found.is_joint)
    row: dict[str, float | str] = {"recipe": name}
    for i, reach in enumerate(REACHES):
        row[f"{reach}x: truth"] = truth[i]
        row[f"{reach}x: coverage"] = float(np.mean(covered, axis=0)[i])
        row[f"{reach}x: ratio of the ends"] = float(np.median(widths, axis=0)[i])
    row["one shape rejected"] = float(np.mean(rejected))
    return row


def main(args: CompareCoverage) -> None:
    """Simulate, print the table and write it."""
    rows = []
    for name, recipe in RECIPES.items():
        rows.append(cover_recipe(name, recipe, args))
        print(json.dumps(rows[-1]), flush=True)
    table = pd.DataFrame(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out / "compare_coverage.csv", index=False)
    print(table.to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main(tyro.cli(CompareCoverage, description=__doc__))
