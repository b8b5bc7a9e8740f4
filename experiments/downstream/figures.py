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
MOST_TASKS = 3
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
    fig = make_figure(2.3 * len(shown) + 0.4)
    axes = fig.subplots(len(shown), 2, squeeze=False)
    for (left, right), step in zip(axes, shown, strict=True):
        draw_first_step(left, step)
        draw_second_step(right, step)
    handles = [
        Line2D([], [], color=BLUE, marker="o", ls="", label="fitted"),
        Line2D([], [], color=BLACK, marker="*", ms=9, ls="", label="held out"),
        Line2D([], [], color=GRAY, label="law"),
        Line2D([], [], color=VERMILLION, lw=2, label="predicted, 90 %"),
    ]
    fig.legend(handles=handles, loc="outside upper center", ncols=4)
    return fig


def choose_steps(steps: Sequence[TwoSteps]) -> list[TwoSteps]:
    """The fine-tuned tasks whose error falls most from the baseline, by N and D."""
    usable = []
    for step in steps:
        if step.mode == "fine-tuned" and step.first == "N and D" and step.predictions:
            usable.append(step)
    usable.sort(key=lambda step: step.rows["error"].min() / step.rows["baseline"].min())
    return usable[:MOST_TASKS]


def draw_first_step(ax: Axes, step: TwoSteps) -> None:
    """The task's loss over size, a curve for each budget."""
    assert step.loss_fit is not None
    rows = step.rows
    widest = rows["width"].max()
    held_out = rows.loc[rows["width"] == widest]
    sizes = np.geomspace(rows["N"].min() * 0.9, rows["N"].max() * 1.1, 60)
    budgets = sorted(rows["D"].unique())
    for budget, marker in zip(budgets, MARKERS, strict=False):
        ax.plot(sizes, step.loss_fit.predict(N=sizes, D=budget), color=GRAY, zorder=1)
        at = rows.loc[(rows["D"] == budget) & (rows["width"] != widest)]
        ax.errorbar(
            at["N"],
            at["loss"],
            at["loss_se_of_task"],
            color=BLUE,
            marker=marker,
            linestyle="none",
            markersize=4,
            elinewidth=0.8,
        )
        ax.annotate(
            format_count(budget),
            (sizes[0], step.loss_fit.predict(N=sizes[0], D=budget)),
            xytext=(-2, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=7.5,
            color=GRAY,
        )
    for row, found in zip(held_out.to_dict("records"), step.predictions, strict=True):
        low, high = found.loss_interval
        ax.plot([row["N"]] * 2, [low, high], color=VERMILLION, linewidth=2, zorder=2)
        ax.plot(row["N"], row["loss"], color=BLACK, marker="*", markersize=9)
    set_log_axis(ax, "x", "count")
    ax.set_xlim(sizes[0] * 0.72, sizes[-1] * 1.1)
    ax.set_xlabel("Model size N (parameters)")
    ax.set_ylabel(LOSS_NAMES[step.choice.loss])
    ax.set_title(step.choice.title)


def draw_second_step(ax: Axes, step: TwoSteps) -> None:
    """The error over the task's loss."""
    assert step.error_fit is not None
    rows = step.rows
    widest = rows["width"].max()
    fitted = rows.loc[rows["width"] != widest]
    held_out = rows.loc[rows["width"] == widest]
    losses = [rows["loss"].min(), *[found.loss for found in step.predictions]]
    line = np.linspace(min(losses) * 0.97, rows["loss"].max() * 1.02, 100)
    ax.plot(line, step.error_fit.predict(loss=line), color=GRAY, zorder=1)
    ax.errorbar(
        fitted["loss"],
        fitted["error"],
        fitted["error_se"],
        color=BLUE,
        marker="o",
        linestyle="none",
        markersize=4,
        elinewidth=0.8,
    )
    for row, found in zip(held_out.to_dict("records"), step.predictions, strict=True):
        low, high = found.error_interval
        ax.plot([found.loss] * 2, [low, high], color=VERMILLION, linewidth=2, zorder=2)
        ax.plot(found.loss_interval, [found.error] * 2, color=VERMILLION, linewidth=0.8)
        ax.plot(row["loss"], row["error"], color=BLACK, marker="*", markersize=9)
    ax.axhline(rows["baseline"].iloc[0], color=GRAY, linestyle="--", linewidth=0.9)
    ax.set_xlabel(LOSS_NAMES[step.choice.loss])
    ax.set_ylabel(f"1 {chr(0x2212)} {METRIC_NAMES[step.choice.metric]}")


@use_style
def plot_transfer(laws: Sequence[TransferLaw]) -> Figure:
    """The examples that pre-training is worth, over the examples of the task."""
    fig = make_figure(2.9)
    if not laws:
        fig.text(0.5, 0.5, "no task was trained on several numbers of examples")
        return fig
    axes = fig.subplots(1, len(laws), squeeze=False)[0]
    widths = sorted({width for law in laws for width in law.rows["width"]})
    colors = dict(zip(widths, sample_colors(len(widths)), strict=True))
    for ax, law in zip(axes, laws, strict=True):
        draw_transfer(ax, law, colors)
    axes[0].set_ylabel("Effective data transferred D_T (examples)", parse_math=False)
    handles = []
    for width, marker in zip(widths, MARKERS, strict=False):
        label = f"width {width}" + (" (held out)" if width == widths[-1] else "")
        look = {"color": colors[width], "marker": marker}
        handles.append(Line2D([], [], label=label, **look))
    fig.legend(handles=handles, loc="outside upper center", ncols=len(widths))
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
    ax.set_xlabel("Examples of the task D_F", parse_math=False)
