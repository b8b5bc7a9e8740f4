"""Figure of learning curves: what was measured, and what a fitted law says.

Losses are in nats per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from analysis.curves.bootstrap import CurveBootstrap
from analysis.curves.fit import CurveFit
from analysis.curves.schedule import Schedule
from analysis.curves.table import Curves
from analysis.plots import style

MOST_COLUMNS = 3  # of the key
DRAWN_STEPS = 300  # of each curve
DRAWN_ROWS = 40
MARKER_SIZE = 3.5
# The loss axis ends at so many times the median loss's height above the lowest.
HIGHEST_OVER_MEDIAN = 2.7
# The residual axis holds this share of the residuals.
SHOWN_RESIDUALS = 0.98


@dataclass(frozen=True, eq=False)
class _Run:
    """One run, and how it is drawn."""

    name: str
    schedule: Schedule
    steps: np.ndarray
    loss: np.ndarray
    residual: np.ndarray  # percent
    is_fitted: bool
    color: style.Color
    marker: str

    @property
    def line(self) -> Literal["-", "--"]:
        return "-" if self.is_fitted else "--"

    @property
    def face(self) -> style.Color:
        return self.color if self.is_fitted else "white"


@style.use_style
def plot_curves(
    fit: CurveFit, curves: Curves | None = None, boot: CurveBootstrap | None = None
) -> Figure:
    """Draw measured curves and those of the law: above the loss over steps, in the
    middle the learning rate, below the residuals in percent.

    Runs that took no part in the fit are dashed and their points hollow. The loss axis
    leaves out the first steps, where the loss falls steeply.

    Args:
        fit: the law.
        curves: what is drawn; the fitted curves by default.
        boot: adds 90 % intervals of the law.
    """
    runs = _collect_runs(fit, curves or fit.curves)
    fig = style.make_figure(7.6)
    top, middle, bottom = fig.subplots(3, 1, sharex=True, height_ratios=[2.6, 0.8, 1])
    for run in runs:
        _draw_loss(top, run, fit, boot)
        middle.plot(
            run.steps, run.schedule.lr[run.steps], color=run.color, linestyle=run.line
        )
        bottom.plot(
            run.steps,
            run.residual,
            color=run.color,
            linestyle=run.line,
            linewidth=0.9,
            gid=f"residual-{run.name}",
        )
    _set_loss_axis(top, np.concatenate([run.loss for run in runs]))
    top.set_title(f"Learning curves and the law {fit.law.name!r}")
    middle.set(ylabel="Learning\nrate")
    middle.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2g}"))
    _set_residual_axis(bottom, np.concatenate([run.residual for run in runs]))
    bottom.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: style.format_count(value))
    )
    bottom.set(xlabel="Step")
    handles = [_make_handle(run) for run in runs]
    if boot is not None:
        band = Patch(color=style.GRAY, alpha=0.35, linewidth=0, label="90 % interval")
        handles.append(band)
    _draw_key(fig, handles)
    return fig


def _draw_key(fig: Figure, handles: list[Artist]) -> None:
    """A key below the axes, with as many columns as the page has room for."""
    for columns in range(MOST_COLUMNS, 0, -1):
        key = fig.legend(handles=handles, loc="outside lower center", ncols=columns)
        if columns == 1 or key.get_window_extent().width <= fig.bbox.width:
            return
        key.remove()


def _collect_runs(fit: CurveFit, curves: Curves) -> list[_Run]:
    colors = style.sample_colors(len(curves.runs))
    runs = []
    for i, name in enumerate(curves.runs):
        rows = curves.get_rows(name)
        schedule = curves.schedules[name]
        steps = rows["step"].to_numpy(int)
        loss = rows["loss"].to_numpy(float)
        run = _Run(
            name=name,
            schedule=schedule,
            steps=steps,
            loss=loss,
            residual=100 * (loss / fit.predict(schedule, steps) - 1),
            is_fitted=name in fit.curves.runs,
            color=colors[i],
            marker=style.MARKERS[i % len(style.MARKERS)],
        )
        runs.append(run)
    return runs


def _draw_loss(ax: Axes, run: _Run, fit: CurveFit, boot: CurveBootstrap | None) -> None:
    """Draw the law's curve of one run, its interval, and some of the measured points."""
    ends = run.steps[[0, -1]]
    across = np.unique(np.linspace(ends[0], ends[1], DRAWN_STEPS).astype(int))
    ax.plot(
        across,
        fit.predict(run.schedule, across),
        color=run.color,
        linestyle=run.line,
        zorder=3,
        gid=f"law-{run.name}",
    )
    if boot is not None:
        low, high = boot.predict_interval(run.schedule, across, style.LEVEL)
        ax.fill_between(across, low, high, color=run.color, alpha=0.2, linewidth=0)
    some = np.unique(np.linspace(0, len(run.steps) - 1, DRAWN_ROWS).astype(int))
    titles = []
    for step, loss in zip(run.steps[some], run.loss[some], strict=True):
        titles.append(f"{run.name}\nstep {step}\nloss {loss:.4f}")
    style.draw_points(
        ax,
        run.steps[some],
        run.loss[some],
        titles,
        color=run.color,
        marker=run.marker,
        markersize=MARKER_SIZE,
        mfc=run.face,
        gid=f"loss-{run.name}",
    )


def _set_loss_axis(ax: Axes, loss: np.ndarray) -> None:
    lowest = loss.min()
    height = HIGHEST_OVER_MEDIAN * (np.median(loss) - lowest)
    ax.set(ylim=(lowest - 0.1 * height, lowest + height), ylabel=style.LOSS)


def _set_residual_axis(ax: Axes, residual: np.ndarray) -> None:
    ax.axhline(0, color=style.BLACK, linewidth=0.9, zorder=1)
    span = 1.3 * float(np.quantile(np.abs(residual), SHOWN_RESIDUALS))
    if span > 0:
        ax.set(ylim=(-span, span))
    ax.set(ylabel="Measured / law\nminus 1 (%)")
    ax.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: style.format_signed(value))
    )


def _make_handle(run: _Run) -> Artist:
    label = run.name if run.is_fitted else f"{run.name} (not fitted)"
    return Line2D(
        [],
        [],
        color=run.color,
        linestyle=run.line,
        marker=run.marker,
        markersize=MARKER_SIZE,
        mfc=run.face,
        label=label,
    )
