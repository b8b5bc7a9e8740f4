"""The figures: metrics over the loss, the two steps, transfer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.plots.style import (
    BLACK,
    BLUE,
    GRAY,
    MARKERS,
    MINUS,
    VERMILLION,
    format_count,
    make_figure,
    sample_colors,
    set_log_axis,
    use_style,
)
from experiments.downstream.laws import TransferLaw, TwoSteps
from experiments.downstream.settings import METRIC_SCALE, Settings, TaskChoice

COLUMNS = 3
BUDGET_LOOKS = (("o", ("white", "white")), ("s", (BLUE, BLACK)))
"""Marker of a budget, and how it is filled for fitted and for held-out models."""
MOST_TASKS = 4
"""Rows of the figure of the two steps."""
METRIC_NAMES = {
    "accuracy": "Accuracy",
    "exact_match": "Exact match",
    "chrf": "chrF / 100",
    "rougeL": "ROUGE-L",
}
LOSS_NAMES = {
    "choice_nats": "Task loss (nats per choice)",
    "answer_bits_per_byte": "Task loss (bits per byte)",
}


@use_style
def plot_metrics(table: pd.DataFrame, settings: Settings) -> Figure:
    """The main metric of every task over the pre-training loss, zero-shot and
    fine-tuned.
    """
    count = len(settings.tasks)
    rows = math.ceil(count / COLUMNS)
    fig = make_figure(2.1 * rows + 0.4)
    axes = fig.subplots(rows, COLUMNS, squeeze=False, sharex=True).ravel()
    for ax, choice in zip(axes, settings.tasks, strict=False):
        draw_metric(ax, table, choice)
    for ax in axes[count:]:
        ax.set_visible(False)
    handles = [
        Line2D([], [], color=BLUE, marker="o", ls="", label="fine-tuned"),
        Line2D(
            [], [], color=VERMILLION, marker="s", ls="", mfc="white", label="zero-shot"
        ),
        Line2D([], [], color=GRAY, ls="--", label="chance or majority"),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=3)
    fig.supxlabel("Pre-training loss (nats per token)", fontsize=9)
    return fig


def draw_metric(ax: Axes, table: pd.DataFrame, choice: TaskChoice) -> None:
    """One task; better models are to the right."""
    chosen = table.loc[
        (table["task"] == choice.spec) & (table["metric"] == choice.metric)
    ]
    scale = METRIC_SCALE.get(choice.metric, 1.0)
    looks = (
        ("zero-shot", VERMILLION, "s", "white"),
        ("fine-tuned", BLUE, "o", BLUE),
    )
    for mode, color, marker, fill in looks:
        rows = chosen.loc[chosen["mode"] == mode]
        ax.errorbar(
            rows["pretraining_loss"],
            rows["value"] / scale,
            rows["standard_error"] / scale,
            linestyle="none",
            markersize=4,
            elinewidth=0.8,
            color=color,
            marker=marker,
            mfc=fill,
        )
    baseline = chosen[["chance", "majority"]].max(axis=None) / scale
    ax.axhline(baseline, color=GRAY, linestyle="--", linewidth=0.9, zorder=1)
    if not ax.xaxis_inverted():
        ax.invert_xaxis()
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, -0.02), high)
    ax.set_title(choice.title)
    ax.set_ylabel(METRIC_NAMES[choice.metric])


@use_style
def plot_two_steps(steps: Sequence[TwoSteps]) -> Figure:
    """For fine-tuned models of the tasks that are learned best: the task's loss over
    size, the error over that loss, and the prediction of the held-out models.
    """
    shown = choose_steps(steps)
    if not shown:
        fig = make_figure(1.0)
        fig.text(0.5, 0.5, "no task was learned: nothing to predict", ha="center")
        return fig
    fig = make_figure(2.0 * len(shown) + 0.5)
    axes = fig.subplots(len(shown), 2, squeeze=False)
    for (left, right), step in zip(axes, shown, strict=True):
        draw_first_step(left, step)
        draw_second_step(right, step)
    handles = [
        Line2D([], [], color=GRAY, label="law"),
        Line2D([], [], color=VERMILLION, lw=2, label="predicted, 90 %"),
    ]
    budgets = sorted(shown[0].rows["D"].unique())
    for budget, (marker, fill) in zip(budgets, BUDGET_LOOKS, strict=False):
        title = f"{format_count(budget)} tokens"
        handles.append(
            Line2D([], [], label=title, marker=marker, ls="", mfc=fill[0], color=BLUE)
        )
    handles.append(
        Line2D([], [], color=BLACK, marker="*", ms=9, ls="", label="held out")
    )
    fig.legend(handles=handles, loc="outside upper center", ncols=5)
    return fig


def choose_steps(steps: Sequence[TwoSteps]) -> list[TwoSteps]:
    """The fine-tuned tasks of which the fitted models reach the lowest errors, as a
    share of the baseline's; by N and D.
    """
    usable = []
    for step in steps:
        if step.mode == "fine-tuned" and step.first == "N and D" and step.predictions:
            usable.append(step)
    usable.sort(key=find_least_error)
    return usable[:MOST_TASKS]


def find_least_error(step: TwoSteps) -> float:
    """The lowest error of the fitted models over the baseline's."""
    assert step.error_fit is not None
    return float(step.error_fit.data["error"].min() / step.rows["baseline"].iloc[0])


