"""The `scaling` command: plan, sweep, runs, fit, plot, predict, report.

The only file that imports both packages, and lazily: a verb that fits never loads Flax, one that trains never
loads the fitting code. Exit status: 0 done; 1 the data cannot carry the answer; 2 wrong usage or configuration;
3 some runs failed, the others are kept; 130 interrupted, call again to resume.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from scaling.config import ConfigError, read_toml
from scaling.plan import Plan, PlanConfig, make_plan
from scaling.printing import format_value, main_columns, print_json, print_table, show_plan

if TYPE_CHECKING:
    import pandas as pd

    from analysis import Fit, Runs

Positional = tyro.conf.Positional


def preset_path(name: str) -> Path:
    """A preset of `experiments/presets` by name, or a path to a .toml file."""
    if name.endswith(".toml"):
        return Path(name)
    folder = Path(str(importlib.resources.files("experiments"))) / "presets"
    path = folder / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.toml")))
        raise ConfigError(f"preset {name!r}: no such preset; known: {known}; or give a path ending in .toml")
    return path


@dataclass(frozen=True)
class PlanArgs:
    """Print the runs of a plan, what they cost and how long they will take here, and train nothing.

    Example: scaling plan --preset quickstart --budgets 1e11 2e11 4e11 --optim.lr 4e-3
    """

    config: Annotated[PlanConfig, tyro.conf.arg(name="")]
    preset: str | None = None
    """Start from experiments/presets/NAME.toml, or from a path ending in .toml; other flags override it."""
    out: Path = Path("runs/sweep")
    """Where the runs are or will be: what is finished there is not counted again."""
    timing: bool = True
    """Measure this machine for some seconds to tell how long the plan takes."""
    workers: int | None = None
    """Processes, one per core; 0: this process over all its devices. Default: one per core on CPU."""
    save: Path | None = None
    """Write the plan as JSON."""
    json: bool = False

    def __call__(self) -> int:
        plan = make_plan(self.config)
        if self.save is not None:
            plan.to_json(self.save)
        show_plan(plan, self.out, timing=self.timing, workers=self.workers, as_json=self.json)
        return 0


@dataclass(frozen=True)
class SweepArgs:
    """Train what is missing of a plan. Interrupt it at will; the same command resumes.

    Example: scaling sweep --preset quickstart --out runs/mine
    """

    config: Annotated[PlanConfig, tyro.conf.arg(name="")]
    preset: str | None = None
    """Start from experiments/presets/NAME.toml, or from a path ending in .toml; other flags override it."""
    plan: Path | None = None
    """Train a plan saved by `scaling plan --save` instead of one from flags."""
    out: Path = Path("runs/sweep")
    workers: int | None = None
    """Processes, one per core; 0: this process over all its devices. Default: one per core on CPU."""
    json: bool = False
    """Print the run table as JSON."""

    def __call__(self) -> int:
        from scaling.sweep import sweep

        plan = make_plan(self.config) if self.plan is None else Plan.from_json(self.plan)
        table = sweep(plan, self.out, workers=self.workers)
        print_table(table if self.json else main_columns(table), self.json)
        return 0


@dataclass(frozen=True)
class RunsArgs:
    """Print the run table of a sweep's folder.

    Example: scaling runs runs/mine --all
    """

    out: Positional[Path]
    all: bool = False
    """All columns."""
    export: bool = False
    """Also write runs.parquet and runs.csv into the folder."""
    json: bool = False

    def __call__(self) -> int:
        from scaling import store

        table = _finished(self.out)
        if self.export:
            store.export(table, self.out)
        print_table(table if self.all or self.json else main_columns(table), self.json)
        return 0


def _finished(out: Path) -> pd.DataFrame:
    """The run table of a sweep's folder.

    Raises:
        ConfigError: no run has finished there.
    """
    from scaling.store import run_table

    table = run_table(out)
    if table.empty:
        raise ConfigError(f"{out}: no finished run below this folder; train some with `scaling sweep --out`")
    return table


@dataclass(frozen=True)
class Table:
    """Which runs, and which of their columns. Left out, the project's own columns are used."""

    N: str | None = None
    D: str | None = None
    C: str | None = None
    loss: str | None = None
    trunk: str | None = None
    budget: str | None = None

    def read(self, path: Path) -> Runs:
        """The accepted runs of a sweep's folder, a .csv, a .parquet or a .jsonl."""
        from analysis import load_runs

        return load_runs(_finished(path) if path.is_dir() else path, **dataclasses.asdict(self))


@dataclass(frozen=True)
class FitArgs:
    """Fit a scaling law and print its parameters with 90 % intervals.

    Example: scaling fit runs.csv --columns.N params --columns.D tokens --columns.loss val_loss --save fit.json
    """

    runs: Positional[Path]
    """A sweep's folder, or a .csv, .parquet or .jsonl file."""
    columns: Table = field(default_factory=Table)
    law: str = "chinchilla"
    """chinchilla; power_law_N, power_law_D, power_law_C; the last three also with _pure (no constant)."""
    objective: Literal["huber", "least_squares", "lad"] = "huber"
    delta: float = 1e-3
    """Of Huber's loss on log residuals."""
    holdout: Literal["none", "largest_budget", "largest_N", "largest_C"] = "none"
    """Keep these runs out of the fit and predict them."""
    draws: int = 1000
    """Bootstrap replicates."""
    seed: int = 0
    save: Path | None = None
    """Write the fit here as JSON, and its bootstrap draws beside it, for `scaling predict`."""
    json: bool = False

    def study(self) -> Any:
        """Everything the verbs `fit`, `plot` and `report` need."""
        from analysis.study import study

        return study(
            self.columns.read(self.runs),
            law=self.law,
            holdout=self.holdout,
            objective=self.objective,
            delta=self.delta,
            draws=self.draws,
            seed=self.seed,
        )

    def __call__(self) -> int:
        result = self.study()
        if self.save is not None:
            result.fit.to_json(self.save)
            result.boot.to_json(_draws_path(self.save))
        if self.json:
            print_json(result.summary())
        else:
            from analysis.study import describe

            print(describe(result))
        return 0


