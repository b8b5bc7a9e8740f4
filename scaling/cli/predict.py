"""Verbs of the `scaling` command that ask something of fitted laws: predict, suggest,
compare, audit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from scaling.cli.fit import (
    ColumnOptions,
    FitOptions,
    Format,
    Pairs,
    Positional,
    parse_pairs,
    read_fit,
)
from scaling.cli.output import format_value, print_json, to_records
from scaling.config import ConfigError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from analysis import Bootstrap, Comparison, Fit, Reach, RivalLaws, Runs

MAX_ROWS = 5000
"""Rows of a fit up to which `scaling predict` fits other laws by itself."""

LawIntervals = Mapping[str, Mapping[str, tuple[float, float]]]
"""Quantity -> law -> (low, high)."""


def _write_figure(
    figure: Figure, folder: Path, name: str, suffix: str, *, quiet: bool
) -> None:
    """Write a figure into a folder, and print its path unless `quiet`."""
    from analysis.plots.style import save_figure

    path = save_figure(figure, folder / f"{name}.{suffix}")
    if not quiet:
        print(path)


@contextlib.contextmanager
def _print_no_extrapolation_warning() -> Iterator[None]:
    """Print no `ExtrapolationWarning` within: the first line of the answer has it."""
    from analysis import ExtrapolationWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExtrapolationWarning)
        yield


@dataclass(frozen=True)
class _Answer:
    """What `scaling predict` answers.

    Attributes:
        values: name -> value, intervals included.
        reach: how far the answer lies outside the fitted runs.
        by_law: the intervals of each law, where other laws were fitted.
        rivals: those laws; None where there are none.
        law_note: why other laws were not fitted; "" where they were.
    """

    values: dict[str, object]
    reach: Reach
    by_law: LawIntervals = field(default_factory=dict)
    rivals: RivalLaws | None = None
    law_note: str = ""

    def print_text(self) -> None:
        """Print the reach first, then a value per line, then what the laws say."""
        print(self.reach)
        for name, value in self.values.items():
            print(f"{name:>16}  {format_value(value)}")
        if self.law_note:
            print(f"from the choice of law: {self.law_note}")
        if self.rivals is None:
            return
        print(f"from the choice of law: {self.rivals}")
        for name, intervals in self.by_law.items():
            parts = []
            for law, ends in intervals.items():
                parts.append(f"{law} {format_value(list(ends))}")
            print(f"{name:>16}  {', '.join(parts)}")

    def print_json(self) -> None:
        """Print all of it as JSON, and a far extrapolation on standard error as well."""
        if self.reach.is_far:
            print(self.reach, file=sys.stderr)
        law_choice: dict[str, object] = {"note": self.law_note}
        if self.rivals is not None:
            law_choice["laws"] = self.rivals.names
            law_choice["holdout"] = to_records(self.rivals.table)
            law_choice["intervals"] = {
                name: dict(intervals) for name, intervals in self.by_law.items()
            }
        extra = {"extrapolation": self.reach.to_record(), "law_choice": law_choice}
        print_json(self.values | extra)


@dataclass(frozen=True)
class PredictArgs:
    """Predict the loss of a run, the best run of a budget, or the cheapest run of a
    loss, from a saved fit. The first line says by what factors the answer leaves the
    fitted range.

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
    extrapolate: bool = False
    """Answer even where C, N, D or D/N is more than 100 times outside the fitted runs.
    """
    laws: Literal["auto", "all", "fitted"] = "auto"
    """The laws whose intervals count: "all" that predict the held-out runs of largest C
    as well as the fitted one, or the "fitted" one alone. "auto" is all outside the
    fitted range, and the fitted one within it, where the laws agree.
    """
    json: bool = False

    def __call__(self) -> int:
        fit, boot = read_fit(self.fit)
        at = parse_pairs("--at", self.at, "U=1e11", float)
        # C and the loss ask for an optimum, except where the law is one of C.
        has_budget = self.C is not None and "C" not in fit.law.variables
        has_target = self.loss is not None and "loss" not in fit.law.variables
        needs_optimum = has_budget or has_target
        find_answer = self._find_optimum if needs_optimum else self._predict_point
        with _print_no_extrapolation_warning():
            answer = find_answer(fit, boot, at)
        if self.json:
            answer.print_json()
        else:
            answer.print_text()
        return 0

    def _find_rivals(
        self, fit: Fit, boot: Bootstrap | None, reach: Reach
    ) -> tuple[RivalLaws | None, str]:
        """(The laws whose intervals count, why the fitted one alone counts or "")."""
        from analysis import find_rival_laws

        if self.laws == "fitted" or set(fit.law.variables) != {"N", "D"}:
            return None, ""
        if boot is None:
            return None, "not examined, since no draws lie beside the fit"
        if self.laws == "auto" and reach.is_inside:
            return None, "not examined within the fitted range; --laws all does it"
        if self.laws == "auto" and len(fit.residuals) > MAX_ROWS:
            return None, (
                f"not examined for more than {MAX_ROWS} rows, since it takes long; "
                "--laws all does it"
            )
        print(
            "fitting other laws to the same runs; --laws fitted leaves them out",
            file=sys.stderr,
        )
        try:
            return find_rival_laws(fit, boot), ""
        except ValueError as error:
            return None, f"not examined: {error}"

    def _predict_point(
        self, fit: Fit, boot: Bootstrap | None, at: Mapping[str, float]
    ) -> _Answer:
        """The law's value at one point, and how far it lies outside the runs.

        Raises:
            ConfigError: a variable of the law is missing, or something is given that a
                point has no use for.
        """
        variables = fit.law.variables
        flags = {"N": self.N, "D": self.D, "C": self.C, "loss": self.loss, **at}
        given = {name: value for name, value in flags.items() if value is not None}
        missing = [_name_flag(name) for name in variables if name not in given]
        if missing:
            alternative = ""
            if {"N", "D"} <= set(variables):
                alternative = ", or --C for the compute-optimal run"
            raise ConfigError(
                f"law {fit.law.name!r} needs {' and '.join(missing)}{alternative}"
            )
        unused = [_name_flag(name) for name in given if name not in variables]
        if self.inference_tokens:
            unused.append("--inference-tokens")
        if self.max_tokens is not None:
            unused.append("--max-tokens")
        if unused:
            raise ConfigError(
                f"law {fit.law.name!r} at one point reads {', '.join(variables)} "
                "alone; "
                f"leave out {', '.join(unused)}"
            )
        point = {name: given[name] for name in variables}
        reach = _measure_point(fit, point)
        reach.check(self.extrapolate)
        answer: dict[str, object] = {**point}
        answer[fit.law.target] = float(fit.predict(**point))
        if boot is None:
            _, note = self._find_rivals(fit, boot, reach)
            return _Answer(answer, reach, law_note=note)
        law = boot.predict_interval(level=0.90, **point)
        new_run = boot.predict_interval(level=0.90, new_run=True, **point)
        answer["law_90"] = list(law)
        answer["new_run_90"] = list(new_run)
        rivals, note = self._find_rivals(fit, boot, reach)
        if rivals is None:
            return _Answer(answer, reach, law_note=note)
        by_law = {
            "law_90": rivals.list_intervals(**point),
            "new_run_90": rivals.list_intervals(new_run=True, **point),
        }
        _widen_intervals(answer, by_law)
        return _Answer(answer, reach, by_law, rivals)

    def _find_optimum(
        self, fit: Fit, boot: Bootstrap | None, at: Mapping[str, float]
    ) -> _Answer:
        """The best run of a budget, or the cheapest run of a loss, and how far it lies
        outside the runs.

        Raises:
            ConfigError: D is given, which follows from the budget or the loss.
        """
        from analysis.decisions.allocate import allocate, counted_flops_per_token

        if self.D is not None:
            raise ConfigError(
                f"--D {self.D:g}: D follows from --C or --loss; leave it out, or give "
                "--N and --D alone"
            )
        per_token = counted_flops_per_token(fit)
        best = allocate(
            fit,
            self.C,
            boot,
            per_token,
            inference_tokens=self.inference_tokens,
            max_tokens=self.max_tokens,
            N=self.N,
            loss=self.loss,
            at=at or None,
            extrapolate=self.extrapolate,
        )
        answer: dict[str, object] = {}
        for column in dataclasses.fields(best):
            answer[column.name] = getattr(best, column.name)
        for name in ("intervals", "notes", "level", "outside", "bound"):
            del answer[name]
        if self.json:
            answer["bound"] = best.bound or None
        elif best.bound:
            answer["bound"] = best.describe_bound()
        if self.json:  # readers of the JSON know these two by their old names as well
            answer["valley"] = best.valley
            answer["reach"] = best.reach
        for name, ends in best.intervals.items():
            answer[f"{name}_90"] = list(ends)
        if best.notes:
            answer["notes"] = list(best.notes)
        rivals, note = self._find_rivals(fit, boot, best.outside)
        if rivals is None:
            return _Answer(answer, best.outside, law_note=note)
        by_quantity = rivals.list_allocation_intervals(
            self.C,
            per_token,
            loss=self.loss,
            N=self.N,
            inference_tokens=self.inference_tokens,
            max_tokens=self.max_tokens,
            at=at or None,
        )
        by_law = {f"{name}_90": by_quantity[name] for name in by_quantity}
        _widen_intervals(answer, by_law)
        return _Answer(answer, best.outside, by_law, rivals)


