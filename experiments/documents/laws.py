"""Claims about how loss falls with size, data, depth and compute: S1, S2, S3, S4, S9,
S18.

Tables have one row per run, with N = `n_matmul`, tokens and loss in nats per token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

import analysis
from experiments.documents import draw
from experiments.documents.accuracy import accuracies
from experiments.documents.evidence import Evidence
from experiments.documents.statement import (
    Claim,
    Estimate,
    Finding,
    Numbers,
    every,
    some,
    verdict,
)
from experiments.documents.stats import mean, resampled, slopes

Frame = Any
FLOOR_DRAWS = 300
ONE_OVER, REDUCTION, EXCESS = (
    "exponent of 1/loss",
    "exponent of the reduction",
    "exponent of 1/(loss - floor)",
)


def longest(table: Frame) -> Frame:
    """Each size at the largest token budget: one run per trunk."""
    return table[table["tokens"] == table["tokens"].max()]


def performance_exponents(table: Frame) -> dict[str, Estimate]:
    """Exponents in N of two measures of performance at the largest token budget."""
    rows = longest(table)
    first = rows["n_matmul"].min()
    start = rows.loc[rows["n_matmul"] == first].set_index("seed")["loss"]
    larger = rows[rows["n_matmul"] > first]
    gain = larger["seed"].map(start).to_numpy() - larger["loss"].to_numpy()
    ratio = np.log(larger["n_matmul"] / first)
    return {
        ONE_OVER: slopes(-np.log(rows["loss"]), np.log(rows["n_matmul"]))[0],
        REDUCTION: slopes(np.log(np.maximum(gain, 1e-9)), ratio)[0],
    }


def excess_exponent(table: Frame) -> Estimate:
    """alpha of L = E + A/N^alpha + B/D^beta: the exponent of 1/(loss - floor) in N."""
    runs = analysis.load_runs(
        table, N="n_matmul", D="tokens", C="flops", trunk="trunk_id"
    )
    law = analysis.fit(runs, "chinchilla", delta=1e-2, allow_unidentified=True)
    boot = law.bootstrap(FLOOR_DRAWS, seed=0)
    return Estimate(law.params["alpha"], *boot.interval("alpha", 0.95))


def _s1(evidence: Evidence) -> Finding:
    table = evidence.table("family")
    numbers = performance_exponents(table) | {EXCESS: excess_exponent(table)}
    sizes = table["n_matmul"]
    return Finding(
        numbers,
        f"{sizes.nunique()} sizes from {sizes.min():,} to {sizes.max():,} parameters at equal tokens. The reduction is "
        "of the loss, from that of the smallest size; the floor is that of L = E + A/N^alpha + B/D^beta fitted to all "
        "runs. An exponent of 2 would multiply the measure by four with each doubling of the model.",
        draw.performance(longest(table), numbers),
        "Performance, as 1/loss over that of the smallest size, of each run; the line with the fitted exponent and one "
        "that grows as the square of the size.",
    )


def _decide_s1(n: Numbers) -> str:
    return verdict(
        some(*(n[name].within(1.5, 2.5) for name in (ONE_OVER, REDUCTION, EXCESS)))
    )


def drop_trend(table: Frame) -> tuple[Estimate, Frame]:
    """Curvature of the loss in log2 N, as the change of the drop per doubling from one
    doubling to the next; and the drops between neighbouring sizes, means over seeds."""
    rows = longest(table)
    x = np.log2(rows["n_matmul"] / rows["n_matmul"].min())
    curvature = slopes(rows["loss"], x, x**2)[1]
    trend = Estimate(-2 * curvature.value, -2 * curvature.high, -2 * curvature.low)
    means = rows.groupby("n_matmul")["loss"].mean()
    N, L = means.index.to_numpy(float), means.to_numpy()
    drops = pd.DataFrame(
        {"N": np.sqrt(N[1:] * N[:-1]), "drop": -np.diff(L) / np.diff(np.log2(N))}
    )
    return trend, drops


def _s2(evidence: Evidence) -> Finding:
    table = evidence.table("family")
    trend, drops = drop_trend(table)
    relative = float(drops["drop"].iloc[-1] / drops["drop"].iloc[0])
    return Finding(
        {"change of the drop per doubling": trend},
        "In nats per token, from a parabola of the loss in log N at the largest token budget. The drop per doubling "
        f"between the two largest sizes is {relative:.2f} times that between the two smallest.",
        draw.drops(drops, trend),
        "How much the loss falls per doubling of the model, between neighbouring sizes (means over seeds); the line is "
        "the fitted parabola's.",
    )


def _decide_s2(n: Numbers) -> str:
    return verdict(n["change of the drop per doubling"].below(0.0))


def data_exponent(table: Frame) -> tuple[Estimate, Frame]:
    """-d ln L / d ln D of each trunk, its mean over trunks, and the slopes by size."""
    rows = []
    for (N, _), trunk in table.groupby(["n_matmul", "trunk_id"]):
        slope = -np.polyfit(np.log(trunk["tokens"]), np.log(trunk["loss"]), 1)[0]
        rows.append({"N": N, "slope": float(slope)})
    frame = pd.DataFrame(rows)
    return mean(frame["slope"]), frame


def _s3(evidence: Evidence) -> Finding:
    table = evidence.table("family")
    exponent, by_size = data_exponent(table)
    lowest = mean(by_size.loc[by_size["N"] == by_size["N"].min(), "slope"])
    return Finding(
        {"exponent of L(D)": exponent, "exponent of the smallest size": lowest},
        f"Loss falls as D^-exponent at fixed N; one slope per trunk, the mean of {len(by_size)} of them, no token seen "
        "twice. The local exponent, floor included: it must fall as the floor comes near.",
        draw.data_curves(table),
        "Loss against training tokens, one line per trunk, by model size.",
    )


def _decide_s3(n: Numbers) -> str:
    return verdict(every(*(number.above(0.0) for number in n.values())))


def price(table: Frame) -> dict[str, Estimate]:
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
    best = frontier(table)
    return {
        "exponent of loss in compute": slopes(
            -np.log(best["loss"]), np.log(best["flops"])
        )[0],
        "exponent of time in FLOPs": slopes(seconds, flops)[0],
    }


def frontier(table: Frame) -> Frame:
    """Mean losses over seeds that no cheaper cell of size and tokens beats, cheapest
    first.
    """
    means = (
        table.groupby(["n_matmul", "tokens"])
        .agg({"flops": "first", "loss": "mean"})
        .sort_values("flops")
    )
    return means[means["loss"] <= means["loss"].cummin()]


def _s4(evidence: Evidence) -> Finding:
    table = evidence.table("family")
    numbers = price(table)
    return Finding(
        numbers,
        "The loss along the frontier of lowest mean losses falls as C^-exponent. Time is seconds per token of "
        "training against counted FLOPs per token, without compiling, one core per run; other work on the machine is "
        "in its scatter, and where products are too small to fill the core it grows more slowly than FLOPs.",
        draw.price(table, frontier(table)),
        "Left: loss against training compute; the dashed line joins the lowest losses. Right: measured seconds per "
        "million tokens against counted FLOPs per token.",
    )


def _decide_s4(n: Numbers) -> str:
    return verdict(every(*(number.above(0.0) for number in n.values())))


def capacity(widths: Frame, depths: Frame) -> dict[str, Estimate]:
    """Fall of the loss per doubling of depth at fixed width, and of width at fixed
    depth, at equal tokens.
    """
    tokens = depths["tokens"].iloc[0]
    rows = widths[widths["tokens"] == tokens]
    down = {}
    for name, table in (("depth", depths), ("width", rows)):
        fall = slopes(-table["loss"], np.log2(table[name]))[0]
        down[f"fall per doubling of {name}"] = fall
    return down


def _s9(evidence: Evidence) -> Finding:
    family, depths = evidence.table("family"), evidence.table("depths")
    tokens = int(depths["tokens"].iloc[0])
    return Finding(
        capacity(family, depths),
        f"Held-out loss in nats per token at {tokens:,} tokens: depth at width {depths['width'].iloc[0]}, width at "
        f"depth {family['depth'].iloc[0]}. The rate follows the recipe's rule for width and is not tuned to depth.",
        draw.capacity(family[family["tokens"] == tokens], depths),
        "Loss against depth at fixed width, and against width at fixed depth; one marker per run.",
    )


def _decide_s9(n: Numbers) -> str:
    return verdict(every(*(number.above(0.0) for number in n.values())))


def concordance(units: list[Frame]) -> float:
    """Share of pairs of models in which the one of lower loss is the more accurate;
    ties in accuracy count half.
    """
    loss = np.concatenate([u["loss"] for u in units])
    accuracy = np.concatenate([u["accuracy"] for u in units])
    i, j = np.triu_indices(len(loss), 1)
    agree = -np.sign(loss[i] - loss[j]) * np.sign(accuracy[i] - accuracy[j])
    return float((1 + agree[loss[i] != loss[j]].mean()) / 2)


def _s18(evidence: Evidence) -> Finding:
    table = accuracies(evidence)
    units: list[Frame] = [rows for _, rows in table.groupby("trunk")]
    share = resampled(units, concordance)
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
        draw.agreement(table),
        "Next-token accuracy against perplexity, one marker per model.",
    )


def _decide_s18(n: Numbers) -> str:
    return verdict(n["share of pairs that agree"].above(0.9))


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
        _s1,
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
        _s2,
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
        _s3,
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
        _s4,
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
        _s9,
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
        _s18,
        ("family",),
    ),
)