def draw_first_step(ax: Axes, step: TwoSteps) -> None:
    """The task's loss over size, a curve for each budget."""
    assert step.loss_fit is not None
    rows = step.rows
    sizes = np.geomspace(rows["N"].min() * 0.9, rows["N"].max() * 1.1, 60)
    for budget in sorted(rows["D"].unique()):
        ax.plot(sizes, step.loss_fit.predict(N=sizes, D=budget), color=GRAY, zorder=1)
    draw_models(ax, rows, "N", "loss")
    held_out = rows.loc[rows["width"] == rows["width"].max()]
    for row, found in zip(held_out.to_dict("records"), step.predictions, strict=True):
        low, high = found.loss_interval
        ax.plot([row["N"]] * 2, [low, high], color=VERMILLION, linewidth=2, zorder=2)
    set_log_axis(ax, "x", "count")
    ax.set_xlabel("Model size N (parameters)")
    ax.set_ylabel(LOSS_NAMES[step.choice.loss])
    ax.set_title(step.choice.title)


def draw_models(ax: Axes, rows: pd.DataFrame, x: str, y: str) -> None:
    """The models of both budgets; those that are held out as stars."""
    is_widest = rows["width"] == rows["width"].max()
    for budget, (marker, fill) in zip(
        sorted(rows["D"].unique()), BUDGET_LOOKS, strict=False
    ):
        of_budget = rows["D"] == budget
        fitted = rows.loc[of_budget & ~is_widest]
        ax.errorbar(
            fitted[x],
            fitted[y],
            fitted[f"{y}_se"],
            color=BLUE,
            marker=marker,
            mfc=fill[0],
            linestyle="none",
            markersize=4,
            elinewidth=0.8,
        )
        held_out = rows.loc[of_budget & is_widest]
        ax.plot(
            held_out[x],
            held_out[y],
            color=BLACK,
            marker="*",
            mfc=fill[1],
            linestyle="none",
            markersize=9,
            zorder=4,
        )


def draw_second_step(ax: Axes, step: TwoSteps) -> None:
    """The error over the task's loss; the crosses are the predictions."""
    assert step.error_fit is not None
    rows = step.rows
    losses = [rows["loss"].min(), *[found.loss for found in step.predictions]]
    line = np.linspace(min(losses) * 0.97, rows["loss"].max() * 1.02, 200)
    errors = np.asarray(step.error_fit.predict(loss=line))
    # The law knows nothing of an error below 0.
    ax.plot(line, np.where(errors >= 0, errors, np.nan), color=GRAY, zorder=1)
    draw_models(ax, rows, "loss", "error")
    for found in step.predictions:
        low, high = found.error_interval
        ax.plot([found.loss] * 2, [low, high], color=VERMILLION, linewidth=2, zorder=2)
        ax.plot(found.loss_interval, [found.error] * 2, color=VERMILLION, linewidth=0.8)
    ax.axhline(rows["baseline"].iloc[0], color=GRAY, linestyle="--", linewidth=0.9)
    ax.set_xlabel(LOSS_NAMES[step.choice.loss])
    ax.set_ylabel(f"1 {MINUS} {METRIC_NAMES[step.choice.metric]}")


@use_style
def plot_transfer(laws: Sequence[TransferLaw]) -> Figure:
    """The examples that pre-training is worth, over the examples of the task, for the
    tasks with a law.
    """
    shown = [law for law in laws if law.fit is not None]
    if not shown:
        fig = make_figure(1.0)
        fig.text(0.5, 0.5, "no task has a law of transfer", ha="center")
        return fig
    rows = math.ceil(len(shown) / 2)
    fig = make_figure(2.3 * rows + 0.6)
    axes = fig.subplots(rows, 2, squeeze=False).ravel()
    widths = sorted({width for law in shown for width in law.rows["width"]})
    colors = dict(zip(widths, sample_colors(len(widths)), strict=True))
    for ax, law in zip(axes, shown, strict=False):
        draw_transfer(ax, law, colors)
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    fig.supxlabel("Examples of the task D_F", fontsize=9, parse_math=False)
    fig.supylabel(
        "Effective data transferred D_T (examples)", fontsize=9, parse_math=False
    )
    handles = []
    for width, marker in zip(widths, MARKERS, strict=False):
        label = f"width {width}" + (" (held out)" if width == widths[-1] else "")
        color = colors[width]
        handles.append(Line2D([], [], label=label, color=color, marker=marker))
    handles.append(Line2D([], [], color=VERMILLION, label="predicted, 90 %"))
    fig.legend(handles=handles, loc="outside upper center", ncols=3)
    return fig


def draw_transfer(
    ax: Axes, law: TransferLaw, colors: dict[int, tuple[float, float, float, float]]
) -> None:
    """One task: markers are measured, lines the law; the widest models' interval."""
    usable = law.rows.loc[law.rows["outcome"] == "measured"]
    for (width, color), marker in zip(colors.items(), MARKERS, strict=False):
        rows = usable.loc[usable["width"] == width]
        ax.plot(rows["D_F"], rows["D_T"], color=color, marker=marker, linestyle="none")
        of_width = law.rows.loc[law.rows["width"] == width]
        if law.fit is not None and len(of_width):
            x = np.geomspace(law.rows["D_F"].min(), law.rows["D_F"].max(), 20)
            size = float(of_width["N"].iloc[0])
            ax.plot(x, law.fit.predict(D_F=x, N=size), color=color, linewidth=0.9)
    if "low" in law.held_out:
        for row in law.held_out.to_dict("records"):
            ax.plot([row["D_F"]] * 2, [row["low"], row["high"]], color=VERMILLION)
    set_log_axis(ax, "x", "count")
    set_log_axis(ax, "y", "count")
    ax.set_title(law.task)
