"""The runs that a plan could hold, with what each costs, for a search to choose from.

`analysis.design` chooses rows of the table, and the space makes a plan of them:

    space = scaling.make_design_space(config, flops=1e13)
    found = analysis.design(space.table(), 3e13, want="a")
    plan = space.make_plan(found.table["candidate"])
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from scaling.config import ArchitectureConfig, ConfigError, RunConfig
from scaling.model.flops import flops_per_step
from scaling.planning.lr_rules import replace_optim, set_warmup
from scaling.planning.plan import (
    Plan,
    PlanConfig,
    count_matmul,
    explain_skip,
    make_model,
    make_run,
)
from scaling.store import run_dirs

TOKEN_RATIO = math.sqrt(2)
"""Ratio of neighboring token budgets of a design space."""

MIN_TOKENS_PER_PARAMETER = 8.0
MAX_TOKENS_PER_PARAMETER = 80.0
"""Runs of fewer or more are left out: far from the compute-optimal ratio runs leave the
law (docs/notes/designs.md).
"""

MIN_STEPS = 1000
MIN_TOKENS = 750_000
"""Runs of fewer steps or tokens are left out. With the recipe of preset isoflop they
leave the law by more than the noise between seeds, whatever the batch
(docs/notes/designs.md).
"""

LARGEST_SHARE = 1 / 3
"""Of a budget, that one run of a plan may take: the luck of one trunk must not decide."""

TABLE_COLUMNS = (
    "trunk_id",
    "seed",
    "width",
    "depth",
    "n_matmul",
    "tokens",
    "flops",
)


@dataclass(frozen=True)
class DesignSpace:
    """Runs to choose from.

    Attributes:
        config: the recipe, the sizes and the limits of the runs.
        runs: all runs that the limits allow.
        trained: runs that exist, whose trunks can be resumed.
    """

    config: PlanConfig
    runs: tuple[RunConfig, ...]
    trained: tuple[RunConfig, ...] = ()

    def table(self) -> pd.DataFrame:
        """One row per run, as `tabulate_costs` makes it."""
        return tabulate_costs(self.runs)

    def trained_table(self) -> pd.DataFrame:
        """The same of the runs that exist."""
        return tabulate_costs(self.trained)

    def make_plan(self, rows: Iterable[int]) -> Plan:
        """The plan of the runs in these rows of the table.

        Where the warm-up follows the shortest run of a trunk, that is the shortest run
        of the plan.
        """
        runs = [self.runs[int(row)] for row in rows]
        runs.sort(key=lambda run: (count_matmul(run.model), run.seed, run.tokens))
        return Plan(self.config.name, tuple(self._set_warmups(runs)))

    def _set_warmups(self, runs: list[RunConfig]) -> list[RunConfig]:
        fraction = self.config.warmup_fraction
        if fraction is None:
            return runs
        resumed = find_warmups(self.trained)
        adapted = set_warmup(runs, fraction)
        for i, run in enumerate(runs):
            warmup = resumed.get(name_trunk(run))
            if warmup is not None:
                adapted[i] = replace_optim(run, warmup_tokens=warmup)
        return adapted


def make_design_space(
    config: PlanConfig,
    flops: float,
    *,
    max_tokens: int | None = None,
    min_tokens_per_parameter: float = MIN_TOKENS_PER_PARAMETER,
    max_tokens_per_parameter: float = MAX_TOKENS_PER_PARAMETER,
    min_steps: int = MIN_STEPS,
    min_tokens: int = MIN_TOKENS,
    seeds: int = 3,
    trained: Sequence[RunConfig] = (),
) -> DesignSpace:
    """All runs that a design may choose from.

    That is every width of the configuration on a ladder of token budgets, with several
    seeds, without the runs that are too short for a law to hold, as for `make_plan`.
    The configuration's budgets are not used; where it has tokens, these are the ladder.

    Args:
        config: the recipe, the sizes and the limits.
        flops: the most FLOPs of one run.
        max_tokens: the most tokens of one run, such as the length of the training
            stream.
        min_tokens_per_parameter, max_tokens_per_parameter: tokens of one run over
            n_matmul; the configuration's own limit holds too.
        min_steps: of one run; the configuration's own limit holds too.
        min_tokens: of one run.
        seeds: number of seeds of each size: the configuration's, then further ones.
        trained: runs that exist already. Runs of the space that share their trunks have
            their warm-up.

    Raises:
        ConfigError: a limit is out of range, or no run is left.
    """
    if not flops > 0:
        raise ConfigError(f"flops = {flops}: must be positive")
    if seeds < 1:
        raise ConfigError(f"seeds = {seeds}: must be at least 1")
    warmups = find_warmups(trained)
    finished = {run.run_id for run in trained}
    runs: list[RunConfig] = []
    first_reason = ""
    for width in sorted(config.widths):
        model = make_model(config, width)
        most = max_tokens_per_parameter * count_matmul(model)
        limit = float(min(most, max_tokens or most))
        budgets = list_token_budgets(config, model, limit)
        if limit < most and not budgets and list_token_budgets(config, model, most):
            reason = f"width {width}: every run has more than {max_tokens:,} tokens"
            first_reason = first_reason or reason
        for tokens in budgets:
            run = make_run(config, model, tokens, budget=None)
            reason = explain_skip(config, run)
            least = max(min_tokens, min_tokens_per_parameter * count_matmul(model))
            if run.tokens < least:
                reason = f"width {width}: {tokens:,} tokens are fewer than {least:,.0f}"
            if run.steps < min_steps:
                reason = f"width {width}: {run.steps} steps are fewer than {min_steps}"
            if run.steps * flops_per_step(run) > flops:
                reason = f"width {width}: a run of {tokens:,} tokens exceeds the FLOPs"
            if reason:
                first_reason = first_reason or reason
                continue
            for seed in list_seeds(config, seeds):
                runs.append(dataclasses.replace(run, seed=seed))
    if config.warmup_fraction is not None:
        runs = set_warmup(runs, config.warmup_fraction)
    runs = [_resume_warmup(run, warmups) for run in runs]
    runs = [
        run for run in runs if run.run_id not in finished and _is_valid(config, run)
    ]
    if not runs:
        raise ConfigError(
            f"flops = {flops:g}: no run is left to choose from; the first: "
            f"{first_reason or 'all are trained'}"
        )
    return DesignSpace(config, tuple(runs), tuple(trained))


def list_token_budgets(
    config: PlanConfig, model: ArchitectureConfig, most: float
) -> list[int]:
    """The token budgets of a model, in whole steps, from the fewest that the plan
    allows to `most`.
    """
    if config.tokens:
        return [int(tokens) for tokens in sorted(config.tokens) if tokens <= most]
    step = config.optim.batch_size * model.context
    budgets = []
    tokens = float(max(config.min_steps, 1) * step)
    while tokens <= most:
        budgets.append(step * math.ceil(tokens / step))
        tokens *= TOKEN_RATIO
    return budgets


def list_seeds(config: PlanConfig, count: int) -> list[int]:
    """The seeds of the configuration and, up to `count` of them, further ones."""
    seeds = list(config.seeds)
    while len(seeds) < count:
        seeds.append(max(seeds) + 1)
    return seeds


def name_trunk(run: RunConfig) -> str:
    """What runs of one trunk share besides their warm-up, which a plan may still set."""
    return replace_optim(run, warmup_tokens=0).trunk_id


def find_warmups(trained: Iterable[RunConfig]) -> dict[str, int]:
    """By `name_trunk`, the warm-up of the runs that exist, in tokens."""
    return {name_trunk(run): run.optim.warmup_tokens for run in trained}


def _resume_warmup(run: RunConfig, warmups: dict[str, int]) -> RunConfig:
    warmup = warmups.get(name_trunk(run))
    return run if warmup is None else replace_optim(run, warmup_tokens=warmup)


def _is_valid(config: PlanConfig, run: RunConfig) -> bool:
    """Whether the warm-up that a run takes over from its trunk is not too long for it."""
    fraction = config.warmup_fraction
    if fraction is None:
        return True
    return run.optim.warmup_tokens <= fraction * run.steps * run.batch_tokens


def tabulate_costs(runs: Sequence[RunConfig]) -> pd.DataFrame:
    """One row per run, with its size, tokens and FLOPs.

    The columns are those of the run table, and `shared_flops`, which a run shares with
    the others of its trunk, and `own_flops`, those of its cooldown.
    """
    rows = []
    for run in runs:
        described = run_dirs.describe_run(run)
        row = {name: described[name] for name in TABLE_COLUMNS}
        per_step = flops_per_step(run)
        row["shared_flops"] = run.branch_step * per_step
        row["own_flops"] = (run.steps - run.branch_step) * per_step
        rows.append(row)
    names = [*TABLE_COLUMNS, "shared_flops", "own_flops"]
    return pd.DataFrame(rows, columns=names)
