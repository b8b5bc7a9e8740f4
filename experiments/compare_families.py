"""What other architectures are worth in compute against the decoder, and where in the
context they lose.

    python -m experiments.compare_families --out runs/families

Each architecture trains an IsoFLOP sweep of its own: the sizes that its FLOPs allow, each
at several learning rates, of which the best is kept. A sweep is then compared with the
decoder's by one law for both. The loss at each position of the context is that of the
best run of the largest budget (Kaplan et al. 2020, arXiv:2001.08361, figure 7). Writes
`multipliers.csv`, `table.md`, `multipliers.png` and `positions.png`. Expect every other
architecture ahead of the decoder: at 10^4 parameters most of the loss is short-range.
docs/notes/families.md has the figures.

To compare another architecture, add a row to `FAMILIES`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import tyro
from jaxtyping import Array, Float, Int
from matplotlib.figure import Figure

import scaling
from analysis.plots.style import (
    BLACK,
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PURPLE,
    VERMILLION,
    make_figure,
    save_figure,
    use_style,
)
from experiments.multipliers import (
    Interval,
    explain_mark,
    format_multiplier,
    format_rows,
    measure_multiplier,
    plot_multipliers,
    save_multipliers,
    train_sweeps,
)
from scaling import PlanConfig, RunConfig, make_plan
from scaling.cli.plan_sweep import find_preset
from scaling.config import read_toml
from scaling.config.architecture import replace_architecture
from scaling.inference.model import TrainedModel
from scaling.model.architecture import Params
from scaling.model.family import Family
from scaling.model.kernels import cross_entropy

BASELINE = "decoder"
_COLORS = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, BLACK, GRAY)
_ROWS_AT_ONCE = 4
_MUON = {"optimizer": "muon"}


@dataclass(frozen=True)
class FamilySpec:
    """A family of models that is compared.

    Attributes:
        architecture: its name.
        model: values of fields of its configuration.
        optim: values of fields of `OptimConfig`.
        baseline: name of the family that it is compared with.
    """

    architecture: str
    model: Mapping[str, object] = field(default_factory=dict)
    optim: Mapping[str, object] = field(default_factory=dict)
    baseline: str = BASELINE


FAMILIES: dict[str, FamilySpec] = {
    BASELINE: FamilySpec("decoder"),
    "linear attention": FamilySpec("linear_attention"),
    "LSTM": FamilySpec("lstm"),
    "convolution": FamilySpec("convolution", {"depth": 4}),
    "prefix decoder": FamilySpec("decoder", {"prefix": 0.5}),
    "encoder-decoder": FamilySpec("encoder_decoder"),
    "encoder": FamilySpec("encoder"),
    "decoder with Muon": FamilySpec("decoder", optim=_MUON),
    "linear attention with Muon": FamilySpec(
        "linear_attention", optim=_MUON, baseline="linear attention"
    ),
    "LSTM with Muon": FamilySpec("lstm", optim=_MUON, baseline="LSTM"),
    "convolution with Muon": FamilySpec(
        "convolution", {"depth": 4}, _MUON, baseline="convolution"
    ),
}
"""What can be compared, the decoder first. The prefix decoder, the encoder-decoder and
the encoder predict other tokens, so that their losses compare only as
`experiments.objectives` measures them."""

_PREDICTORS = ("decoder", "linear attention", "LSTM", "convolution")


@dataclass(frozen=True)
class Families:
    """What to train.

    Attributes:
        out: folder of the runs, the table and the figures.
        families: names of `FAMILIES`; what they are compared with is always trained.
        preset: the sweep that each trains.
        budgets: FLOPs, in place of the preset's.
        context: tokens per sequence.
        batch_size: sequences per step.
        lr_factors: of the preset's learning rate.
        draws: of the parameters.
        workers: processes. Default: one per core on CPU.
    """

    out: Path = Path("runs/families")
    families: tuple[str, ...] = _PREDICTORS
    preset: str = "isoflop"
    budgets: tuple[float, ...] = (5e10, 1e11, 2e11)
    context: int = 256
    batch_size: int = 2
    lr_factors: tuple[float, ...] = (0.5, 1.0, 2.0)
    draws: int = 1000
    workers: int | None = None

    def __post_init__(self) -> None:
        for name in self.families:
            if name not in FAMILIES:
                known = ", ".join(FAMILIES)
                raise ValueError(f"families: {name!r} is unknown; there are {known}")


class FamilyResult(NamedTuple):
    """What a family is worth: a row of the table.

    Attributes:
        family: its name.
        baseline: name of the family that it is compared with.
        budget: FLOPs of the baseline's largest budget.
        multiplier: that budget over the FLOPs that the family needs for the baseline's
            loss there.
        low: end of its 90 % interval.
        high: the other end.
        shares_shape: whether both bear one shape of the law.
        at_edge: cells whose best learning rate is the lowest or highest that was tried.
        cells: cells in all.
    """

    family: str
    baseline: str
    budget: float
    multiplier: float
    low: float
    high: float
    shares_shape: bool
    at_edge: int
    cells: int


def plan_family(args: Families, family: FamilySpec) -> list[RunConfig]:
    """The sweep of a family."""
    preset = read_toml(find_preset(args.preset), PlanConfig)
    plain = replace_architecture(preset.model, family.architecture)
    model = dataclasses.replace(plain, context=args.context, **family.model)
    optim = dataclasses.replace(
        preset.optim, batch_size=args.batch_size, **family.optim
    )
    config = dataclasses.replace(
        preset,
        budgets=args.budgets,
        model=model,
        optim=optim,
        lr_factors=args.lr_factors,
    )
    return list(make_plan(config))


def train_families(args: Families) -> dict[str, pd.DataFrame]:
    """The run table of each family, the decoder first and each after its baseline."""
    names = [BASELINE]
    for name in args.families:
        names += [FAMILIES[name].baseline, name]
    plans = {}
    for name in dict.fromkeys(names):
        plans[name] = plan_family(args, FAMILIES[name])
    return train_sweeps("families", plans, args.out, args.workers)


def keep_best_rates(table: pd.DataFrame) -> pd.DataFrame:
    """The runs of the best learning rate of each size and budget, with whether it is the
    lowest or highest that was tried.
    """
    rows = []
    for _, cell in table.groupby(["width", "budget"]):
        rates = cell.loc[:, "lr"].to_numpy(float)
        best = int(np.argmin(cell.loc[:, "loss"].to_numpy(float)))
        row = cell.iloc[best].to_dict()
        row["at_edge"] = not rates.min() < rates[best] < rates.max()
        rows.append(row)
    return pd.DataFrame(rows)


def compare_families(
    tables: Mapping[str, pd.DataFrame], draws: int
) -> list[FamilyResult]:
    """The compute that each family needs for the loss of its baseline's largest budget."""
    rows = []
    for name, table in tables.items():
        if name == BASELINE:
            continue
        baseline = FAMILIES[name].baseline
        budget = max(tables[baseline]["flops"].tolist())
        # The family is the one whose compute is asked for: it may reach losses that the
        # baseline's law does not reach with any compute.
        found = measure_multiplier(
            {name: table, baseline: tables[baseline]}, budget, draws
        )
        at_edge = table.loc[:, "at_edge"].to_numpy(bool)
        rows.append(
            FamilyResult(
                family=name,
                baseline=baseline,
                **found.invert()._asdict(),
                at_edge=int(at_edge.sum()),
                cells=len(table),
            )
        )
    return rows


