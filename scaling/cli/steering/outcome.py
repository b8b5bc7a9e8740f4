"""What a sweep that steers itself ends with: a law, a prediction and a recommendation."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis import (
    Allocation,
    Bootstrap,
    Fit,
    allocate,
    find_rival_laws,
    load_runs,
    study_runs,
)
from analysis.checking.law_choice import find_hull
from analysis.decisions.frontier import FlopsPerToken
from analysis.report.study import Study, write_study
from scaling.cli.steering.rounds import LEVEL, count_family_flops
from scaling.cli.steering.steer import Steering
from scaling.config import ArchitectureConfig, ConfigError, RunConfig, to_dict
from scaling.planning.plan import PlanConfig, count_matmul, make_model, make_run

FAR = 10.0
"""Times the largest run of the sweep: the target where none was given."""

WIDTH_STEP = 8
LARGEST_WIDTH = 2**17

HARMLESS_EPOCHS = 4
"""Up to so many epochs, repeated text is nearly as good as fresh one (Muennighoff et
al. 2023, arXiv:2305.16264).
"""


@dataclass(frozen=True, eq=False)
class AutoResult:
    """What a sweep that steers itself ends with.

    Attributes:
        runs: the run table of the runs that the law was fitted to.
        study: the fit of these runs, with its intervals.
        allocation: the compute-optimal model and data at the target, with the loss.
        run: the training run to start there; None where no model of the family has
            that size.
        decisions: one row per decision.
        flops: what was spent.
        remarks: what else a reader should know.
    """

    runs: pd.DataFrame
    study: Study
    allocation: Allocation
    run: RunConfig | None
    decisions: pd.DataFrame
    flops: float
    remarks: tuple[str, ...]

    @property
    def fit(self) -> Fit:
        """The law."""
        return self.study.fit

    @property
    def boot(self) -> Bootstrap:
        """The draws of its parameters."""
        return self.study.boot

    def to_dict(self) -> dict[str, object]:
        """Plain data for scripts: the summary of the study, the decision and its run."""
        best = self.allocation
        run = None if self.run is None else to_dict(self.run)
        return {
            **self.study.summary(),
            "flops_spent": self.flops,
            "target": {
                "C": best.C,
                "N": best.N,
                "D": best.D,
                "loss": best.loss,
                "intervals": {
                    name: list(ends) for name, ends in best.intervals.items()
                },
                "outside": best.outside.factors,
                "bound": best.bound,
                "run": run,
            },
            "remarks": list(self.remarks),
        }

    def __str__(self) -> str:
        lines = [str(self.fit), ""]
        for name in self.fit.derived():
            low, high = self.boot.interval(name, LEVEL)
            value = self.fit.derived()[name]
            lines.append(f"{name} = {value:.3g} [{low:.3g}, {high:.3g}]")
        lines += ["", f"at the target of {self.allocation.C:.3g} FLOPs"]
        lines.append(str(self.allocation))
        if self.run is not None:
            lines.append(f"train there: {describe_run(self.run)}")
        lines += [f"note: {remark}" for remark in self.remarks]
        return "\n".join(lines)


def describe_run(run: RunConfig) -> str:
    """Size, tokens and recipe of a run, in a line."""
    steps = f"{run.batch_tokens:,} tokens a step"
    return (
        f"width {run.model.width}, depth {run.model.depth} "
        f"({count_matmul(run.model):,} parameters), {run.tokens:,} tokens, learning "
        f"rate {run.optim.lr:.3g}, batch {run.optim.batch_size} ({steps})"
    )


def draw_conclusions(steering: Steering) -> AutoResult:
    """The law of a finished sweep, and what to train at its target.

    Raises:
        ValueError: the target does not buy a token.
    """
    study = study_runs(load_runs(steering.table), law=steering.prior.law)
    per_token = count_family_flops(steering.config)
    target = steering.settings.target_C or FAR * float(study.fit.compute.max())
    best = allocate(study.fit, target, study.boot, per_token, LEVEL, extrapolate=True)
    best, law_choice = widen_by_laws(study, best, per_token)
    run = recommend_run(steering.config, best.N, best.D)
    remarks = [*list_remarks(steering, best, run), law_choice]
    return AutoResult(
        runs=steering.table,
        study=study,
        allocation=best,
        run=run,
        decisions=steering.journal.tabulate_decisions(),
        flops=steering.spent,
        remarks=tuple(remarks),
    )


def widen_by_laws(
    study: Study, best: Allocation, per_token: FlopsPerToken | None
) -> tuple[Allocation, str]:
    """(the allocation with intervals that hold those of all laws that predict the
    largest runs as well, what was found in words).
    """
    try:
        rivals = find_rival_laws(study.fit, study.boot)
    except ValueError as error:
        return best, f"the choice of the law was not examined: {error}"
    by_quantity = rivals.list_allocation_intervals(best.C, per_token, LEVEL)
    intervals = {name: find_hull(by_law) for name, by_law in by_quantity.items()}
    others = rivals.names[1:]
    text = f"no other law predicts the {rivals.held} largest runs as well"
    if others:
        text = (
            f"the intervals hold those of {', '.join(others)} too, which predict the "
            f"{rivals.held} largest runs as well"
        )
    return dataclasses.replace(best, intervals=intervals), text


def recommend_run(config: PlanConfig, N: float, D: float) -> RunConfig | None:
    """The run of the family whose size is nearest to N, on D tokens.

    Returns:
        None where the widths of the family cannot be extended to that size.
    """
    try:
        model = find_model(config, N)
        return make_run(config, model, round(D), budget=None)
    except ConfigError:
        return None


def find_model(config: PlanConfig, N: float) -> ArchitectureConfig:
    """The model of the family whose n_matmul is nearest to N, among widths that are
    multiples of 8.

    Raises:
        ConfigError: a width on the way makes no valid model.
    """
    low, high = 1, LARGEST_WIDTH // WIDTH_STEP
    while high - low > 1:
        middle = (low + high) // 2
        if count_matmul(make_model(config, WIDTH_STEP * middle)) < N:
            low = middle
        else:
            high = middle
    models = [make_model(config, WIDTH_STEP * step) for step in (low, high)]
    return min(models, key=lambda model: abs(math.log(count_matmul(model) / N)))


def list_remarks(
    steering: Steering, best: Allocation, run: RunConfig | None
) -> list[str]:
    """What a reader of the recommendation should know."""
    remarks = []
    reach = best.outside
    if reach.is_far:
        remarks.append(
            f"the target lies {reach.largest:.3g} times outside the runs; the interval "
            "holds only if the law does"
        )
    if run is None:
        remarks.append(
            f"no width of the family has {best.N:.3g} parameters; choose the shape "
            "yourself"
        )
    else:
        origin = "the widths that were tuned" if steering.is_tuned else "the plan's own"
        remarks.append(
            f"the rate follows the rule of {steering.config.model.parametrization} from "
            f"{origin}, and the batch is that of the sweep; neither was tuned at the "
            "target"
        )
    tokens = steering.train_tokens
    if tokens is not None and tokens < best.D:
        remarks.append(_describe_short_text(best, tokens))
    return remarks


def _describe_short_text(best: Allocation, tokens: int) -> str:
    """What it means that the target needs more text than there is."""
    epochs = best.D / tokens
    advice = (
        "the loss will hardly be higher (Muennighoff et al. 2023, arXiv:2305.16264)"
        if epochs <= HARMLESS_EPOCHS
        else "the loss will be higher: find more text, or fit the law data_constrained "
        "to runs that repeat it"
    )
    return (
        f"the text is short: {best.D:.3g} tokens are {epochs:.3g} epochs of its "
        f"{tokens:,}; {advice}"
    )


def write_outcome(result: AutoResult, out: Path) -> dict[str, Path]:
    """Write the report with the table of decisions, the fit and the figures."""
    newest = result.runs.iloc[-1]
    columns = ["source", "tokenizer", "device", "versions", "commit"]
    return write_study(
        result.study,
        out,
        decisions=result.decisions,
        target=result.allocation,
        provenance={name: newest[name] for name in columns},
        extra={"flops_spent": result.flops},
        title=f"Scaling law of {out.name}",
    )
