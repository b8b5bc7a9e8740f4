"""A sweep that steers itself against the fixed IsoFLOP grid of equal FLOPs, on simulated
worlds whose law is known.

    python -m experiments.judge_auto --out runs/judge_auto

Each world is a law drawn about that of the quickstart's recipe, with effects of trunks
and of rows, a best learning rate that is not the planned one, and, in half of the worlds,
runs that bend away from the law far from the compute-optimal ratio, as real ones do. Both
sweeps spend the same FLOPs, the search for the learning rate included; the grid trains at
the planned rate, and its truth is the law at that rate. The table says how far the
predicted loss at the target is off, how wide its 90 % interval is, and how often it holds
the truth.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

from analysis import DesignPrior, Quantity
from analysis.decisions.prior import read_default_prior
from analysis.progress import show_progress
from scaling import Plan, PlanConfig, make_plan
from scaling.cli.plan_sweep import find_preset
from scaling.cli.steering.journal import Journal
from scaling.cli.steering.rounds import Evidence, count_family_flops, weigh_evidence
from scaling.cli.steering.settings import AutoSettings
from scaling.cli.steering.simulated import SimulatedTrainer
from scaling.cli.steering.steer import Steering
from scaling.config import read_toml

BUDGETS = np.array([1.0, 2.0, 4.0, 8.0])  # of the grid, over the smallest
MEASURES = ("error", "half_width", "holds", "a_error", "a_half_width", "a_holds")


@dataclass(frozen=True)
class JudgeAuto:
    """What to simulate."""

    out: Path = Path("runs/judge_auto")
    preset: str = "isoflop"
    flops: float = 1.16e13
    target_C: float = 1e14
    worlds: int = 100
    first: int = 0
    """Seed of the first world."""
    trunk: float = 0.007
    row: float = 0.003


def draw_world(seed: int, args: JudgeAuto) -> tuple[DesignPrior, float]:
    """A law with its noise, and the best multiple of the planned rate.

    The exponents vary by a tenth and the irreducible loss by .1 nat about those of the
    quickstart's recipe; the two terms keep their sizes at 64,000 parameters and 1.3
    million tokens. Every other world bends.
    """
    rng = np.random.default_rng([seed, 16])
    usual = read_default_prior()
    params = dict(usual.params)
    params["E"] += 0.1 * rng.standard_normal()
    for coefficient, exponent, center in (("A", "alpha", 6.4e4), ("B", "beta", 1.3e6)):
        change = 0.1 * params[exponent] * rng.standard_normal()
        params[exponent] += change
        params[coefficient] *= center**change
    world = dataclasses.replace(
        usual,
        params=params,
        trunk=args.trunk,
        row=args.row,
        bend=usual.bend if seed % 2 else 0.0,
        source=f"world {seed}",
    )
    return world, 2.0 ** (0.5 * rng.standard_normal())


def make_grid(config: PlanConfig, flops: float) -> Plan:
    """IsoFLOP profiles at four budgets, a factor of two apart, that cost `flops`
    together, to one part in 100.
    """
    smallest = flops / BUDGETS.sum() / 5
    plan = None
    for _ in range(20):
        budgets = tuple(float(smallest * step) for step in BUDGETS)
        plan = make_plan(dataclasses.replace(config, budgets=budgets, tokens=()))
        if abs(plan.flops / flops - 1) < 0.01:
            break
        smallest *= flops / plan.flops
    assert plan is not None
    return plan


def describe_evidence(
    evidence: Evidence | None, truth: float, world: DesignPrior
) -> dict[str, float | bool]:
    """Error, half-width and whether the interval holds the truth, of the loss at the
    target and of a. A sweep without a law has none of these.
    """
    if evidence is None:
        return {"has_law": False}
    low, high = evidence.interval
    a_low, a_high = evidence.boot.interval("a")
    alpha, beta = world.params["alpha"], world.params["beta"]
    a = beta / (alpha + beta)
    return {
        "has_law": True,
        "error": math.log(evidence.value / truth),
        "half_width": evidence.half_width,
        "holds": low <= truth <= high,
        "a_error": evidence.fit.derived()["a"] - a,
        "a_half_width": (a_high - a_low) / 2,
        "a_holds": a_low <= a <= a_high,
    }


def judge_world(
    config: PlanConfig, grid: Plan, seed: int, args: JudgeAuto
) -> list[dict[str, object]]:
    """A row for each of the two sweeps in one world."""
    world, best_factor = draw_world(seed, args)
    train = SimulatedTrainer(config, world, seed, best_factor)
    settings = AutoSettings(args.flops, target_C=args.target_C)
    steering = Steering(
        config,
        settings,
        train=train,
        journal=Journal(None),
        prior=read_default_prior(),
    )
    steering.steer()
    want = Quantity("loss", {"C": args.target_C})
    per_token = count_family_flops(config)
    params = {name: np.array([value]) for name, value in world.params.items()}
    truth = float(want.evaluate(world.law, params, per_token)[0])
    fixed = weigh_evidence(train(grid).table, world.law, want, per_token)
    rows: list[dict[str, object]] = []
    tuned = steering.config.optim.lr / config.optim.lr
    for name, evidence, flops, factor in (
        ("auto", steering.evidence, steering.spent, tuned),
        ("IsoFLOP grid", fixed, grid.flops, 1.0),
    ):
        at_rate = truth * math.exp(train.compute_rate_loss(factor))
        row = describe_evidence(evidence, at_rate, world)
        rows.append({"world": seed, "bend": world.bend, "sweep": name, **row})
        rows[-1] |= {"flops": flops, "factor": factor, "best_factor": best_factor}
    return rows


def summarize_sweeps(table: pd.DataFrame) -> pd.DataFrame:
    """One row per sweep, and kind of world: errors, half-widths and coverage."""
    rows = []
    kinds = table[["bend", "sweep"]].drop_duplicates()
    for bend, sweep in kinds.to_numpy():
        is_kind = (table["bend"] == bend) & (table["sweep"] == sweep)
        # A sweep without a law has NaN.
        columns = list(MEASURES)
        values = table.loc[is_kind, columns].to_numpy(float)
        by_name = dict(zip(columns, values.T, strict=True))
        error = 100 * np.abs(by_name["error"])
        rows.append(
            {
                "bend": bend,
                "sweep": sweep,
                "worlds": len(values),
                "loss: median error %": np.nanmedian(error),
                "90th percentile %": np.nanquantile(error, 0.9),
                "median half-width %": 100 * np.nanmedian(by_name["half_width"]),
                "holds %": 100 * np.nanmean(by_name["holds"]),
                "a: median error": np.nanmedian(np.abs(by_name["a_error"])),
                "median half-width": np.nanmedian(by_name["a_half_width"]),
                "a holds %": 100 * np.nanmean(by_name["a_holds"]),
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    """Simulate, print the table, and write it and its summary."""
    args = tyro.cli(JudgeAuto, description=__doc__)
    config = read_toml(find_preset(args.preset), PlanConfig)
    grid = make_grid(config, args.flops)
    rows: list[dict[str, object]] = []
    seeds = range(args.first, args.first + args.worlds)
    with show_progress("worlds", total=args.worlds) as progress:
        for seed in seeds:
            rows += judge_world(config, grid, seed, args)
            progress.advance(1)
    table = pd.DataFrame(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out / f"worlds_{args.first}.csv", index=False)
    summary = summarize_sweeps(table)
    print(summary.to_string(index=False, float_format="{:.3g}".format))
    summary.to_csv(args.out / "summary.csv", index=False)


if __name__ == "__main__":
    main()
