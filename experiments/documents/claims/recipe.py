"""Claims about the recipe: learning rate, batch and optimiser (S8), over-fitting (S12),
the documents' update (S14).
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

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
from experiments.documents import update
from experiments.documents.accuracy import ROWS, score_windows
from experiments.documents.evidence import Evidence
from experiments.documents.figures import FREE, HEIGHT, plot_rate_lines, set_value_ticks
from experiments.documents.grids import METHODS, REMEDIES, find_arm
from experiments.documents.statement import (
    Claim,
    Estimate,
    Finding,
    Numbers,
    all_hold,
    any_holds,
    name_verdict,
)
from experiments.documents.stats import estimate_contrast, estimate_mean
from experiments.frames import Frame
from scaling import data

MATTERS = math.log(
    1.01
)  # a factor matters if it changes the loss by more than one per cent
RATE, METHOD, BATCH = "rate off by 4", "choice of optimiser", "choice of batch size"


def find_best_cells(table: Frame, by: str) -> dict[Any, Any]:
    """Of each value of a column, the log losses [seeds] at its best learning rate."""
    cells = {}
    for value, rows in table.groupby(by):
        means = rows.groupby("lr")["loss"].mean()
        cells[value] = np.log(rows.loc[rows["lr"] == means.idxmin(), "loss"].to_numpy())
    return cells


def measure_spread(cells: dict[Any, Any]) -> Estimate:
    """Log of the worst cell's loss over the best's, with the scatter between seeds
    pooled over all cells.
    """
    means = {value: float(np.mean(losses)) for value, losses in cells.items()}
    worst, best = max(means, key=lambda v: means[v]), min(means, key=lambda v: means[v])
    weight = 1 / len(cells[worst]) + 1 / len(cells[best])
    return estimate_contrast(means[worst] - means[best], list(cells.values()), weight)


def measure_rate_cost(table: Frame) -> Estimate:
    """Log rise of AdamW's loss at the worse neighbour of its best rate; the grid's
    steps are factors of 4.
    """
    rows = table[table["optimizer"] == "adamw"]
    cells = {lr: np.log(cell["loss"].to_numpy()) for lr, cell in rows.groupby("lr")}
    cells = {lr: losses for lr, losses in cells.items() if np.isfinite(losses).all()}
    rates = sorted(cells)
    best = min(rates, key=lambda lr: float(np.mean(cells[lr])))
    i = rates.index(best)
    near = {lr: cells[lr] for lr in rates[max(0, i - 1) : i + 2]}
    return measure_spread(near)


def interpolate_tokens_to_reach(rows: Frame, target: float) -> float:
    """Tokens at which the least loss over rates falls to a target, by interpolation in
    log tokens; NaN: never.
    """
    best = rows.groupby("tokens")["loss"].min()
    x, y = np.log(best.index.to_numpy(float)), np.minimum.accumulate(best.to_numpy())
    if not y[-1] <= target <= y[0]:
        return float("nan")
    return float(np.exp(np.interp(-target, -y, x)))


def fit_critical_batch(table: Frame) -> tuple[float, Frame, float]:
    """Critical batch size in tokens, examples by batch size, and the loss at which they
    are read.

    E = E_min (1 + B / B_crit), the hyperbola (S/S_min - 1)(E/E_min - 1) = 1 in steps S
    = E / B of McCandlish et al. 2018, arXiv:1812.06162, section 2.2; by least squares
    on E. The loss is the largest batch's last.
    """
    means = table.groupby(["batch_tokens", "lr", "tokens"], as_index=False)[
        "loss"
    ].mean()
    ends = (
        means[means["tokens"] == means["tokens"].max()]
        .groupby("batch_tokens")["loss"]
        .min()
    )
    target = float(ends.max())
    B = ends.index.to_numpy(float)
    E = np.array(
        [
            interpolate_tokens_to_reach(means[means["batch_tokens"] == b], target)
            for b in B
        ]
    )
    known = np.isfinite(E)
    slope, start = (
        np.polyfit(B[known], E[known], 1) if known.sum() > 1 else (np.nan, np.nan)
    )
    return (
        float(start / slope),
        pd.DataFrame({"batch": B, "examples": E, "fitted": start + slope * B}),
        target,
    )


def _examine_s8(evidence: Evidence) -> Finding:
    rates, batches = evidence.table("optimizers"), evidence.table("batches")
    last = batches[batches["tokens"] == batches["tokens"].max()]
    numbers = {
        RATE: measure_rate_cost(rates),
        METHOD: measure_spread(find_best_cells(rates, "optimizer")),
        BATCH: measure_spread(find_best_cells(last, "batch_tokens")),
    }
    B, examples, target = fit_critical_batch(batches)
    known = (
        f"about {B:,.0f} tokens"
        if B > 0
        else "not determined: examples do not grow with the batch"
    )
    return Finding(
        numbers,
        "Each number is ln(worst loss / best loss) within what was tried: AdamW's neighbours of its best rate on a "
        f"grid of factors of 4; {', '.join(METHODS)}, each at its own best rate; {len(examples)} batch sizes at equal "
        f"tokens, each at the best of three rates. Critical batch size at a loss of {target:.2f}: {known}, from a "
        f"hyperbola of two parameters through {len(examples)} batch sizes, without an interval; it grows as the loss "
        "falls.",
        plot_rates_and_batches(rates, batches, examples, B),
        "Left: loss against learning rate by optimiser, means over seeds. Middle: loss against batch size at equal "
        "tokens, best of three rates. Right: tokens needed to reach one loss against batch size, with the hyperbola.",
    )


def _decide_s8(n: Numbers) -> str:
    return name_verdict(
        all_hold(*(n[name].above(MATTERS) for name in (RATE, METHOD, BATCH)))
    )


def measure_remedies(table: Frame) -> dict[str, Estimate]:
    """By how much each remedy lowers the held-out loss and the gap at the last epoch;
    table: one row per arm and seed with heldout and train losses in nats per token."""
    table = table.assign(gap=table["heldout"] - table["train"])
    plain, numbers = table[table["arm"] == "none"].set_index("seed"), {}
    for column, what in (("heldout", "held-out loss"), ("gap", "gap")):
        for arm in REMEDIES:
            if arm != "none":
                rows = table[table["arm"] == arm].set_index("seed")
                numbers[f"fall of the {what} by {arm}"] = estimate_mean(
                    (plain[column] - rows[column]).to_numpy()
                )
    return numbers


def _measure_last_epoch(evidence: Evidence) -> list[dict[str, Any]]:
    """Held-out and training loss of every arm and seed after the last epoch, without
    dropout.
    """
    table, rows = evidence.table("repeats"), []
    for run in table.loc[table["tokens"] == table["tokens"].max(), "run"]:
        params = evidence.params(run)
        if params is None:
            raise RuntimeError(
                f"the checkpoint of run {run.run_id} is gone; remove its folder and its trunk's"
            )
        model = dataclasses.replace(run.model, dropout=0.0)
        seen = data.heldout_windows(data.load_dataset(run.data).train, model.context)
        loss = [
            score_windows(model, params, w[: len(w) // ROWS * ROWS])[0]
            for w in (seen, evidence.heldout(run, 32_768))
        ]
        rows.append(
            {
                "arm": find_arm(run, evidence.size),
                "seed": run.seed,
                "train": loss[0],
                "heldout": loss[1],
            }
        )
    return rows


def _examine_s12(evidence: Evidence) -> Finding:
    table = pd.DataFrame(
        evidence.measured("last epoch", lambda: _measure_last_epoch(evidence))
    )
    curves = evidence.table("repeats")
    curves = curves.assign(arm=[find_arm(run, evidence.size) for run in curves["run"]])
    size = evidence.size
    return Finding(
        measure_remedies(table),
        f"Width 64 on {size.repeated:,} tokens seen {size.epochs[-1]} times at a constant rate; '4 times the data' "
        "takes the same number of steps over four times the text. Nats per token, paired by seed. The gap is held-out "
        "minus training loss, dropout off. Strengths were not tuned (dropout 0.2; decay 0.002 per step).",
        plot_overfitting(curves, table, size.repeated),
        "Left: held-out loss over the epochs, means over seeds. Right: training and held-out loss at the end, one "
        "marker per seed.",
    )


def _decide_s12(n: Numbers) -> str:
    return name_verdict(all_hold(*(number.above(0.0) for number in n.values())))


def measure_progress(table: Frame) -> dict[str, Estimate]:
    """Share of the best trained loss's fall from ln(vocabulary) that each form of the
    update reaches at its best rate.

    table: arm, rate, seed, loss, with `start`, ln(vocabulary), and `best`, the
    reference's least mean loss.
    """
    numbers = {}
    for arm in (update.LITERAL, update.SUBTRACTED):
        rows = table[table["arm"] == arm]
        rate = rows.groupby("rate")["loss"].mean().idxmin()
        losses = rows.loc[rows["rate"] == rate, "loss"]
        numbers[f"progress, {arm}"] = estimate_mean(
            (rows["start"].iloc[0] - losses) / (rows["start"] - rows["best"]).iloc[0]
        )
    return numbers


def _examine_s14(evidence: Evidence) -> Finding:
    reference = evidence.table("optimizers")
    best = float(reference.groupby(["optimizer", "lr"])["loss"].mean().min())
    rows = evidence.measured("update", lambda: update.train_all(evidence.size))
    table = pd.DataFrame(rows)
    table["loss"] = table["loss"].fillna(np.inf)
    table = table.assign(start=math.log(256), best=best)
    return Finding(
        measure_progress(table),
        "Progress is the fall of the held-out loss from ln 256, no knowledge at all, as a share of what the best of "
        "AdamW, RMSprop and SGD reach in as many steps. As written, each tensor is multiplied by lr g/|g|, itself of "
        "norm lr; subtracted, w <- w - lr g/|g|, is what it may have been meant to be. Rates a factor of 10 and of 3 "
        "apart; a form that stays finite at no rate has made no progress.",
        plot_update(table, reference),
        "Held-out loss against the update's learning rate, means over seeds; the dotted line is the loss of knowing "
        "nothing.",
    )


def _decide_s14(n: Numbers) -> str:
    return name_verdict(any_holds(n[f"progress, {update.LITERAL}"].above(0.5)))


@use_style
def plot_rates_and_batches(
    rates: Frame, batches: Frame, examples: Frame, critical: float
) -> Figure:
    """Loss by rate and optimiser; loss by batch size; tokens to reach one loss by batch
    size.
    """
    fig = make_figure(HEIGHT)
    left, middle, right = fig.subplots(1, 3)
    handles = plot_rate_lines(left, rates, "optimizer")
    left.set(ylabel=LOSS)
    last = batches[batches["tokens"] == batches["tokens"].max()]
    best = (
        last.groupby(["batch_tokens", "lr"])["loss"]
        .mean()
        .groupby("batch_tokens")
        .min()
    )
    middle.plot(best.index, best, "o-", color=BLUE, markersize=4.5)
    set_value_ticks(middle, best.index)
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
    set_value_ticks(right, examples["batch"])
    right.set(xlabel="Batch (tokens)", ylabel="Thousand tokens needed")
    right.set_ylim(0, None)
    fig.legend(handles=handles, loc="outside upper left", ncols=3)
    return fig


@use_style
def plot_overfitting(curves: Frame, ends: Frame, unique: int) -> Figure:
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
    set_value_ticks(left, curves["tokens"] / unique)
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
def plot_update(table: Frame, reference: Frame) -> Figure:
    """Loss against rate of the documents' update, beside the other optimisers."""
    fig = make_figure(HEIGHT)
    left, right = fig.subplots(1, 2, sharey=True)
    for ax, rows, by, x in (
        (left, table, "arm", "rate"),
        (right, reference, "optimizer", "lr"),
    ):
        handles = plot_rate_lines(ax, rows, by, x)
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


