"""Verbs of the `scaling` command that plan and train: plan, sweep."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from scaling.cli.design_plan import expect_plan, find_plan
from scaling.cli.output import (
    print_cost,
    print_plan,
    print_rejected_widths,
    print_table,
    select_main_columns,
)
from scaling.config import ConfigError, read_toml
from scaling.config.architecture import replace_architecture
from scaling.config.suggestions import did_you_mean
from scaling.execution.config import EXECUTORS, ClusterConfig
from scaling.monitoring.trackers import Kind
from scaling.planning.plan import Plan, PlanConfig, make_plan

if TYPE_CHECKING:
    from analysis import Expectation
    from scaling.planning.timing import Timing


def find_preset(name: str) -> Path:
    """A preset of `scaling/presets` by name, or a path to a .toml file."""
    if name.endswith(".toml"):
        return Path(name)
    folder = Path(str(importlib.resources.files("scaling"))) / "presets"
    path = folder / f"{name}.toml"
    if not path.exists():
        known = sorted(preset.stem for preset in folder.glob("*.toml"))
        raise ConfigError(
            f"preset {name!r}: no such preset; {did_you_mean(name, known)}; or give a "
            f"path ending in .toml"
        )
    return path


@dataclass(frozen=True)
class DesignArgs:
    """Which runs to train, besides what the configuration says."""

    flops: float | None = None
    """Find the plan within this compute budget instead, shared trunks counted once: the
    runs from which the quantity of --for becomes narrowest. The preset's budgets are
    not used, and no run is longer than the training stream.
    """
    want: Annotated[str, tyro.conf.arg(name="for")] = "a"
    """With --flops, the quantity whose interval is to be narrow: a, E or another
    parameter, loss@C=1e15 for the loss of the compute-optimal run, or
    loss@N=1e9,D=2e10.
    """
    prior_fit: Path | None = None
    """A saved fit whose law and noise the expected intervals assume. Default: those of
    the recipe of preset isoflop.
    """

    def make(self, config: PlanConfig) -> Plan:
        """The plan of a configuration: its own, or with --flops the one that is found."""
        if self.flops is None:
            return make_plan(config)
        return find_plan(config, self.flops, self.want, self.prior_fit)

    def expect(self, plan: Plan) -> Expectation | None:
        """The intervals that a plan is expected to give."""
        want = None if self.flops is None else self.want
        return expect_plan(plan, want, self.prior_fit)


@dataclass(frozen=True)
class PlanArgs:
    """Print the runs of a plan, what they cost and how long they will take here, and
    train nothing.

    Examples: scaling plan --preset quickstart --budgets 1e11 2e11 4e11 --optim.lr 4e-3
              scaling plan --preset quickstart --hardware v5e:2x2 --optim.batch-size 64
              scaling plan --preset quickstart --flops 3e13 --for loss@C=1e14
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
    near_duplicates: bool = False
    """Read all text and count the held-out documents that nearly repeat a training
    document."""
    save: Path | None = None
    """Write the plan as JSON."""
    hardware: Annotated[str | None, tyro.conf.arg(aliases=["--target"])] = None
    """Estimate the cost of the plan on other hardware instead: cpu, gpu:NAME[:COUNT]
    (gpu:h100:8), or a TPU slice (v5e:2x2; needs the extra tpu). Every shape is
    compiled, to tell whether it fits, and which flags would make it fit."""
    design: Annotated[DesignArgs, tyro.conf.arg(name="")] = field(
        default_factory=DesignArgs
    )
    utilization: Annotated[float | None, tyro.conf.arg(aliases=["--utilisation"])] = (
        None
    )
    """Share of the hardware's peak that training reaches. Default: 0.4."""
    json: bool = False

    def __call__(self) -> int:
        plan = self.design.make(self.config)
        if self.save is not None:
            plan.to_json(self.save)
        if self.hardware is not None:
            self._print_cost(plan, self.hardware)
            return 0
        print_plan(
            plan,
            self.out,
            timing=self.timing,
            workers=self.workers,
            expected=self.design.expect(plan),
            near_duplicates=self.near_duplicates,
            as_json=self.json,
        )
        return 0

    def _print_cost(self, plan: Plan, name: str) -> None:
        from scaling.execution.sweep import default_workers, measure_timings
        from scaling.planning.cost import estimate_cost
        from scaling.planning.hardware import parse_hardware

        workers = default_workers() if self.workers is None else self.workers

        def measure(fitting: Plan) -> Sequence[Timing]:
            return measure_timings(fitting, self.out, workers)

        answer = estimate_cost(
            plan,
            parse_hardware(name),
            self.utilization,
            measure=measure if self.timing else None,
            workers=workers,
            report=functools.partial(print, file=sys.stderr),
        )
        print_cost(answer, self.json)


