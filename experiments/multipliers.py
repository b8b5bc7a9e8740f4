"""Sweeps that are compared with a baseline: trained as one plan, and the table and the
figure of their compute multipliers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import pandas as pd
from matplotlib.figure import Figure

import analysis
from analysis.plots.style import BLUE, GRAY, make_figure, use_style
from scaling import Plan, RunConfig, sweep
from scaling.cli.output import print_plan


class MultiplierRow(Protocol):
    """What a row of a table of multipliers has."""

    @property
    def multiplier(self) -> float:
        """The compute multiplier over the baseline."""
        ...

    @property
    def low(self) -> float:
        """End of its 90 % interval."""
        ...

    @property
    def high(self) -> float:
        """The other end."""
        ...

    @property
    def shares_shape(self) -> bool:
        """Whether both sweeps bear one shape of the law."""
        ...


class Interval(NamedTuple):
    """A compute multiplier with its 90 % interval.

    Attributes:
        name: What is compared with the baseline.
        value: FLOPs of the baseline over its own at equal loss.
        low: The lower end.
        high: The upper end.
    """

    name: str
    value: float
    low: float
    high: float


class ComputeMultiplier(NamedTuple):
    """What a sweep is worth in the compute of another.

    Attributes:
        budget: FLOPs at which they are compared.
        multiplier: FLOPs of the baseline over those of the other at equal loss there.
        low: end of its 90 % interval.
        high: the other end.
        shares_shape: whether both bear one shape of the law.
    """

    budget: float
    multiplier: float
    low: float
    high: float
    shares_shape: bool

    def invert(self) -> ComputeMultiplier:
        """The multiplier of the baseline over the other."""
        return self._replace(
            multiplier=1 / self.multiplier, low=1 / self.high, high=1 / self.low
        )


def train_sweeps(
    name: str,
    sweeps: Mapping[str, Sequence[RunConfig]],
    out: Path,
    workers: int | None,
) -> dict[str, pd.DataFrame]:
    """Train several sweeps as one plan.

    Args:
        name: Of the plan.
        sweeps: The runs of each sweep; two of them may share runs.
        out: Folder of all runs.
        workers: Processes; None: one per core on CPU.

    Returns:
        The run table of each sweep, in their order.
    """
    plan = Plan(name, tuple(run for runs in sweeps.values() for run in runs))
    print_plan(plan, out, timing=True, workers=workers)
    table = sweep(plan, out, workers=workers).set_index("run_id", drop=False)
    tables = {}
    for sweep_name, runs in sweeps.items():
        ids = [run.run_id for run in runs]
        tables[sweep_name] = table.loc[ids].reset_index(drop=True)
    return tables


def measure_multiplier(
    sweeps: Mapping[str, pd.DataFrame], budget: float, draws: int
) -> ComputeMultiplier:
    """Compare two sweeps, and print the comparison.

    Args:
        sweeps: The run table of the baseline, then that of the other.
        budget: FLOPs at which they are compared.
        draws: Of the parameters of their laws.
    """
    found = analysis.compare(sweeps, draws=draws, flops_per_token="counted")
    (at,) = found.at([budget]).to_dict("records")
    print(f"\n{found}", flush=True)
    return ComputeMultiplier(
        budget=budget,
        multiplier=float(at["multiplier"]),
        low=float(at["low"]),
        high=float(at["high"]),
        shares_shape=found.is_joint,
    )


def find_common_budget(tables: Iterable[pd.DataFrame]) -> float:
    """FLOPs of the largest run of the sweep whose largest run is the smallest."""
    return min(max(table["flops"].tolist()) for table in tables)


def format_rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for cells in rows:
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def format_multiplier(row: MultiplierRow) -> str:
    """A multiplier with its interval; a mark says that one shape is rejected."""
    mark = "" if row.shares_shape else " (*)"
    return f"{row.multiplier:.2f} [{row.low:.2f}, {row.high:.2f}]{mark}"


def explain_mark(rows: Sequence[MultiplierRow]) -> list[str]:
    """The lines below a table that has the mark of `format_multiplier`."""
    if all(row.shares_shape for row in rows):
        return []
    return ["", "(*) One shape of the law is rejected; each was fitted by itself."]


def save_multipliers(rows: Sequence[MultiplierRow], table: str, out: Path) -> None:
    """Write `multipliers.csv` and `table.md`, and print the table."""
    pd.DataFrame(rows).to_csv(out / "multipliers.csv", index=False)
    (out / "table.md").write_text(f"{table}\n", encoding="utf-8")
    print(f"\n{table}")


@use_style
def plot_multipliers(rows: Sequence[Interval], baseline: str) -> Figure:
    """The multipliers with their intervals, the best at the top."""
    ordered = sorted(rows, key=lambda row: row.value)
    figure = make_figure(0.8 + 0.27 * len(rows))
    ax = figure.add_subplot()
    for place, row in enumerate(ordered):
        ax.plot([row.low, row.high], [place, place], color=BLUE, linewidth=1.2)
        ax.plot([row.value], [place], color=BLUE, marker="o", markersize=5)
    ax.axvline(1.0, color=GRAY, linestyle="--", linewidth=1, zorder=0)
    ax.set_yticks(range(len(ordered)), [row.name for row in ordered])
    ax.set_ylim(-0.6, len(ordered) - 0.4)
    label = f"Compute multiplier over the {baseline}, with its 90 % interval"
    # From the right edge: beside long names the axis is shorter than its label.
    ax.set_xlabel(label, loc="right")
    return figure
