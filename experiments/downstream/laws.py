"""What the measurements say: the error in two steps, transfer, forgetting.

The widest models are held out from every law and predicted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

import analysis
from analysis import DownstreamPrediction, Fit, Law, NotIdentifiedError
from experiments.downstream.settings import (
    METRIC_SCALE,
    Settings,
    TaskChoice,
    find_title,
)

FIRST_STEPS: dict[str, Law] = {
    "N and D": analysis.monomial(
        target="loss", variables=("N", "D"), name="task_loss_of_N_D"
    ),
    "pre-training loss": analysis.monomial(
        target="loss", variables=("pretraining_loss",), name="task_loss_of_loss"
    ),
}
"""Laws of the task's loss. Two budgets cannot tell the terms of `chinchilla` apart: its
five parameters need an exponent, a coefficient and a floor from two values of D."""

LEAST_GAIN = 2.0
"""Standard errors above the baseline from which a task counts as learned."""


class TwoSteps(NamedTuple):
    """The two laws of a task and what they predict.

    Attributes:
        choice: the task.
        mode: "zero-shot" or "fine-tuned".
        first: a name of `FIRST_STEPS`.
        rows: the models, see `select_models`.
        is_learned: whether the best fitted model is above the baseline.
        loss_fit: the first step; None if the models do not determine it.
        error_fit: the second step; None also if nothing is learned.
        predictions: of the held-out models, in the order of `rows`.
    """

    choice: TaskChoice
    mode: str
    first: str
    rows: pd.DataFrame
    is_learned: bool
    loss_fit: Fit | None
    error_fit: Fit | None
    predictions: tuple[DownstreamPrediction, ...]


# --- two steps ------------------------------------------------------------------------


def select_models(table: pd.DataFrame, choice: TaskChoice, mode: str) -> pd.DataFrame:
    """The models of one task and mode.

    Columns: width, N, D, pretraining_loss, loss and loss_se of the task, error,
    error_se, and baseline, the error of the better of chance and the majority.
    """
    chosen = table.loc[(table["task"] == choice.spec) & (table["mode"] == mode)]
    loss = chosen.loc[chosen["metric"] == choice.loss].set_index("run_id")
    metric = chosen.loc[chosen["metric"] == choice.metric].set_index("run_id")
    metric = metric.reindex(loss.index)
    scale = METRIC_SCALE.get(choice.metric, 1.0)
    best = metric[["chance", "majority"]].max(axis=1)
    return pd.DataFrame(
        {
            "width": loss["width"],
            "N": loss["n_matmul"],
            "D": loss["pretraining_tokens"],
            "pretraining_loss": loss["pretraining_loss"],
            "loss": loss["value"],
            "loss_se": loss["standard_error"],
            "error": 1 - metric["value"] / scale,
            "error_se": metric["standard_error"] / scale,
            "baseline": 1 - best / scale,
        }
    ).reset_index()


def fit_two_steps(
    table: pd.DataFrame, choice: TaskChoice, mode: str, first: str, settings: Settings
) -> TwoSteps:
    """Fit both steps to all widths but the largest, and predict that."""
    rows = select_models(table, choice, mode)
    is_held_out = rows["width"] == rows["width"].max()
    fitted = rows.loc[~is_held_out]
    gain = fitted["baseline"] - fitted["error"]
    is_learned = bool((gain > LEAST_GAIN * fitted["error_se"]).any())
    loss_fit = fit_or_none(fitted, FIRST_STEPS[first])
    error_fit = None
    predictions: list[DownstreamPrediction] = []
    if is_learned:
        ceiling = float(fitted["baseline"].iloc[0])
        error_fit = fit_error(fitted, ceiling)
    if loss_fit is not None and error_fit is not None:
        for row in rows.loc[is_held_out].to_dict("records"):
            at = {name: float(row[name]) for name in loss_fit.law.variables}
            found = analysis.predict_downstream(
                loss_fit,
                error_fit,
                at,
                n=settings.draws,
                sampling_error=float(row["error_se"]),
            )
            predictions.append(found)
    return TwoSteps(
        choice,
        mode,
        first,
        rows,
        is_learned,
        loss_fit,
        error_fit,
        tuple(predictions),
    )


def fit_error(fitted: pd.DataFrame, ceiling: float) -> Fit | None:
    """The law of the error, which approaches that of the baseline."""
    return fit_or_none(fitted, "downstream", residual="raw", fixed={"epsilon": ceiling})


def fit_or_none(
    fitted: pd.DataFrame,
    law: Law | str,
    *,
    residual: str = "log",
    fixed: dict[str, float] | None = None,
) -> Fit | None:
    """A fit by least squares, or None where the models do not determine it."""
    try:
        return analysis.fit(
            fitted,
            law,
            objective="least_squares",
            effects="row",
            residual=residual,
            fixed=fixed,
        )
    except NotIdentifiedError:
        return None


def tabulate_two_steps(steps: list[TwoSteps]) -> pd.DataFrame:
    """A row for each held-out model: predicted and measured loss and error."""
    rows = []
    for step in steps:
        held_out = step.rows.loc[step.rows["width"] == step.rows["width"].max()]
        base = {"task": step.choice.title, "mode": step.mode, "first": step.first}
        if not step.predictions:
            why = "not identified" if step.is_learned else "at the baseline"
            rows.append(base | {"outcome": why})
            continue
        for row, found in zip(
            held_out.to_dict("records"), step.predictions, strict=True
        ):
            low, high = found.error_interval
            rows.append(
                base
                | {
                    "outcome": "predicted",
                    "N": row["N"],
                    "D": row["D"],
                    "loss": row["loss"],
                    "loss_predicted": found.loss,
                    "loss_low": found.loss_interval[0],
                    "loss_high": found.loss_interval[1],
                    "error": row["error"],
                    "error_se": row["error_se"],
                    "error_predicted": found.error,
                    "error_low": low,
                    "error_high": high,
                    "is_covered": low <= row["error"] <= high,
                    "is_outside": found.is_outside,
                }
            )
    return pd.DataFrame(rows)


def tabulate_first_steps(steps: list[TwoSteps], draws: int) -> pd.DataFrame:
    """The loss of every task for the held-out models, with a 90 % interval, where the
    first law was fitted; also of tasks at the baseline.
    """
    rows = []
    for step in steps:
        fit = step.loss_fit
        if fit is None:
            continue
        held_out = step.rows.loc[step.rows["width"] == step.rows["width"].max()]
        bootstrap = fit.bootstrap(draws, unit="row", method="parametric")
        for row in held_out.to_dict("records"):
            at = {name: float(row[name]) for name in fit.law.variables}
            low, high = bootstrap.predict_interval(new_run=True, **at)
            rows.append(
                {
                    "task": step.choice.title,
                    "mode": step.mode,
                    "first": step.first,
                    "D": row["D"],
                    "loss": row["loss"],
                    "loss_predicted": fit.predict(**at),
                    "loss_low": low,
                    "loss_high": high,
                    "is_covered": low <= row["loss"] <= high,
                }
            )
    return pd.DataFrame(rows)


# --- transfer -------------------------------------------------------------------------


def find_best_epochs(children: pd.DataFrame) -> pd.DataFrame:
    """Of each task, mode, size, budget and number of examples the run of the lowest
    held-out loss.
    """
    kept = children.loc[children["mode"] != "rate"]
    by = ["task", "mode", "width", "pretraining_tokens", "examples"]
    best = kept.groupby(by, sort=False)["loss"].idxmin()
    return kept.loc[best].reset_index(drop=True)


def measure_transfer(children: pd.DataFrame) -> pd.DataFrame:
    """The effective data transferred for every fine-tuned model of the largest budget
    whose size was trained from scratch on several numbers of examples.

    D_T = D_E - D_F: D_E examples give from scratch the loss that D_F examples give after
    pre-training (Hernandez et al. 2021, arXiv:2102.01293, section 2). D_E is interpolated
    in the logarithm of the examples.

    Returns:
        Columns task, width, N, D_F, D_E, D_T (examples), loss (fine-tuned) and outcome:
        "measured", or why it is not.
    """
    best = find_best_epochs(children)
    tuned = best.loc[best["mode"] == "fine-tuned"]
    tuned = tuned.loc[tuned["pretraining_tokens"] == tuned["pretraining_tokens"].max()]
    rows = []
    for row in tuned.to_dict("records"):
        is_same = (best["task"] == row["task"]) & (best["width"] == row["width"])
        scratch = best.loc[is_same & (best["mode"] == "from scratch")]
        if len(scratch) < 3:
            continue
        scratch = scratch.sort_values("examples")
        examples, outcome = find_effective_examples(
            scratch["examples"].to_numpy(float),
            scratch["loss"].to_numpy(float),
            float(row["loss"]),
        )
        transferred = examples - row["examples"]
        if outcome == "measured" and transferred <= 0:
            outcome = "no gain"
        rows.append(
            {
                "task": row["task"],
                "width": row["width"],
                "N": row["n_matmul"],
                "D_F": float(row["examples"]),
                "D_E": examples,
                "D_T": transferred,
                "loss": row["loss"],
                "outcome": outcome,
            }
        )
    columns = ["task", "width", "N", "D_F", "D_E", "D_T", "loss", "outcome"]
    return pd.DataFrame(rows, columns=columns)


def find_effective_examples(
    examples: np.ndarray, losses: np.ndarray, wanted: float
) -> tuple[float, str]:
    """The examples from scratch that give the wanted loss, and "measured"; NaN and the
    reason where the curve does not reach it.

    Args:
        examples: [n] rising.
        losses: [n] from scratch; where more examples are worse, fewer count.
        wanted: the loss.
    """
    falling = np.minimum.accumulate(losses)
    if wanted < falling[-1]:
        return float("nan"), "beyond the largest from-scratch run"
    if wanted > falling[0]:
        return float("nan"), "below the smallest from-scratch run"
    # np.interp wants rising x; of equal losses the fewest examples count.
    distinct = np.concatenate([[True], np.diff(falling) < 0])
    x = falling[distinct][::-1]
    y = np.log(examples[distinct])[::-1]
    return float(np.exp(np.interp(wanted, x, y))), "measured"


class TransferLaw(NamedTuple):
    """The law of transfer of one task.

    Attributes:
        task: its title.
        rows: what was measured of it.
        fit: to all widths but the largest; None where too little was measured.
        held_out: the widest models, with columns predicted, low and high.
    """

    task: str
    rows: pd.DataFrame
    fit: Fit | None
    held_out: pd.DataFrame


def fit_transfer(measured: pd.DataFrame, draws: int) -> Iterator[TransferLaw]:
    """D_T = A D_F^p N^q for each task, and its prediction of the widest models."""
    for task, rows in measured.groupby("task", sort=False):
        usable = rows.loc[rows["outcome"] == "measured"]
        is_widest = usable["width"] == rows["width"].max()
        fitted, held_out = usable.loc[~is_widest], usable.loc[is_widest].copy()
        fit = fit_or_none(fitted, "transfer") if len(fitted) > 3 else None
        if fit is not None and len(held_out):
            bootstrap = fit.bootstrap(draws, unit="row", method="parametric")
            at = {name: held_out[name].to_numpy(float) for name in ("D_F", "N")}
            low, high = bootstrap.predict_interval(new_run=True, **at)
            held_out = held_out.assign(predicted=fit.predict(**at), low=low, high=high)
        yield TransferLaw(find_title(str(task)), rows, fit, held_out)


# --- forgetting -----------------------------------------------------------------------


def tabulate_forgetting(children: pd.DataFrame) -> pd.DataFrame:
    """How much the loss on the parent's text rises, in nats per token, of all models
    that were fine-tuned.
    """
    tuned = children.loc[children["mode"].isin(["fine-tuned", "adapters"])]
    tuned = tuned.assign(forgotten=tuned["pretraining_loss"] - tuned["parent_loss"])
    columns = ["task", "mode", "width", "pretraining_tokens", "examples", "epochs"]
    return tuned[[*columns, "loss", "forgotten"]].reset_index(drop=True)
