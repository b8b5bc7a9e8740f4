"""Claims about how loss falls with size, data, depth and compute: S1, S2, S3, S4, S9,
S18.

Tables have one row per run, with N = `n_matmul`, tokens and loss in nats per token.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

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
from experiments.groups import average_by

FLOOR_DRAWS = 300
"""Bootstrap draws of the fit with an irreducible loss."""

ONE_OVER = "exponent of 1/loss"
REDUCTION = "exponent of the reduction"
# The names of numbers are keys of claims.json; "floor" is the irreducible loss E.
EXCESS = "exponent of 1/(loss - floor)"


def select_longest_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Each size at the largest token budget: one run per trunk."""
    return table.loc[table["tokens"] == table["tokens"].max()]


def estimate_performance_exponents(table: pd.DataFrame) -> dict[str, Estimate]:
    """S1: exponents in N of two measures of performance at the largest token budget."""
    rows = select_longest_runs(table)
    smallest = rows["n_matmul"].min()
    is_smallest = rows["n_matmul"] == smallest
    start = rows.loc[is_smallest].set_index("seed")["loss"]
    larger: pd.DataFrame = rows.loc[~is_smallest]
    gain = start.loc[larger["seed"]].to_numpy() - larger["loss"].to_numpy()
    ratio = np.log(larger["n_matmul"] / smallest)
    return {
        ONE_OVER: fit_slopes(-np.log(rows["loss"]), np.log(rows["n_matmul"]))[0],
        REDUCTION: fit_slopes(np.log(np.maximum(gain, 1e-9)), ratio)[0],
    }


def estimate_excess_exponent(table: pd.DataFrame) -> Estimate:
    """S1: alpha of L = E + A/N^alpha + B/D^beta, the exponent of 1/(loss - E) in N."""
    runs = analysis.load_runs(
        table, N="n_matmul", D="tokens", C="flops", trunk="trunk_id"
    )
    law = analysis.fit(runs, "chinchilla", delta=1e-2, allow_unidentified=True)
    bootstrap = law.bootstrap(FLOOR_DRAWS, seed=0)
    low, high = bootstrap.interval("alpha", 0.95)
    return Estimate(law.params["alpha"], low, high)


def _examine_s1(evidence: Evidence) -> Finding:
    table = evidence.table("family")
    numbers = estimate_performance_exponents(table)
    numbers[EXCESS] = estimate_excess_exponent(table)
    sizes = table["n_matmul"]
    return Finding(
        numbers=numbers,
        remark=(
            f"{sizes.nunique()} sizes from {sizes.min():,} to {sizes.max():,} "
            "parameters at equal tokens. The reduction is of the loss, from that of "
            "the smallest size; the floor is the irreducible loss E of L = E + "
            "A/N^alpha + B/D^beta fitted to all runs. An exponent of 2 would multiply "
            "the measure by four with each doubling of the model."
        ),
        figure=plot_performance(select_longest_runs(table), numbers),
        caption=(
            "Performance, as 1/loss over that of the smallest size, of each run; the "
            "line with the fitted exponent and one that grows as the square of the "
            "size."
        ),
    )


def _decide_s1(n: Numbers) -> str:
    return name_verdict(
        any_holds(*(n[name].within(1.5, 2.5) for name in (ONE_OVER, REDUCTION, EXCESS)))
    )


def estimate_drop_trend(table: pd.DataFrame) -> tuple[Estimate, pd.DataFrame]:
    """S2: how the drop of the loss per doubling of N changes.

    Returns:
        The change of the drop from one doubling to the next, by the curvature of the
        loss in log2 N; and the drops between neighboring sizes, means over seeds.
    """
    rows = select_longest_runs(table)
    doublings = np.log2(rows["n_matmul"] / rows["n_matmul"].min())
    _, curvature = fit_slopes(rows["loss"], doublings, doublings**2)
    trend = Estimate(-2 * curvature.value, -2 * curvature.high, -2 * curvature.low)
    means = average_by(rows, "n_matmul")
    N = means.index.to_numpy(float)
    drops = pd.DataFrame(
        {
            "N": np.sqrt(N[1:] * N[:-1]),
            "drop": -np.diff(means.to_numpy()) / np.diff(np.log2(N)),
        }
    )
    return trend, drops


