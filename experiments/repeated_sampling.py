"""A larger model or more samples: how often one of k answers is right, over k and over
the size of the model, and what of both to choose for a budget of inference.

    python -m experiments.repeated_sampling runs/tuned --task addition:digits=2

Samples answers of every fine-tuned run below the folder to the held-out examples of a
task whose answers can be checked. The coverage is the share of examples that one of k
samples solves (Chen et al. 2021, arXiv:2107.03374), and the law is that of Brown et al.
2024 (arXiv:2407.21787), ln coverage = -a k^-b, fitted by least squares to the k for which
it lies between 1 and 99 per cent. Writes `coverage.csv`, `coverage.json` and
`coverage.png` below --out. Expect the law to hold over all k that are tried, and one
sample of a model that has learned the task to be worth more than many of one that has
not. docs/notes/downstream.md has the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import tyro
from matplotlib.figure import Figure

from analysis.plots.style import (
    MARKERS,
    make_figure,
    sample_colors,
    save_figure,
    use_style,
)
from scaling.config import ArchitectureConfig
from scaling.execution.finetune import select_best
from scaling.inference.cost import count_cost
from scaling.inference.load import load
from scaling.inference.repeated_sampling import list_powers, measure_coverage
from scaling.store.table import run_table
from scaling.tasks import TaskData, open_task

KNOWN = (0.01, 0.99)
"""Coverages that the law is fitted to: nearer to 0 and 1 a few examples decide."""


@dataclass(frozen=True)
class RepeatedSampling:
    """What to sample.

    Attributes:
        runs: folder of fine-tuned runs; of each trunk the best one is taken.
        task: the task.
        samples: of each example.
        limit: held-out examples.
        temperature: of the samples.
        out: folder of the results.
    """

    runs: tyro.conf.Positional[Path]
    task: str = "addition:digits=2"
    samples: int = 64
    limit: int = 200
    temperature: float = 1.0
    out: Path = Path("runs/repeated_sampling")


class Sampled(NamedTuple):
    """A model with k samples: a row of the table.

    Attributes:
        run_id: the fine-tuned run.
        n_matmul: its size.
        k: number of samples.
        coverage: share of examples that one of k samples solves.
        standard_error: of it, over examples.
        flops: of k samples of an example.
    """

    run_id: str
    n_matmul: int
    k: int
    coverage: float
    standard_error: float
    flops: float


def measure_runs(args: RepeatedSampling, task: TaskData) -> list[Sampled]:
    """Sample the best run of each trunk that was fine-tuned on the task."""
    table = run_table(args.runs)
    tuned: pd.DataFrame = table.loc[table["task"] == args.task]
    rows = []
    for row in select_best(tuned).to_dict("records"):
        model = load(args.runs, row["run_id"])
        k = list_powers(args.samples)
        found = measure_coverage(
            model,
            task,
            samples=args.samples,
            k=k,
            temperature=args.temperature,
            limit=args.limit,
        )
        flops = count_sample_flops(model.config, task, args.limit)
        for i, number in enumerate(k):
            sampled = Sampled(
                run_id=row["run_id"],
                n_matmul=int(row["n_matmul"]),
                k=number,
                coverage=float(found.coverage[i]),
                standard_error=float(found.standard_error[i]),
                flops=number * flops,
            )
            rows.append(sampled)
        print(rows[-1], flush=True)
    return rows


def count_sample_flops(config: ArchitectureConfig, task: TaskData, limit: int) -> float:
    """FLOPs of one sample of a typical example, its prompt read again each time."""
    pairs = [example.pair for example in task.heldout[:limit]]
    prompt = int(np.median([len(pair.prompt.encode()) for pair in pairs])) + 1
    answer = int(np.median([len(pair.completion.encode()) for pair in pairs])) + 1
    cost = count_cost(config, prompt, answer)
    return cost.prefill_flops + cost.decode_flops


def fit_coverage(k: np.ndarray, coverage: np.ndarray) -> dict[str, float]:
    """a and b of ln coverage = -a k^-b, by least squares of ln(-ln coverage) on ln k;
    NaN where fewer than three coverages are known.
    """
    is_known = (coverage > KNOWN[0]) & (coverage < KNOWN[1])
    if is_known.sum() < 3:
        return {"a": np.nan, "b": np.nan, "scatter": np.nan}
    x = np.log(k[is_known])
    y = np.log(-np.log(coverage[is_known]))
    slope, intercept = np.polyfit(x, y, 1)
    scatter = float(np.std(y - intercept - slope * x))
    return {"a": float(np.exp(intercept)), "b": float(-slope), "scatter": scatter}


def fit_runs(rows: Sequence[Sampled]) -> list[dict[str, float | str]]:
    """The law of each run, with its coverage by one sample and by all."""
    laws: list[dict[str, float | str]] = []
    for run_id in dict.fromkeys(row.run_id for row in rows):
        own = [row for row in rows if row.run_id == run_id]
        k = np.array([row.k for row in own], float)
        coverage = np.array([row.coverage for row in own])
        law = fit_coverage(k, coverage)
        ends = {"by one": coverage[0], "by all": coverage[-1]}
        laws.append({"run_id": run_id, "n_matmul": own[0].n_matmul, **ends, **law})
    return sorted(laws, key=lambda law: law["n_matmul"])


def choose_models(
    rows: Sequence[Sampled], budgets: Sequence[float]
) -> list[dict[str, float]]:
    """For each budget of FLOPs for an example, the model and k of the highest coverage.

    A budget that affords nothing has no row.
    """
    chosen = []
    for budget in budgets:
        affordable = [row for row in rows if row.flops <= budget]
        if affordable:
            best = max(affordable, key=lambda row: row.coverage)
            chosen.append(
                {
                    "flops": float(budget),
                    "n_matmul": best.n_matmul,
                    "k": best.k,
                    "coverage": best.coverage,
                }
            )
    return chosen


@use_style
def plot_coverage(rows: Sequence[Sampled]) -> Figure:
    """Coverage over k, and over FLOPs, a line for each size: the mean over its runs."""
    fig = make_figure(3.2)
    left, right = fig.subplots(1, 2, sharey=True)
    sizes = sorted({row.n_matmul for row in rows})
    for size, color, marker in zip(
        sizes, sample_colors(len(sizes)), MARKERS * 4, strict=False
    ):
        k = sorted({row.k for row in rows})
        means = []
        flops = []
        for number in k:
            same = [row for row in rows if row.n_matmul == size and row.k == number]
            means.append(np.mean([row.coverage for row in same]))
            flops.append(same[0].flops)
        left.plot(k, means, color=color, marker=marker, markersize=4, label=f"{size:,}")
        right.plot(flops, means, color=color, marker=marker, markersize=4)
    left.set(xscale="log", xlabel="Samples k", ylabel="Examples solved by one of k")
    right.set(xscale="log", xlabel="FLOPs of an example")
    fig.legend(title="Parameters", loc="outside right upper")
    return fig


def main() -> None:
    """Sample, fit, choose, print and write."""
    args = tyro.cli(RepeatedSampling, description=__doc__)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = measure_runs(args, open_task(args.task))
    pd.DataFrame(rows).to_csv(args.out / "coverage.csv", index=False)
    laws = fit_runs(rows)
    flops = [row.flops for row in rows]
    chosen = choose_models(rows, np.geomspace(min(flops), max(flops), 8).tolist())
    for answer in (laws, chosen):
        table = pd.DataFrame(answer)
        print(table.to_string(index=False, float_format="{:.3g}".format))
    content = json.dumps({"laws": laws, "chosen": chosen}, indent=1)
    (args.out / "coverage.json").write_text(f"{content}\n")
    save_figure(plot_coverage(rows), args.out / "coverage.png")


if __name__ == "__main__":
    main()
