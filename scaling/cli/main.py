"""The `scaling` command: its verbs that train, and the way from a command line to a
verb.

The verbs that analyse are in `scaling.cli.fit` and `scaling.cli.predict`, those that
look at a folder in `scaling.cli.runs`. These four files alone import both packages, and
lazily: a verb that fits never loads Flax, one that
trains never loads the fitting code. Exit status: 0 done; 1 the data cannot carry the
answer; 2 wrong usage or configuration; 3 some runs failed, the others are kept; 130
interrupted, call again to resume.
"""

from __future__ import annotations

import functools
import importlib
import importlib.resources
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from scaling.cli.fit import FitArgs, PlotArgs, ReportArgs
from scaling.cli.output import print_cost, print_plan, print_table, select_main_columns
from scaling.cli.predict import AuditArgs, CompareArgs, NextArgs, PredictArgs
from scaling.cli.runs import RunsArgs, TrackArgs, WatchArgs
from scaling.config import ConfigError, read_toml
from scaling.execution.config import Cluster, RayConfig, SlurmConfig
from scaling.monitoring.trackers import Kind
from scaling.planning.plan import Plan, PlanConfig, make_plan


def preset_path(name: str) -> Path:
    """A preset of `scaling/presets` by name, or a path to a .toml file."""
    if name.endswith(".toml"):
        return Path(name)
    folder = Path(str(importlib.resources.files("scaling"))) / "presets"
    path = folder / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.toml")))
        raise ConfigError(
            f"preset {name!r}: no such preset; known: {known}; or give a path ending in .toml"
        )
    return path


@dataclass(frozen=True)
class PlanArgs:
    """Print the runs of a plan, what they cost and how long they will take here, and
    train nothing.

    Examples: scaling plan --preset quickstart --budgets 1e11 2e11 4e11 --optim.lr 4e-3
              scaling plan --preset quickstart --hardware v5e:2x2 --optim.batch-size 64
    """

    config: Annotated[PlanConfig, tyro.conf.arg(name="")]
    preset: str | None = None
    """Start from scaling/presets/NAME.toml, or from a path ending in .toml; other flags
    override it.
    """
    out: Path = Path("runs/sweep")
    """Where the runs are or will be: what is finished there is not counted again."""
    timing: bool = True
    """Measure this machine for some seconds to tell how long the plan takes."""
    workers: int | None = None
    """Processes, each on a GPU of its own or else on a core; 0: this process over all
    its devices. Default: one per core on CPU, 0 elsewhere."""
    save: Path | None = None
    """Write the plan as JSON."""
    hardware: Annotated[str | None, tyro.conf.arg(aliases=["--target"])] = None
    """Estimate the cost of the plan on other hardware instead: cpu, gpu:NAME[:COUNT]
    (gpu:h100:8), or a TPU slice (v5e:2x2; needs the extra tpu). Every shape is
    compiled, to tell whether it fits, and which flags would make it fit."""
    utilization: Annotated[float | None, tyro.conf.arg(aliases=["--utilisation"])] = (
        None
    )
    """Share of the hardware's peak that training reaches. Default: 0.4."""
    json: bool = False

    def __call__(self) -> int:
        plan = make_plan(self.config)
        if self.save is not None:
            plan.to_json(self.save)
        if self.hardware is not None:
            self._price(plan, self.hardware)
            return 0
        print_plan(
            plan, self.out, timing=self.timing, workers=self.workers, as_json=self.json
        )
        return 0

    def _price(self, plan: Plan, name: str) -> None:
        from scaling.execution.sweep import default_workers, measure
        from scaling.planning.cost import estimate_cost
        from scaling.planning.hardware import parse_hardware

        workers = default_workers() if self.workers is None else self.workers
        clock = (
            (lambda fitting: measure(fitting, self.out, workers))
            if self.timing
            else None
        )
        report = functools.partial(print, file=sys.stderr)
        hardware = parse_hardware(name)
        answer = estimate_cost(
            plan,
            hardware,
            self.utilization,
            measure=clock,
            workers=workers,
            report=report,
        )
        print_cost(answer, self.json)