def _examine_s2(evidence: Evidence) -> Finding:
    table = evidence.table("family")
    trend, drops = estimate_drop_trend(table)
    relative = float(drops["drop"].iloc[-1] / drops["drop"].iloc[0])
    return Finding(
        numbers={"change of the drop per doubling": trend},
        remark=(
            "In nats per token, from a parabola of the loss in log N at the largest "
            "token budget. The drop per doubling between the two largest sizes is "
            f"{relative:.2f} times that between the two smallest."
        ),
        figure=plot_drops(drops, trend),
        caption=(
            "How much the loss falls per doubling of the model, between neighboring "
            "sizes (means over seeds); the line is the fitted parabola's."
        ),
    )


def _decide_s2(n: Numbers) -> str:
    return name_verdict(n["change of the drop per doubling"].below(0.0))


def estimate_data_exponent(table: pd.DataFrame) -> tuple[Estimate, pd.DataFrame]:
    """S3: -d ln L / d ln D of each trunk, its mean over trunks, and the slopes by
    size.
    """
    rows = []
    for _, trunk in table.groupby(["n_matmul", "trunk_id"]):
        slope, _ = np.polyfit(np.log(trunk["tokens"]), np.log(trunk["loss"]), 1)
        rows.append({"N": trunk["n_matmul"].iloc[0], "slope": float(-slope)})
    slopes = pd.DataFrame(rows)
    return estimate_mean(slopes["slope"]), slopes


def _examine_s3(evidence: Evidence) -> Finding:
    table = evidence.table("family")
    exponent, by_size = estimate_data_exponent(table)
    lowest = estimate_mean(by_size.loc[by_size["N"] == by_size["N"].min(), "slope"])
    return Finding(
        numbers={"exponent of L(D)": exponent, "exponent of the smallest size": lowest},
        remark=(
            "Loss falls as D^-exponent at fixed N; one slope per trunk, the mean of "
            f"{len(by_size)} of them, no token seen twice. The local exponent, floor "
            "included: it must fall as the floor comes near."
        ),
        figure=plot_data_curves(table),
        caption="Loss against training tokens, one line per trunk, by model size.",
    )


def _decide_s3(n: Numbers) -> str:
    return name_verdict(all_hold(*(number.above(0.0) for number in n.values())))


def measure_time_per_token(trunk: pd.DataFrame) -> tuple[float, float]:
    """Counted FLOPs and measured seconds per token of a trunk.

    The seconds are the difference between its longest and its shortest run, in which
    the time of compiling cancels.
    """
    ends = trunk.sort_values("tokens").iloc[[0, -1]]
    seconds = float(np.diff(ends["wall_seconds"])[0])
    tokens = float(np.diff(ends["tokens"])[0])
    return ends["flops"].iloc[0] / ends["tokens"].iloc[0], seconds / tokens


def estimate_compute_exponents(table: pd.DataFrame) -> dict[str, Estimate]:
    """S4: exponents of measured seconds in counted FLOPs, and of the loss along the
    frontier in FLOPs (positive where it falls).
    """
    log_seconds = []
    log_flops = []
    for _, trunk in table.groupby("trunk_id"):
        flops, seconds = measure_time_per_token(trunk)
        # A pause of the machine may make the difference negative.
        if seconds > 0:
            log_seconds.append(np.log(seconds))
            log_flops.append(np.log(flops))
    best = select_frontier(table)
    loss_slopes = fit_slopes(-np.log(best["loss"]), np.log(best["flops"]))
    return {
        "exponent of loss in compute": loss_slopes[0],
        "exponent of time in FLOPs": fit_slopes(log_seconds, log_flops)[0],
    }


def select_frontier(table: pd.DataFrame) -> pd.DataFrame:
    """Mean losses over seeds that no cheaper cell of size and tokens beats, cheapest
    first.
    """
    cells = table.groupby(["n_matmul", "tokens"])
    means = cells.agg({"flops": "first", "loss": "mean"}).sort_values("flops")
    return means.loc[means["loss"] <= means["loss"].cummin()]