def _widen_intervals(values: dict[str, object], by_law: LawIntervals) -> None:
    """Put the hull of the laws' intervals in place of the fitted law's interval."""
    from analysis.checking.law_choice import find_hull

    for name, intervals in by_law.items():
        values[name] = list(find_hull(intervals))


def _measure_point(fit: Fit, point: Mapping[str, float]) -> Reach:
    """How far a point lies outside the fitted runs; its C follows from N and D."""
    import numpy as np

    from analysis import measure_reach
    from analysis.decisions.allocate import counted_flops_per_token

    values = dict(point)
    if "C" not in point and {"N", "D"} <= set(point):
        per_token = counted_flops_per_token(fit)
        N = point["N"]
        flops = 6 * N if per_token is None else float(per_token(np.asarray(N)))
        values["C"] = flops * point["D"]
    return measure_reach(fit, **values)


def _name_flag(variable: str) -> str:
    """The flag that gives a variable of the law."""
    if variable in ("N", "D", "C", "loss"):
        return f"--{variable}"
    return f"--at {variable}=..."


@dataclass(frozen=True, kw_only=True)
class _FittingArgs:
    """Flags of the verbs that take a fit, or a table to fit."""

    columns: ColumnOptions = field(default_factory=ColumnOptions)
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

    def read_variables(self) -> dict[str, float] | None:
        """The values of --at."""
        return parse_pairs("--at", self.at, "U=1e11", float) or None