# --- the loss at each position --------------------------------------------------------


def measure_positions(model: TrainedModel) -> Float[np.ndarray, " T"]:
    """The mean loss of the token after each position of the context, in bits."""
    windows = model.open_heldout().windows
    rows = len(windows) // _ROWS_AT_ONCE * _ROWS_AT_ONCE
    blocks = windows[:rows].reshape(-1, _ROWS_AT_ONCE, windows.shape[1])
    family = model.family

    @jax.jit
    def sum_losses(params: Params, blocks: Int[Array, "N B T1"]) -> Float[Array, " T"]:
        return jax.lax.map(
            lambda block: sum_block_losses(family, params, block), blocks
        ).sum(axis=0)

    total = sum_losses(model.params, jnp.asarray(blocks, jnp.int32))
    return np.asarray(total, np.float64) / rows / math.log(2)


def sum_block_losses(
    family: Family, params: Params, block: Int[Array, "B T1"]
) -> Float[Array, " T"]:
    """Losses at each position, summed over the sequences, in nats."""
    logits = family.apply(params, block[:, :-1])
    return cross_entropy(logits, block[:, 1:]).sum(axis=0)


def measure_best_runs(
    tables: Mapping[str, pd.DataFrame], out: Path
) -> dict[str, Float[np.ndarray, " T"]]:
    """The loss at each position of each family's best run of the largest budget."""
    positions = {}
    for name, table in tables.items():
        budgets = table.loc[:, "budget"].to_numpy(float)
        losses = table.loc[:, "loss"].to_numpy(float)
        best = int(np.argmin(np.where(budgets == budgets.max(), losses, np.inf)))
        run_id = str(table.loc[:, "run_id"].iloc[best])
        positions[name] = measure_positions(scaling.load(out, run_id))
    return positions


