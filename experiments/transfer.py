"""What the transfer experiments compute and draw: slopes in log size, best rates with
intervals, how far they move.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from analysis.plots.style import (
    BLACK,
    LOSS,
    MARKERS,
    make_figure,
    sample_colors,
    use_style,
)

DRAWS, LEVEL = 4000, 0.90
# What a parametrization asks of the model beside its rules: u-muP has norms without
# gains, and none of queries and keys (Blake et al. 2024, arXiv:2407.17465). Gains at 1
# would have a rate of the order of 1.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "umup": {"norm": "nonparametric_rmsnorm", "qk_norm": False}
}


def fit_slope(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Slope of log value in log size by least squares, and its standard error.

    NaN with fewer than three sizes, or where a value is zero.
    """
    if len(sizes) < 3 or min(values) <= 0:
        return float("nan"), float("nan")
    x, y = np.log(np.asarray(sizes, float)), np.log(np.asarray(values, float))
    x = x - x.mean()
    b = float(x @ y / (x @ x))
    residual = y - y.mean() - b * x
    return b, float(np.sqrt(residual @ residual / (len(x) - 2) / (x @ x)))


def find_best_steps(losses_RxG: np.ndarray) -> np.ndarray:
    """[R] place of least loss on a grid of G evenly spaced values, in steps from the
    first.

    The vertex of the parabola through the least value and its neighbours; the least
    value itself where it is at an edge or beside a run that diverged (infinite).
    """
    i = np.argmin(losses_RxG, axis=1)
    inner = np.clip(i, 1, losses_RxG.shape[1] - 2)
    left, middle, right = (
        np.take_along_axis(losses_RxG, (inner + k)[:, None], 1)[:, 0]
        for k in (-1, 0, 1)
    )
    curvature = left - 2 * middle + right
    ok = (i == inner) & np.isfinite(curvature) & (curvature > 0)
    offset = np.divide(left - right, 2 * curvature, out=np.zeros(len(i)), where=ok)
    return i + offset


def find_optima(runs: pd.DataFrame, axis: str, seed: int = 0) -> pd.DataFrame:
    """One row per parametrization and size: best_lr, low, high, best_loss, untuned, and
    `draws`, [R] of log2 best_lr.

    Args:
        runs: a run table with one shape per size along `axis` (width or depth), the
        same rates and seeds for all.

    Raises:
        ValueError: one seed only, so that nothing tells noise from effect.
    """
    rng, rows = np.random.default_rng(seed), []
    families: Any = runs.groupby("parametrization", sort=False)
    for name, family in families:
        cells: Any = family.assign(loss=family["loss"].fillna(np.inf)).groupby(
            [axis, "lr"]
        )["loss"]
        seeds, tried = int(cells.size().min()), cells.size().unstack().shape[1]
        if seeds < 2:
            raise ValueError(
                f"{name}: runs of one seed carry no interval; train at least two"
            )
        means = cells.mean().unstack().to_numpy()
        variances = cells.var(ddof=1).where(np.isfinite(cells.mean()))
        near = (
            np.abs(np.arange(tried) - np.argmin(means, axis=1)[:, None]) <= 1
        )  # of the best: the scatter there
        pooled = variances.unstack().to_numpy()[near]
        pooled = pooled[np.isfinite(pooled)]
        error = np.sqrt(pooled.mean() / seeds)
        logs = np.log2(np.sort(family["lr"].unique()))
        step = float(np.diff(logs).mean())
        for size, loss in zip(np.sort(family[axis].unique()), means, strict=True):
            noise = rng.standard_t(len(pooled) * (seeds - 1), size=(DRAWS, tried))
            draws = logs[0] + step * find_best_steps(loss[None] + error * noise)
            low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            best = int(np.argmin(loss))
            found = logs[0] + step * find_best_steps(loss[None])[0]
            row = {
                "parametrization": name,
                axis: int(size),
                "best_lr": 2**found,
                "low": 2**low,
                "high": 2**high,
            }
            rows.append(
                row
                | {
                    "best_loss": loss[best],
                    "untuned": best in (0, tried - 1),
                    "draws": draws,
                }
            )
    return pd.DataFrame(rows)