def _draws_path(fit: Path) -> Path:
    return fit.with_suffix(".draws.json")


@dataclass(frozen=True)
class PlotArgs(FitArgs):
    """Fit, and write the figures: frontier, IsoFLOP curves, L(N, D) with residuals, extrapolation.

    Example: scaling plot runs/mine --holdout largest_budget --figures figures --format pdf
    """

    figures: Path = Path("figures")
    format: Literal["png", "svg", "pdf"] = "png"

    def __call__(self) -> int:
        from analysis.study import write_figures

        for path in write_figures(self.study(), self.figures, self.format).values():
            print(path)
        return 0


@dataclass(frozen=True)
class ReportArgs(FitArgs):
    """Fit, and write one self-contained HTML page with figures, tables, fit and provenance, and summary.json.

    Example: scaling report runs/mine --holdout largest_budget --out report
    """

    out: Path = Path("report")

    def __call__(self) -> int:
        from analysis.study import write_study

        paths = write_study(self.study(), self.out, title=f"Scaling law of {self.runs.name}")
        if self.json:
            print_json({name: str(path) for name, path in paths.items()})
        else:
            print(paths["report"])
        return 0


@dataclass(frozen=True)
class PredictArgs:
    """Predict the loss of a run, or the compute-optimal run of a budget, from a saved fit.

    Example: scaling predict fit.json --N 1e9 --D 2e10        scaling predict fit.json --C 1e21
    """

    fit: Positional[Path]
    """Written by `scaling fit --save`."""
    N: float | None = None
    D: float | None = None
    C: float | None = None
    json: bool = False

    def __call__(self) -> int:
        from analysis import Bootstrap, Fit

        fit = Fit.from_json(self.fit)
        draws = _draws_path(self.fit)
        boot = Bootstrap.from_json(draws) if draws.exists() else None
        answer = (
            self._optimum(fit, boot) if self.C is not None and "C" not in fit.law.variables else self._loss(fit, boot)
        )
        if self.json:
            print_json(answer)
        else:
            for name, value in answer.items():
                print(f"{name:>14}  {format_value(value)}")
        return 0

    def _loss(self, fit: Fit, boot: Any) -> dict[str, Any]:
        point = {name: getattr(self, name) for name in fit.law.variables}
        missing = [f"--{name}" for name, value in point.items() if value is None]
        if missing:
            raise ConfigError(f"law {fit.law.name!r} needs {' and '.join(missing)}, or --C for the compute-optimal run")
        answer: dict[str, Any] = {**point, "loss": float(fit.predict(**point))}
        if boot is not None:
            answer["law_90"] = list(boot.predict_interval(**point, level=0.90))
            answer["new_run_90"] = list(boot.predict_interval(**point, level=0.90, new_run=True))
        return answer

    def _optimum(self, fit: Fit, boot: Any) -> dict[str, Any]:
        from analysis.allocate import allocate, counted_flops_per_token

        assert self.C is not None
        best = dataclasses.asdict(allocate(fit, C=self.C, boot=boot, flops_per_token=counted_flops_per_token(fit)))
        intervals = best.pop("intervals")
        del best["level"]
        return best | {f"{name}_90": list(ends) for name, ends in intervals.items()}


VERBS: dict[str, type] = {
    "plan": PlanArgs,
    "sweep": SweepArgs,
    "runs": RunsArgs,
    "fit": FitArgs,
    "plot": PlotArgs,
    "predict": PredictArgs,
    "report": ReportArgs,
}


def _usage() -> str:
    lines = [f"  {name:<8} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
    return "usage: scaling VERB [--help] ...\n\n" + "\n".join(lines) + "\n"


def parse(argv: Sequence[str]) -> Callable[[], int]:
    """The verb that a command line asks for, with its arguments.

    Raises:
        SystemExit: wrong usage (2) or `--help` (0).
        ConfigError: an unknown preset, or one with an unknown key.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage(), end="")
        raise SystemExit(0 if argv else 2)
    if argv[0] not in VERBS:
        print(f"unknown verb {argv[0]!r}\n\n{_usage()}", end="", file=sys.stderr)
        raise SystemExit(2)
    verb, rest = VERBS[argv[0]], list(argv[1:])
    options: dict[str, Any] = {}
    if argv[0] in ("plan", "sweep"):
        options["default"] = verb(config=_template(rest))
    return tyro.cli(verb, args=rest, prog=f"scaling {argv[0]}", **options)


def _template(args: list[str]) -> PlanConfig:
    """The preset named in the arguments; without one the quickstart's."""
    name = "quickstart"
    for i, arg in enumerate(args):
        if arg == "--preset" and i + 1 < len(args):
            name = args[i + 1]
        elif arg.startswith("--preset="):
            name = arg.removeprefix("--preset=")
    return read_toml(preset_path(name), PlanConfig)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status."""
    from scaling.data import DataError
    from scaling.store import StoreError

    try:
        return parse(sys.argv[1:] if argv is None else argv)()
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130
    except (ConfigError, DataError, StoreError, FileNotFoundError) as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 3