def average_octaves(
    losses: Float[np.ndarray, " T"],
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    """Mean losses over positions 1, 2, 3 to 4, 5 to 8, and so on, two groups for each
    doubling from 8 on, with the geometric middles of the groups.
    """
    exponents = np.concatenate(
        [[0, 1, 2, 3], np.arange(3.5, np.log2(len(losses)), 0.5)]
    )
    edges = np.unique(np.concatenate([[0], np.round(2**exponents), [len(losses)]]))
    edges = edges.astype(int)
    middles = []
    means = []
    for start, stop in itertools.pairwise(edges):
        middles.append(math.sqrt((start + 1) * stop))
        means.append(losses[start:stop].mean())
    return np.array(middles), np.array(means)


# --- tables and figures ---------------------------------------------------------------


def format_table(rows: list[FamilyResult]) -> str:
    """The multipliers as a Markdown table."""
    header = [
        "architecture",
        "over",
        "multiplier, 90 % interval",
        "best rate at an end",
    ]
    cells = []
    for row in rows:
        edges = f"{row.at_edge} of {row.cells}"
        cells.append([row.family, row.baseline, format_multiplier(row), edges])
    return "\n".join(format_rows(header, cells) + explain_mark(rows))


def find_color(name: str) -> str:
    """The color of a family in every figure: that of its architecture."""
    architectures = [family.architecture for family in FAMILIES.values()]
    order = list(dict.fromkeys(architectures))
    place = order.index(FAMILIES[name].architecture)
    return _COLORS[place % len(_COLORS)]


@use_style
def plot_positions(positions: Mapping[str, Float[np.ndarray, " T"]]) -> Figure:
    """The loss against the position in the context. Families of one architecture have
    its color; the first of them is drawn solid and the others dashed.
    """
    figure = make_figure(3.4)
    ax = figure.add_subplot()
    drawn = set()
    for name, losses in positions.items():
        middles, means = average_octaves(losses)
        color = find_color(name)
        style = "--" if color in drawn else "-"
        drawn.add(color)
        ax.plot(
            middles, means, style, color=color, marker="o", markersize=3, label=name
        )
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:.0f}")
    ax.set_xlabel("Position in the context")
    ax.set_ylabel("Loss, bits per byte")
    ax.legend()
    return figure


def main() -> None:
    """Train, compare, draw."""
    args = tyro.cli(Families, description=__doc__)
    trained = train_families(args)
    tables = {name: keep_best_rates(table) for name, table in trained.items()}
    rows = compare_families(tables, args.draws)
    save_multipliers(rows, format_table(rows), args.out)
    intervals = []
    for row in rows:
        intervals.append(Interval(row.family, row.multiplier, row.low, row.high))
    baselines = {row.baseline for row in rows}
    baseline = baselines.pop() if len(baselines) == 1 else "baseline of each"
    figure = plot_multipliers(intervals, baseline)
    print(save_figure(figure, args.out / "multipliers.png"))
    positions = measure_best_runs(tables, args.out)
    figure = plot_positions(positions)
    print(save_figure(figure, args.out / "positions.png"))
    late = {name: losses[-64:].mean() for name, losses in positions.items()}
    for name, loss in late.items():
        print(f"{name}: {loss:.3f} bits per byte at the last 64 positions")


if __name__ == "__main__":
    main()