def measure_shifts(best: pd.DataFrame, axis: str) -> pd.DataFrame:
    """One row per parametrization: how far log2 of the best rate moves from the
    smallest to the largest size.

    verdict: "stays" when the interval lies within one step of 2, "moves" when it lies
    on one side of 0, else "open"; also "open" when the best rate of either is at the
    edge of the grid, and so not known.
    """
    rows = []
    for name, sizes in best.sort_values(axis).groupby("parametrization", sort=False):
        first, last = sizes.iloc[0], sizes.iloc[-1]
        low, high = np.quantile(
            last["draws"] - first["draws"], [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
        )
        verdict = (
            "stays"
            if low >= -1 and high <= 1
            else "moves"
            if low > 0 or high < 0
            else "open"
        )
        shift = float(np.log2(last["best_lr"] / first["best_lr"]))
        verdict = "open" if first["untuned"] or last["untuned"] else verdict
        rows.append(
            {
                "parametrization": name,
                "shift": shift,
                "low": low,
                "high": high,
                "verdict": verdict,
            }
        )
    return pd.DataFrame(rows)


def _make_panels(count: int, **options: Any) -> tuple[Figure, list[Any]]:
    columns = min(count, 3)
    rows = -(-count // columns)
    fig = make_figure(2.5 * rows + 0.9)
    axes = fig.subplots(rows, columns, squeeze=False, **options).ravel()
    for ax in axes[count:]:
        ax.set_visible(False)
    return fig, list(axes[:count])


@use_style
def plot_rates(runs: pd.DataFrame, best: pd.DataFrame, axis: str) -> Figure:
    """A panel per parametrization: loss against rate, a line per size, mean over seeds;
    diamonds are the best rates.
    """
    names, sizes = list(best["parametrization"].unique()), list(best[axis].unique())
    fig, axes = _make_panels(len(names), sharey=True)
    for ax, name in zip(axes, names, strict=True):
        for size, color, marker in zip(
            sizes, sample_colors(len(sizes)), MARKERS.replace("D", ""), strict=False
        ):
            cell: Any = runs[(runs["parametrization"] == name) & (runs[axis] == size)]
            means = cell.groupby("lr")["loss"].mean()
            ax.plot(
                means.index, means, color=color, marker=marker, label=f"{axis} {size}"
            )
            at: Any = best[
                (best["parametrization"] == name) & (best[axis] == size)
            ].iloc[0]
            ax.plot(
                [at["low"], at["high"]],
                [at["best_loss"]] * 2,
                color=color,
                linewidth=3,
                alpha=0.4,
            )
            ax.plot(
                at["best_lr"],
                at["best_loss"],
                marker="D",
                color=BLACK,
                markersize=6,
                mfc="none",
            )
        ax.set_xscale("log", base=2)
        ax.set(title=name, xlabel="learning rate")
    axes[0].set_ylabel(LOSS)
    fig.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(sizes),
    )
    return fig


@use_style
def plot_changes(table: pd.DataFrame, step: int) -> Figure:
    """A panel per parametrization: change of activations after `step` steps against
    size, a line per layer.
    """
    names, layers = (
        list(table["parametrization"].unique()),
        list(table["layer"].unique()),
    )
    axis = str(table["axis"].iloc[0])
    fig, axes = _make_panels(len(names), sharex=True, sharey=True)
    for ax, name in zip(axes, names, strict=True):
        for layer, color, marker in zip(
            layers, sample_colors(len(layers)), 2 * MARKERS, strict=False
        ):
            rows: Any = table[
                (table["parametrization"] == name)
                & (table["layer"] == layer)
                & (table["step"] == step)
            ]
            ax.plot(
                rows["size"],
                rows["change"],
                color=color,
                marker=marker,
                markersize=3.5,
                label=layer,
            )
        ax.set(
            xscale="log",
            yscale="log",
            title=name,
            xlabel=axis,
            xticks=table["size"].unique(),
        )
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_locator(NullLocator())
        ax.tick_params(labelbottom=True)  # also above an empty place
    axes[0].set_ylabel(f"change after {step} steps (rms)")
    fig.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4
    )
    return fig
