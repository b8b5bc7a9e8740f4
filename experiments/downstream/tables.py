"""The measurements as Markdown, for docs/notes/downstream.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from analysis.plots.style import format_count
from experiments.downstream.laws import TransferLaw
from experiments.downstream.settings import (
    METRIC_SCALE,
    PERPLEXITY,
    Settings,
    find_title,
)

MISSING = "-"


def write_markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [" | ".join(header), " | ".join(["---"] * len(header))]
    lines += [" | ".join(row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def write_metrics(table: pd.DataFrame, settings: Settings) -> str:
    """The main metric of each task in per cent of its largest value: the better
    baseline, then by mode for every size, the small budget before the large one.
    """
    header = ["task", "metric", "baseline", "mode"]
    header += [f"width {width}" for width in settings.widths]
    rows = []
    for choice in settings.tasks:
        chosen = table.loc[
            (table["task"] == choice.spec) & (table["metric"] == choice.metric)
        ]
        scale = 100 / METRIC_SCALE.get(choice.metric, 1.0)
        baseline = scale * chosen[["chance", "majority"]].max(axis=None)
        for mode in ("zero-shot", "few-shot", "from scratch", "fine-tuned"):
            of_mode = chosen.loc[chosen["mode"] == mode]
            if of_mode.empty:
                continue
            cells = [write_cell(of_mode, width, scale) for width in settings.widths]
            rows.append([choice.title, choice.metric, f"{baseline:.0f}", mode, *cells])
    return write_markdown(header, rows)


def write_cell(rows: pd.DataFrame, width: int, scale: float) -> str:
    """The values of one size, by rising pre-training budget, with the largest standard
    error.
    """
    found = rows.loc[rows["width"] == width].sort_values("pretraining_tokens")
    if found.empty:
        return MISSING
    values = " / ".join(f"{scale * value:.0f}" for value in found["value"])
    return f"{values} ± {scale * found['standard_error'].max():.0f}"


def write_perplexity(table: pd.DataFrame, settings: Settings) -> str:
    """Bits per byte of speeches, which no parent was trained on."""
    rows = table.loc[
        (table["task"] == PERPLEXITY.spec) & (table["metric"] == PERPLEXITY.loss)
    ]
    header = ["", *[f"width {width}" for width in settings.widths]]
    lines = []
    for tokens, found in rows.groupby("pretraining_tokens"):
        values = found.sort_values("width")["value"]
        name = f"{format_count(float(str(tokens)))} tokens"
        lines.append([name, *[f"{value:.2f}" for value in values]])
    return write_markdown(header, lines)


def write_two_steps(found: pd.DataFrame) -> str:
    """Predictions of the held-out models against what they reached."""
    header = ["task", "mode", "first step from", "tokens", "loss", "predicted"]
    header += ["error", "predicted", "covered"]
    rows = []
    for row in found.loc[found["outcome"] == "predicted"].to_dict("records"):
        loss = write_interval(row, "loss")
        error = write_interval(row, "error")
        measured = f"{row['error']:.3f} ± {row['error_se']:.3f}"
        covered = "yes" if row["is_covered"] else "no"
        name = [row["task"], row["mode"], row["first"], format_count(row["D"])]
        rows.append([*name, f"{row['loss']:.3f}", loss, measured, error, covered])
    return write_markdown(header, rows)


def write_first_steps(found: pd.DataFrame) -> str:
    """The loss of the widest model of the largest budget, measured and predicted."""
    header = ["task", "mode", "loss", "from N and D", "from the pre-training loss"]
    kept = found.loc[found["D"] == found["D"].max()]
    rows = []
    for _, pair in kept.groupby(["task", "mode"], sort=False):
        records = pair.to_dict("records")
        cells = []
        for row in records:
            missed = "" if row["is_covered"] else ", missed"
            error = 100 * (row["loss_predicted"] / row["loss"] - 1)
            cells.append(f"{write_interval(row, 'loss')}, {error:+.0f} %{missed}")
        first = records[0]
        rows.append([first["task"], first["mode"], f"{first['loss']:.3f}", *cells])
    return write_markdown(header, rows)


def write_interval(row: dict[str, float], name: str) -> str:
    """A prediction with its interval."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[f'{name}_predicted']:.3f} [{low:.3f}, {high:.3f}]"


