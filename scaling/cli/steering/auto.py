"""A sweep that steers itself, from a budget to a law, a prediction and a decision.

    answer = scaling.auto(config, "runs/auto", flops=3e13, target_C=1e15)
    print(answer)

`config` says which family of models is trained, with which recipe and on what text.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from analysis import DesignPrior
from analysis.decisions.prior import read_default_prior
from scaling.cli.design_plan import count_train_tokens
from scaling.cli.steering.journal import Journal
from scaling.cli.steering.outcome import AutoResult, draw_conclusions, write_outcome
from scaling.cli.steering.settings import ROUNDS, AutoSettings
from scaling.cli.steering.simulated import SimulatedTrainer
from scaling.cli.steering.steer import Steering, Trained
from scaling.config import ConfigError
from scaling.execution.config import ClusterConfig
from scaling.execution.sweep import SweepError, sweep
from scaling.monitoring.progress import Show
from scaling.planning.plan import Plan, PlanConfig
from scaling.store.table import run_table
from scaling.training import multihost
from scaling.training.loop import LoopConfig

Report = Callable[[str], None]


def auto(
    config: PlanConfig,
    out: str | Path,
    *,
    flops: float,
    want: str | None = None,
    target_C: float | None = None,
    until: float | None = None,
    rounds: int = ROUNDS,
    tune: bool = True,
    prior: DesignPrior | None = None,
    workers: int | None = None,
    executor: ClusterConfig | None = None,
    loop: LoopConfig | None = None,
    show: Show = "auto",
    retry: bool = False,
    report: Report | None = None,
) -> AutoResult:
    """Spend a compute budget on the runs that tell most about a quantity.

    A pilot tunes the learning rate at small sizes and measures a first law and its
    noise. Then each round designs the rest of the budget by what is known
    (`analysis.design`), trains the cheapest trunks of the design, and fits the law to
    all runs. The decisions are recorded in `OUT/decisions.jsonl` before they are acted
    upon, so that the same call resumes after any interruption. Runs that an
    interruption cut off continue from their checkpoints; steps since the last of these
    are trained again and are not charged.

    Args:
        config: the recipe, the sizes and the limits of the runs. Its budgets are not
            used.
        out: the folder of the runs, the decisions and the report.
        flops: the budget, trunks that runs share counted once. It is never exceeded.
        want: the quantity to know, such as "a" or "loss@N=1e8,D=2e9"; by default the
            loss of the compute-optimal run of target_C FLOPs, or the exponent a.
        target_C: FLOPs of the training run that is to be decided on; by default ten
            times the largest run of the sweep.
        until: half-width of the 90 % interval of the quantity at which to stop, of a
            loss as a fraction of it.
        rounds: after the pilot.
        tune: whether to tune the learning rate.
        prior: the law and noise to assume before the sweep's own are known; by default
            those of the recipe of preset isoflop.
        workers, executor, loop, show, retry: as for `scaling.sweep`.
        report: is called with each decision as text; by default they are printed to
            standard error.

    Raises:
        ConfigError: a setting is out of range, the budget affords no law, or the folder
            holds the decisions of other settings.
        DataError: the text cannot be read, or has changed.
        SweepError: no run of a step could be trained. Where some could, the others are
            left out, and the decisions say so.
    """
    out = Path(out)
    if multihost.is_multihost():
        raise ConfigError(
            "scaling auto: one process steers, and several train together here; start "
            "one process, or give an executor"
        )
    steering = Steering(
        config,
        AutoSettings(flops, want, target_C, until, rounds, tune),
        train=functools.partial(
            train_plan,
            out=out,
            workers=workers,
            executor=executor,
            loop=loop,
            show=show,
            retry=retry,
        ),
        journal=Journal(out, report or functools.partial(print, file=sys.stderr)),
        prior=prior or read_default_prior(),
        train_tokens=count_train_tokens(config),
    )
    steering.steer()
    result = draw_conclusions(steering)
    write_outcome(result, out)
    return result


def sketch_auto(
    config: PlanConfig, settings: AutoSettings, prior: DesignPrior | None = None
) -> pd.DataFrame:
    """The decisions that a sweep would take if its runs followed the prior law.

    The search of the rate and the pilot are those that would be trained. What follows
    them will depend on the runs.

    Args:
        config: the recipe, the sizes and the limits.
        settings: what the sweep is for.
        prior: the law and noise to assume; by default those of the recipe of preset
            isoflop.

    Raises:
        ConfigError: the budget affords no law.
    """
    world = prior or read_default_prior()
    journal = Journal(None)
    steering = Steering(
        config,
        settings,
        train=SimulatedTrainer(config, world),
        journal=journal,
        prior=world,
        train_tokens=count_train_tokens(config),
    )
    steering.steer()
    return journal.tabulate_decisions()


def train_plan(
    plan: Plan,
    *,
    out: Path,
    workers: int | None,
    executor: ClusterConfig | None,
    loop: LoopConfig | None,
    show: Show,
    retry: bool,
) -> Trained:
    """Train what is missing of a plan.

    Raises:
        SweepError: no run of the plan could be trained.
    """
    failures = {}
    try:
        sweep(
            plan,
            out,
            workers=workers,
            executor=executor,
            loop=loop,
            show=show,
            retry=retry,
        )
    except SweepError as error:
        for failure in error.failures:
            failures |= {run.run_id: failure.reason for run in failure.runs}
        if len(failures) == len(plan):
            raise
    return Trained(run_table(out, plan), failures)
