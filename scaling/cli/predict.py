"""Verbs of the `scaling` command that ask something of fitted laws: predict, suggest,
compare, audit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from scaling.cli.fit import (
    FitOptions,
    Format,
    Pairs,
    Positional,
    Table,
    pairs,
    read_fit,
)
from scaling.cli.output import format_value, print_json, to_records
from scaling.config import ConfigError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from analysis import Bootstrap, Fit, Runs


def _write_figure(
    figure: Figure, folder: Path, name: str, suffix: str, quiet: bool
) -> None:
    from analysis.plots.style import save_figure

    path = save_figure(figure, folder / f"{name}.{suffix}")
    if not quiet:
        print(path)


@dataclass(frozen=True)
class PredictArgs:
    """Predict the loss of a run, the best run of a budget, or the cheapest run of a
    loss, from a saved fit.

    Examples: scaling predict fit.json --N 1e9 --D 2e10
              scaling predict fit.json --C 1e21 --inference-tokens 1e12
    """

    fit: Positional[Path]
    """Written by `scaling fit --save`."""
    N: float | None = None
    """Parameters; with --C or --loss, the size that is given."""
    D: float | None = None
    """Training tokens."""
    C: float | None = None
    """FLOPs to spend, of training and inference together."""
    loss: float | None = None
    """Nats per token to reach with the fewest FLOPs."""
    inference_tokens: Annotated[float, tyro.conf.arg(aliases=["--served-tokens"])] = 0.0
    """Tokens that the trained model will process in its life."""
    max_tokens: float | None = None
    """The most tokens there are to train on."""
    at: Pairs = ()
    """Value of another variable of the law, as U=1e11; repeat the flag for more."""
    json: bool = False

    def __call__(self) -> int:
        fit, boot = read_fit(self.fit)
        at = pairs("--at", self.at, "U=1e11", float)
        asked = [
            name
            for name in ("C", "loss")
            if getattr(self, name) is not None and name not in fit.law.variables
        ]
        answer = self._optimum(fit, boot, at) if asked else self._point(fit, boot, at)
        if self.json:
            print_json(answer)
        else:
            for name, value in answer.items():
                print(f"{name:>16}  {format_value(value)}")
        return 0

    def _point(
        self, fit: Fit, boot: Bootstrap | None, at: Mapping[str, float]
    ) -> dict[str, Any]:
        """The law's value at one point.

        Raises:
            ConfigError: a variable of the law is missing, or something is given that a
            point has no use for.
        """
        given = {name: getattr(self, name) for name in ("N", "D", "C", "loss")} | dict(
            at
        )
        given = {name: value for name, value in given.items() if value is not None}
        missing = [_flag(name) for name in fit.law.variables if name not in given]
        if missing:
            best = (
                ", or --C for the compute-optimal run"
                if {"N", "D"} <= set(fit.law.variables)
                else ""
            )
            raise ConfigError(
                f"law {fit.law.name!r} needs {' and '.join(missing)}{best}"
            )
        unused = [_flag(name) for name in given if name not in fit.law.variables]
        unused += ["--inference-tokens"] * bool(self.inference_tokens) + [
            "--max-tokens"
        ] * (self.max_tokens is not None)
        if unused:
            reads = ", ".join(fit.law.variables)
            raise ConfigError(
                f"law {fit.law.name!r} at one point reads {reads} alone; leave out {', '.join(unused)}"
            )
        point: dict[str, Any] = {name: given[name] for name in fit.law.variables}
        answer: dict[str, Any] = {**point, fit.law.target: float(fit.predict(**point))}
        if boot is not None:
            answer["law_90"] = list(boot.predict_interval(**point, level=0.90))
            answer["new_run_90"] = list(
                boot.predict_interval(**point, level=0.90, new_run=True)
            )
        return answer

    def _optimum(
        self, fit: Fit, boot: Bootstrap | None, at: Mapping[str, float]
    ) -> dict[str, Any]:
        from analysis.decisions.allocate import allocate, counted_flops_per_token

        if self.D is not None:
            raise ConfigError(
                f"--D {self.D:g}: D follows from --C or --loss; leave it out, or give --N and --D alone"
            )
        options: dict[str, Any] = {
            name: getattr(self, name) for name in ("max_tokens", "N", "loss")
        } | {"inference_tokens": self.inference_tokens}
        found = allocate(
            fit, self.C, boot, counted_flops_per_token(fit), at=at or None, **options
        )
        best = dataclasses.asdict(found)
        intervals, notes = best.pop("intervals"), best.pop("notes")
        del best["level"]
        if self.json:  # readers of the JSON know these two by their old names as well
            best |= {"valley": found.valley, "reach": found.reach}
        best |= {f"{name}_90": list(ends) for name, ends in intervals.items()}
        return best | ({"notes": list(notes)} if notes else {})


def _flag(name: str) -> str:
    return f"--{name}" if name in ("N", "D", "C", "loss") else f"--at {name}=..."


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    """What the verbs that may have to fit a table share."""

    columns: Table = field(default_factory=Table)
    law: str = "chinchilla"
    """Of tables; a saved fit keeps its own."""
    how: Annotated[FitOptions, tyro.conf.arg(name="")] = field(
        default_factory=FitOptions
    )
    draws: int = 1000
    """Bootstrap replicates."""
    seed: int = 0
    at: Pairs = ()
    """Value of a variable of the law besides N, D and C, as U=1e11; repeat the flag for
    more.
    """
    json: bool = False

    def others(self) -> dict[str, float] | None:
        return pairs("--at", self.at, "U=1e11", float) or None


@dataclass(frozen=True, kw_only=True)
class SuggestArgs(_Fitted):
    """Which runs to train next: those that shrink most the interval of a loss or of an
    exponent.

    Examples: scaling suggest fit.json --target-C 1e22 --budget 1e20
              scaling suggest runs/mine --quantity a --budget 1e13
    """

    source: Positional[Path]
    """A sweep's folder, a .csv, .parquet or .jsonl file, or a fit written by `scaling
    fit --save`.
    """
    quantity: str = "loss"
    """loss (at the optimum of --target-C), or a parameter or derived quantity of the
    law, such as a.
    """
    target_C: float | None = None
    """FLOPs at whose optimum the loss is wanted."""
    budget: float | None = None
    """FLOPs that all new runs together may take."""
    count: int = 5
    """Runs to name when there is no budget."""
    candidates: Path | None = None
    """Table of the runs to choose from (.csv, .parquet): columns N, D, C. Left out, a
    grid about the runs fitted.
    """

    def __call__(self) -> int:
        from analysis import fit as fit_law
        from analysis import suggest
        from analysis.decisions.allocate import counted_flops_per_token

        if self.quantity == "loss" and self.target_C is None:
            raise ConfigError(
                "--target-C is missing: the FLOPs at whose optimum the loss is wanted; or --quantity a"
            )
        if self.source.suffix == ".json":
            fit, boot = read_fit(self.source)
        else:
            fit, boot = (
                fit_law(
                    self.columns.read(self.source), self.law, **self.how.keywords()
                ),
                None,
            )
        found = suggest(
            fit,
            self._candidates(),
            self.target_C,
            boot=boot or fit.bootstrap(self.draws, seed=self.seed),
            quantity=self.quantity,
            budget=self.budget,
            flops_per_token=counted_flops_per_token(fit),
            count=self.count,
            at=self.others(),
        )
        if not self.json:
            print(found)
            return 0
        names = (
            "quantity",
            "target_C",
            "value",
            "width_now",
            "width_final",
            "flops",
            "budget",
            "order",
            "level",
        )
        answer = {name: getattr(found, name) for name in names}
        print_json(
            answer | {"runs": to_records(found.table), "notes": list(found.notes)}
        )
        return 0

    def _candidates(self) -> pd.DataFrame | None:
        from analysis.table.readers import read_table

        return None if self.candidates is None else read_table(self.candidates).frame


@dataclass(frozen=True, kw_only=True)
class CompareArgs(_Fitted):
    """Compare two recipes: how much compute B saves over A, and whether it saves more
    with scale.

    Both tables are read with the same --columns; where theirs differ, save a fit of
    each and compare the fits.

    Example: scaling compare adamw.csv muon.csv --figures figures
    """

    a: Positional[Path]
    """A sweep's folder, a .csv, .parquet or .jsonl file, or a fit written by `scaling
    fit --save`.
    """
    b: Positional[Path]
    """The same of the other recipe."""
    budgets: tuple[float, ...] = ()
    """FLOPs at which to compare; left out, six that both sweeps hold and ten times the
    last of them.
    """
    figures: Path | None = None
    """Write the figure into this folder."""
    format: Format = "png"

    def __call__(self) -> int:
        from analysis import compare

        found = compare(
            self._side(self.a),
            self._side(self.b),
            self.law,
            budgets=self.budgets or None,
            draws=self.draws,
            seed=self.seed,
            flops_per_token="counted",
            at=self.others(),
            **self.how.keywords(),
        )
        tables = {
            "budgets": to_records(found.table),
            "exponents": to_records(found.exponents),
        }
        if self.json:
            slope = dict(zip(("value", "low", "high"), found.slope, strict=True))
            print_json(
                {
                    "verdict": found.verdict,
                    "level": found.level,
                    **tables,
                    "slope": slope,
                    "notes": found.notes,
                }
            )
        else:
            print(found)
        if self.figures is not None:
            from analysis import plot_comparison

            figure = plot_comparison(
                found, (_name(self.a, self.b), _name(self.b, self.a))
            )
            _write_figure(
                figure, self.figures, "comparison", self.format, quiet=self.json
            )
        return 0

    def _side(self, path: Path) -> Runs | Fit:
        return read_fit(path)[0] if path.suffix == ".json" else self.columns.read(path)


def _name(path: Path, other: Path) -> str:
    """What tells the path from the other: its stem, or its parent's name where the
    stems are the same.
    """
    return path.stem if path.stem != other.stem else f"{path.parent.name}/{path.stem}"


@dataclass(frozen=True)
class AuditArgs:
    """Which law, and how far to trust it: information criteria, hold-outs, and every
    budget and size left out in turn.

    Example: scaling audit runs/mine --laws chinchilla gadre kaplan --figures figures
    """

    runs: Positional[Path]
    """A sweep's folder, or a .csv, .parquet or .jsonl file."""
    columns: Table = field(default_factory=Table)
    laws: tuple[str, ...] = ("chinchilla", "gadre", "kaplan")
    how: Annotated[FitOptions, tyro.conf.arg(name="")] = field(
        default_factory=FitOptions
    )
    figures: Path | None = None
    """Write the figure into this folder."""
    format: Format = "png"
    json: bool = False

    def __call__(self) -> int:
        from analysis import audit, plot_audit, select

        runs, options = self.columns.read(self.runs), self.how.keywords()
        chosen = select(runs, self.laws, **options)
        checked = audit(runs, self.laws, **options)
        if self.json:
            tables = {
                "laws": chosen.table,
                "holdouts": chosen.holdouts,
                "refused": chosen.refused,
            }
            tables |= {"audit": checked.summary, "left_out": checked.groups}
            rows = {name: to_records(table) for name, table in tables.items()}
            print_json(
                {
                    "best": chosen.best,
                    **rows,
                    "grouping": checked.grouping,
                    "notes": chosen.notes,
                }
            )
        else:
            print(f"{runs}\n\n{chosen}\n\n{checked}")
        if self.figures is not None:
            _write_figure(
                plot_audit(checked), self.figures, "audit", self.format, quiet=self.json
            )
        return 0