@dataclass(frozen=True)
class SweepArgs:
    """Train what is missing of a plan. Interrupt it at will; the same command resumes.

    Example: scaling sweep --preset quickstart --out runs/mine
    """

    config: Annotated[PlanConfig, tyro.conf.arg(name="")]
    preset: str | None = None
    """Start from scaling/presets/NAME.toml, or from a path ending in .toml; other flags
    override it.
    """
    plan: Path | None = None
    """Train a plan saved by `scaling plan --save` instead of one from flags."""
    out: Path = Path("runs/sweep")
    workers: int | None = None
    """Processes, each on a GPU of its own or else on a core; 0: this process over all
    its devices. Default: one per core on CPU, 0 elsewhere."""
    executor: Literal["local", "slurm", "ray"] = "local"
    """Where to train: on this machine, or a job per trunk on a cluster, all of whose
    machines see --out; see docs/guides/clusters.md (extras slurm, ray)."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    strategy: Literal["auto", "single", "pmap", "fsdp"] = "auto"
    """How devices share a run, see docs/guides/devices.md: fsdp splits models that do not fit
    on one.
    """
    pack: Literal["auto", "solo", "vmap", "map"] = "auto"
    """Without workers, how runs of one shape share a program: side by side, in turn, or
    not; auto measures.
    """
    retry: Literal["none", "failed"] = "none"
    """failed: try again the runs that have failed before; else a sweep leaves them
    alone and names them.
    """
    progress: Literal["auto", "bar", "plain", "json", "quiet"] = "auto"
    """What to show on standard error: a bar, a line per run, every event as a JSON
    line, nothing; auto: a bar on a terminal, else lines."""
    tracker: tyro.conf.UseAppendAction[tuple[Kind, ...]] = ()
    """Mirror the runs to tensorboard, wandb, mlflow or trackio as they train; repeat
    the flag for more.
    """
    tracker_project: str | None = None
    """Name of the project or experiment there. Default: the name of --out."""
    json: bool = False
    """Print the run table as JSON."""

    def __call__(self) -> int:
        from scaling.execution.sweep import sweep
        from scaling.monitoring.sync import mirrored
        from scaling.training import multihost
        from scaling.training.loop import LoopConfig

        multihost.join()
        plan = (
            make_plan(self.config) if self.plan is None else Plan.from_json(self.plan)
        )
        loop = LoopConfig(strategy=self.strategy, pack=self.pack)
        where: dict[str, Any] = {"workers": self.workers, "executor": self._cluster()}
        retry = self.retry == "failed"
        with mirrored(
            self.out, self.tracker if multihost.is_first() else (), self.tracker_project
        ):
            table = sweep(
                plan, self.out, **where, loop=loop, retry=retry, show=self.progress
            )
        if multihost.is_first():
            print_table(table if self.json else select_main_columns(table), self.json)
        return 0

    def _cluster(self) -> Cluster | None:
        """The cluster that was asked for."""
        for name, default in (("slurm", SlurmConfig()), ("ray", RayConfig())):
            if getattr(self, name) != default and self.executor != name:
                raise ConfigError(
                    f"--{name}.*: only with --executor {name}; here it is {self.executor}"
                )
        return None if self.executor == "local" else getattr(self, self.executor)


VERBS: dict[str, type] = {
    "plan": PlanArgs,
    "sweep": SweepArgs,
    "runs": RunsArgs,
    "watch": WatchArgs,
    "track": TrackArgs,
    "fit": FitArgs,
    "plot": PlotArgs,
    "predict": PredictArgs,
    "next": NextArgs,
    "compare": CompareArgs,
    "audit": AuditArgs,
    "report": ReportArgs,
}


REPRODUCTIONS = {
    "documents": "scaling reproduce documents [--quick | --full] [--claims S1 S2 ...]",
    "literature": "scaling reproduce literature --data-dir DIR",
}


def reproduce(argv: Sequence[str]) -> int:
    """Reproduce published claims: `documents` tests those of five documents,
    `literature` refits scaling laws.

    Examples: scaling reproduce documents --quick
              scaling reproduce literature --data-dir DIR

    Raises:
        ConfigError: neither of the two.
    """
    if argv and argv[0] in ("-h", "--help"):
        print(
            reproduce.__doc__.partition("Raises:")[0].rstrip()
            if reproduce.__doc__
            else ""
        )
        return 0
    if not argv or argv[0] not in REPRODUCTIONS:
        there = "; ".join(f"`{usage}`" for usage in REPRODUCTIONS.values())
        raise ConfigError(
            f"reproduce {argv[0] if argv else ''!r}: unknown; there is {there}"
        )
    module: Any = importlib.import_module(f"experiments.{argv[0]}.reproduce")
    return module.main(list(argv[1:])) or 0


def _usage() -> str:
    verbs = {**VERBS, "reproduce": reproduce}
    lines = [
        f"  {name:<9} {(verb.__doc__ or '').splitlines()[0]}"
        for name, verb in verbs.items()
    ]
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
    if argv[0] == "reproduce":
        return lambda: reproduce(argv[1:])
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
    from scaling.store.files import StoreError

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
    except OSError as error:
        from scaling.execution.base import explain

        print(f"scaling: {explain(error)}", file=sys.stderr)
        return 3
    except ValueError as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        print(f"scaling: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    raise SystemExit(main())
