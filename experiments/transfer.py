"""What the transfer experiments compute and draw: slopes in log size, best learning
rates with intervals, and how far these move with size.

Axes: R draws, G learning rates of the grid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
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
from experiments.groups import average_by
from scaling import ModelConfig

DRAWS = 4000
LEVEL = 0.90
QUANTILES = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


def parametrize_model(model: ModelConfig, parametrization: str) -> ModelConfig:
    """The model under a parametrization, with the layers that its authors use.

    u-muP has norms without gains, and none of queries and keys (Blake et al. 2024,
    arXiv:2407.17465). A gain of 1 would have a learning rate of the order of 1.
    """
    model = dataclasses.replace(model, parametrization=parametrization)
    if parametrization == "umup":
        model = dataclasses.replace(model, norm="nonparametric_rmsnorm", qk_norm=False)
    return model


def fit_slope(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Slope of log value in log size by least squares, and its standard error.

    NaN with fewer than three sizes, or where a value is zero.
    """
    if len(sizes) < 3 or min(values) <= 0:
        return float("nan"), float("nan")
    x = np.log(np.asarray(sizes, float))
    y = np.log(np.asarray(values, float))
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    residual = y - y.mean() - slope * x
    variance = residual @ residual / (len(x) - 2)
    return slope, float(np.sqrt(variance / (x @ x)))


def find_best_steps(losses: Float[np.ndarray, "R G"]) -> Float[np.ndarray, " R"]:
    """Place of the least loss on a grid of evenly spaced values, in steps from the
    first.

    It is the vertex of the parabola through the least value and its neighbors; the
    least value itself where that is at an edge or beside a run that diverged
    (infinite).
    """
    best = np.argmin(losses, axis=1)
    inner = np.clip(best, 1, losses.shape[1] - 2)

    def take_beside(offset: int) -> np.ndarray:
        return np.take_along_axis(losses, (inner + offset)[:, None], 1)[:, 0]

    left = take_beside(-1)
    middle = take_beside(0)
    right = take_beside(1)
    curvature = left - 2 * middle + right
    has_vertex = (best == inner) & np.isfinite(curvature) & (curvature > 0)
    offset = np.divide(
        left - right, 2 * curvature, out=np.zeros(len(best)), where=has_vertex
    )
    return best + offset


@dataclass(frozen=True, eq=False)
class RateGrid:
    """Losses of one parametrization at every size and learning rate.

    Attributes:
        sizes: widths or depths, ascending.
        log2_rates: binary logarithm of the learning rates, ascending, [G].
        means: mean losses over seeds, [sizes, G]; infinite where a run diverged.
        error: standard error of a mean loss near the best rates, pooled over sizes.
        dof: degrees of freedom of `error`.
    """

    sizes: np.ndarray
    log2_rates: np.ndarray
    means: np.ndarray
    error: float
    dof: int

    @property
    def step(self) -> float:
        """Distance of neighboring rates in log2."""
        return float(np.diff(self.log2_rates).mean())

    def find_best_log2_rates(self, losses: np.ndarray) -> np.ndarray:
        """log2 of the best rate of each row of losses [R, G]."""
        return self.log2_rates[0] + self.step * find_best_steps(losses)


def make_rate_grid(runs: pd.DataFrame, axis: str) -> RateGrid:
    """Average the runs of one parametrization over seeds.

    Raises:
        ValueError: there is one seed only, which leaves no measure of the noise.
    """
    losses = runs.assign(loss=runs["loss"].fillna(np.inf))
    cells = losses.groupby([axis, "lr"])["loss"]
    n_seeds = int(cells.size().to_numpy().min())
    if n_seeds < 2:
        name = runs["parametrization"].iloc[0]
        raise ValueError(
            f"{name}: runs of one seed carry no interval; train at least two"
        )
    cell_means = cells.mean()
    cell_variances = cells.var(ddof=1)
    assert isinstance(cell_means, pd.Series)
    assert isinstance(cell_variances, pd.Series)
    means = cell_means.unstack().to_numpy()
    is_finite = np.isfinite(cell_means)
    variances = cell_variances.where(is_finite).unstack().to_numpy()
    # The scatter that matters is that at the best rates and beside them.
    best = np.argmin(means, axis=1)[:, None]
    is_near = np.abs(np.arange(means.shape[1]) - best) <= 1
    pooled = variances[is_near]
    pooled = pooled[np.isfinite(pooled)]
    return RateGrid(
        sizes=np.unique(runs[axis].to_numpy()),
        log2_rates=np.log2(np.unique(runs["lr"].to_numpy())),
        means=means,
        error=np.sqrt(pooled.mean() / n_seeds),
        dof=len(pooled) * (n_seeds - 1),
    )


