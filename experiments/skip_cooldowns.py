"""How many cooldowns a sweep can skip: a law of learning curves, fitted to a trunk and to
some of the cooldowns that branch off it, predicts the losses of the others.

    python -m experiments.skip_cooldowns --out runs/cooldowns

Every size is one trunk with a run for each token budget. For each number of cooldowns
that are trained, those with most and with fewest tokens first, the law is fitted to the
trunk's curve and theirs, and predicts the training loss at the end of the others. The
held-out loss is that prediction plus what the trained cooldowns were above their own
training losses, linear in the logarithm of their tokens. Then L(N, D) is fitted to all
measured losses, to those with the skipped ones predicted, and to those without them, and
predicts a model of ten times the compute of the largest run.

It prints two tables, and writes them to cooldowns.json. docs/guides/curves.md reads them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

import analysis
from analysis.curves.table import Curves
from scaling import PlanConfig, make_plan, sweep
from scaling.cli.fit_curves import load_sweep_curves
from scaling.cli.output import print_plan
from scaling.cli.plan_sweep import find_preset
from scaling.config import read_toml

LAWS = ("multi_power", "annealing")
FURTHER = 10.0
"""How many times the compute of the largest run the laws are asked for."""


@dataclass(frozen=True)
class Cooldowns:
    """What to train and fit.

    Attributes:
        out: folder of the runs and of cooldowns.json.
        widths: the sizes.
        tokens: the token budgets of every size.
        cooldown: share of a run over which its learning rate falls.
        end: share of a run's steps whose mean training loss is that of its end.
        draws: of the parameters of L(N, D).
        workers: processes. Default: one per core on CPU.
    """

    out: Path = Path("runs/cooldowns")
    widths: tuple[int, ...] = (24, 32, 48, 64, 96)
    tokens: tuple[int, ...] = (500_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000)
    cooldown: float = 0.3
    end: float = 0.05
    draws: int = 300
    workers: int | None = None


def train(args: Cooldowns) -> pd.DataFrame:
    """The run table of the sweep."""
    preset = read_toml(find_preset("isoflop"), PlanConfig)
    config = replace(
        preset,
        name="cooldowns",
        budgets=(),
        tokens=args.tokens,
        widths=args.widths,
        min_tokens_per_parameter=0.5,
        min_steps=100,
        optim=replace(preset.optim, cooldown_fraction=args.cooldown),
    )
    plan = make_plan(config)
    print_plan(plan, args.out, timing=True, workers=args.workers)
    table = sweep(plan, args.out, workers=args.workers)
    return table.loc[table["sweep"] == "cooldowns"]


def compute_final_loss(curves: Curves, run: str, end: float) -> float:
    """The mean training loss of the last steps of a run, nats per token."""
    rows = curves.get_rows(run)
    first = (1.0 - end) * curves.schedules[run].steps
    return float(rows.loc[rows["step"] >= first, "loss"].mean())


def predict_final_loss(
    found: analysis.CurveFit, curves: Curves, run: str, end: float
) -> float:
    """What the law says of the same steps."""
    rows = curves.get_rows(run)
    first = (1.0 - end) * curves.schedules[run].steps
    steps = rows.loc[rows["step"] >= first, "step"].to_numpy(int)
    return float(found.predict(curves.schedules[run], steps).mean())


def sort_from_ends(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of a trunk: that with most tokens, that with fewest, then the others from
    the middle on.
    """
    by_tokens = runs.sort_values("tokens", ascending=False)
    middle = (len(runs) - 1) / 2
    inner = sorted(range(1, len(runs) - 1), key=lambda place: abs(place - middle))
    return by_tokens.iloc[[0, len(runs) - 1, *inner]]


def predict_skipped(
    args: Cooldowns, curves: Curves, runs: pd.DataFrame, law: str, trained: int
) -> list[dict[str, object]]:
    """The losses of the runs of one trunk that are not among the `trained` longest.

    Args:
        args: what was trained.
        curves: of all sizes.
        runs: the rows of the trunk in the run table.
        law: of curves.
        trained: how many cooldowns are known, see `sort_from_ends`.
    """
    ordered = sort_from_ends(runs)
    known = ordered.iloc[:trained]
    found = analysis.fit_curves(
        curves.take(list(known["run_id"])), law, allow_unidentified=True
    )
    above = []
    for run_id, loss in zip(known["run_id"], known["loss"], strict=True):
        above.append(loss - compute_final_loss(curves, run_id, args.end))
    log_tokens = np.log(known["tokens"].to_numpy(float))
    offset = np.poly1d(np.polyfit(log_tokens, above, deg=min(1, trained - 1)))
    rows: list[dict[str, object]] = []
    for row in ordered.iloc[trained:].to_dict("records"):
        run_id = str(row["run_id"])
        predicted = predict_final_loss(found, curves, run_id, args.end)
        rows.append(
            {
                "law": law,
                "trained": trained,
                "run_id": run_id,
                "N": row["n_matmul"],
                "D": row["tokens"],
                "loss": row["loss"],
                "predicted": predicted + float(offset(np.log(row["tokens"]))),
                "training_error": predicted
                - compute_final_loss(curves, run_id, args.end),
            }
        )
    return rows


