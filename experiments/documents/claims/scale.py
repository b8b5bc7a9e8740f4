"""Claims about how loss falls with size, data, depth and compute: S1, S2, S3, S4, S9,
S18.

Tables have one row per run, with N = `n_matmul`, tokens and loss in nats per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import analysis
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
from experiments.documents.accuracy import measure_accuracies
from experiments.documents.evidence import Evidence
from experiments.documents.figures import FREE, HEIGHT, set_value_ticks
from experiments.documents.statement import (
    Claim,
    Estimate,
    Finding,
    Numbers,
    all_hold,
    any_holds,
    name_verdict,
)
from experiments.documents.stats import (
    estimate_by_resampling,
    estimate_mean,
    fit_slopes,
)
from experiments.frames import Frame

FLOOR_DRAWS = 300
ONE_OVER, REDUCTION, EXCESS = (
    "exponent of 1/loss",
    "exponent of the reduction",
    "exponent of 1/(loss - floor)",
)


def select_longest_runs(table: Frame) -> Frame:
    """Each size at the largest token budget: one run per trunk."""
    return table[table["tokens"] == table["tokens"].max()]


def estimate_performance_exponents(table: Frame) -> dict[str, Estimate]:
    """Exponents in N of two measures of performance at the largest token budget."""
    rows = select_longest_runs(table)
    first = rows["n_matmul"].min()
    start = rows.loc[rows["n_matmul"] == first].set_index("seed")["loss"]
    larger = rows[rows["n_matmul"] > first]
    gain = larger["seed"].map(start).to_numpy() - larger["loss"].to_numpy()
    ratio = np.log(larger["n_matmul"] / first)
    return {
        ONE_OVER: fit_slopes(-np.log(rows["loss"]), np.log(rows["n_matmul"]))[0],
        REDUCTION: fit_slopes(np.log(np.maximum(gain, 1e-9)), ratio)[0],
    }


def estimate_excess_exponent(table: Frame) -> Estimate:
    """alpha of L = E + A/N^alpha + B/D^beta: the exponent of 1/(loss - floor) in N."""
    runs = analysis.load_runs(
        table, N="n_matmul", D="tokens", C="flops", trunk="trunk_id"
    )
    law = analysis.fit(runs, "chinchilla", delta=1e-2, allow_unidentified=True)
    boot = law.bootstrap(FLOOR_DRAWS, seed=0)
    return Estimate(law.params["alpha"], *boot.interval("alpha", 0.95))


def _examine_s1(evidence: Evidence) -> Finding:
    table = evidence.table("family")
    numbers = estimate_performance_exponents(table) | {
        EXCESS: estimate_excess_exponent(table)
    }
    sizes = table["n_matmul"]
    return Finding(
        numbers,
        f"{sizes.nunique()} sizes from {sizes.min():,} to {sizes.max():,} parameters at equal tokens. The reduction is "
        "of the loss, from that of the smallest size; the floor is that of L = E + A/N^alpha + B/D^beta fitted to all "
        "runs. An exponent of 2 would multiply the measure by four with each doubling of the model.",
        plot_performance(select_longest_runs(table), numbers),
        "Performance, as 1/loss over that of the smallest size, of each run; the line with the fitted exponent and one "
        "that grows as the square of the size.",
    )


def _decide_s1(n: Numbers) -> str:
    return name_verdict(
        any_holds(*(n[name].within(1.5, 2.5) for name in (ONE_OVER, REDUCTION, EXCESS)))
    )


def estimate_drop_trend(table: Frame) -> tuple[Estimate, Frame]:
    """Curvature of the loss in log2 N, as the change of the drop per doubling from one
    doubling to the next; and the drops between neighbouring sizes, means over seeds."""
    rows = select_longest_runs(table)
    x = np.log2(rows["n_matmul"] / rows["n_matmul"].min())
    curvature = fit_slopes(rows["loss"], x, x**2)[1]
    trend = Estimate(-2 * curvature.value, -2 * curvature.high, -2 * curvature.low)
    means = rows.groupby("n_matmul")["loss"].mean()
    N, L = means.index.to_numpy(float), means.to_numpy()
    drops = pd.DataFrame(
        {"N": np.sqrt(N[1:] * N[:-1]), "drop": -np.diff(L) / np.diff(np.log2(N))}
    )
    return trend, drops


def _examine_s2(evidence: Evidence) -> Finding:
    table = evidence.table("family")
    trend, drops = estimate_drop_trend(table)
    relative = float(drops["drop"].iloc[-1] / drops["drop"].iloc[0])
    return Finding(
        {"change of the drop per doubling": trend},
        "In nats per token, from a parabola of the loss in log N at the largest token budget. The drop per doubling "
        f"between the two largest sizes is {relative:.2f} times that between the two smallest.",
        plot_drops(drops, trend),
        "How much the loss falls per doubling of the model, between neighbouring sizes (means over seeds); the line is "
        "the fitted parabola's.",
    )


def _decide_s2(n: Numbers) -> str:
    return name_verdict(n["change of the drop per doubling"].below(0.0))


def estimate_data_exponent(table: Frame) -> tuple[Estimate, Frame]:
    """-d ln L / d ln D of each trunk, its mean over trunks, and the slopes by size."""
    rows = []
    for (N, _), trunk in table.groupby(["n_matmul", "trunk_id"]):
        slope = -np.polyfit(np.log(trunk["tokens"]), np.log(trunk["loss"]), 1)[0]
        rows.append({"N": N, "slope": float(slope)})
    frame = pd.DataFrame(rows)
    return estimate_mean(frame["slope"]), frame


def _examine_s3(evidence: Evidence) -> Finding:
    table = evidence.table("family")
    exponent, by_size = estimate_data_exponent(table)
    lowest = estimate_mean(by_size.loc[by_size["N"] == by_size["N"].min(), "slope"])
    return Finding(
        {"exponent of L(D)": exponent, "exponent of the smallest size": lowest},
        f"Loss falls as D^-exponent at fixed N; one slope per trunk, the mean of {len(by_size)} of them, no token seen "
        "twice. The local exponent, floor included: it must fall as the floor comes near.",
        plot_data_curves(table),
        "Loss against training tokens, one line per trunk, by model size.",
    )


def _decide_s3(n: Numbers) -> str:
    return name_verdict(all_hold(*(number.above(0.0) for number in n.values())))


def estimate_compute_exponents(table: Frame) -> dict[str, Estimate]:
    """Exponents of measured seconds in counted FLOPs, and of the loss along the
    frontier in FLOPs (positive: falls).
    """
    seconds, flops = [], []
    for _, trunk in table.groupby("trunk_id"):
        ends = trunk.sort_values("tokens").iloc[[0, -1]]
        took = float(np.diff(ends["wall_seconds"])[0]) / float(
            np.diff(ends["tokens"])[0]
        )
        if (
            took > 0
        ):  # compiling falls out of the difference; a pause of the machine may outweigh it
            seconds.append(np.log(took))
            flops.append(np.log(ends["flops"].iloc[0] / ends["tokens"].iloc[0]))
    best = select_frontier(table)
    return {
        "exponent of loss in compute": fit_slopes(
            -np.log(best["loss"]), np.log(best["flops"])
        )[0],
        "exponent of time in FLOPs": fit_slopes(seconds, flops)[0],
    }


def select_frontier(table: Frame) -> Frame:
    """Mean losses over seeds that no cheaper cell of size and tokens beats, cheapest
    first.
    """
    means = (
        table.groupby(["n_matmul", "tokens"])
        .agg({"flops": "first", "loss": "mean"})
        .sort_values("flops")
    )
    return means[means["loss"] <= means["loss"].cummin()]


def _examine_s4(evidence: Evidence) -> Finding:
    table = evidence.table("family")
    numbers = estimate_compute_exponents(table)
    return Finding(
        numbers,
        "The loss along the frontier of lowest mean losses falls as C^-exponent. Time is seconds per token of "
        "training against counted FLOPs per token, without compiling, one core per run; other work on the machine is "
        "in its scatter, and where products are too small to fill the core it grows more slowly than FLOPs.",
        plot_compute(table, select_frontier(table)),
        "Left: loss against training compute; the dashed line joins the lowest losses. Right: measured seconds per "
        "million tokens against counted FLOPs per token.",
    )


def _decide_s4(n: Numbers) -> str:
    return name_verdict(all_hold(*(number.above(0.0) for number in n.values())))


def estimate_capacity_gains(widths: Frame, depths: Frame) -> dict[str, Estimate]:
    """Fall of the loss per doubling of depth at fixed width, and of width at fixed
    depth, at equal tokens.
    """
    tokens = depths["tokens"].iloc[0]
    rows = widths[widths["tokens"] == tokens]
    down = {}
    for name, table in (("depth", depths), ("width", rows)):
        fall = fit_slopes(-table["loss"], np.log2(table[name]))[0]
        down[f"fall per doubling of {name}"] = fall
    return down


def _examine_s9(evidence: Evidence) -> Finding:
    family, depths = evidence.table("family"), evidence.table("depths")
    tokens = int(depths["tokens"].iloc[0])
    return Finding(
        estimate_capacity_gains(family, depths),
        f"Held-out loss in nats per token at {tokens:,} tokens: depth at width {depths['width'].iloc[0]}, width at "
        f"depth {family['depth'].iloc[0]}. The rate follows the recipe's rule for width and is not tuned to depth.",
        plot_capacity(family[family["tokens"] == tokens], depths),
        "Loss against depth at fixed width, and against width at fixed depth; one marker per run.",
    )


def _decide_s9(n: Numbers) -> str:
    return name_verdict(all_hold(*(number.above(0.0) for number in n.values())))


def measure_concordance(units: list[Frame]) -> float:
    """Share of pairs of models in which the one of lower loss is the more accurate;
    ties in accuracy count half.
    """
    loss = np.concatenate([u["loss"] for u in units])
    accuracy = np.concatenate([u["accuracy"] for u in units])
    i, j = np.triu_indices(len(loss), 1)
    agree = -np.sign(loss[i] - loss[j]) * np.sign(accuracy[i] - accuracy[j])
    return float((1 + agree[loss[i] != loss[j]].mean()) / 2)


def _examine_s18(evidence: Evidence) -> Finding:
    table = measure_accuracies(evidence)
    units: list[Frame] = [rows for _, rows in table.groupby("trunk")]
    share = estimate_by_resampling(units, measure_concordance)
    close = table.sort_values("loss")
    near = np.abs(np.diff(close["loss"])) < 0.02
    flips = (
        float((np.diff(close["accuracy"])[near] > 0).mean())
        if near.any()
        else float("nan")
    )
    return Finding(
        {"share of pairs that agree": share},
        f"{len(table)} models: every state in which a trunk of the family was saved, both measured on the same "
        f"held-out tokens; trunks are resampled. Of neighbours in perplexity closer than 0.02 nats, {flips:.0%} are "
        "the other way round. Perplexity and accuracy are both of the next token: this says nothing of other tasks.",
        plot_agreement(table),
        "Next-token accuracy against perplexity, one marker per model.",
    )


def _decide_s18(n: Numbers) -> str:
    return name_verdict(n["share of pairs that agree"].above(0.9))


def plot_by_size(
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
def plot_performance(rows: Frame, numbers: Mapping[str, Estimate]) -> Figure:
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
def plot_drops(drops: Frame, trend: Estimate) -> Figure:
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
def plot_data_curves(table: Frame) -> Figure:
    """Loss against tokens, one line per trunk."""
    fig = make_figure(HEIGHT)
    ax = fig.add_subplot()
    handles = plot_by_size(ax, table, "tokens", "loss")
    set_log_axis(ax, "x", "count")
    set_log_axis(ax, "y", "loss")
    ax.set(xlabel=VARIABLE["D"], ylabel=LOSS)
    fig.legend(handles=handles[::-1], title="Parameters N", loc="outside right upper")
    return fig


@use_style
def plot_compute(table: Frame, best: Frame) -> Figure:
    """Loss against compute with its lower envelope; measured time against counted
    FLOPs.
    """
    fig = make_figure(HEIGHT)
    left, right = fig.subplots(1, 2)
    handles = plot_by_size(left, table, "flops", "loss")
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
def plot_capacity(widths: Frame, depths: Frame) -> Figure:
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
        set_value_ticks(ax, table[name])
        unit = "layers" if name == "depth" else "units"
        ax.set(xlabel=f"{name.capitalize()} ({unit}), at {what}")
    axes[0].set(ylabel=LOSS)
    return fig


@use_style
def plot_agreement(table: Frame) -> Figure:
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


CLAIMS = (
    Claim(
        "S1",
        "A",
        "performance grows as (model size)²",
        "Performance gain grows as the square of the model size.",
        "Supported if the 95 % interval of the exponent in N of one of three measures of performance (1/loss, the "
        "reduction of the loss, 1/(loss - fitted floor)) lies within 1.5 to 2.5; refuted if all three lie outside.",
        _decide_s1,
        "An exponent near 2 in some measure of performance. Larger published sweeps put that of the excess loss "
        "between 0.05 and 0.5.",
        _examine_s1,
        ("family",),
    ),
    Claim(
        "S2",
        "A",
        "gains shrink as models grow",
        "The larger the model, the smaller the gain from making it larger still.",
        "Supported if the drop of the loss per doubling of N falls from doubling to doubling (95 % interval below 0); "
        "refuted if it rises (interval above 0).",
        _decide_s2,
        "Drops that stay equal or grow over more doublings, or more tokens, so that the larger sizes are not "
        "held back by data.",
        _examine_s2,
        ("family",),
    ),
    Claim(
        "S3",
        "A, D",
        "more data improves the model",
        "More training data improves the model.",
        "Supported if the exponent of L(D) at fixed N is above 0 (95 % interval), over all sizes and for the smallest "
        "alone; refuted if either is below.",
        _decide_s3,
        "A size whose loss no longer falls with new data: one trained far beyond its capacity.",
        _examine_s3,
        ("family",),
    ),
    Claim(
        "S4",
        "A, C, D",
        "compute is the price",
        "Better models are paid for in compute.",
        "Supported if the loss along the frontier falls with FLOPs and measured time rises with them (both exponents "
        "above 0, 95 %); refuted if either is below.",
        _decide_s4,
        "A frontier that is flat in compute, or time that does not follow the FLOPs counted.",
        _examine_s4,
        ("family",),
    ),
    Claim(
        "S9",
        "D",
        "more layers or units raise capacity",
        "More layers, or more units per layer, raise the model's capacity.",
        "Supported if the held-out loss at equal tokens falls per doubling of depth and per doubling of width (both "
        "95 % intervals above 0); refuted if either rises.",
        _decide_s9,
        "A loss that rises with depth, as it may without a rate tuned to it or in much deeper models.",
        _examine_s9,
        ("family", "depths"),
    ),
    Claim(
        "S18",
        "C",
        "lower perplexity, better model",
        "The lower its perplexity, the better the model.",
        "Supported if, of pairs of models, the share in which the one of lower perplexity predicts the next token more "
        "often is above 0.9 (95 % interval; chance is 0.5); refuted if below.",
        _decide_s18,
        "A measure of quality that is not of the next token, or models so alike that noise orders them.",
        _examine_s18,
        ("family",),
    ),
)
