"""The verb of the `scaling` command that spends a budget by itself: auto."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from scaling.cli.design_plan import read_prior
from scaling.cli.output import print_json, print_table
from scaling.cli.plan_sweep import TrainingArgs
from scaling.cli.steering.settings import ROUNDS, AutoSettings
from scaling.config import ConfigError
from scaling.planning.plan import PlanConfig


@dataclass(frozen=True)
class AutoArgs:
    """Spend a compute budget on the runs that tell most: tune the rate, train a pilot,
    then design, train and fit in rounds. Interrupt it at will; the same command resumes.

    Examples: scaling auto --flops 1e13 --target-C 1e14 --out runs/auto
              scaling auto --flops 1e13 --for a --data.source my_texts/ --dry-run
    """

    config: Annotated[PlanConfig, tyro.conf.arg(name="")]
    flops: float | None = None
    """The budget, trunks that runs share counted once. It is never exceeded. Must be
    given."""
    target_C: float | None = None
    """FLOPs of the training run that is to be decided on. Default: ten times the
    largest run of the sweep."""
    want: Annotated[str | None, tyro.conf.arg(name="for")] = None
    """The quantity to know: a, E or another parameter, loss@C=1e15, or
    loss@N=1e9,D=2e10. Default: the loss at --target-C; without it, a."""
    until: float | None = None
    """Stop at this half-width of the 90 % interval, of a loss as a fraction of it, as
    0.01. Default: spend the budget."""
    rounds: int = ROUNDS
    """Of design, training and fit after the pilot."""
    tune: bool = True
    """Tune the learning rate at small sizes first."""
    prior_fit: Path | None = None
    """A saved fit whose law and noise are assumed before the sweep's own are known.
    Default: those of the recipe of preset isoflop."""
    dry_run: bool = False
    """Print the price of the pilot and what would follow if the runs followed the law
    that is assumed, and train nothing."""
    preset: str | None = None
    """Start from scaling/presets/NAME.toml, or from a path ending in .toml; other flags
    override it.
    """
    out: Path = Path("runs/auto")
    training: Annotated[TrainingArgs, tyro.conf.arg(name="")] = field(
        default_factory=TrainingArgs
    )
    json: bool = False
    """Print the answer as JSON."""

    def __call__(self) -> int:
        if self.flops is None:
            raise ConfigError("--flops: give the budget in FLOPs, as --flops 1e13")
        if self.dry_run:
            return self._sketch(self.flops)
        from scaling.cli.steering.auto import auto
        from scaling.monitoring.sync import sync_during_sweep

        training = self.training
        with sync_during_sweep(self.out, training.tracker, training.tracker_project):
            answer = auto(
                self.config,
                self.out,
                flops=self.flops,
                want=self.want,
                target_C=self.target_C,
                until=self.until,
                rounds=self.rounds,
                tune=self.tune,
                prior=read_prior(self.prior_fit),
                **training.get_keywords(),
            )
        if self.json:
            print_json(answer.to_dict())
        else:
            print(f"{answer}\n{self.out / 'report.html'}")
        return 0

    def _sketch(self, flops: float) -> int:
        """Print what a sweep would do."""
        from scaling.cli.steering.auto import sketch_auto

        settings = AutoSettings(
            flops, self.want, self.target_C, self.until, self.rounds, self.tune
        )
        steps = sketch_auto(self.config, settings, read_prior(self.prior_fit))
        if self.json:
            print_table(steps, as_json=True)
            return 0
        for step, decision, reason in steps[["step", "decision", "reason"]].to_numpy():
            print(f"{step}: {decision}\n    {reason}")
        orders = steps.loc[steps["runs"] > 0, ["step", "runs", "flops", "flops_so_far"]]
        print()
        print_table(orders, as_json=False)
        print(
            "the rates and the pilot would be trained so; what follows them depends on "
            "the runs, and is shown for runs that follow the law that is assumed"
        )
        return 0