CLAIMS = (
    Claim(
        "S8",
        "A, C, D",
        "rate, batch size and optimiser matter",
        "The learning rate, the batch size and the optimiser (Adam, RMSprop, SGD) matter to training.",
        "Supported if each of the three changes the loss by more than 1 % within what was tried, at the best of the "
        "others (95 % intervals of ln worst/best above 0.01); refuted if one changes it by less.",
        _decide_s8,
        "A wider or narrower range tried: far enough from the best rate anything fails, and near it nothing matters.",
        _examine_s8,
        ("optimizers", "batches"),
    ),
    Claim(
        "S12",
        "C",
        "dropout, decay, more data curb over-fitting",
        "Dropout, weight decay and more data curb over-fitting.",
        "Supported if each of the three lowers the held-out loss and the gap between held-out and training loss at the "
        "end of many epochs (all 95 % intervals above 0); refuted if one raises either.",
        _decide_s12,
        "Another strength of dropout or decay, or fewer epochs: where nothing is over-fitted there is nothing to curb.",
        _examine_s12,
        ("repeats",),
    ),
    Claim(
        "S14",
        "E",
        "w <- w * (lr * g/|g|) trains",
        "The update w <- w * (lr * g / |g|) trains a model.",
        "Supported if at its best learning rate it makes more than half of the progress of the best of AdamW, RMSprop "
        "and SGD in as many steps (95 % interval); refuted if less.",
        _decide_s14,
        "The update read otherwise: w <- w - lr g/|g|, which the second number is of.",
        _examine_s14,
        ("optimizers",),
    ),
)
