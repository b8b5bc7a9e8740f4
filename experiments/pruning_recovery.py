"""What pruning costs the models of a sweep, how much of it more training repairs, and
whether a pruned large model is better than a dense small one.

    scaling sweep --preset quickstart --budgets 1e11 2.8e11 --out runs/short
    python -m experiments.pruning_recovery --runs runs/short --out runs/pruning

Every finished run is pruned by magnitude, by the 2:4 pattern and by heads, and trained
further on its own text with the pruned weights held at zero. The control is trained
further without pruning. `pruning.csv` has a row for each. Then follow

- the law of the rise of the loss, k D^beta / N^alpha (S / (1 - S))^gamma for a share S of
  the weights pruned by magnitude, before and after recovery, fitted by least squares of
  its logarithm (ours; the laws of rounding in `experiments.compression_sweep` have the
  same form). The question is beta: above zero, models that were trained for longer lose
  more;
- the size of the dense model that is as good as each recovered one after as many tokens,
  by the law of the sweep's dense runs, over the number of weights that are left. Above 1,
  pruning a large model beats training a small one for as many tokens. Training the large
  one cost more FLOPs, by the factor of the sizes. Frantar et al. 2024 (arXiv:2309.08520)
  express the gain of sparse training as such a factor.

N are the weights that multiply activations. docs/guides/compress.md has the numbers.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import tyro
from jaxtyping import Float
from matplotlib.figure import Figure

import analysis
import scaling
from analysis.plots.style import save_figure
from experiments.rise_laws import (
    LEVEL,
    RiseLaw,
    fit_law,
    format_fit,
    plot_rises_in_panels,
)
from scaling import ParentConfig, PruningConfig, RunConfig, prune_model
from scaling.compression.losses import LossChange, compare_windows
from scaling.compression.losses import measure_heldout_windows as measure_windows
from scaling.config import require_decoder
from scaling.store import query

CONTROL = "none"
COLUMNS = (
    "run_id",
    "n_matmul",
    "tokens",
    "pattern",
    "sparsity",
    "stage",
    "loss",
    "loss_increase",
    "loss_increase_se",
)


@dataclass(frozen=True)
class PruningRecovery:
    """What to prune, and how long to train afterwards.

    Attributes:
        runs: folder of a finished sweep.
        out: folder of the sparse runs, the table, the fits and the figure.
        sparsities: of pruning by magnitude.
        heads: share of the heads of each layer that is pruned.
        recovery: tokens of the recovery over those of the run.
        rate: peak learning rate of the recovery over that of the run.
        workers: processes. Default: one per core on CPU.
        draws: of the bootstrap.
    """

    runs: Path
    out: Path = Path("runs/pruning")
    sparsities: tuple[float, ...] = (0.25, 0.5, 0.75)
    heads: float = 0.25
    recovery: float = 0.1
    rate: float = 0.5
    workers: int | None = None
    draws: int = 1000


@dataclass(frozen=True)
class Way:
    """A way to prune.

    Attributes:
        pattern: "none" is the control.
        sparsity: the share of the weights, or of the heads.
    """

    pattern: Literal["none", "magnitude", "2:4", "heads"]
    sparsity: float


def list_ways(args: PruningRecovery) -> list[Way]:
    """The control and every way to prune."""
    ways = [Way(CONTROL, 0.0)]
    ways += [Way("magnitude", sparsity) for sparsity in args.sparsities]
    return [*ways, Way("2:4", 0.5), Way("heads", args.heads)]


# --- the table ------------------------------------------------------------------------


def make_recovery(args: PruningRecovery, dense: RunConfig, way: Way) -> RunConfig:
    """The run that trains a pruned run further, on its text in another order."""
    parent = ParentConfig(dense.run_id, folder=str(args.runs))
    if way.pattern != CONTROL:
        parent = dataclasses.replace(parent, pattern=way.pattern, sparsity=way.sparsity)
    tokens = max(1, round(args.recovery * dense.steps)) * dense.batch_tokens
    optim = dataclasses.replace(
        dense.optim,
        lr=args.rate * dense.optim.lr,
        warmup_tokens=round(0.1 * tokens),
        cooldown_fraction=0.5,
    )
    data = dataclasses.replace(dense.data, seed=dense.data.seed + 1)
    return dataclasses.replace(
        dense, parent=parent, optim=optim, data=data, tokens=tokens, budget=None
    )


def measure_sweep(args: PruningRecovery) -> pd.DataFrame:
    """Train all recoveries, and measure the rise of the loss before and after."""
    table, _ = query.list_runs(args.runs)
    finished = table.loc[table["status"] == "finished"].to_dict("records")
    ways = list_ways(args)
    recoveries: dict[tuple[str, Way], RunConfig] = {}
    for row in finished:
        dense = query.read_config(args.runs, row["run_id"])
        for way in ways:
            recoveries[row["run_id"], way] = make_recovery(args, dense, way)
    sparse = args.out / "runs"
    scaling.sweep(list(recoveries.values()), sparse, workers=args.workers)
    rows = []
    for row in finished:
        model = scaling.load(args.runs, row["run_id"])
        before = measure_windows(model)
        heads = require_decoder(model.config, "pruning heads").heads
        for way in ways:
            recovered = scaling.load(sparse, recoveries[row["run_id"], way].run_id)
            stages = {"recovered": measure_windows(recovered)}
            if way.pattern != CONTROL:
                settings = PruningConfig(
                    way.pattern,
                    sparsity=way.sparsity,
                    heads=max(1, round(way.sparsity * heads)),
                )
                stages["pruned"] = measure_windows(prune_model(model, settings).model)
            for stage, windows in stages.items():
                change = compare_windows(before, windows)
                rows.append(_make_row(row, way, stage, change))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _make_row(
    run: dict[str, object], way: Way, stage: str, change: LossChange
) -> dict[str, object]:
    return {
        "run_id": run["run_id"],
        "n_matmul": run["n_matmul"],
        "tokens": run["tokens"],
        "pattern": way.pattern,
        "sparsity": way.sparsity,
        "stage": stage,
        "loss": change.loss,
        "loss_increase": change.increase,
        "loss_increase_se": change.increase_se,
    }


# --- the laws -------------------------------------------------------------------------


def _list_regressors(rows: pd.DataFrame) -> Float[np.ndarray, "rows X"]:
    logs = np.log(rows[["tokens", "n_matmul"]].to_numpy(float))
    sparsity = rows["sparsity"].to_numpy(float)
    return np.column_stack([logs[:, 0], -logs[:, 1], np.log(sparsity / (1 - sparsity))])


def _read_params(coefficients: Float[np.ndarray, " P"]) -> dict[str, float]:
    constant, data, size, odds = coefficients
    return {
        "beta": float(data),
        "alpha": float(size),
        "gamma": float(odds),
        "k": float(np.exp(constant)),
    }


LAW = RiseLaw("odds", ("beta", "alpha", "gamma"), _list_regressors, _read_params)


def compare_with_control(table: pd.DataFrame) -> pd.DataFrame:
    """The recovered rows, whose rise is over the control in place of the parent.

    What more training gives a dense model as well is no repair.
    """
    recovered = table.loc[table["stage"] == "recovered"]
    is_control = recovered["pattern"] == CONTROL
    control = recovered.loc[is_control].set_index("run_id")["loss_increase"]
    pruned = recovered.loc[~is_control]
    rise = pruned["loss_increase"] - pruned["run_id"].map(control)
    return pruned.assign(loss_increase=rise)


def measure_equal_size(
    table: pd.DataFrame, dense: pd.DataFrame, recovery: float
) -> pd.DataFrame:
    """The recovered rows with `size_ratio`: weights of the dense model that is as good
    after as many tokens, over the weights that are left.

    The size comes from the law of the dense runs. It is infinite or zero where the loss
    lies outside what the law gives for a tenth of the smallest to ten times the largest
    dense run.
    """
    fit = analysis.fit(analysis.load_runs(dense))
    sizes = np.geomspace(
        dense["n_matmul"].min() / 10, dense["n_matmul"].max() * 10, 400
    )
    is_pruned = (table["stage"] == "recovered") & table["pattern"].isin(
        ["magnitude", "2:4"]
    )
    rows = table.loc[is_pruned]
    ratios = []
    for row in rows.to_dict("records"):
        tokens = row["tokens"] * (1 + recovery)
        losses = fit.predict(N=sizes, D=np.full(len(sizes), tokens))
        # The losses fall with the size, and `interp` wants them to rise.
        size = np.interp(row["loss"], losses[::-1], sizes[::-1], left=np.inf, right=0.0)
        ratios.append(size / ((1 - row["sparsity"]) * row["n_matmul"]))
    return rows.assign(size_ratio=ratios)


# --- what is shown --------------------------------------------------------------------


def summarize_table(table: pd.DataFrame, sizes: pd.DataFrame) -> pd.DataFrame:
    """Medians over the runs, by way to prune."""
    keys = ["pattern", "sparsity"]
    pruned = table.loc[table["stage"] == "pruned"].groupby(keys)["loss_increase"]
    recovered = compare_with_control(table).groupby(keys)["loss_increase"]
    summary = pd.DataFrame(
        {"rise": pruned.median(), "rise after recovery": recovered.median()}
    )
    ratios = sizes.groupby(keys)["size_ratio"]
    for name, share in (("low", (1 - LEVEL) / 2), ("", 0.5), ("high", (1 + LEVEL) / 2)):
        summary[f"size ratio {name}".strip()] = ratios.quantile(share)
    return summary.reset_index()


def plot_recovery(table: pd.DataFrame) -> Figure:
    """The rise of the loss against tokens per weight, pruned and recovered, a color for
    each sparsity of pruning by magnitude.
    """
    stages = {
        "Pruned": table.loc[table["stage"] == "pruned"],
        "After recovery, over the control": compare_with_control(table),
    }
    sparsities = sorted(table.loc[table["pattern"] == "magnitude", "sparsity"].unique())
    panels = {}
    for title, stage in stages.items():
        rows = stage.loc[
            (stage["pattern"] == "magnitude") & (stage["loss_increase"] > 0)
        ]
        groups = {}
        for sparsity in sparsities:
            groups[f"{sparsity:.0%} removed"] = rows.loc[rows["sparsity"] == sparsity]
        panels[title] = groups
    return plot_rises_in_panels(panels)


def main() -> None:
    """Prune, train, fit, draw."""
    args = tyro.cli(PruningRecovery, description=__doc__)
    args.out.mkdir(parents=True, exist_ok=True)
    table = measure_sweep(args)
    table.to_csv(args.out / "pruning.csv", index=False)
    runs, _ = query.list_runs(args.runs)
    dense = runs.loc[runs["status"] == "finished"]
    sizes = measure_equal_size(table, dense, args.recovery)
    print(summarize_table(table, sizes).to_string(index=False, float_format="%.3g"))
    stages = {
        "pruned": table.loc[table["stage"] == "pruned"],
        "recovered": compare_with_control(table),
    }
    fits = []
    for stage, rows in stages.items():
        fit = fit_law(rows.loc[rows["pattern"] == "magnitude"], LAW, args.draws)
        print(format_fit(stage, fit))
        fits.append({"stage": stage, **dataclasses.asdict(fit)})
    (args.out / "fits.json").write_text(json.dumps(fits, indent=1))
    print(save_figure(plot_recovery(table), args.out / "pruning.png"))


if __name__ == "__main__":
    main()