@dataclass(frozen=True)
class LoopArgs:
    """How runs are executed; none of these settings changes a loss. What is left out
    keeps the default of `scaling.LoopConfig`."""

    chunk_steps: int | None = None
    """Optimizer steps per dispatch. Default: 16."""
    checkpoint_seconds: float | None = None
    """Seconds between checkpoints. Default: 30."""
    stall_seconds: float | None = None
    """Seconds without progress after which a device counts as hanging; more than any
    compilation takes. Default: 1800."""
    attempts: int | None = None
    """Starts of a trunk whose process dies without progress. Default: 3."""
    members: int | None = None
    """Most runs that share a compiled program, see --pack. Default: 8."""
    keep_parameters: bool | None = None
    """Keep the final parameters of each run. Default: yes."""

    def get_given(self) -> dict[str, Any]:
        """The settings that were given."""
        settings = dataclasses.asdict(self)
        return {name: value for name, value in settings.items() if value is not None}


@dataclass(frozen=True)
class ExecutorArgs:
    """Where to train. `make_executor_args` adds a field for each registered executor."""

    executor: str = "local"

    def get_cluster(self) -> ClusterConfig | None:
        """The configuration of the chosen cluster; None for this machine.

        Raises:
            ConfigError: a setting of another cluster was given.
        """
        for name in EXECUTORS:
            is_given = getattr(self, name) != EXECUTORS[name].config()
            if is_given and self.executor != name:
                raise ConfigError(
                    f"--{name}.*: only with --executor {name}; here it is "
                    f"{self.executor}"
                )
        return None if self.executor == "local" else getattr(self, self.executor)


def make_executor_args() -> type[ExecutorArgs]:
    """The flags `--executor NAME` and `--NAME.FIELD` for all executors of the registry."""
    help_text = (
        "Where to train: on this machine, or a job for each trunk by another executor, "
        "all of whose machines see --out; see docs/guides/clusters.md."
    )
    choices = Literal[("local", *EXECUTORS)]  # type: ignore[valid-type]
    executor = Annotated[choices, tyro.conf.arg(help=help_text)]
    fields: list[tuple[str, Any, Any]] = [("executor", executor, "local")]
    for name, entry in EXECUTORS.items():
        fields.append((name, entry.config, field(default_factory=entry.config)))
    return dataclasses.make_dataclass(
        "ExecutorArgs", fields, bases=(ExecutorArgs,), frozen=True
    )


if TYPE_CHECKING:
    ExecutorFlags = ExecutorArgs
else:
    ExecutorFlags = make_executor_args()