@dataclass(frozen=True, kw_only=True)
class SuggestArgs(_FittingArgs):
    """Which runs to train next: those that narrow the interval of a loss or of an
    exponent the most.

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
    extrapolate: bool = False
    """Take a target even if it is more than 100 times outside the fitted runs."""
    candidates: Path | None = None
    """Table of the runs to choose from (.csv, .parquet): columns N, D, C, and trunk,
    shared_flops, own_flops where runs share trunks. By default a grid about the fitted
    runs, and off the trunks of a sweep's folder.
    """

    def __call__(self) -> int:
        from analysis import fit as fit_law
        from analysis import suggest
        from analysis.decisions.allocate import counted_flops_per_token
        from scaling.store.table import split_flops

        if self.quantity == "loss" and self.target_C is None:
            raise ConfigError(
                "--target-C is missing: the FLOPs at whose optimum the loss is wanted; "
                "or --quantity a"
            )
        boot = None
        existing = None
        if self.source.suffix == ".json":
            fit, boot = read_fit(self.source)
        else:
            runs = self.columns.read(self.source)
            fit = fit_law(runs, self.law, **self.how.keywords())
            if self.source.is_dir():
                existing = split_flops(runs.table)
        candidates = self._read_candidates()
        with _print_no_extrapolation_warning():
            found = suggest(
                fit,
                candidates,
                self.target_C,
                boot=boot or fit.bootstrap(self.draws, seed=self.seed),
                quantity=self.quantity,
                budget=self.budget,
                flops_per_token=counted_flops_per_token(fit),
                count=self.count,
                at=self.read_variables(),
                existing=existing,
                extrapolate=self.extrapolate,
            )
        if not self.json:
            print(found)
            return 0
        print_json(
            {
                "quantity": found.quantity,
                "target_C": found.target_C,
                "extrapolation": found.outside.to_record(),
                "extrapolation_of_runs": found.runs_outside.to_record(),
                "value": found.value,
                "width_now": found.width_now,
                "width_final": found.width_final,
                "flops": found.flops,
                "budget": found.budget,
                "order": found.order,
                "level": found.level,
                "runs": to_records(found.table),
                "notes": list(found.notes),
            }
        )
        return 0

    def _read_candidates(self) -> pd.DataFrame | None:
        from analysis.table.readers import read_numbers, read_table

        if self.candidates is None:
            return None
        table = read_table(self.candidates)
        named = ("N", "D", "C", "shared_flops", "own_flops")
        present = [name for name in named if name in table.frame.columns]
        return read_numbers(table, present, ids=("trunk",)).frame


@dataclass(frozen=True, kw_only=True)
class CompareArgs(_FittingArgs):
    """Compare recipes with the first of them: how much compute each saves, by a law
    whose irreducible loss and exponents all of them share, unless a test rejects that.

    All tables are read with the same --columns; where theirs differ, save a fit of each
    and compare the fits.

    Examples: scaling compare adamw.csv muon.csv --figures figures
              scaling compare few_adamw.csv few_muon.csv --prior-fit fit.json
    """

    recipes: Positional[tuple[Path, ...]]
    """Two or more, the baseline first: each a sweep's folder, a .csv, .parquet or
    .jsonl file, or a fit written by `scaling fit --save`.
    """
    sharing: Literal["test", "joint", "separate"] = "test"
    """test: one shape of the law unless the test rejects it; joint: one shape in any
    case; separate: fit each recipe by itself.
    """
    prior_fit: Path | None = None
    """A fit written by `scaling fit --save` whose irreducible loss and exponents are
    taken over with their uncertainty: a few cells of N and D are enough then.
    """
    efficiencies: tuple[str, ...] = ()
    """The variables in which recipes may differ, as D. By default all that the runs
    can tell apart.
    """
    budgets: tuple[float, ...] = ()
    """FLOPs at which to compare. By default six over the range that all sweeps hold,
    and ten times the last of them.
    """
    extrapolate: bool = False
    """Answer at budgets more than 100 times outside the fitted runs as well."""
    figures: Path | None = None
    """Write the figure into this folder."""
    format: Format = "png"

    def __call__(self) -> int:
        from analysis import compare

        if len(self.recipes) < 2:
            raise ConfigError(
                f"{len(self.recipes)} recipes are given; name the baseline and at least "
                "one more, as `scaling compare adamw.csv muon.csv`"
            )
        prior_fit = None
        if self.prior_fit is not None:
            prior_fit = read_fit(self.prior_fit)[0]
        named = {}
        for name, path in _name_recipes(self.recipes).items():
            named[name] = self._read_recipe(path)
        with _print_no_extrapolation_warning():
            found = compare(
                named,
                law=self.law,
                budgets=self.budgets or None,
                draws=self.draws,
                seed=self.seed,
                sharing=self.sharing,
                prior_fit=prior_fit,
                efficiencies=self.efficiencies or None,
                flops_per_token="counted",
                at=self.read_variables(),
                extrapolate=self.extrapolate,
                **self.how.keywords(),
            )
        if self.json:
            print_json(_list_comparison(found))
        else:
            print(found)
        if self.figures is not None:
            from analysis import plot_comparison

            figure = plot_comparison(found)
            _write_figure(
                figure, self.figures, "comparison", self.format, quiet=self.json
            )
        return 0

    def _read_recipe(self, path: Path) -> Runs | Fit:
        if path.suffix == ".json":
            return read_fit(path)[0]
        return self.columns.read(path)


def _list_comparison(found: Comparison) -> dict[str, object]:
    """A comparison as plain data."""
    slopes = {}
    for name, (value, low, high) in found.slopes.items():
        slopes[name] = {"value": value, "low": low, "high": high}
    sharing = None
    if found.sharing is not None:
        sharing = dataclasses.asdict(found.sharing)
        sharing["is_tenable"] = found.sharing.is_tenable
    return {
        "verdict": found.verdict,
        "level": found.level,
        "joint": found.is_joint,
        "sharing": sharing,
        "extrapolation": found.furthest[0].to_record(),
        "budgets": to_records(found.table),
        "efficiencies": to_records(found.efficiencies),
        "exponents": to_records(found.exponents),
        "slopes": slopes,
        "notes": found.notes,
    }


def _name_recipes(paths: Sequence[Path]) -> dict[str, Path]:
    """The paths by the stem of each, with its folder where two have the same stem.

    Raises:
        ConfigError: two paths have the same name still.
    """
    stems = [path.stem for path in paths]
    named: dict[str, Path] = {}
    for path in paths:
        name = path.stem
        if stems.count(name) > 1:
            name = f"{path.parent.name}/{path.stem}"
        if name in named:
            raise ConfigError(
                f"{path}: two recipes are named {name}; rename a file or its folder"
            )
        named[name] = path
    return named


@dataclass(frozen=True)
class AuditArgs:
    """Which law, and how far to trust it: information criteria, hold-outs, and every
    budget and size left out, one at a time.

    Example: scaling audit runs/mine --laws chinchilla gadre kaplan --figures figures
    """

    runs: Positional[Path]
    """A sweep's folder, or a .csv, .parquet or .jsonl file."""
    columns: ColumnOptions = field(default_factory=ColumnOptions)
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

        runs = self.columns.read(self.runs)
        options = self.how.keywords()
        chosen = select(runs, self.laws, **options)
        checked = audit(runs, self.laws, **options)
        if self.json:
            print_json(
                {
                    "best": chosen.best,
                    "laws": to_records(chosen.table),
                    "holdouts": to_records(chosen.holdouts),
                    "refused": to_records(chosen.refused),
                    "audit": to_records(checked.summary),
                    "left_out": to_records(checked.groups),
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
