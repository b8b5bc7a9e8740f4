"""The whole pipeline against formulas: irreducible losses and exponents that are known
exactly, trained, measured and fitted.

    python -m experiments.ground_truth --quick [--out runs/ground_truth]

It has three parts, which --parts chooses:

floors
    Small models on `markov`, `pdfa` and `grammar`, the latter two easy and hard.
    Measured are the loss above the exact entropy, the loss above the exact oracle on
    the same held-out windows, and E of L(D) = E + A / D^alpha fitted to the runs of
    growing token budgets.
exponent
    `zipf_facts` with a = 1, of which the ideal learner's excess falls as
    examples^-1/2. The same law is fitted to the trained losses and to the ideal
    learner's at the same budgets, which separates the gap of the learner from the bias
    of the range.
fitters
    Laws fitted to the ideal learner's loss alone, without training.

Expect irreducible losses within 0.02 nats for the easy sources, and without --quick for
all of them; and a learner a few times above the ideal one, with an exponent not far
below its. The measured numbers stand in docs/notes/ground_truth.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

import analysis
from analysis.plots import style
from experiments.exact import add_exact_columns, compute_ideal_surface, make_grid
from scaling import DataConfig, Plan, RunConfig, sweep
from scaling.data.synthetic.zipf_facts import ZipfFacts

FACTS = ZipfFacts(a=1.0)


@dataclass(frozen=True)
class FloorModel:
    """The model of a source, and its token budgets with --quick.

    Attributes:
        width: of the model.
        depth: of the model.
        quick_log2_tokens: binary logarithm of the largest budget with --quick.
    """

    width: int
    depth: int
    quick_log2_tokens: int


FLOORS = {
    "markov": FloorModel(width=32, depth=2, quick_log2_tokens=21),
    "pdfa:states=4": FloorModel(width=64, depth=2, quick_log2_tokens=20),
    "pdfa": FloorModel(width=64, depth=4, quick_log2_tokens=20),
    "grammar:radius=0.7": FloorModel(width=64, depth=2, quick_log2_tokens=20),
    "grammar": FloorModel(width=64, depth=2, quick_log2_tokens=20),
}
"""The models whose irreducible loss is measured, by source."""

SMALLEST_LOG2_TOKENS = 16
LARGEST_LOG2_TOKENS = 23
"""Binary logarithm of the largest budget of every source without --quick."""


@dataclass(frozen=True)
class GroundTruth:
    """Which parts to run, and where to."""

    out: Path = Path("runs/ground_truth")
    quick: bool = False
    """A few minutes on two cores instead of hours."""
    parts: tuple[str, ...] = ("fitters", "floors", "exponent")
    workers: int | None = None


class PartRow(Protocol):
    """One row of a part's results."""

    def to_json(self) -> dict[str, object]:
        """The row in ground_truth.json."""
        ...

    def to_cells(self) -> dict[str, object]:
        """The row of the printed table."""
        ...


@dataclass(frozen=True)
class DataLaw:
    """L = E + A / D^alpha, with 90 % profile intervals of what was free of E and
    alpha.
    """

    params: dict[str, float]
    intervals: dict[str, tuple[float, float]]

    def to_json(self) -> dict[str, object]:
        """The parameters and, under `interval_90`, the intervals."""
        return {**self.params, "interval_90": self.intervals}

    def format_interval(self, name: str) -> str:
        """A parameter with its interval."""
        low, high = self.intervals[name]
        return f"{self.params[name]:.4f} [{low:.4f}, {high:.4f}]"


def fit_data_law(D: ArrayLike, loss: ArrayLike, **fixed: float) -> DataLaw:
    """Fit L = E + A / D^alpha by least squares, some parameters fixed."""
    table = pd.DataFrame({"D": np.asarray(D, float), "loss": np.asarray(loss, float)})
    fit = analysis.fit(table, "power_law_D", objective="least_squares", fixed=fixed)
    intervals = {
        name: fit.profile(name, style.LEVEL).interval
        for name in ("E", "alpha")
        if name in fit.free
    }
    return DataLaw(params=fit.params, intervals=intervals)


@dataclass(frozen=True)
class FloorRow:
    """A source: how far its longest run is from the irreducible loss, and the loss that
    is fitted to all its budgets.

    Attributes:
        name: of the source.
        model: what was trained.
        floor: the exact irreducible loss.
        oracle: loss of the oracle on the held-out windows.
        loss: of the longest run.
        loss_se: its standard error.
        tokens: of each run.
        excess: loss above the oracle of each run.
        law: fitted to `floor + excess`.
    """

    name: str
    model: FloorModel
    floor: float
    oracle: float
    loss: float
    loss_se: float
    tokens: list[int]
    excess: list[float]
    law: DataLaw

    def to_json(self) -> dict[str, object]:
        """The row in ground_truth.json."""
        return {
            "name": self.name,
            "width": self.model.width,
            "depth": self.model.depth,
            "floor": self.floor,
            "oracle": self.oracle,
            "loss": self.loss,
            "loss_se": self.loss_se,
            "tokens": self.tokens,
            "excess": self.excess,
            "law": self.law.to_json(),
        }

    def to_cells(self) -> dict[str, object]:
        """The row of the printed table."""
        return {
            "source": self.name,
            "width": self.model.width,
            "depth": self.model.depth,
            "tokens": self.tokens[-1],
            "floor": self.floor,
            "loss": self.loss,
            "se": self.loss_se,
            "loss - floor": self.loss - self.floor,
            "loss - oracle": self.excess[-1],
            "fitted E": self.law.format_interval("E"),
        }