@dataclass(frozen=True)
class TrainingArgs:
    """Where and how to train; none of it changes a loss."""

    workers: int | None = None
    """Processes, each on a GPU of its own or else on a core; 0: this process over all
    its devices. Default: one per core on CPU, 0 elsewhere."""
    place: Annotated[ExecutorFlags, tyro.conf.arg(name="")] = field(
        default_factory=ExecutorFlags
    )
    strategy: Literal["auto", "single", "pmap", "fsdp"] = "auto"
    """How devices share a run, see docs/guides/devices.md: fsdp splits models that do
    not fit on one.
    """
    pack: Literal["auto", "solo", "vmap", "map"] = "auto"
    """Without workers, how runs of one shape share a compiled program: not at all, by
    vmap, or sequentially by map; auto measures.
    """
    loop: LoopArgs = field(default_factory=LoopArgs)
    retry: Literal["none", "failed"] = "none"
    """failed: try again the runs that have failed before; else a sweep leaves them
    alone and names them.
    """
    progress: Literal["auto", "bar", "plain", "json", "quiet"] = "auto"
    """What to show on standard error: a bar, a line per run, every event as a JSON
    line, nothing; auto: a bar on a terminal, else lines."""
    tracker: tyro.conf.UseAppendAction[tuple[Kind, ...]] = ()
    """Sync the runs to these trackers as they train; repeat the flag for more."""
    tracker_project: str | None = None
    """Name of the project or experiment there. Default: the name of --out."""

    def get_keywords(self) -> dict[str, Any]:
        """Keyword arguments of `scaling.sweep`."""
        from scaling.training.loop import LoopConfig

        loop = LoopConfig(
            strategy=self.strategy, pack=self.pack, **self.loop.get_given()
        )
        return {
            "workers": self.workers,
            "executor": self.place.get_cluster(),
            "loop": loop,
            "retry": self.retry == "failed",
            "show": self.progress,
        }


@dataclass(frozen=True)
class SweepArgs:
    """Train what is missing of a plan. Interrupt it at will; the same command resumes.

    Examples: scaling sweep --preset quickstart --out runs/mine
              scaling sweep --preset quickstart --flops 3e13 --for a --out runs/mine
    """

    config: Annotated[PlanConfig, tyro.conf.arg(name="")]
    preset: str | None = None
    """Start from scaling/presets/NAME.toml, or from a path ending in .toml; other flags
    override it.
    """
    plan: Path | None = None
    """Train a plan saved by `scaling plan --save` instead of one from flags."""
    design: Annotated[DesignArgs, tyro.conf.arg(name="")] = field(
        default_factory=DesignArgs
    )
    out: Path = Path("runs/sweep")
    training: Annotated[TrainingArgs, tyro.conf.arg(name="")] = field(
        default_factory=TrainingArgs
    )
    json: bool = False
    """Print the run table as JSON."""

    def __call__(self) -> int:
        from scaling.execution.sweep import sweep
        from scaling.monitoring.sync import sync_during_sweep
        from scaling.training import multihost

        multihost.join_processes()
        plan = self._make_plan()
        training = self.training
        if multihost.is_process_0() and training.progress not in ("json", "quiet"):
            print_rejected_widths(plan)
            expected = self.design.expect(plan)
            if expected is not None:
                print(expected, file=sys.stderr)
        trackers = training.tracker if multihost.is_process_0() else ()
        with sync_during_sweep(self.out, trackers, training.tracker_project):
            table = sweep(plan, self.out, **training.get_keywords())
        if multihost.is_process_0():
            print_table(table if self.json else select_main_columns(table), self.json)
        return 0

    def _make_plan(self) -> Plan:
        if self.plan is None:
            return self.design.make(self.config)
        if self.design.flops is not None:
            raise ConfigError(
                f"--flops {self.design.flops:g} finds a plan, and --plan {self.plan} is "
                "one: give one of the two"
            )
        return Plan.from_json(self.plan)


def read_preset(args: Sequence[str]) -> PlanConfig:
    """The preset that `--preset` names among the arguments, by default `quickstart`, with
    the architecture of `--model.architecture`.
    """
    name = find_flag(args, "--preset") or "quickstart"
    preset = read_toml(find_preset(name), PlanConfig)
    architecture = find_flag(args, "--model.architecture")
    if architecture is None:
        return preset
    model = replace_architecture(preset.model, architecture)
    return dataclasses.replace(preset, model=model)


def find_flag(args: Sequence[str], flag: str) -> str | None:
    """The value of a flag among the arguments of a command; None if it is not there."""
    value = None
    for i, arg in enumerate(args):
        if arg == flag and i + 1 < len(args):
            value = args[i + 1]
        elif arg.startswith(f"{flag}="):
            value = arg.partition("=")[2]
    return value
