"""What a mixture of experts is worth at equal FLOPs: a sweep over sparsity and
granularity, and the laws of both fitted to it.

    python -m experiments.experts --out runs/experts

All models of a sweep have the sizes and tokens of the dense one, and its FLOPs but for the
router. Sparsity is the number of experts over those of a token, at one granularity;
granularity is varied at one sparsity, with as many experts of a token. The learning rate
is that of the dense model and is not tuned again.

Two laws are fitted, with 90 % intervals. That of Krajewski et al. 2024 (arXiv:2402.07871)
takes the runs of one sparsity, that of Abnar et al. 2025 (arXiv:2501.12370) those of one
granularity. A law that the runs do not determine is marked so: its intervals then mean
nothing. Each model is also compared with the dense one: the multiplier is the compute
that the dense model needs for its loss at the largest budget, over its own. Writes
`runs.csv`, `laws.md`, `multipliers.csv`, `table.md` and `experts.png`. Expect the loss to
fall with the number of experts and to gain less from each doubling. docs/guides/experts.md
has the figures.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure

import analysis
from analysis import Fit
from analysis.fitting.bootstrap import Bootstrap
from analysis.plots.style import LOSS, MARKERS, make_figure, save_figure, use_style
from experiments.multipliers import (
    explain_mark,
    find_common_budget,
    format_multiplier,
    format_rows,
    measure_multiplier,
    save_multipliers,
    train_sweeps,
)
from scaling import ExpertConfig, PlanConfig, RunConfig, make_plan
from scaling.cli.plan_sweep import find_preset
from scaling.config import read_toml


@dataclass(frozen=True)
class Experts:
    """What to train.

    Attributes:
        out: folder of the runs, the laws and the figure.
        preset: the sweep of the dense model.
        budgets: FLOPs, in place of the preset's.
        sizes_per_budget: models of each.
        batch_size: sequences of a step, in place of the preset's.
        min_steps: of a run, in place of the preset's.
        sparsities: experts over those of a token; 1 is the dense model.
        granularities: varied at `at_sparsity`; the others have 1.
        at_sparsity: of the models of other granularities.
        draws: of the parameters.
        workers: processes. Default: one per core on CPU.
    """

    out: Path = Path("runs/experts")
    preset: str = "isoflop"
    budgets: tuple[float, ...] = (1e11, 3e11, 9e11)
    sizes_per_budget: int = 3
    batch_size: int = 8
    min_steps: int = 200
    sparsities: tuple[int, ...] = (1, 2, 4, 8, 16)
    granularities: tuple[int, ...] = (1, 2, 4)
    at_sparsity: int = 8
    draws: int = 500
    workers: int | None = None


def list_arms(args: Experts) -> list[tuple[int, int]]:
    """Sparsity and granularity of each model that is compared."""
    arms = [(1, 1)]
    arms += [(sparsity, 1) for sparsity in args.sparsities]
    arms += [(args.at_sparsity, granularity) for granularity in args.granularities]
    return list(dict.fromkeys(arms))


def plan_arm(args: Experts, sparsity: int, granularity: int) -> list[RunConfig]:
    """The sweep of the dense model with experts in the place of its blocks."""
    preset = read_toml(find_preset(args.preset), PlanConfig)
    plan = make_plan(
        dataclasses.replace(
            preset,
            budgets=args.budgets,
            sizes_per_budget=args.sizes_per_budget,
            min_steps=args.min_steps,
            optim=dataclasses.replace(preset.optim, batch_size=args.batch_size),
        )
    )
    experts = ExpertConfig()
    if sparsity > 1:
        experts = ExpertConfig(
            routed=sparsity * granularity,
            per_token=granularity,
            granularity=granularity,
        )
    runs = []
    for run in plan:
        model = dataclasses.replace(run.model, experts=experts)
        runs.append(dataclasses.replace(run, model=model))
    return runs


def train_arms(args: Experts) -> pd.DataFrame:
    """The run table of all arms, with the columns sparsity and granularity."""
    plans = {}
    for sparsity, granularity in list_arms(args):
        name = f"sparsity {sparsity}, granularity {granularity}"
        plans[name] = plan_arm(args, sparsity, granularity)
    tables = train_sweeps("experts", plans, args.out, args.workers).values()
    marked = []
    for (sparsity, granularity), table in zip(list_arms(args), tables, strict=True):
        marks = {"experts_over_active": sparsity, "granularity": granularity}
        marked.append(table.assign(**marks))
    return pd.concat(marked, ignore_index=True)


# --- multipliers ----------------------------------------------------------------------


class ExpertsResult(NamedTuple):
    """What a mixture of experts is worth: a row of the table.

    Attributes:
        sparsity: experts over those of a token.
        granularity: of the experts.
        budget: FLOPs of the largest budget.
        multiplier: FLOPs of the dense model over those of this one at equal loss there.
        low: end of its 90 % interval.
        high: the other end.
        shares_shape: whether both bear one shape of the law.
    """

    sparsity: int
    granularity: int
    budget: float
    multiplier: float
    low: float
    high: float
    shares_shape: bool


def compare_arms(args: Experts, table: pd.DataFrame) -> list[ExpertsResult]:
    """Each mixture of experts compared with the dense model, which has sparsity 1."""
    arms = {}
    for key, runs in table.groupby(["experts_over_active", "granularity"]):
        arms[key] = runs
    dense = arms[1, 1]
    rows = []
    for sparsity, granularity in list_arms(args):
        if sparsity == 1:
            continue
        runs = {"dense": dense, "experts": arms[sparsity, granularity]}
        found = measure_multiplier(runs, find_common_budget(runs.values()), args.draws)
        rows.append(ExpertsResult(sparsity, granularity, **found._asdict()))
    return rows


def format_table(rows: list[ExpertsResult]) -> str:
    """The multipliers as a Markdown table."""
    header = [
        "experts over those of a token",
        "granularity",
        "multiplier, 90 % interval",
    ]
    cells = []
    for row in rows:
        sizes = [f"{row.sparsity}", f"{row.granularity}"]
        cells.append([*sizes, format_multiplier(row)])
    return "\n".join(format_rows(header, cells) + explain_mark(rows))


# --- laws -----------------------------------------------------------------------------


def fit_laws(args: Experts, table: pd.DataFrame) -> list[tuple[Fit, Bootstrap]]:
    """Both laws with draws of their parameters. N is the number of all parameters but
    the embedding and the head, as in both papers.
    """
    size = "n_non_embedding"
    fine = table.loc[table["experts_over_active"] == args.at_sparsity]
    coarse = table.loc[table["granularity"] == 1]
    data = {
        "granularity": analysis.load_runs(fine, N=size, D="tokens", G="granularity"),
        "sparsity": analysis.load_runs(
            coarse, N=size, D="tokens", R="experts_over_active"
        ),
    }
    found = []
    for law, runs in data.items():
        fit = analysis.fit(runs, law=law, allow_unidentified=True, effects="row")
        found.append((fit, fit.bootstrap(args.draws, seed=0)))
    return found


def format_laws(laws: list[tuple[Fit, Bootstrap]]) -> str:
    """The parameters of each law as a Markdown table."""
    lines = []
    for fit, draws in laws:
        lines += [f"{fit.law.equation} ({fit.law.source})", ""]
        if not fit.certificate.ok:
            lines += ["The runs do not determine this law.", ""]
        cells = []
        for name in fit.law.params:
            low, high = draws.interval(name)
            value = float(np.asarray(fit.params[name]))
            cells.append([name, f"{value:.3g}", f"[{low:.3g}, {high:.3g}]"])
        lines += format_rows(["parameter", "value", "90 % interval"], cells)
        lines.append("")
    return "\n".join(lines)


@use_style
def plot_losses(args: Experts, table: pd.DataFrame) -> Figure:
    """The lowest loss of each budget, by sparsity and by granularity."""
    figure = make_figure(3.1)
    panels = figure.subplots(1, 2, sharey=True)
    fine = table[table["experts_over_active"] == args.at_sparsity]
    coarse = table[table["granularity"] == 1]
    at_sparsity = f"Granularity, at {args.at_sparsity} experts over those of a token"
    cases = (
        (panels[0], coarse, "experts_over_active", "Experts over those of a token"),
        (panels[1], fine, "granularity", at_sparsity),
    )
    for ax, rows, column, label in cases:
        for marker, (budget, group) in zip(
            MARKERS, rows.groupby("budget"), strict=False
        ):
            places = sorted(set(group[column].tolist()))
            best = [float(group.loc[group[column] == x, "loss"].min()) for x in places]
            ax.plot(places, best, marker=marker, label=f"{budget:.0e} FLOPs")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.set_xlabel(label)
    panels[0].set_ylabel(LOSS)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def main() -> None:
    """Train, fit, draw."""
    args = tyro.cli(Experts, description=__doc__)
    table = train_arms(args)
    table.to_csv(args.out / "runs.csv", index=False)
    rows = compare_arms(args, table)
    save_multipliers(rows, format_table(rows), args.out)
    text = format_laws(fit_laws(args, table))
    (args.out / "laws.md").write_text(f"{text}\n", encoding="utf-8")
    print(f"\n{text}")
    print(save_figure(plot_losses(args, table), args.out / "experts.png"))


if __name__ == "__main__":
    main()