def find_optima(runs: pd.DataFrame, axis: str, seed: int = 0) -> pd.DataFrame:
    """One row per parametrization and size: best_lr, low, high, best_loss, untuned, and
    `draws`, log2 of best_lr on noisy losses, [R].

    The interval from `low` to `high` repeats the search on losses with Student's t
    noise as large as the scatter between seeds. `untuned` tells that the best rate is
    at the edge of the grid.

    Args:
        runs: a run table with one shape per size along `axis`, and the same rates and
            seeds for all.
        axis: `width` or `depth`.
        seed: of the draws.

    Raises:
        ValueError: there is one seed only, which leaves no measure of the noise.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for name, family in runs.groupby("parametrization", sort=False):
        grid = make_rate_grid(family, axis)
        n_rates = len(grid.log2_rates)
        for size, losses in zip(grid.sizes, grid.means, strict=True):
            noise = rng.standard_t(grid.dof, size=(DRAWS, n_rates))
            draws = grid.find_best_log2_rates(losses[None] + grid.error * noise)
            low, high = np.quantile(draws, QUANTILES)
            best = int(np.argmin(losses))
            best_log2_rate = grid.find_best_log2_rates(losses[None])[0]
            rows.append(
                {
                    "parametrization": name,
                    axis: int(size),
                    "best_lr": 2**best_log2_rate,
                    "low": 2**low,
                    "high": 2**high,
                    "best_loss": losses[best],
                    "untuned": best in (0, n_rates - 1),
                    "draws": draws,
                }
            )
    return pd.DataFrame(rows)


def measure_shifts(best: pd.DataFrame, axis: str) -> pd.DataFrame:
    """One row per parametrization: how far log2 of the best rate moves from the
    smallest to the largest size.

    `verdict` is "stays" if the interval lies within one step of 2, "moves" if it lies
    on one side of 0, and else "open". It is also "open" if the best rate of either size
    is at the edge of the grid, since it is then not known.
    """
    rows = []
    for name, sizes in best.sort_values(axis).groupby("parametrization", sort=False):
        first = sizes.iloc[0]
        last = sizes.iloc[-1]
        low, high = np.quantile(last["draws"] - first["draws"], QUANTILES)
        is_known = not (first["untuned"] or last["untuned"])
        rows.append(
            {
                "parametrization": name,
                "shift": float(np.log2(last["best_lr"] / first["best_lr"])),
                "low": low,
                "high": high,
                "verdict": judge_shift(low, high) if is_known else "open",
            }
        )
    return pd.DataFrame(rows)


def judge_shift(low: float, high: float) -> str:
    """The verdict on the interval of a shift, in steps of 2."""
    if low >= -1 and high <= 1:
        return "stays"
    if low > 0 or high < 0:
        return "moves"
    return "open"


def _make_panels(count: int, share_x: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, three a row, that share the y axis."""
    columns = min(count, 3)
    rows = -(-count // columns)
    fig = make_figure(2.5 * rows + 0.9)
    grid = fig.subplots(rows, columns, squeeze=False, sharex=share_x, sharey=True)
    panels = grid.ravel().tolist()
    for unused in panels[count:]:
        unused.set_visible(False)
    return fig, panels[:count]


@use_style
def plot_rates(runs: pd.DataFrame, best: pd.DataFrame, axis: str) -> Figure:
    """A panel per parametrization: loss against rate, a line per size, mean over seeds;
    diamonds are the best rates.
    """
    names = best["parametrization"].unique().tolist()
    sizes = best[axis].unique().tolist()
    colors = sample_colors(len(sizes))
    markers = MARKERS.replace("D", "")
    fig, panels = _make_panels(len(names))
    for ax, name in zip(panels, names, strict=True):
        own_runs: pd.DataFrame = runs.loc[runs["parametrization"] == name]
        own_best: pd.DataFrame = best.loc[best["parametrization"] == name]
        for size, color, marker in zip(sizes, colors, markers, strict=False):
            means = average_by(own_runs.loc[own_runs[axis] == size], "lr")
            ax.plot(
                means.index, means, color=color, marker=marker, label=f"{axis} {size}"
            )
            optimum = own_best.loc[own_best[axis] == size].iloc[0]
            ax.plot(
                [optimum["low"], optimum["high"]],
                [optimum["best_loss"], optimum["best_loss"]],
                color=color,
                linewidth=3,
                alpha=0.4,
            )
            ax.plot(
                optimum["best_lr"],
                optimum["best_loss"],
                marker="D",
                color=BLACK,
                markersize=6,
                markerfacecolor="none",
            )
        ax.set_xscale("log", base=2)
        ax.set(title=name, xlabel="learning rate")
    panels[0].set_ylabel(LOSS)
    fig.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(sizes),
    )
    return fig


@use_style
def plot_changes(table: pd.DataFrame, step: int) -> Figure:
    """A panel per parametrization: change of activations after `step` steps against
    size, a line per layer.
    """
    names = table["parametrization"].unique().tolist()
    layers = table["layer"].unique().tolist()
    colors = sample_colors(len(layers))
    at_step: pd.DataFrame = table.loc[table["step"] == step]
    fig, panels = _make_panels(len(names), share_x=True)
    for ax, name in zip(panels, names, strict=True):
        own: pd.DataFrame = at_step.loc[at_step["parametrization"] == name]
        for layer, color, marker in zip(layers, colors, 2 * MARKERS, strict=False):
            rows = own.loc[own["layer"] == layer]
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
            xlabel=str(table["axis"].iloc[0]),
            xticks=table["size"].unique(),
        )
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_locator(NullLocator())
        # A panel above an empty place is the last of its column.
        ax.tick_params(labelbottom=True)
    panels[0].set_ylabel(f"change after {step} steps (rms)")
    fig.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4
    )
    return fig
