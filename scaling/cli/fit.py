"""Verbs of the `scaling` command that fit one table: fit, plot, report; and what all
verbs of a table share.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import tyro

from scaling.cli.output import print_duplicates, print_json
from scaling.config import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from analysis import Bootstrap, Fit, Runs
    from analysis.report.study import Study

Value = TypeVar("Value")
Positional = tyro.conf.Positional
Pairs = tyro.conf.UseAppendAction[tuple[str, ...]]  # NAME=VALUE, once per flag
Unprefixed = tyro.conf.arg(prefix_name=False)
Format = Literal["png", "svg", "pdf"]


def parse_pairs(
    flag: str, words: Sequence[str], example: str, read: Callable[[str], Value] = str
) -> dict[str, Value]:
    """The values of a repeatable flag, by name.

    Args:
        flag: for messages.
        words: NAME=VALUE each.
        example: of such a word, for messages.
        read: turns the text of a value into the value.

    Raises:
        ConfigError: a word is no such pair, or a name is given twice.
    """
    found: dict[str, Value] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name in found:
            raise ConfigError(f"{flag} {word}: {name} is given twice; leave one out")
        try:
            if not (name and value):
                raise ValueError
            found[name] = read(value)
        except ValueError:
            raise ConfigError(
                f"{flag} {word}: it is read as NAME=VALUE; write it as {flag} {example}"
            ) from None
    return found


def _parse_mean_and_sd(text: str) -> tuple[float, float]:
    mean, sd = text.split(",")
    return float(mean), float(sd)


def read_finished_runs(out: Path) -> pd.DataFrame:
    """The run table of a sweep's folder.

    Raises:
        ConfigError: no run has finished there.
    """
    from scaling.store.table import run_table

    table = run_table(out)
    if table.empty:
        raise ConfigError(
            f"{out}: no finished run below this folder; train some with `scaling sweep "
            "--out`"
        )
    print_duplicates(out, table)
    return table


@dataclass(frozen=True)
class ColumnOptions:
    """Which columns of the runs, and their units. By default the project's own columns
    are used.
    """

    N: str | None = None
    D: str | None = None
    C: str | None = None
    loss: str | None = None
    trunk: str | None = None
    seed: str | None = None
    budget: str | None = None
    loss_se: str | None = None
    weight: Annotated[str | None, Unprefixed] = None
    """Column of the rows' weights."""
    unit: Annotated[Pairs, Unprefixed] = ()
    """Unit of a column, as N=millions, C=petaflop_days or loss=bits; repeat the flag
    for more.
    """
    variable: Annotated[Pairs, Unprefixed] = ()
    """Column of a further variable of the law, as U=unique_tokens; repeat the flag for
    more.
    """
    separator: Annotated[str | None, Unprefixed] = None
    """Character between the columns of a text file, or tab; found in the file by
    default."""
    decimal: Annotated[str | None, Unprefixed] = None
    """Decimal mark of a text file, . or a comma; found in each column by default."""
    thousands: Annotated[str | None, Unprefixed] = None
    """Mark between groups of three digits in a text file."""
    tuned: Annotated[str | None, Unprefixed] = None
    """Keep the best run of every cell of N and D over this column, as lr; a note names
    the cells that were not tuned over it.
    """

    def read(self, path: Path) -> Runs:
        """The accepted runs of a sweep's folder, or of a file that `load_runs` reads."""
        from analysis import NoUsableRowError, load_runs, tuned

        columns = dataclasses.asdict(self)
        tuned_over = columns.pop("tuned")
        units = parse_pairs("--unit", columns.pop("unit"), "N=millions")
        columns |= parse_pairs("--variable", columns.pop("variable"), "U=unique_tokens")
        if path.is_dir():
            table = read_finished_runs(path)
            try:
                runs = load_runs(table, **columns, units=units)
            except NoUsableRowError as error:
                error.runs = dataclasses.replace(error.runs, source=str(path))
                raise
            runs = dataclasses.replace(runs, source=str(path))
        else:
            runs = load_runs(path, **columns, units=units)
        if tuned_over is None:
            return runs
        return tuned(runs, tuned_over)