def _examine_s4(evidence: Evidence) -> Finding:
    table = evidence.table("family")
    numbers = estimate_compute_exponents(table)
    return Finding(
        numbers=numbers,
        remark=(
            "The loss along the frontier of lowest mean losses falls as C^-exponent. "
            "Time is seconds per token of training against counted FLOPs per token, "
            "without compiling, one core per run; other work on the machine is in "
            "its scatter, and where products are too small to fill the core it grows "
            "more slowly than FLOPs."
        ),
        figure=plot_compute(table, select_frontier(table)),
        caption=(
            "Left: loss against training compute; the dashed line joins the lowest "
            "losses. Right: measured seconds per million tokens against counted "
            "FLOPs per token."
        ),
    )


def _decide_s4(n: Numbers) -> str:
    return name_verdict(all_hold(*(number.above(0.0) for number in n.values())))


def estimate_capacity_gains(
    widths: pd.DataFrame, depths: pd.DataFrame
) -> dict[str, Estimate]:
    """S9: fall of the loss per doubling of depth at fixed width, and of width at fixed
    depth, at equal tokens.
    """
    tokens = depths["tokens"].iloc[0]
    widths = widths.loc[widths["tokens"] == tokens]
    numbers = {}
    for name, table in (("depth", depths), ("width", widths)):
        fall = fit_slopes(-table["loss"], np.log2(table[name]))[0]
        numbers[f"fall per doubling of {name}"] = fall
    return numbers


def _examine_s9(evidence: Evidence) -> Finding:
    family = evidence.table("family")
    depths = evidence.table("depths")
    tokens = int(depths["tokens"].iloc[0])
    return Finding(
        numbers=estimate_capacity_gains(family, depths),
        remark=(
            f"Held-out loss in nats per token at {tokens:,} tokens: depth at width "
            f"{depths['width'].iloc[0]}, width at depth {family['depth'].iloc[0]}. "
            "The rate follows the recipe's rule for width and is not tuned to depth."
        ),
        figure=plot_capacity(family.loc[family["tokens"] == tokens], depths),
        caption=(
            "Loss against depth at fixed width, and against width at fixed depth; "
            "one marker per run."
        ),
    )


def _decide_s9(n: Numbers) -> str:
    return name_verdict(all_hold(*(number.above(0.0) for number in n.values())))


def measure_concordance(units: list[pd.DataFrame]) -> float:
    """S18: share of pairs of models in which the one of lower loss is the more
    accurate; ties in accuracy count half.
    """
    loss = np.concatenate([unit["loss"] for unit in units])
    accuracy = np.concatenate([unit["accuracy"] for unit in units])
    i, j = np.triu_indices(len(loss), 1)
    agreement = -np.sign(loss[i] - loss[j]) * np.sign(accuracy[i] - accuracy[j])
    return float((1 + agreement[loss[i] != loss[j]].mean()) / 2)


def _examine_s18(evidence: Evidence) -> Finding:
    table = measure_accuracies(evidence)
    units = [rows for _, rows in table.groupby("trunk")]
    share = estimate_by_resampling(units, measure_concordance)
    by_loss = table.sort_values("loss")
    is_close = np.abs(np.diff(by_loss["loss"])) < 0.02
    reversed_share = float("nan")
    if is_close.any():
        is_reversed = np.diff(by_loss["accuracy"]) > 0
        reversed_share = float(is_reversed[is_close].mean())
    return Finding(
        numbers={"share of pairs that agree": share},
        remark=(
            f"{len(table)} models: every state in which a trunk of the family was "
            "saved, both measured on the same held-out tokens; trunks are resampled. "
            "Of neighbors in perplexity closer than 0.02 nats, "
            f"{reversed_share:.0%} are the other way round. Perplexity and accuracy "
            "are both of the next token: this says nothing of other tasks."
        ),
        figure=plot_agreement(table),
        caption="Next-token accuracy against perplexity, one marker per model.",
    )


def _decide_s18(n: Numbers) -> str:
    return name_verdict(n["share of pairs that agree"].above(0.9))


