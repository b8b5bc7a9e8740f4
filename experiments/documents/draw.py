"""Figures of the claims about size, data, depth and compute. Losses in nats per token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.plots.style import (
    BLACK,
    BLUE,
    GRAY,
    LOSS,
    MARKERS,
    VARIABLE,
    VERMILLION,
    format_count,
    make_figure,
    sample_colors,
    set_log_axis,
    use_style,
)
from experiments.documents.statement import Estimate

Frame = Any
HEIGHT = 3.2
FREE = {"linestyle": "none", "markersize": 4.5}


def at_values(ax: Axes, values: Any, which: str = "x") -> None:
    """A base-2 axis with ticks at the values themselves."""
    ticks = sorted({float(v) for v in values})
    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_locator(NullLocator())


def by_size(
    ax: Axes, table: Frame, x: str, y: str, unit: str = "n_matmul"
) -> list[Any]:
    """One line per trunk, one colour and marker per size; returns what the key shows,
    largest size first.
    """
    handles = []
    sizes = sorted(table[unit].unique())
    for N, color, marker in zip(
        sizes, sample_colors(len(sizes)), MARKERS, strict=False
    ):
        rows = table[table[unit] == N]
        for _, trunk in rows.groupby("trunk_id"):
            trunk = trunk.sort_values(x)
            label = format_count(float(N))
            (line,) = ax.plot(
                trunk[x],
                trunk[y],
                color=color,
                marker=marker,
                markersize=4,
                linewidth=1,
                label=label,
            )
        handles.append(line)
    return handles[::-1]


@use_style
def performance(rows: Frame, numbers: Mapping[str, Estimate]) -> Figure:
    """1/loss over the smallest size's, against N, beside a square law."""
    fig = make_figure(HEIGHT)
    ax = fig.add_subplot()
    first = rows["n_matmul"].min()
    start = 1 / rows.loc[rows["n_matmul"] == first, "loss"].mean()
    gain = 1 / rows["loss"] / start
    N = np.geomspace(first, rows["n_matmul"].max(), 50)
    exponent = next(iter(numbers.values()))
    level = float(
        np.exp(
            np.mean(np.log(gain) - exponent.value * np.log(rows["n_matmul"] / first))
        )
    )
    ax.plot(
        N, (N / first) ** 2, color=VERMILLION, linestyle="--", label="grows as $N^2$"
    )
    ax.plot(
        N,
        level * (N / first) ** exponent.value,
        color=BLACK,
        label=f"grows as $N^{{{exponent.value:.3f}}}$",
    )
    ax.plot(rows["n_matmul"], gain, "o", color=BLUE, **FREE, label="a run")
    set_log_axis(ax, "x", "count")
    set_log_axis(ax, "y", "loss")
    ax.set(xlabel=VARIABLE["N"], ylabel="1/loss over that of\nthe smallest size")
    fig.legend(loc="outside right upper")
    return fig


@use_style
def drops(drops: Frame, trend: Estimate) -> Figure:
    """Drop of the loss per doubling of N, between neighbouring sizes."""
    fig = make_figure(HEIGHT)
    ax = fig.add_subplot()
    x = np.log2(drops["N"])
    line = drops["drop"].mean() + trend.value * (x - x.mean())
    ax.plot(drops["N"], line, color=BLACK, label="trend of the\nfitted parabola")
    ax.plot(
        drops["N"], drops["drop"], "o", color=BLUE, **FREE, label="between two sizes"
    )
    set_log_axis(ax, "x", "count")
    ax.set_ylim(0, None)
    ax.set(
        xlabel=VARIABLE["N"], ylabel="Fall of the loss per doubling\n(nats per token)"
    )
    fig.legend(loc="outside right upper")
    return fig


@use_style
def data_curves(table: Frame) -> Figure:
    """Loss against tokens, one line per trunk."""
    fig = make_figure(HEIGHT)
    ax = fig.add_subplot()
    handles = by_size(ax, table, "tokens", "loss")
    set_log_axis(ax, "x", "count")
    set_log_axis(ax, "y", "loss")
    ax.set(xlabel=VARIABLE["D"], ylabel=LOSS)
    fig.legend(handles=handles[::-1], title="Parameters N", loc="outside right upper")
    return fig


@use_style
def price(table: Frame, best: Frame) -> Figure:
    """Loss against compute with its lower envelope; measured time against counted
    FLOPs.
    """
    fig = make_figure(HEIGHT)
    left, right = fig.subplots(1, 2)
    handles = by_size(left, table, "flops", "loss")
    handles += left.plot(
        best["flops"],
        best["loss"],
        color=BLACK,
        linestyle="--",
        zorder=4,
        label="lowest",
    )
    set_log_axis(left, "x", "flops")
    set_log_axis(left, "y", "loss")
    left.set(xlabel="Training compute (FLOPs)", ylabel=LOSS)
    left.xaxis.get_major_locator().most = 3  # type: ignore[attr-defined]
    for _, trunk in table.groupby("trunk_id"):
        ends = trunk.sort_values("tokens").iloc[[0, -1]]
        seconds = float(np.diff(ends["wall_seconds"])[0]) / float(
            np.diff(ends["tokens"])[0]
        )
        right.plot(
            ends["flops"].iloc[0] / ends["tokens"].iloc[0],
            1e6 * seconds,
            "o",
            color=BLUE,
            **FREE,
        )
    set_log_axis(right, "x", "flops")
    set_log_axis(right, "y", "count")
    right.xaxis.get_major_locator().most = 3  # type: ignore[attr-defined]
    right.set(xlabel="Counted FLOPs per token", ylabel="Seconds per million tokens")
    fig.legend(handles=handles, title="Parameters N", loc="outside right upper")
    return fig


@use_style
def capacity(widths: Frame, depths: Frame) -> Figure:
    """Loss against depth and against width."""
    fig = make_figure(HEIGHT)
    axes = fig.subplots(1, 2, sharey=True)
    fixed = (f"width {depths['width'].iloc[0]}", f"depth {widths['depth'].iloc[0]}")
    for ax, table, name, what in zip(
        axes, (depths, widths), ("depth", "width"), fixed, strict=True
    ):
        means = table.groupby(name)["loss"].mean()
        ax.plot(means.index, means, color=GRAY, zorder=1)
        ax.plot(table[name], table["loss"], "o", color=BLUE, **FREE)
        at_values(ax, table[name])
        unit = "layers" if name == "depth" else "units"
        ax.set(xlabel=f"{name.capitalize()} ({unit}), at {what}")
    axes[0].set(ylabel=LOSS)
    return fig


@use_style
def agreement(table: Frame) -> Figure:
    """Accuracy against perplexity by width."""
    fig = make_figure(HEIGHT)
    ax = fig.add_subplot()
    widths = sorted(table["width"].unique())
    for width, color, marker in zip(
        widths, sample_colors(len(widths)), MARKERS, strict=False
    ):
        rows = table[table["width"] == width]
        look = {"color": color, "marker": marker, **FREE, "label": f"{width}"}
        ax.plot(np.exp(rows["loss"]), 100 * rows["accuracy"], **look)
    set_log_axis(ax, "x", "loss")
    ax.set(xlabel="Perplexity (per token)", ylabel="Next-token accuracy (%)")
    fig.legend(title="Width", loc="outside right upper")
    return fig