@dataclass(frozen=True)
class FitOptions:
    """How a law is fitted to the runs."""

    objective: Literal["huber", "least_squares", "lad"] = "huber"
    delta: float | None = None
    """Of Huber's loss on log residuals. Default: 0.001; with trunk effects 1.345
    standard deviations of a row's effect."""
    effects: Literal["row", "trunk"] | None = None
    """trunk: runs off one trunk share an effect. Default: trunk where trunks have
    several runs each."""
    residual: Literal["log", "raw"] = "log"
    """Of the log of the loss, or of the loss itself."""
    quantile: float = 0.5
    """Below 0.5 for a lower envelope of runs that are not all tuned, as 0.1."""
    noise: Literal["constant", "loss_se", "growing"] = "constant"
    """Scatter of the rows: the same for all; in proportion to loss_se; or a power of
    the loss, fitted to the residuals.
    """
    fix: Pairs = ()
    """Hold a parameter fixed, as E=1.7; repeat the flag for more."""
    tie: Pairs = ()
    """Give a parameter the value of another, as beta=alpha; repeat the flag for more.
    """
    prior: Pairs = ()
    """Normal prior of E or an exponent, as E=1.7,0.1 (mean, standard deviation); repeat
    the flag for more.
    """

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of `analysis.fitting.fit`."""
        return {
            "objective": self.objective,
            "delta": self.delta,
            "effects": self.effects,
            "residual": self.residual,
            "quantile": self.quantile,
            "noise": self.noise,
            "fixed": parse_pairs("--fix", self.fix, "E=1.7", float),
            "tied": parse_pairs("--tie", self.tie, "beta=alpha"),
            "prior": parse_pairs(
                "--prior", self.prior, "E=1.7,0.1", _parse_mean_and_sd
            ),
        }


def get_draws_path(fit: Path) -> Path:
    """Where the bootstrap draws of a saved fit are."""
    return fit.with_suffix(".draws.json")


def read_fit(path: Path) -> tuple[Fit, Bootstrap | None]:
    """A fit that `scaling fit --save` wrote, and its draws if they lie beside it."""
    from analysis import Bootstrap, Fit

    draws = get_draws_path(path)
    if not draws.exists():
        return Fit.from_json(path), None
    return Fit.from_json(path), Bootstrap.from_json(draws)


@dataclass(frozen=True)
class FitArgs:
    """Fit a scaling law and print its parameters with 90 % intervals.

    Examples: scaling fit runs/mine --holdout largest_budget --save fit.json
              scaling fit runs.csv --columns.N params --unit N=millions
    """

    runs: Positional[Path]
    """A sweep's folder, or a .csv, .tsv, .txt, .parquet or .jsonl file."""
    columns: ColumnOptions = field(default_factory=ColumnOptions)
    law: str = "chinchilla"
    """chinchilla, kaplan, gadre, data_constrained, power_law_C, ...: `scaling laws`
    lists all. Of several, as chinchilla,gadre, the one that predicts held-out runs best.
    """
    how: Annotated[FitOptions, tyro.conf.arg(name="")] = field(
        default_factory=FitOptions
    )
    holdout: Literal[
        "none", "largest_budget", "largest_N", "largest_D", "largest_C"
    ] = "none"
    """Keep these runs out of the fit and predict them."""
    draws: int = 1000
    """Bootstrap replicates."""
    seed: int = 0
    save: Path | None = None
    """Write the fit here as JSON, and its bootstrap draws beside it, for predict,
    suggest and compare.
    """
    json: bool = False

    def study(self) -> Study:
        """Everything that the verbs `fit`, `plot` and `report` need; saved if asked."""
        from analysis.progress import show_progress
        from analysis.report.study import study_runs

        with show_progress(f"study of {self.runs}", 10) as progress:
            runs = self.columns.read(self.runs)
            law = self.choose_law(runs)
            progress.advance()
            progress.start_part(9)
            result = study_runs(
                runs,
                law=law,
                holdout=self.holdout,
                draws=self.draws,
                seed=self.seed,
                **self.how.keywords(),
            )
        if self.save is not None:
            self.save.parent.mkdir(parents=True, exist_ok=True)
            result.fit.to_json(self.save)
            result.boot.to_json(get_draws_path(self.save))
        return result

    def choose_law(self, runs: Runs) -> str:
        """The law that is named; of several, the one that predicts held-out runs best,
        or has the lowest AICc where nothing can be held out. Their table goes to the
        standard error stream.

        Raises:
            ValueError: an unknown law, or every law is refused.
        """
        names = [name.strip() for name in self.law.split(",")]
        if len(names) == 1:
            return names[0]
        from analysis import select

        found = select(runs, names, **self.how.keywords())
        chosen = found.best["holdout"] or found.best["aicc"] or names[0]
        print(f"{found}\n\nthe fit below is that of {chosen}\n", file=sys.stderr)
        return chosen

    def __call__(self) -> int:
        result = self.study()
        if self.json:
            print_json(result.summary())
        else:
            from analysis.report.study import describe_study

            print(describe_study(result))
        return 0


@dataclass(frozen=True)
class PlotArgs(FitArgs):
    """Fit, and write the figures: frontier, IsoFLOP profiles, L(N, D) with residuals,
    extrapolation.

    Example: scaling plot runs/mine --holdout largest_budget --format pdf
    """

    figures: Path = Path("figures")
    """Write the figures into this folder."""
    format: Format = "png"

    def __call__(self) -> int:
        from analysis.report.study import draw_figures, save_figures

        figures, missing = draw_figures(self.study())
        for path in save_figures(figures, self.figures, self.format).values():
            print(path)
        for name, reason in missing.items():
            print(f"no figure {name}: {reason}", file=sys.stderr)
        return 0


@dataclass(frozen=True)
class ReportArgs(FitArgs):
    """Fit, and write one self-contained HTML page with figures, tables, fit and
    provenance, and summary.json.

    Example: scaling report runs/mine --holdout largest_budget --out report
    """

    out: Path = Path("report")

    def __call__(self) -> int:
        from analysis.report.study import write_study

        paths = write_study(
            self.study(), self.out, title=f"Scaling law of {self.runs.name}"
        )
        if self.json:
            print_json({name: str(path) for name, path in paths.items()})
        else:
            print(paths["report"])
        return 0