def plot_by_size(ax: Axes, table: pd.DataFrame, x: str, y: str) -> list[Line2D]:
    """One line per trunk, one color and marker per size.

    Returns:
        The lines that the key shows, largest size first.
    """
    handles = []
    sizes = sorted(table["n_matmul"].unique())
    for N, color, marker in zip(
        sizes, sample_colors(len(sizes)), MARKERS, strict=False
    ):
        lines = []
        for _, trunk in table.loc[table["n_matmul"] == N].groupby("trunk_id"):
            trunk = trunk.sort_values(x)
            lines += ax.plot(
                trunk[x],
                trunk[y],
                color=color,
                marker=marker,
                markersize=4,
                linewidth=1,
                label=format_count(float(N)),
            )
        handles.append(lines[-1])
    return handles[::-1]


@use_style
def plot_performance(rows: pd.DataFrame, numbers: Mapping[str, Estimate]) -> Figure:
    """1/loss over the smallest size's, against N, beside a square law."""
    fig = make_figure(HEIGHT)
    ax = fig.add_subplot()
    smallest = rows["n_matmul"].min()
    losses_of_smallest: pd.Series = rows.loc[rows["n_matmul"] == smallest, "loss"]
    gain = 1 / rows["loss"] / (1 / losses_of_smallest.mean())
    exponent = numbers[ONE_OVER].value
    log_level = np.log(gain) - exponent * np.log(rows["n_matmul"] / smallest)
    level = float(np.exp(np.mean(log_level)))
    N = np.geomspace(smallest, rows["n_matmul"].max(), 50)
    ax.plot(
        N,
        (N / smallest) ** 2,
        color=VERMILLION,
        linestyle="--",
        label="grows as $N^2$",
    )
    ax.plot(
        N,
        level * (N / smallest) ** exponent,
        color=BLACK,
        label=f"grows as $N^{{{exponent:.3f}}}$",
    )
    ax.plot(rows["n_matmul"], gain, "o", color=BLUE, **FREE, label="a run")
    set_log_axis(ax, "x", "count")
    set_log_axis(ax, "y", "loss")
    ax.set(xlabel=VARIABLE["N"], ylabel="1/loss over that of\nthe smallest size")
    fig.legend(loc="outside right upper")
    return fig


@use_style
def plot_drops(drops: pd.DataFrame, trend: Estimate) -> Figure:
    """Drop of the loss per doubling of N, between neighboring sizes."""
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
def plot_data_curves(table: pd.DataFrame) -> Figure:
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
def plot_compute(table: pd.DataFrame, best: pd.DataFrame) -> Figure:
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
    left.set(xlabel="Training compute (FLOPs)", ylabel=LOSS)
    for _, trunk in table.groupby("trunk_id"):
        flops, seconds = measure_time_per_token(trunk)
        right.plot(flops, 1e6 * seconds, "o", color=BLUE, **FREE)
    right.set(xlabel="Counted FLOPs per token", ylabel="Seconds per million tokens")
    set_log_axis(left, "y", "loss")
    set_log_axis(right, "y", "count")
    for ax in (left, right):
        set_log_axis(ax, "x", "flops")
        # Longer labels than three would overlap; the locator has no public setter.
        ax.xaxis.get_major_locator().most = 3  # type: ignore[attr-defined]
    fig.legend(handles=handles, title="Parameters N", loc="outside right upper")
    return fig


@use_style
def plot_capacity(widths: pd.DataFrame, depths: pd.DataFrame) -> Figure:
    """Loss against depth and against width."""
    fig = make_figure(HEIGHT)
    left, right = fig.subplots(1, 2, sharey=True)
    for ax, table, name in ((left, depths, "depth"), (right, widths, "width")):
        means = average_by(table, name)
        ax.plot(means.index, means, color=GRAY, zorder=1)
        ax.plot(table[name], table["loss"], "o", color=BLUE, **FREE)
        set_value_ticks(ax, table[name])
    left.set(xlabel=f"Depth (layers), at width {depths['width'].iloc[0]}", ylabel=LOSS)
    right.set(xlabel=f"Width (units), at depth {widths['depth'].iloc[0]}")
    return fig