def measure_floors(args: GroundTruth) -> list[FloorRow]:
    """Train every source at growing token budgets, and fit its irreducible loss."""
    source_tokens = 4_200_000 if args.quick else 8_500_000
    data = {}
    runs_to_train: list[RunConfig] = []
    for name, model in FLOORS.items():
        separator = "," if ":" in name else ":"
        data[name] = DataConfig(f"{name}{separator}tokens={source_tokens}")
        largest = model.quick_log2_tokens if args.quick else LARGEST_LOG2_TOKENS
        grid = make_grid(
            data[name],
            widths=[model.width],
            tokens=[2**power for power in range(SMALLEST_LOG2_TOKENS, largest + 1)],
            context=128,
            batch=4,
            eval_tokens=131_072,
            depth=model.depth,
        )
        runs_to_train += grid.runs
    plan = Plan("floors", tuple(runs_to_train))
    runs = add_exact_columns(plan, sweep(plan, args.out, workers=args.workers))
    rows = []
    for name, model in FLOORS.items():
        own: pd.DataFrame = runs.loc[runs["source"] == data[name].source]
        longest = own.iloc[-1]
        rows.append(
            FloorRow(
                name=name,
                model=model,
                floor=longest["floor"],
                oracle=longest["oracle"],
                loss=longest["loss"],
                loss_se=longest["loss_se"],
                tokens=own["tokens"].tolist(),
                excess=own["excess"].tolist(),
                law=fit_data_law(own["tokens"], own["floor"] + own["excess"]),
            )
        )
    return rows


@dataclass(frozen=True)
class ExponentRow:
    """A learner of facts: the fitted exponent of the data, with E free and with E
    exact.

    Attributes:
        name: `ideal`, or the width of a model.
        examples: of each run.
        excess: loss above the oracle of each run.
        ideal: the same of the ideal learner.
        law: fitted with E free.
        law_E_exact: fitted with E exact.
    """

    name: str
    examples: list[int]
    excess: list[float]
    ideal: list[float]
    law: DataLaw
    law_E_exact: DataLaw

    def to_json(self) -> dict[str, object]:
        """The row in ground_truth.json."""
        return {
            "name": self.name,
            "floor": FACTS.entropy,
            "exponent": FACTS.exponents["beta_D"],
            "examples": self.examples,
            "excess": self.excess,
            "ideal": self.ideal,
            "law": self.law.to_json(),
            "law_E_exact": self.law_E_exact.to_json(),
        }

    def to_cells(self) -> dict[str, object]:
        """The row of the printed table."""
        ratio = np.array(self.excess) / np.array(self.ideal)
        return {
            "learner": self.name,
            "exact": FACTS.exponents["beta_D"],
            "fitted": self.law.format_interval("alpha"),
            "at the exact E": self.law_E_exact.format_interval("alpha"),
            "floor": FACTS.entropy,
            "fitted E": self.law.format_interval("E"),
            "excess / ideal": f"{ratio[0]:.2f} .. {ratio[-1]:.2f}",
        }


def measure_exponent(args: GroundTruth) -> list[ExponentRow]:
    """One row for the ideal learner and one per width."""
    examples = [31_250 * 2**i for i in range(5 if args.quick else 8)]
    widths = (64,) if args.quick else (64, 128)
    length = FACTS.document_length
    data = DataConfig(
        f"zipf_facts:a={FACTS.a},examples={examples[-1]}",
        heldout_fraction=100_000 / examples[-1],
    )
    plan = make_grid(
        data,
        widths=widths,
        tokens=[length * n for n in examples],
        context=length,
        batch=256,
        eval_tokens=100_000 * length,
    )
    runs = add_exact_columns(plan, sweep(plan, args.out, workers=args.workers))
    runs["examples"] = runs["tokens"] // length
    runs["ideal"] = [FACTS.excess(examples=n) for n in runs["examples"]]
    by_width = {f"width {width}": own for width, own in runs.groupby("width")}
    first = next(iter(by_width.values()))
    learners = {"ideal": first.assign(excess=first["ideal"]), **by_width}
    rows = []
    for name, own in learners.items():
        losses = FACTS.entropy + own["excess"]
        rows.append(
            ExponentRow(
                name=name,
                examples=own["examples"].tolist(),
                excess=own["excess"].tolist(),
                ideal=own["ideal"].tolist(),
                law=fit_data_law(own["examples"], losses),
                law_E_exact=fit_data_law(own["examples"], losses, E=FACTS.entropy),
            )
        )
    return rows