def list_unlearned(found: pd.DataFrame) -> str:
    """The tasks and modes without a prediction, and why."""
    lines = []
    without = found.loc[found["outcome"] != "predicted"]
    without = without.drop_duplicates(["task", "mode"])
    for row in without.to_dict("records"):
        lines.append(f"- {row['task']}, {row['mode']}: {row['outcome']}")
    return "\n".join(lines)


def write_transfer(laws: Sequence[TransferLaw]) -> str:
    """The law of each task and its prediction of the widest models."""
    header = ["task", "measured", "left out", "p (D_F)", "q (N)", "held out"]
    rows = []
    for law in laws:
        outcomes = Counter(law.rows["outcome"])
        measured = outcomes.pop("measured", 0)
        left = [f"{count} {why}" for why, count in outcomes.items()]
        exponents = [MISSING, MISSING]
        if law.fit is not None:
            errors = law.fit.standard_errors
            exponents = []
            for name in ("p_D_F", "p_N"):
                value = law.fit.params[name]
                exponents.append(f"{value:.2f} ± {errors[name]:.2f}")
        cells = [str(measured), "; ".join(left) or MISSING, *exponents]
        rows.append([law.task, *cells, write_held_out(law.held_out)])
    return write_markdown(header, rows)


def write_held_out(held_out: pd.DataFrame) -> str:
    """Measured and predicted D_T of the widest models."""
    if "predicted" not in held_out:
        return MISSING
    parts = []
    for row in held_out.to_dict("records"):
        interval = f"{row['predicted']:.0f} [{row['low']:.0f}, {row['high']:.0f}]"
        parts.append(f"D_F {row['D_F']:.0f}: {row['D_T']:.0f}, predicted {interval}")
    return "; ".join(parts) or MISSING


def write_forgetting(forgotten: pd.DataFrame, tasks: Sequence[str]) -> str:
    """Nats per token by which the loss on the parent's text has risen, for the parents
    of the largest budget, and in brackets the loss on the task.
    """
    largest = forgotten["pretraining_tokens"].max()
    kept = forgotten.loc[
        forgotten["task"].isin(list(tasks))
        & (forgotten["pretraining_tokens"] == largest)
    ]
    widths = sorted(kept["width"].unique())
    header = ["task", "trained", "examples", "epochs", *[f"width {w}" for w in widths]]
    by = ["task", "mode", "examples", "epochs"]
    rows = []
    for key, found in kept.groupby(by, sort=True):
        task, mode, examples, epochs = key if isinstance(key, tuple) else (key,) * 4
        trained = "adapters" if mode == "adapters" else "all"
        by_width = found.set_index("width")
        cells = []
        for width in widths:
            row = by_width.loc[width]
            cells.append(f"{row['forgotten']:.2f} ({row['loss']:.2f})")
        rows.append(
            [find_title(str(task)), trained, f"{examples}", f"{epochs:g}", *cells]
        )
    return write_markdown(header, rows)


def write_rates(children: pd.DataFrame, settings: Settings) -> str:
    """Loss on the task by learning rate over the parent's, and in brackets how much the
    loss on the parent's text has risen.
    """
    tried = children.loc[children["mode"] == "rate"]
    middle = settings.widths[len(settings.widths) // 2]
    header = ["task", *[f"{rate:g} times" for rate in settings.rates]]
    rows = []
    for task, found in tried.groupby("task", sort=False):
        ordered = found.sort_values("rate")
        cells = []
        for row in ordered.to_dict("records"):
            risen = row["pretraining_loss"] - row["parent_loss"]
            cells.append(f"{row['loss']:.3f} ± {row['loss_se']:.3f} ({risen:.2f})")
        rows.append([f"{find_title(str(task))}, width {middle}", *cells])
    return write_markdown(header, rows)


def count_covered(found: pd.DataFrame) -> str:
    """How many errors of held-out models lie in their interval."""
    predicted = found.loc[found["outcome"] == "predicted"]
    if predicted.empty:
        return "no task was learned: nothing to predict"
    covered = int(np.sum(predicted["is_covered"].astype(bool)))
    return f"{covered} of {len(predicted)} held-out errors lie in their interval"