def fit_law(
    args: Cooldowns, table: pd.DataFrame, skipped: pd.DataFrame
) -> tuple[analysis.Fit, analysis.Bootstrap]:
    """L(N, D) of the losses with the skipped ones predicted."""
    losses = dict(zip(table["run_id"], table["loss"], strict=True))
    losses |= dict(zip(skipped["run_id"], skipped["predicted"], strict=True))
    known = table.assign(loss=[losses[run] for run in table["run_id"]])
    runs = analysis.load_runs(known)
    found = analysis.fit(runs, allow_unidentified=True)
    boot = found.bootstrap(args.draws, seed=0)
    return found, boot


def describe_law(
    found: analysis.Fit, boot: analysis.Bootstrap, N: float, D: float
) -> dict[str, float]:
    """The parameters of a law, and what it predicts of a larger model."""
    low, high = boot.predict_interval(N=N, D=D, level=0.90)
    return {
        "alpha": found.params["alpha"],
        "beta": found.params["beta"],
        "E": found.params["E"],
        "loss": float(found.predict(N=N, D=D)),
        "lower_90": float(low),
        "upper_90": float(high),
    }


def summarize_errors(skipped: pd.DataFrame) -> pd.DataFrame:
    """Mean and largest error of the predicted losses by law and number trained."""
    error = (skipped["predicted"] - skipped["loss"]).abs()
    relative = error / skipped["loss"]
    table = skipped.assign(error=error, relative=relative)
    return table.groupby(["law", "trained"], as_index=False).agg(
        skipped=("error", "count"),
        mean_error=("error", "mean"),
        largest_error=("error", "max"),
        mean_relative=("relative", "mean"),
    )


def measure_saving(table: pd.DataFrame, skipped: list[str]) -> float:
    """The share of the sweep's FLOPs that the skipped cooldowns cost."""
    spent = table.set_index("run_id")["flops_spent"]
    return float(spent.loc[skipped].sum() / spent.sum())


def main() -> None:
    """Train, predict what could have been skipped, fit, print."""
    args = tyro.cli(Cooldowns, description=__doc__)
    table = train(args)
    curves = load_sweep_curves(args.out)
    rows: list[dict[str, object]] = []
    for _, runs in table.groupby("trunk_id"):
        for law in LAWS:
            for trained in range(1, len(args.tokens)):
                rows += predict_skipped(args, curves, runs, law, trained)
    skipped = pd.DataFrame(rows)
    errors = summarize_errors(skipped)
    print(f"\n{errors.to_string(index=False, float_format='{:.4f}'.format)}\n")
    nothing = skipped.iloc[:0]
    law_of_all, boot = fit_law(args, table, nothing)
    C = FURTHER * float(table["flops"].to_numpy(float).max())
    best = analysis.allocate(law_of_all, C=C, extrapolate=True)

    def describe(found: analysis.Fit, boot: analysis.Bootstrap) -> dict[str, float]:
        return describe_law(found, boot, best.N, best.D)

    fits = [{"skipped": "none", "saved": 0.0, **describe(law_of_all, boot)}]
    for trained in range(1, len(args.tokens)):
        of_number = skipped.loc[skipped["trained"] == trained]
        left_out = of_number.loc[of_number["law"] == LAWS[0], "run_id"]
        saved = measure_saving(table, list(left_out))
        part = {"trained": trained, "saved": saved}
        for law in LAWS:
            chosen = of_number.loc[of_number["law"] == law]
            predicted = describe(*fit_law(args, table, chosen))
            fits.append({"skipped": f"predicted by {law}", **part, **predicted})
        left = table.loc[~table["run_id"].isin(left_out)]
        without = describe(*fit_law(args, left, nothing))
        fits.append({"skipped": "left out", **part, **without})
    print(f"losses at N = {best.N:.4g}, D = {best.D:.4g}, C = {C:.4g} FLOPs:")
    print(pd.DataFrame(fits).to_string(index=False))
    content = {
        "skipped": skipped.to_dict("records"),
        "errors": errors.to_dict("records"),
        "fits": fits,
    }
    (args.out / "cooldowns.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