@dataclass(frozen=True)
class FitterRow:
    """A law that is fitted to the ideal learner, and its exact parameters."""

    law: str
    fitted: dict[str, float]
    exact: dict[str, float]

    def to_json(self) -> dict[str, object]:
        """The row in ground_truth.json."""
        return {"law": self.law, "fitted": self.fitted, "exact": self.exact}

    def to_cells(self) -> dict[str, object]:
        """The row of the printed table."""
        return {
            "law of the ideal learner": self.law,
            "fitted": self._format_exact_names(self.fitted),
            "exact": self._format_exact_names(self.exact),
        }

    def _format_exact_names(self, values: dict[str, float]) -> str:
        return ", ".join(f"{name} {values[name]:.4f}" for name in self.exact)


def fit_ideal_losses(args: GroundTruth) -> list[FitterRow]:
    """Laws fitted to the ideal learner of k facts after n examples: in n, in k, and in
    both, where the loss is no sum.
    """
    capacities = np.geomspace(64, 4096, 7).round().astype(int)
    examples = np.geomspace(1e4, 1e7, 7).round().astype(int)
    alpha = FACTS.exponents["alpha_N"]
    beta = FACTS.exponents["beta_D"]

    def fit_law(
        law: str, k: Iterable[int], n: Iterable[int], **exponents: float
    ) -> FitterRow:
        surface = compute_ideal_surface(FACTS, k, n)
        fit = analysis.fit(surface, law, objective="least_squares")
        return FitterRow(law, fit.params, {"E": FACTS.entropy, **exponents})

    return [
        fit_law("power_law_D", [FACTS.items], examples, alpha=beta),
        fit_law("power_law_N", capacities, [10**12], alpha=alpha),
        fit_law("chinchilla", capacities, examples, alpha=alpha, beta=beta),
    ]


@style.use_style
def plot_excess(floors: Sequence[FloorRow], exponents: Sequence[ExponentRow]) -> Figure:
    """Excess over the exact oracle: by tokens of the sources, by examples of the
    learners. A part without rows has no panel.
    """
    fig = style.make_figure(3.8)
    panels = [bool(floors), bool(exponents)].count(True)
    axes = fig.subplots(1, panels, squeeze=False)[0].tolist()
    if floors:
        ax = axes.pop(0)
        curves = {row.name: (row.tokens, row.excess) for row in floors}
        _draw_excess(ax, curves, "Training tokens")
    if exponents:
        ax = axes.pop(0)
        curves = {row.name: (row.examples, row.excess) for row in exponents}
        _draw_excess(ax, curves, "Training examples")
    return fig


def _draw_excess(
    ax: Axes, curves: dict[str, tuple[list[int], list[float]]], xlabel: str
) -> None:
    colors = style.sample_colors(len(curves))
    for (name, (x, excess)), color, marker in zip(
        curves.items(), colors, style.MARKERS, strict=False
    ):
        ax.plot(x, excess, color=color, marker=marker, label=name)
    ax.set(xlabel=xlabel, ylabel="Loss above the oracle (nats)")
    style.set_log_axis(ax, "x", "count")
    style.set_log_axis(ax, "y", "loss")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


PARTS: dict[str, Callable[[GroundTruth], Sequence[PartRow]]] = {
    "fitters": fit_ideal_losses,
    "floors": measure_floors,
    "exponent": measure_exponent,
}
"""The parts by the names that --parts takes."""


def main() -> None:
    """Run the parts, print a table for each, write ground_truth.json and .png."""
    args = tyro.cli(GroundTruth, description=__doc__)
    started = time.monotonic()
    found = {part: PARTS[part](args) for part in args.parts}
    for part, rows in found.items():
        table = pd.DataFrame([row.to_cells() for row in rows])
        print(f"\n{part}")
        print(table.to_string(index=False, float_format="{:.4f}".format))
    args.out.mkdir(parents=True, exist_ok=True)
    content: dict[str, object] = {
        part: [row.to_json() for row in rows] for part, rows in found.items()
    }
    content["wall_seconds"] = time.monotonic() - started
    text = json.dumps(content, indent=1, default=float)
    (args.out / "ground_truth.json").write_text(text + "\n")
    floors = [row for row in found.get("floors", ()) if isinstance(row, FloorRow)]
    exponents = [
        row for row in found.get("exponent", ()) if isinstance(row, ExponentRow)
    ]
    if floors or exponents:
        figure = plot_excess(floors, exponents)
        print(style.save_figure(figure, args.out / "ground_truth.png"))


if __name__ == "__main__":
    main()
