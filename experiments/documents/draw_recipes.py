"""Figures of the claims about the recipe. Losses in nats per token."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from analysis.plots.style import (
    BLACK,
    BLUE,
    GRAY,
    LOSS,
    MARKERS,
    format_count,
    make_figure,
    sample_colors,
    use_style,
)
from experiments.documents.draw import FREE, HEIGHT, at_values

Frame = Any
LOST = 6.0  # nats per token, more than of knowing nothing, ln 256


def rate_axis(ax: Axes) -> None:
    """A logarithmic axis of learning rates, ticks at powers of ten."""
    ax.set(xscale="log", xlabel="Peak learning rate")
    ax.xaxis.set_major_locator(LogLocator(numticks=6))
    ax.xaxis.set_minor_formatter(NullFormatter())


def rate_lines(ax: Axes, table: Frame, by: str, x: str = "lr") -> list[Any]:
    """Mean loss against rate, one line per value of a column in its order; returns what
    the key shows.

    A rate at which the mean is above `LOST`, or not finite, is a cross there.
    """
    handles = []
    names = list(dict.fromkeys(table[by]))
    for name, color, marker in zip(
        names, sample_colors(len(names)), MARKERS, strict=False
    ):
        means = table[table[by] == name].groupby(x)["loss"].mean()
        shown, lost = means[means < LOST], means[~(means < LOST)]
        handles += ax.plot(
            shown.index,
            shown,
            color=color,
            marker=marker,
            markersize=4,
            label=str(name),
        )
        ax.plot(lost.index, np.full(len(lost), LOST), "x", color=color, markersize=6)
    rate_axis(ax)
    return handles


@use_style
def recipe(rates: Frame, batches: Frame, examples: Frame, critical: float) -> Figure:
    """Loss by rate and optimiser; loss by batch size; tokens to reach one loss by batch
    size.
    """
    fig = make_figure(HEIGHT)
    left, middle, right = fig.subplots(1, 3)
    handles = rate_lines(left, rates, "optimizer")
    left.set(ylabel=LOSS)
    last = batches[batches["tokens"] == batches["tokens"].max()]
    best = (
        last.groupby(["batch_tokens", "lr"])["loss"]
        .mean()
        .groupby("batch_tokens")
        .min()
    )
    middle.plot(best.index, best, "o-", color=BLUE, markersize=4.5)
    at_values(middle, best.index)
    middle.set(
        xlabel="Batch (tokens)",
        ylabel=f"Loss at {format_count(last['tokens'].iloc[0])} tokens",
    )
    right.plot(examples["batch"], examples["examples"] / 1e3, "o", color=BLUE, **FREE)
    if critical > 0:
        first = examples.iloc[0]
        least = first["fitted"] / (1 + first["batch"] / critical)
        B = np.geomspace(examples["batch"].min(), examples["batch"].max(), 50)
        right.plot(B, least * (1 + B / critical) / 1e3, color=BLACK, zorder=1)
    at_values(right, examples["batch"])
    right.set(xlabel="Batch (tokens)", ylabel="Thousand tokens needed")
    right.set_ylim(0, None)
    fig.legend(handles=handles, loc="outside upper left", ncols=3)
    return fig


@use_style
def overfitting(curves: Frame, ends: Frame, unique: int) -> Figure:
    """Held-out loss over epochs by arm; training and held-out loss at the end."""
    fig = make_figure(HEIGHT)
    left, right = fig.subplots(1, 2, sharey=True)
    handles, names = [], list(dict.fromkeys(ends["arm"]))
    names.sort(key=lambda name: name != "none")
    for i, (name, color, marker) in enumerate(
        zip(names, sample_colors(len(names)), MARKERS, strict=False)
    ):
        means = curves[curves["arm"] == name].groupby("tokens")["loss"].mean()
        look = {"color": color, "marker": marker, "markersize": 4}
        handles += left.plot(means.index / unique, means, label=name, **look)
        rows = ends[ends["arm"] == name]
        right.plot(np.full(len(rows), i), rows["heldout"], linestyle="none", **look)
        right.plot(
            np.full(len(rows), i), rows["train"], linestyle="none", mfc="white", **look
        )
    at_values(left, curves["tokens"] / unique)
    left.set(
        xlabel=f"Tokens trained on, in units of {unique:,}",
        ylabel="Held-out loss (nats per token)",
    )
    right.set_xticks(range(len(names)), [textwrap.fill(name, 9) for name in names])
    right.set(ylabel="Loss at the end: filled held-out,\nhollow training")
    right.tick_params(labelleft=True)
    right.margins(x=0.15)
    fig.legend(handles=handles, loc="outside upper left", ncols=4)
    return fig


@use_style
def update(table: Frame, reference: Frame) -> Figure:
    """Loss against rate of the documents' update, beside the other optimisers."""
    fig = make_figure(HEIGHT)
    left, right = fig.subplots(1, 2, sharey=True)
    for ax, rows, by, x in (
        (left, table, "arm", "rate"),
        (right, reference, "optimizer", "lr"),
    ):
        handles = rate_lines(ax, rows, by, x)
        ax.axhline(math.log(256), color=GRAY, linestyle=":", zorder=1)
        ax.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=3,
            borderaxespad=0.1,
        )
    left.set(ylabel=LOSS)
    return fig
