"""Figures of the claims about signals and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from analysis.plots.style import (
    BLUE,
    GRAY,
    LOSS,
    MARKERS,
    VERMILLION,
    make_figure,
    sample_colors,
    use_style,
)
from experiments.documents.draw import FREE, HEIGHT, at_values
from experiments.documents.draw_recipes import rate_lines

Frame = Any


@use_style
def residuals(ratios: Frame, rates: Frame) -> Figure:
    """Gradient ratio against depth in four settings; loss against rate with and without
    layer norm.
    """
    fig = make_figure(3.6)
    left, middle, right = fig.subplots(1, 3)
    handles = []
    for (norm, residual), rows in ratios.groupby(["norm", "residual"]):
        means = rows.groupby("depth")[["ratio", "first"]].mean()
        color = BLUE if residual else VERMILLION
        label = f"{'with' if residual else 'no'} residuals, {'layer norm' if norm == 'layernorm' else 'no norm'}"
        look = {
            "marker": "o" if norm == "layernorm" else "s",
            "linestyle": "-" if norm == "layernorm" else "--",
        }
        handles += left.plot(
            means.index,
            means["ratio"],
            color=color,
            markersize=4.5,
            label=label,
            **look,
        )
        middle.plot(
            means.index,
            means["first"] - means["first"].iloc[0],
            color=color,
            markersize=4.5,
            **look,
        )
    for ax, over in ((left, "last block's"), (middle, "shallowest model's")):
        ax.axhline(-1, color=GRAY, linestyle=":", zorder=1)
        at_values(ax, ratios["depth"])
        ax.set(
            xlabel="Depth (blocks)",
            ylabel=f"log₁₀ of first block's gradient\nnorm over {over}",
        )
    named = rates.assign(
        norm=rates["norm"].map({"layernorm": "layer norm", "none": "no norm"})
    )
    lines = rate_lines(right, named, "norm")
    right.legend(
        handles=lines, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1
    )
    right.set(ylabel=LOSS)
    fig.legend(handles=handles, loc="outside lower left", ncols=2)
    return fig


@use_style
def attention(table: Frame) -> Figure:
    """Gradient with respect to the logits, and entropy, against head dimension."""
    fig = make_figure(HEIGHT)
    left, right = fig.subplots(1, 2)
    handles = []
    for ax, column in ((left, "gradient"), (right, "entropy")):
        handles = []
        for (name, rows), color, marker in zip(
            table.groupby("arm"), (VERMILLION, BLUE), MARKERS, strict=False
        ):
            means = rows.groupby("head_dim")[column].mean()
            label = (
                "not scaled" if name == "not scaled" else r"scaled by $1/\sqrt{d_k}$"
            )
            handles += ax.plot(
                means.index,
                means,
                color=color,
                marker=marker,
                markersize=4.5,
                label=label,
            )
        at_values(ax, table["head_dim"])
        ax.set_ylim(0, None)
        ax.set(xlabel="Head dimension $d_k$")
    left.set(ylabel="Gradient at the logits (rms)")
    right.set(ylabel="Entropy of the softmax\nover its maximum")
    fig.legend(handles=handles, loc="outside upper left", ncols=2)
    return fig


@use_style
def devices(found: dict[str, Any]) -> Figure:
    """Losses step by step on one device and on all."""
    fig = make_figure(HEIGHT)
    ax = fig.add_subplot()
    steps = np.arange(1, len(found["single"]["losses"]) + 1)
    ax.plot(steps, found["single"]["losses"], color=BLUE, label="one device")
    ax.plot(
        steps,
        found["pmap"]["losses"],
        "o",
        color=VERMILLION,
        **FREE,
        label=f"{found['devices']} devices",
    )
    ax.set(xlabel="Step", ylabel="Training loss (nats per token)")
    fig.legend(loc="outside right upper")
    return fig


@use_style
def schemes(table: Frame) -> Figure:
    """Loss against rate, one line per parametrisation."""
    fig = make_figure(HEIGHT)
    ax = fig.add_subplot()
    handles = rate_lines(ax, table, "parametrization")
    ax.set(ylabel=LOSS)
    fig.legend(handles=handles, title="Parametrisation", loc="outside right upper")
    return fig


@use_style
def profiles(layers: dict[str, dict[str, list[float]]], bound: float = 10.0) -> Figure:
    """Scale of signals and gradients block by block, one panel each: arm -> {"signal":
    [L], "gradient": [L]}.
    """
    fig = make_figure(HEIGHT + 0.3)
    axes = fig.subplots(1, 2)
    handles: list[Any] = []
    for ax, kind in zip(axes, ("signal", "gradient"), strict=True):
        handles = []
        for (arm, series), color, marker in zip(
            layers.items(), sample_colors(len(layers)), MARKERS, strict=False
        ):
            values = np.asarray(series[kind], float)
            values = values / (values[0] if kind == "signal" else values[-1])
            x = np.arange(1, len(values) + 1)
            handles += ax.plot(
                x, values, color=color, marker=marker, markersize=3.5, label=arm
            )
        ax.axhspan(1 / bound, bound, color=GRAY, alpha=0.12, linewidth=0, zorder=0)
        ax.set(yscale="log", xlabel="Block")
    axes[0].set(ylabel="Signal (rms) over the first block's")
    axes[1].set(ylabel="Gradient (rms) over the last block's")
    fig.legend(handles=handles, loc="outside upper left", ncols=2)
    return fig
