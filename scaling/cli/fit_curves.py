"""The verb of the `scaling` command that fits laws of learning curves: fit-curves."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scaling.cli.fit import Positional
from scaling.cli.output import print_json, to_records

if TYPE_CHECKING:
    import pandas as pd

    from analysis import CurveFit, Curves
    from analysis.curves.bootstrap import CurveBootstrap


def load_sweep_curves(out: Path) -> Curves:
    """The curves of the finished runs of a sweep's folder, with their whole schedules.

    Raises:
        StoreError: no finished run with logged losses.
    """
    from analysis import Schedule, load_curves
    from scaling.store.curves import read_curves

    logged = read_curves(out)
    schedules = {run: Schedule(rates) for run, rates in logged.rates.items()}
    curves = load_curves(logged.table, schedules=schedules)
    return dataclasses.replace(curves, source=str(out))


@dataclass(frozen=True)
class CurveColumns:
    """Which columns of the table of curves."""

    run: str = "run"
    step: str | None = None
    """Optimizer steps done. Default: step."""
    tokens: str | None = None
    """Tokens seen, in place of the steps; with --columns.tokens-per-step."""
    tokens_per_step: float | None = None
    lr: str = "lr"
    loss: str = "loss"
    split: str | None = None
    """Divides the runs, as into fit and test."""
    warmup_steps: int | None = None
    """Where the warm-up before the first row ends."""

    def read(self, path: Path) -> Curves:
        """The accepted rows of a table, or of a sweep's folder."""
        from analysis import load_curves

        if path.is_dir():
            return load_sweep_curves(path)
        return load_curves(path, **dataclasses.asdict(self))


@dataclass(frozen=True)
class FitCurvesArgs:
    """Fit a law of learning curves, and predict the runs that it has not seen.

    Examples: scaling fit-curves curves.csv --columns.split split --fit fit
              scaling fit-curves curves.csv --predict long --law multi_power,annealing
    """

    curves: Positional[Path]
    """A sweep's folder, or a .csv, .tsv, .txt, .parquet or .jsonl file with a row for each
    logged point."""
    columns: CurveColumns = field(default_factory=CurveColumns)
    law: str = "multi_power"
    """multi_power or annealing. Of several, as multi_power,annealing, the one that
    predicts each fitted run best from the others."""
    fit: str | None = None
    """Fit the runs with this value of --columns.split, and predict the others."""
    predict: tuple[str, ...] = ()
    """Names of runs to predict; the others are fitted."""
    objective: Literal["huber", "least_squares", "lad"] = "huber"
    draws: int = 200
    """Replicates of the block bootstrap."""
    seed: int = 0
    allow_unidentified: bool = False
    """Keep a fit that the curves do not determine."""
    save: Path | None = None
    """Write the fit here as JSON."""
    figure: Path | None = None
    """Draw the curves here: .png, .svg or .pdf."""
    json: bool = False

    def __call__(self) -> int:
        from analysis import fit_curves

        curves = self.columns.read(self.curves)
        fitted, predicted = self._divide(curves)
        found = fit_curves(
            fitted,
            self._choose_law(fitted),
            self.objective,
            allow_unidentified=self.allow_unidentified,
        )
        boot = found.bootstrap(self.draws, self.seed)
        scores = found.score(curves)
        scores.insert(1, "fitted", scores["run"].isin(fitted.runs))
        if self.save is not None:
            self.save.parent.mkdir(parents=True, exist_ok=True)
            found.to_json(self.save)
        if self.figure is not None:
            self._draw(found, predicted, boot)
        self._print(curves, found, boot, scores)
        return 0

    def _divide(self, curves: Curves) -> tuple[Curves, Curves | None]:
        """(runs that are fitted, runs that are predicted).

        Raises:
            ConfigError: --fit and --predict are both given, or --fit without a split.
        """
        from scaling.config import ConfigError

        if self.fit is not None and self.predict:
            raise ConfigError(
                "--fit and --predict both say what is fitted; give one of them"
            )
        if self.predict:
            return curves.leave_out(self.predict), curves.take(self.predict)
        if self.fit is None:
            return curves, None
        if self.columns.split is None:
            raise ConfigError(
                f"--fit {self.fit} names runs by their split; say which column that is "
                "with --columns.split"
            )
        fitted = curves.select(self.fit)
        others = [run for run in curves.runs if run not in fitted.runs]
        return fitted, curves.take(others) if others else None

    def _choose_law(self, fitted: Curves) -> str:
        names = [name.strip() for name in self.law.split(",")]
        if len(names) == 1:
            return names[0]
        from analysis import select_curve_law

        selection = select_curve_law(fitted, names, self.objective)
        print(
            f"{selection}\n\nthe fit below is that of {selection.best}\n",
            file=sys.stderr,
        )
        return selection.best

    def _draw(
        self, found: CurveFit, predicted: Curves | None, boot: CurveBootstrap
    ) -> None:
        from analysis import plot_curves

        assert self.figure is not None
        self.figure.parent.mkdir(parents=True, exist_ok=True)
        plot_curves(found, predicted, boot).savefig(self.figure)

    def _print(
        self,
        curves: Curves,
        found: CurveFit,
        boot: CurveBootstrap,
        scores: pd.DataFrame,
    ) -> None:
        intervals = {name: boot.interval(name, 0.90) for name in found.free}
        if self.json:
            print_json(
                {
                    "law": found.law.name,
                    "params": found.params,
                    "intervals_90": intervals,
                    "certified": found.certificate.ok,
                    "runs": to_records(scores),
                    "rejected": curves.reasons(),
                    "notes": curves.notes,
                }
            )
            return
        print(f"{curves}\n\n{found}\n")
        shown = f"{boot.noise.neighbor_correlation:.2f}"
        print(f"90 % intervals; the noise of neighboring rows has correlation {shown}:")
        for name, (low, high) in intervals.items():
            print(f"  {name:<8} {found.params[name]:>12.5g}  [{low:.5g}, {high:.5g}]")
        print(f"\nerrors in nats per token:\n{scores.to_string(index=False)}")
