"""Claims about the recipe: learning rate, batch and optimizer (S8), over-fitting (S12),
the update that document E proposes (S14).
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

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
from experiments.documents.stats import (
    estimate_contrast,
    estimate_mean,
)
from experiments.groups import average_by, find_least_by
from scaling import data

MATTERS = math.log(1.01)
"""A factor matters if it changes the loss by more than one per cent."""

# The names of numbers are keys of claims.json, so their spelling stays.
RATE = "rate off by 4"
METHOD = "choice of optimiser"
BATCH = "choice of batch size"

NO_KNOWLEDGE = math.log(256)
"""Loss of a uniform distribution over bytes, in nats per token."""

Cells = Mapping[str, np.ndarray]
"""Log losses [seeds] by the value of what is varied."""


class LastEpochRow(TypedDict):
    """Losses after the last epoch, in nats per token."""

    arm: str
    seed: int
    train: float
    heldout: float


@dataclass(frozen=True, eq=False)
class CriticalBatch:
    """The hyperbola E = E_min (1 + B / B_crit) through the tokens needed to reach a
    loss.

    Attributes:
        size: the critical batch size B_crit in tokens.
        table: one row per batch size: `batch`, and `examples` and `fitted`, the
            measured and the fitted number of tokens.
        loss: the loss to reach.
    """

    size: float
    table: pd.DataFrame
    loss: float


def find_best_cells(table: pd.DataFrame, by: str) -> dict[str, np.ndarray]:
    """Of each value of a column, the log losses [seeds] at its best learning rate."""
    cells: dict[str, np.ndarray] = {}
    for value, rows in table.groupby(by):
        best_rate = average_by(rows, "lr").idxmin()
        losses: pd.Series = rows.loc[rows["lr"] == best_rate, "loss"]
        cells[str(value)] = np.log(losses.to_numpy())
    return cells


def measure_spread(cells: Cells) -> Estimate:
    """Log of the worst cell's loss over the best's, with the scatter between seeds
    pooled over all cells.
    """
    means = {value: float(np.mean(losses)) for value, losses in cells.items()}
    worst = max(means, key=lambda value: means[value])
    best = min(means, key=lambda value: means[value])
    return estimate_contrast(
        means[worst] - means[best],
        list(cells.values()),
        weight=1 / len(cells[worst]) + 1 / len(cells[best]),
    )


def measure_rate_cost(table: pd.DataFrame) -> Estimate:
    """Log rise of AdamW's loss at the worse neighbor of its best rate; the grid's steps
    are factors of 4.
    """
    rows: pd.DataFrame = table.loc[table["optimizer"] == "adamw"]
    cells: dict[float, np.ndarray] = {}
    for rate in sorted(rows["lr"].unique()):
        losses: pd.Series = rows.loc[rows["lr"] == rate, "loss"]
        if np.isfinite(losses).all():
            cells[float(rate)] = np.log(losses.to_numpy())
    rates = list(cells)
    best = min(range(len(rates)), key=lambda i: float(np.mean(cells[rates[i]])))
    neighbors = rates[max(0, best - 1) : best + 2]
    return measure_spread({f"{rate:g}": cells[rate] for rate in neighbors})


def interpolate_tokens_to_reach(rows: pd.DataFrame, target: float) -> float:
    """Tokens at which the least loss over rates falls to a target, by interpolation in
    log tokens; NaN where it never does.
    """
    best = find_least_by(rows, "tokens")
    log_tokens = np.log(best.index.to_numpy(float))
    losses = np.minimum.accumulate(best.to_numpy())
    if not losses[-1] <= target <= losses[0]:
        return float("nan")
    return float(np.exp(np.interp(-target, -losses, log_tokens)))


def fit_critical_batch(table: pd.DataFrame) -> CriticalBatch:
    """The critical batch size at the last loss of the batch size that ends worst.

    E = E_min (1 + B / B_crit) is the hyperbola (S/S_min - 1)(E/E_min - 1) = 1 in steps
    S = E / B of McCandlish et al. 2018, arXiv:1812.06162, section 2.2; it is fitted by
    least squares on E.
    """
    means = average_by(table, ["batch_tokens", "lr", "tokens"]).reset_index()
    is_last = means["tokens"] == means["tokens"].max()
    last_losses = find_least_by(means.loc[is_last], "batch_tokens")
    target = float(last_losses.max())
    batches = last_losses.index.to_numpy(float)
    examples = np.array(
        [
            interpolate_tokens_to_reach(
                means.loc[means["batch_tokens"] == batch], target
            )
            for batch in batches
        ]
    )
    known = np.isfinite(examples)
    slope = start = np.nan
    if known.sum() > 1:
        slope, start = np.polyfit(batches[known], examples[known], 1)
    fitted = start + slope * batches
    return CriticalBatch(
        size=float(start / slope),
        table=pd.DataFrame({"batch": batches, "examples": examples, "fitted": fitted}),
        loss=target,
    )


def _examine_s8(evidence: Evidence) -> Finding:
    rates = evidence.table("optimizers")
    batches = evidence.table("batches")
    last: pd.DataFrame = batches.loc[batches["tokens"] == batches["tokens"].max()]
    critical = fit_critical_batch(batches)
    n_batches = len(critical.table)
    known = "not determined: examples do not grow with the batch"
    if critical.size > 0:
        known = f"about {critical.size:,.0f} tokens"
    return Finding(
        numbers={
            RATE: measure_rate_cost(rates),
            METHOD: measure_spread(find_best_cells(rates, "optimizer")),
            BATCH: measure_spread(find_best_cells(last, "batch_tokens")),
        },
        remark=(
            "Each number is ln(worst loss / best loss) within what was tried: AdamW's "
            "neighbors of its best rate on a grid of factors of 4; "
            f"{', '.join(METHODS)}, each at its own best rate; {n_batches} batch sizes "
            "at equal tokens, each at the best of three rates. Critical batch size at "
            f"a loss of {critical.loss:.2f}: {known}, from a hyperbola of two "
            f"parameters through {n_batches} batch sizes, without an interval; it "
            "grows as the loss falls."
        ),
        figure=plot_rates_and_batches(rates, batches, critical),
        caption=(
            "Left: loss against learning rate by optimizer, means over seeds. "
            "Middle: loss against batch size at equal tokens, best of three rates. "
            "Right: tokens needed to reach one loss against batch size, with the "
            "hyperbola."
        ),
    )


def _decide_s8(n: Numbers) -> str:
    return name_verdict(
        all_hold(*(n[name].above(MATTERS) for name in (RATE, METHOD, BATCH)))
    )


def measure_remedies(table: pd.DataFrame) -> dict[str, Estimate]:
    """S12: by how much each remedy lowers the held-out loss and the gap at the last
    epoch.

    Args:
        table: one row per arm and seed with `heldout` and `train`, losses in nats per
            token.
    """
    table = table.assign(gap=table["heldout"] - table["train"])
    plain = table.loc[table["arm"] == "none"].set_index("seed")
    numbers = {}
    for column, name in (("heldout", "held-out loss"), ("gap", "gap")):
        for arm in REMEDIES:
            if arm == "none":
                continue
            rows = table.loc[table["arm"] == arm].set_index("seed")
            fall = (plain[column] - rows[column]).to_numpy()
            numbers[f"fall of the {name} by {arm}"] = estimate_mean(fall)
    return numbers


def _measure_last_epoch(evidence: Evidence) -> list[LastEpochRow]:
    """Held-out and training loss of every arm and seed after the last epoch, without
    dropout.
    """
    last_tokens = evidence.size.repeated * evidence.size.epochs[-1]
    rows: list[LastEpochRow] = []
    for run in evidence.configs("repeats"):
        if run.tokens != last_tokens:
            continue
        params = evidence.params(run)
        if params is None:
            raise RuntimeError(
                f"the checkpoint of run {run.run_id} is gone; remove its folder and "
                "its "
                "trunk's"
            )
        model = dataclasses.replace(run.model, dropout=0.0)
        seen = data.heldout_windows(data.load_dataset(run.data).train, model.context)
        unseen = evidence.heldout(run, 32_768)
        train_loss, _ = score_windows(model, params, _take_whole_blocks(seen))
        heldout_loss, _ = score_windows(model, params, _take_whole_blocks(unseen))
        rows.append(
            {
                "arm": find_arm(run, evidence.size),
                "seed": run.seed,
                "train": train_loss,
                "heldout": heldout_loss,
            }
        )
    return rows


def _take_whole_blocks(windows: np.ndarray) -> np.ndarray:
    return windows[: len(windows) // ROWS * ROWS]


def _examine_s12(evidence: Evidence) -> Finding:
    table = pd.DataFrame(
        evidence.measured("last epoch", lambda: _measure_last_epoch(evidence))
    )
    curves = evidence.table("repeats")
    curves = curves.assign(arm=[find_arm(run, evidence.size) for run in curves["run"]])
    size = evidence.size
    return Finding(
        numbers=measure_remedies(table),
        remark=(
            f"Width 64 on {size.repeated:,} tokens seen {size.epochs[-1]} times at a "
            "constant rate; '4 times the data' takes the same number of steps over "
            "four times the text. Nats per token, paired by seed. The gap is "
            "held-out minus training loss, dropout off. Strengths were not tuned "
            "(dropout 0.2; decay 0.002 per step)."
        ),
        figure=plot_overfitting(curves, table, size.repeated),
        caption=(
            "Left: held-out loss over the epochs, means over seeds. Right: training "
            "and held-out loss at the end, one marker per seed."
        ),
    )


def _decide_s12(n: Numbers) -> str:
    return name_verdict(all_hold(*(number.above(0.0) for number in n.values())))


def measure_progress(table: pd.DataFrame, best: float) -> dict[str, Estimate]:
    """S14: share of the best trained loss's fall from `NO_KNOWLEDGE` that each form of
    the update reaches at its best rate.

    Args:
        table: one row per run: arm, rate, seed, loss.
        best: least mean loss of the optimizers that the update is compared with.
    """
    numbers = {}
    for arm in (update.LITERAL, update.SUBTRACTED):
        rows: pd.DataFrame = table.loc[table["arm"] == arm]
        best_rate = average_by(rows, "rate").idxmin()
        losses: pd.Series = rows.loc[rows["rate"] == best_rate, "loss"]
        share = (NO_KNOWLEDGE - losses) / (NO_KNOWLEDGE - best)
        numbers[f"progress, {arm}"] = estimate_mean(share)
    return numbers


def _examine_s14(evidence: Evidence) -> Finding:
    reference = evidence.table("optimizers")
    best = float(average_by(reference, ["optimizer", "lr"]).min())
    table = pd.DataFrame(
        evidence.measured("update", lambda: update.train_all(evidence.size))
    )
    table["loss"] = table["loss"].fillna(np.inf)
    return Finding(
        numbers=measure_progress(table, best),
        remark=(
            "Progress is the fall of the held-out loss from ln 256, no knowledge at "
            "all, as a share of what the best of AdamW, RMSprop and SGD reach in as "
            "many steps. As written, each tensor is multiplied by lr g/|g|, itself "
            "of norm lr; subtracted, w <- w - lr g/|g|, is what it may have been "
            "meant to be. Rates a factor of 10 and of 3 apart; a form that stays "
            "finite at no rate has made no progress."
        ),
        figure=plot_update(table, reference),
        caption=(
            "Held-out loss against the update's learning rate, means over seeds; the "
            "dotted line is the loss of knowing nothing."
        ),
    )


def _decide_s14(n: Numbers) -> str:
    return name_verdict(any_holds(n[f"progress, {update.LITERAL}"].above(0.5)))


@use_style
def plot_rates_and_batches(
    rates: pd.DataFrame, batches: pd.DataFrame, critical: CriticalBatch
) -> Figure:
    """Loss by rate and optimizer; loss by batch size; tokens to reach one loss by batch
    size.
    """
    fig = make_figure(HEIGHT)
    left, middle, right = fig.subplots(1, 3)
    handles = plot_rate_lines(left, rates, "optimizer")
    left.set(ylabel=LOSS)
    last: pd.DataFrame = batches.loc[batches["tokens"] == batches["tokens"].max()]
    by_rate = average_by(last, ["batch_tokens", "lr"]).reset_index()
    best = find_least_by(by_rate, "batch_tokens")
    middle.plot(best.index, best, "o-", color=BLUE, markersize=4.5)
    set_value_ticks(middle, best.index)
    middle.set(
        xlabel="Batch (tokens)",
        ylabel=f"Loss at {format_count(last['tokens'].iloc[0])} tokens",
    )
    examples = critical.table
    right.plot(examples["batch"], examples["examples"] / 1e3, "o", color=BLUE, **FREE)
    if critical.size > 0:
        first = examples.iloc[0]
        least = first["fitted"] / (1 + first["batch"] / critical.size)
        B = np.geomspace(examples["batch"].min(), examples["batch"].max(), 50)
        right.plot(B, least * (1 + B / critical.size) / 1e3, color=BLACK, zorder=1)
    set_value_ticks(right, examples["batch"])
    right.set(xlabel="Batch (tokens)", ylabel="Thousand tokens needed")
    right.set_ylim(0, None)
    fig.legend(handles=handles, loc="outside upper left", ncols=3)
    return fig


@use_style
def plot_overfitting(curves: pd.DataFrame, ends: pd.DataFrame, unique: int) -> Figure:
    """Held-out loss over epochs by arm; training and held-out loss at the end."""
    fig = make_figure(HEIGHT)
    left, right = fig.subplots(1, 2, sharey=True)
    arms = list(dict.fromkeys(ends["arm"]))
    arms.sort(key=lambda arm: arm != "none")
    handles = []
    for place, (arm, color, marker) in enumerate(
        zip(arms, sample_colors(len(arms)), MARKERS, strict=False)
    ):
        means = average_by(curves.loc[curves["arm"] == arm], "tokens")
        handles += left.plot(
            means.index / unique,
            means,
            label=arm,
            color=color,
            marker=marker,
            markersize=4,
        )
        rows: pd.DataFrame = ends.loc[ends["arm"] == arm]
        for column, face in (("heldout", color), ("train", "white")):
            right.plot(
                np.full(len(rows), place),
                rows[column],
                linestyle="none",
                color=color,
                markerfacecolor=face,
                marker=marker,
                markersize=4,
            )
    set_value_ticks(left, curves["tokens"] / unique)
    left.set(
        xlabel=f"Tokens trained on, in units of {unique:,}",
        ylabel="Held-out loss (nats per token)",
    )
    right.set_xticks(range(len(arms)), [textwrap.fill(arm, 9) for arm in arms])
    right.set(ylabel="Loss at the end: filled held-out,\nhollow training")
    right.tick_params(labelleft=True)
    right.margins(x=0.15)
    fig.legend(handles=handles, loc="outside upper left", ncols=4)
    return fig


@use_style
def plot_update(table: pd.DataFrame, reference: pd.DataFrame) -> Figure:
    """Loss against rate of document E's update, beside the other optimizers."""
    fig = make_figure(HEIGHT)
    left, right = fig.subplots(1, 2, sharey=True)
    for ax, rows, by, x in (
        (left, table, "arm", "rate"),
        (right, reference, "optimizer", "lr"),
    ):
        handles = plot_rate_lines(ax, rows, by, x)
        ax.axhline(NO_KNOWLEDGE, color=GRAY, linestyle=":", zorder=1)
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
        id="S8",
        documents="A, C, D",
        short="rate, batch size and optimizer matter",
        statement=(
            "The learning rate, the batch size and the optimizer (Adam, RMSprop, "
            "SGD) matter to training."
        ),
        rule=(
            "Supported if each of the three changes the loss by more than 1 % within "
            "what was tried, at the best of the others (95 % intervals of ln "
            "worst/best above 0.01); refuted if one changes it by less."
        ),
        decide=_decide_s8,
        change=(
            "A wider or narrower range tried: far enough from the best rate anything "
            "fails, and near it nothing matters."
        ),
        experiment=_examine_s8,
        needs=("optimizers", "batches"),
    ),
    Claim(
        id="S12",
        documents="C",
        short="dropout, decay, more data curb over-fitting",
        statement="Dropout, weight decay and more data curb over-fitting.",
        rule=(
            "Supported if each of the three lowers the held-out loss and the gap "
            "between held-out and training loss at the end of many epochs (all 95 % "
            "intervals above 0); refuted if one raises either."
        ),
        decide=_decide_s12,
        change=(
            "Another strength of dropout or decay, or fewer epochs: where nothing is "
            "over-fitted there is nothing to curb."
        ),
        experiment=_examine_s12,
        needs=("repeats",),
    ),
    Claim(
        id="S14",
        documents="E",
        short="w <- w * (lr * g/|g|) trains",
        statement="The update w <- w * (lr * g / |g|) trains a model.",
        rule=(
            "Supported if at its best learning rate it makes more than half of the "
            "progress of the best of AdamW, RMSprop and SGD in as many steps (95 % "
            "interval); refuted if less."
        ),
        decide=_decide_s14,
        change=(
            "The update read otherwise: w <- w - lr g/|g|, which the second number "
            "is of."
        ),
        experiment=_examine_s14,
        needs=("optimizers",),
    ),
)
