"""What a model learns of a completion, by what it sees and predicts in training.

    python -m experiments.objectives --out runs/objectives

A decoder predicts every token from those before it. A prefix decoder and an
encoder-decoder read the first half of each window as a whole and predict the second. An
encoder predicts hidden tokens from both sides. Each trains an IsoFLOP sweep of its own
(`experiments.compare_families`), and all are compared by one loss, in bits per byte: that
of the second half of the same held-out windows, token by token, given the first. An
encoder is given the same number of tokens before each, and a hidden one after them.
Writes `multipliers.csv`, `table.md` and `multipliers.png`; docs/notes/objectives.md has
the figures.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import tyro
from jaxtyping import Array, Float, Int

import scaling
from analysis.plots.style import save_figure
from experiments.compare_families import (
    BASELINE,
    Families,
    FamilyResult,
    compare_families,
    format_table,
    keep_best_rates,
    measure_positions,
    train_families,
)
from experiments.multipliers import Interval, plot_multipliers, save_multipliers
from scaling.config import ArchitectureConfig
from scaling.inference.model import TrainedModel
from scaling.model.architecture import Params
from scaling.model.family import build_family
from scaling.model.kernels import cross_entropy

OBJECTIVES = ("prefix decoder", "encoder-decoder", "encoder")
"""What is compared with the decoder; rows of `compare_families.FAMILIES`."""

_WINDOWS_OF_ENCODER = 64
"""Held-out windows on which an encoder, which computes every token by itself, is
evaluated."""


@dataclass(frozen=True)
class Objectives(Families):
    """What to train.

    Attributes:
        out: folder of the runs, the table and the figure.
        families: names of `OBJECTIVES`; the decoder is always trained.
    """

    out: Path = Path("runs/objectives")
    families: tuple[str, ...] = OBJECTIVES


def measure_completion(model: TrainedModel) -> float:
    """The loss of the second half of the held-out windows, given the first, in nats per
    token.
    """
    if model.config.masking is not None:
        return measure_hidden_completion(model)
    if model.config.prefix_tokens > 0:
        return model.evaluate_heldout().loss
    losses = measure_positions(model)
    return float(losses[model.context // 2 :].mean() * math.log(2))


def measure_hidden_completion(model: TrainedModel) -> float:
    """`measure_completion` of an encoder: each token of the second half is hidden behind
    as many tokens as the first half has.
    """
    windows = model.open_heldout().windows
    chosen = np.linspace(0, len(windows) - 1, _WINDOWS_OF_ENCODER).astype(int)
    half = model.context // 2
    # The last place of a window of an encoder holds no token.
    tokens = windows[np.unique(chosen), :-1]
    losses = compute_hidden_losses(model.params, tokens, model.config, half)
    return float(np.mean(np.asarray(losses, np.float64)))


@functools.partial(jax.jit, static_argnums=(2, 3))
def compute_hidden_losses(
    params: Params, tokens: Int[Array, "M T"], model: ArchitectureConfig, half: int
) -> Float[Array, "M N"]:
    """The losses of the tokens after the first `half` + 1 of each window, each hidden
    behind the `half` tokens before it.
    """
    family = build_family(model)
    starts = jnp.arange(1, tokens.shape[1] - half)
    places = starts[:, None] + jnp.arange(half + 1)[None]

    def score_window(window: Int[Array, " T"]) -> Float[Array, " N"]:
        rows = window[places]
        inputs = rows.at[:, -1].set(model.vocab)
        logits = family.apply(params, inputs)[:, -1:]
        return cross_entropy(logits, rows[:, -1:])[:, 0]

    return jax.lax.map(score_window, tokens)


def add_completion_losses(table: pd.DataFrame, out: Path) -> pd.DataFrame:
    """The runs with the loss of the completion in the place of their own, which is kept
    as `own_loss`.
    """
    losses = []
    for run_id in table.loc[:, "run_id"].tolist():
        losses.append(measure_completion(scaling.load(out, str(run_id))))
    return table.assign(own_loss=table.loc[:, "loss"], loss=losses)


def train_and_measure(args: Objectives) -> dict[str, pd.DataFrame]:
    """The best runs of each objective, the decoder first."""
    tables = {}
    for name, table in train_families(args).items():
        tables[name] = add_completion_losses(keep_best_rates(table), args.out)
    return tables


def find_best_losses(tables: Mapping[str, pd.DataFrame]) -> dict[str, float]:
    """The lowest loss of the largest budget of each objective, in bits per byte."""
    found = {}
    for name, table in tables.items():
        budgets = table.loc[:, "budget"].to_numpy(float)
        losses = table.loc[:, "loss"].to_numpy(float)
        found[name] = float(losses[budgets == budgets.max()].min() / math.log(2))
    return found


def format_losses(rows: list[FamilyResult], best: Mapping[str, float]) -> str:
    """The multipliers and the lowest losses as a Markdown table."""
    lines = format_table(rows).splitlines()
    lines[0] += " bits per byte of the completion |"
    lines[1] += "---|"
    for i, row in enumerate(rows):
        lines[2 + i] += f" {best[row.family]:.3f} |"
    lines.insert(2, f"| {BASELINE} | | 1 | | {best[BASELINE]:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Train, compare, draw."""
    args = tyro.cli(Objectives, description=__doc__)
    tables = train_and_measure(args)
    rows = compare_families(tables, args.draws)
    table = format_losses(rows, find_best_losses(tables))
    save_multipliers(rows, table, args.out)
    intervals = []
    for row in rows:
        intervals.append(Interval(row.family, row.multiplier, row.low, row.high))
    figure = plot_multipliers(intervals, BASELINE)
    print(save_figure(figure, args.out / "multipliers.png"))


if __name__ == "__main__":
    main()
