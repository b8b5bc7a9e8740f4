"""Laws of the rise of the loss under compression, whose logarithm is linear in their
coefficients: fitted by least squares, with a bootstrap over runs, and drawn.

Only rows whose rise is above zero by twice its standard error are fitted, since the
others have no logarithm to speak of; the laws therefore describe visible damage. All
rows of a model are drawn together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure

from analysis.plots.style import (
    draw_points,
    format_count,
    make_figure,
    sample_colors,
    set_log_axis,
    use_style,
)

LEVEL = 0.90
"""Of all intervals."""


@dataclass(frozen=True)
class RiseLaw:
    """A law of the rise of the loss whose logarithm is linear in its coefficients.

    Attributes:
        name: of its paper.
        exponents: the names of its parameters, in the order of `regressors`; that of D
            is the first.
        regressors: the X columns of a table's rows that multiply coefficients, without
            the constant.
        read: the parameters from the P = X + 1 coefficients, which begin with the
            constant.
    """

    name: str
    exponents: tuple[str, ...]
    regressors: Callable[[pd.DataFrame], Float[np.ndarray, "rows X"]]
    read: Callable[[Float[np.ndarray, " P"]], dict[str, float]]


@dataclass(frozen=True)
class RiseFit:
    """A fitted law of the rise of the loss.

    Attributes:
        law: its name.
        params: of the law.
        intervals: the central 90 % of each parameter over resampled runs.
        residual: standard deviation of the log rise about the law.
        rows: that were fitted.
        runs: that have such a row.
        exponent_of_data: the name of the exponent of D.
    """

    law: str
    params: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    residual: float
    rows: int
    runs: int
    exponent_of_data: str

    def answer(self) -> str:
        """Whether models that were trained for longer lose more."""
        low, high = self.intervals[self.exponent_of_data]
        if low > 0:
            return "trained for longer, a model loses more"
        if high < 0:
            return "trained for longer, a model loses less"
        return "these runs do not tell whether training for longer matters"


def select_visible(table: pd.DataFrame) -> pd.DataFrame:
    """The rows whose loss rises by more than two standard errors."""
    return table.loc[table["loss_increase"] > 2 * table["loss_increase_se"]]


def fit_law(
    table: pd.DataFrame, law: RiseLaw, draws: int = 1000, seed: int = 0
) -> RiseFit:
    """Fit the log rise by least squares, with a bootstrap over runs.

    Args:
        table: rows of one way to compress, with `run_id`, `loss_increase`,
            `loss_increase_se` and what the law reads.
        law: the law.
        draws: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: the visible rows do not determine the law.
    """
    rows = select_visible(table)
    design = np.column_stack([np.ones(len(rows)), law.regressors(rows)])
    rises = np.log(rows["loss_increase"].to_numpy(float))
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError(
            f"{len(rows)} rows with a visible rise do not determine {law.name}'s law; "
            "compress runs of several sizes and token budgets in several ways"
        )
    coefficients = _solve(design, rises)
    residuals = rises - design @ coefficients
    owners = pd.factorize(rows["run_id"])[0]
    samples = _resample_runs(design, rises, owners, draws, seed)
    drawn = [law.read(sample) for sample in samples]
    params = law.read(coefficients)
    intervals = {}
    for name in params:
        values = np.array([draw[name] for draw in drawn])
        low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        intervals[name] = (float(low), float(high))
    freedom = max(1, len(rows) - design.shape[1])
    return RiseFit(
        law=law.name,
        params=params,
        intervals=intervals,
        residual=float(np.sqrt(np.square(residuals).sum() / freedom)),
        rows=len(rows),
        runs=int(owners.max()) + 1,
        exponent_of_data=law.exponents[0],
    )


def _solve(
    design: Float[np.ndarray, "rows P"], rises: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, " P"]:
    return np.linalg.lstsq(design, rises, rcond=None)[0]


def _resample_runs(
    design: Float[np.ndarray, "rows P"],
    rises: Float[np.ndarray, " rows"],
    owners: np.ndarray,
    draws: int,
    seed: int,
) -> list[Float[np.ndarray, " P"]]:
    """Coefficients of draws of runs; those that do not determine them are left out."""
    rng = np.random.default_rng(seed)
    runs = int(owners.max()) + 1
    members = [np.flatnonzero(owners == run) for run in range(runs)]
    samples = []
    for _ in range(draws):
        chosen = rng.integers(0, runs, runs)
        index = np.concatenate([members[run] for run in chosen])
        if np.linalg.matrix_rank(design[index]) == design.shape[1]:
            samples.append(_solve(design[index], rises[index]))
    return samples


def format_fit(method: str, fit: RiseFit) -> str:
    """A fit in a few lines."""
    lines = [f"{method}: {fit.law}, {fit.rows} rows of {fit.runs} runs"]
    for name, value in fit.params.items():
        low, high = fit.intervals[name]
        lines.append(f"  {name:<10} {value:9.3g}  90 % [{low:.3g}, {high:.3g}]")
    lines.append(f"  residual   {fit.residual:9.3g}  of the log rise")
    lines.append(f"  {fit.answer()}")
    return "\n".join(lines)


@use_style
def plot_rises_in_panels(panels: Mapping[str, Mapping[str, pd.DataFrame]]) -> Figure:
    """The rise of the loss against tokens per weight: by the title of a panel and the
    label of a color, the rows that are shown.
    """
    figure = make_figure(2.9)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (title, groups) in zip(axes, panels.items(), strict=True):
        for (label, shown), color in zip(
            groups.items(), sample_colors(len(groups)), strict=True
        ):
            titles = []
            for row in shown.to_dict("records"):
                titles.append(f"run {row['run_id']}\nN {format_count(row['n_matmul'])}")
            ratio = shown["tokens"] / shown["n_matmul"]
            rises = shown["loss_increase"]
            draw_points(ax, ratio, rises, titles, marker="o", color=color, label=label)
        ax.set_title(title)
        set_log_axis(ax, "x", "count")
        ax.set_yscale("log")
        ax.set_xlabel("Tokens per weight D/N")
    axes[0].set_ylabel("Rise of the loss (nats per token)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    return figure