@use_style
def plot_agreement(table: pd.DataFrame) -> Figure:
    """Accuracy against perplexity by width."""
    fig = make_figure(HEIGHT)
    ax = fig.add_subplot()
    widths = sorted(table["width"].unique())
    for width, color, marker in zip(
        widths, sample_colors(len(widths)), MARKERS, strict=False
    ):
        rows = table.loc[table["width"] == width]
        ax.plot(
            np.exp(rows["loss"]),
            100 * rows["accuracy"],
            color=color,
            marker=marker,
            label=str(width),
            **FREE,
        )
    set_log_axis(ax, "x", "loss")
    ax.set(xlabel="Perplexity (per token)", ylabel="Next-token accuracy (%)")
    fig.legend(title="Width", loc="outside right upper")
    return fig


CLAIMS = (
    Claim(
        id="S1",
        documents="A",
        short="performance grows as (model size)²",
        statement="Performance gain grows as the square of the model size.",
        rule=(
            "Supported if the 95 % interval of the exponent in N of one of three "
            "measures of performance (1/loss, the reduction of the loss, 1/(loss - "
            "fitted floor)) lies within 1.5 to 2.5; refuted if all three lie outside."
        ),
        decide=_decide_s1,
        change=(
            "An exponent near 2 in some measure of performance. Larger published "
            "sweeps put that of the excess loss between 0.05 and 0.5."
        ),
        experiment=_examine_s1,
        needs=("family",),
    ),
    Claim(
        id="S2",
        documents="A",
        short="gains shrink as models grow",
        statement=(
            "The larger the model, the smaller the gain from making it larger still."
        ),
        rule=(
            "Supported if the drop of the loss per doubling of N falls from doubling "
            "to doubling (95 % interval below 0); refuted if it rises (interval "
            "above 0)."
        ),
        decide=_decide_s2,
        change=(
            "Drops that stay equal or grow over more doublings, or more tokens, so "
            "that the larger sizes are not held back by data."
        ),
        experiment=_examine_s2,
        needs=("family",),
    ),
    Claim(
        id="S3",
        documents="A, D",
        short="more data improves the model",
        statement="More training data improves the model.",
        rule=(
            "Supported if the exponent of L(D) at fixed N is above 0 (95 % "
            "interval), over all sizes and for the smallest alone; refuted if either "
            "is below."
        ),
        decide=_decide_s3,
        change=(
            "A size whose loss no longer falls with new data: one trained far beyond "
            "its capacity."
        ),
        experiment=_examine_s3,
        needs=("family",),
    ),
    Claim(
        id="S4",
        documents="A, C, D",
        short="compute is the price",
        statement="Better models are paid for in compute.",
        rule=(
            "Supported if the loss along the frontier falls with FLOPs and measured "
            "time rises with them (both exponents above 0, 95 %); refuted if either "
            "is below."
        ),
        decide=_decide_s4,
        change=(
            "A frontier that is flat in compute, or time that does not follow the "
            "FLOPs counted."
        ),
        experiment=_examine_s4,
        needs=("family",),
    ),
    Claim(
        id="S9",
        documents="D",
        short="more layers or units raise capacity",
        statement="More layers, or more units per layer, raise the model's capacity.",
        rule=(
            "Supported if the held-out loss at equal tokens falls per doubling of "
            "depth and per doubling of width (both 95 % intervals above 0); refuted "
            "if either rises."
        ),
        decide=_decide_s9,
        change=(
            "A loss that rises with depth, as it may without a rate tuned to it or "
            "in much deeper models."
        ),
        experiment=_examine_s9,
        needs=("family", "depths"),
    ),
    Claim(
        id="S18",
        documents="C",
        short="lower perplexity, better model",
        statement="The lower its perplexity, the better the model.",
        rule=(
            "Supported if, of pairs of models, the share in which the one of lower "
            "perplexity predicts the next token more often is above 0.9 (95 % "
            "interval; chance is 0.5); refuted if below."
        ),
        decide=_decide_s18,
        change=(
            "A measure of quality that is not of the next token, or models so alike "
            "that noise orders them."
        ),
        experiment=_examine_s18,
        needs=("family",),
    ),
)
