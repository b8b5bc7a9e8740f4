"""Plans: the runs for some compute budgets, with their cost before anything is
trained.

An IsoFLOP plan trains several sizes at each compute budget (Hoffmann et al. 2022,
approach 2). All budgets choose from the same widths, so that the runs of one size are
cooldowns from one trunk.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from scaling.config import (
    ArchitectureConfig,
    ConfigError,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    Trunk,
    from_dict,
    group_by_trunk,
    to_dict,
)
from scaling.config.conversion import require_at_least_one, require_positive
from scaling.model.flops import count_parameters, flops_per_token, trunk_flops
from scaling.planning.lr_rules import (
    get_width_exponent,
    replace_optim,
    rescale_optim,
    set_warmup,
)
from scaling.store import run_dirs
from scaling.store.files import write_atomically

DEFAULT_WIDTHS = (
    *(24, 32, 40, 48, 56, 64, 80, 96, 112),
    *(128, 160, 192, 224, 256, 320, 384, 448, 512),
)
"""Widths of about equal ratios, between 1.12 and 1.33."""


@dataclass(frozen=True)
class PlanConfig:
    """What to plan: compute budgets with sizes around the center of each, or a
    rectangle of widths and tokens.

    The learning rate of a run is `optim.lr` times one of these two factors:

    - (width / model.base_width)^-lr_width_exponent, or
    - (n_matmul / lr_N)^-lr_N_exponent,

    and times (tokens / lr_D)^-lr_D_exponent. If `base_tokens` or `base_batch_tokens` is
    set, `optim` was tuned for a run of that many tokens, or of that many tokens per
    step, and `scaling.rescale_optim` adapts it to each run. With a rule that depends on
    tokens, the runs of a size share no trunk: the quickstart's plan would cost 1.3
    times as much.

    Raises:
        ConfigError: a value is out of range, or contradicts another one.
    """

    name: str = "sweep"
    budgets: tuple[float, ...] = ()
    """FLOPs of each IsoFLOP profile."""
    sizes_per_budget: int = 5
    tokens_per_parameter: float = 20.0
    """Center of the sizes of each budget, tokens over n_matmul."""
    widths: tuple[int, ...] = DEFAULT_WIDTHS
    """The sizes to choose from."""
    aspect: float | None = None
    """Width over depth; None keeps `model.depth`."""
    tokens: tuple[int, ...] = ()
    """Instead of budgets. Every width is trained on every one of these."""
    seeds: tuple[int, ...] = (0,)
    largest_budget_seeds: int | None = None
    """How many of the seeds, the first ones, the largest budget is trained with, since
    it costs most; None means all.
    """
    min_steps: int = 400
    """Runs of fewer steps are skipped, since no law holds for them
    (docs/notes/recipe.md).
    """
    min_tokens_per_parameter: float = 4.0
    """Runs of fewer tokens per parameter are skipped for the same reason."""
    lr_width_exponent: float | None = None
    """None means 0.7 under `sp` (docs/notes/recipe.md), 0 under others."""
    lr_N_exponent: float = 0.0
    """In the place of lr_width_exponent."""
    lr_D_exponent: float = 0.0
    lr_N: float | None = None
    """n_matmul at which optim.lr holds."""
    lr_D: float | None = None
    """Tokens at which optim.lr holds."""
    lr_factors: tuple[float, ...] = (1.0,)
    """Each run is planned at each of these multiples of its rate; `analysis.tuned`
    keeps the best.
    """
    base_tokens: int | None = None
    """Tokens of the run that optim was tuned for; None means each run's own."""
    base_batch_tokens: int | None = None
    """Tokens per step of that run; None means the plan's."""
    warmup_fraction: float | None = None
    """Warm-up as a fraction of the tokens of the shortest run on its trunk, so a plan
    with other budgets may have other warm-ups; None: optim.warmup_tokens.
    """
    model: ArchitectureConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval_tokens: int = RunConfig.eval_tokens

    def __post_init__(self) -> None:
        if bool(self.budgets) == bool(self.tokens):
            raise ConfigError(
                f"budgets = {self.budgets}, tokens = {self.tokens}: give one of the two"
            )
        for name in ("budgets", "tokens", "widths", "seeds", "lr_factors"):
            values = getattr(self, name)
            if name != "seeds" and any(value <= 0 for value in values):
                raise ConfigError(f"{name} = {values}: must be positive")
            if len(set(values)) != len(values):
                raise ConfigError(f"{name} = {values}: must not repeat")
            if name in ("widths", "seeds", "lr_factors") and not values:
                raise ConfigError(f"{name} = {values}: must hold at least one")
        require_at_least_one(self, "", "sizes_per_budget", "largest_budget_seeds")
        self._check_warmup()
        self._check_rate_rules()

    def _check_warmup(self) -> None:
        if self.warmup_fraction is None:
            return
        if not 0 <= self.warmup_fraction <= 1:
            raise ConfigError(
                f"warmup_fraction = {self.warmup_fraction}: must lie in [0, 1]"
            )
        tokens = self.optim.warmup_tokens
        if tokens != OptimConfig.warmup_tokens:
            raise ConfigError(
                f"warmup_fraction = {self.warmup_fraction}, optim.warmup_tokens = "
                f"{tokens}: give one of the two; warmup_fraction is None for a fixed "
                "warm-up"
            )

    def _check_rate_rules(self) -> None:
        require_positive(self, "", "lr_N", "lr_D", "base_tokens", "base_batch_tokens")
        for name in ("lr_N", "lr_D"):
            exponent = getattr(self, f"{name}_exponent")
            if exponent and getattr(self, name) is None:
                raise ConfigError(
                    f"{name}_exponent = {exponent}: give {name} too, where optim.lr "
                    "holds"
                )
        exclusive = (
            ("lr_N_exponent", "lr_width_exponent"),
            ("lr_D_exponent", "base_tokens"),
        )
        for first, second in exclusive:
            values = getattr(self, first), getattr(self, second)
            if all(values):
                raise ConfigError(
                    f"{first} = {values[0]}, {second} = {values[1]}: two rules for one "
                    "thing, give one of the two"
                )


class SkippedRun(NamedTuple):
    """A run that a plan leaves out, with the reason."""

    run: RunConfig
    reason: str


TABLE_COLUMNS = (
    "run_id",
    "trunk_id",
    "budget",
    "width",
    "depth",
    "n_total",
    "n_matmul",
    "tokens",
    "flops",
    "lr",
    "warmup_tokens",
)
"""Columns of the run table that `Plan.table` shows."""


@dataclass(frozen=True)
class Plan:
    """Runs to train, and the runs that were skipped."""

    name: str
    runs: tuple[RunConfig, ...]
    skipped: tuple[SkippedRun, ...] = ()

    def __iter__(self) -> Iterator[RunConfig]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def refused(self) -> tuple[SkippedRun, ...]:
        """Old name of `skipped`; it goes with the next release."""
        message = "Plan.refused is deprecated: use Plan.skipped"
        warnings.warn(message, category=DeprecationWarning, stacklevel=2)
        return self.skipped

    def trunks(self) -> list[Trunk]:
        """The runs by the trunk they share, the most expensive trunk first."""
        trunks = group_by_trunk(sorted(self.runs, key=lambda run: run.tokens))
        return sorted(trunks, key=trunk_flops, reverse=True)

    def table(self, train_tokens: int | None = None) -> pd.DataFrame:
        """One row per run: its parameter counts, tokens, FLOPs, rate and steps.

        Args:
            train_tokens: length of the training stream; adds the column
                `repeated_tokens`, the tokens of a run that it has seen before.
        """
        rows = []
        for run in self.runs:
            described = run_dirs.describe_run(run)
            row = {name: described[name] for name in TABLE_COLUMNS}
            row["steps"] = run.steps
            row["tokens_per_parameter"] = row["tokens"] / row["n_matmul"]
            if train_tokens is not None:
                row["repeated_tokens"] = max(0, row["tokens"] - train_tokens)
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def flops(self) -> float:
        """FLOPs that the plan costs, shared trunks counted once."""
        return sum(trunk_flops(trunk) for trunk in self.trunks())

    @property
    def shapes(self) -> int:
        """Number of executables to compile, one for each model, batch and optimizer."""
        return len({run.shape for run in self.runs})

    @property
    def rates_follow_tokens(self) -> bool:
        """Whether the learning rate of a size depends on its token budget, so that its
        runs share no trunk.
        """
        rates: dict[tuple[ArchitectureConfig, int], dict[int, set[float]]] = {}
        for run in self.runs:
            by_tokens = rates.setdefault((run.model, run.seed), {})
            by_tokens.setdefault(run.tokens, set()).add(run.optim.lr)
        return any(
            len({frozenset(values) for values in by_tokens.values()}) > 1
            for by_tokens in rates.values()
        )

    def to_json(self, path: str | Path) -> None:
        """Write the plan; `from_json` reads it back."""
        skipped = []
        for run, reason in self.skipped:
            skipped.append({"run": to_dict(run), "reason": reason})
        content = {
            "name": self.name,
            "runs": [to_dict(run) for run in self.runs],
            "refused": skipped,
        }
        write_atomically(Path(path), json.dumps(content, indent=1))

    def save(self, out: Path) -> None:
        """Keep the plan in the folder of its runs, so that `scaling watch` knows which
        runs are still to come.
        """
        name = re.sub(r"[^\w.-]", "_", self.name)[:80]
        self.to_json(out / "plans" / f"{name or 'sweep'}.json")

    @staticmethod
    def from_json(path: str | Path) -> Plan:
        """Read a plan.

        Raises:
            ConfigError: there is no such file, it is no JSON, or a key is unknown.
        """
        try:
            content = json.loads(Path(path).read_text())
            runs = [from_dict(RunConfig, run) for run in content["runs"]]
            skipped = []
            for entry in content.get("refused", ()):
                run = from_dict(RunConfig, entry["run"])
                skipped.append(SkippedRun(run, entry["reason"]))
            return Plan(content["name"], tuple(runs), tuple(skipped))
        except FileNotFoundError:
            raise ConfigError(f"plan {str(path)!r}: no such file") from None
        except ConfigError:
            raise
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            raise ConfigError(f"plan {str(path)!r}: not a plan ({error})") from None


def isoflop_plan(
    budgets: Sequence[float],
    sizes_per_budget: int = 5,
    data: str | DataConfig = "code",
    **options: Any,
) -> Plan:
    """IsoFLOP grid over compute budgets in FLOPs, on a data source; `options` are
    fields of `PlanConfig`.
    """
    data = DataConfig(data) if isinstance(data, str) else data
    return make_plan(
        PlanConfig(
            budgets=tuple(budgets),
            sizes_per_budget=sizes_per_budget,
            data=data,
            **options,
        )
    )


def grid_plan(
    widths: Sequence[int],
    tokens: Sequence[int],
    data: str | DataConfig = "code",
    **options: Any,
) -> Plan:
    """Rectangular grid of widths x token budgets, on a data source; `options` are
    fields of `PlanConfig`.
    """
    data = DataConfig(data) if isinstance(data, str) else data
    return make_plan(
        PlanConfig(widths=tuple(widths), tokens=tuple(tokens), data=data, **options)
    )


class Candidates(NamedTuple):
    """Runs to choose from for one IsoFLOP profile, or one size of a rectangle.

    Attributes:
        runs: the candidates, best first.
        wanted: how many of them to take.
    """

    runs: list[RunConfig]
    wanted: int


def make_plan(config: PlanConfig) -> Plan:
    """The runs of a plan, without those too short for a law to hold.

    A candidate that is skipped makes room for the next best one.

    Raises:
        ConfigError: nothing is left, or the shape of a size is invalid.
    """
    sizes = [make_model(config, width) for width in sorted(config.widths)]
    if config.budgets:
        groups = _list_isoflop_candidates(config, sizes)
    else:
        groups = _list_grid_candidates(config, sizes)
    runs: list[RunConfig] = []
    skipped: list[SkippedRun] = []
    for candidates in groups:
        accepted: list[RunConfig] = []
        for rank, run in enumerate(candidates.runs):
            if len(accepted) == candidates.wanted:
                break
            reason = explain_skip(config, run)
            if not reason:
                accepted.append(run)
            elif rank < candidates.wanted:
                skipped.append(SkippedRun(run, reason))
        accepted.sort(key=lambda run: (count_matmul(run.model), run.tokens))
        for run in accepted:
            runs += _repeat_run(config, run)
    if not runs:
        raise ConfigError(
            f"plan {config.name!r}: every run is skipped; the first: "
            f"{skipped[0].reason}"
        )
    if config.warmup_fraction is not None:
        runs = set_warmup(runs, config.warmup_fraction)
    return Plan(config.name, tuple(runs), tuple(skipped))


def count_matmul(model: ArchitectureConfig) -> int:
    """Weights of a model that multiply activations."""
    return count_parameters(model).n_matmul


def _repeat_run(config: PlanConfig, run: RunConfig) -> Iterator[RunConfig]:
    """The run at every rate and with the seeds of its budget."""
    seeds = config.seeds
    if config.budgets and run.budget == max(config.budgets):
        seeds = seeds[: config.largest_budget_seeds]
    for factor in config.lr_factors:
        for seed in seeds:
            seeded = dataclasses.replace(run, seed=seed)
            yield replace_optim(seeded, lr=run.optim.lr * factor)


def make_model(config: PlanConfig, width: int) -> ArchitectureConfig:
    """The model of a plan at a width.

    Raises:
        ConfigError: the shape is invalid.
    """
    depth = config.model.depth
    if config.aspect is not None:
        depth = max(1, round(width / config.aspect))
    return dataclasses.replace(config.model, width=width, depth=depth)


def make_run(
    config: PlanConfig, model: ArchitectureConfig, tokens: int, budget: float | None
) -> RunConfig:
    """A run of at least one step."""
    tokens = max(tokens, config.optim.batch_size * model.context)
    run = RunConfig(
        model=model,
        data=config.data,
        optim=_derive_optim(config, model, tokens),
        tokens=tokens,
        seed=config.seeds[0],
        eval_tokens=config.eval_tokens,
        budget=budget,
    )
    if config.warmup_fraction is None:
        return run
    return set_warmup([run], config.warmup_fraction)[0]


def _derive_optim(
    config: PlanConfig, model: ArchitectureConfig, tokens: int
) -> OptimConfig:
    """The recipe of a run, by the plan's rules."""
    optim = config.optim
    if config.base_tokens or config.base_batch_tokens:
        batch_tokens = optim.batch_size * model.context
        batch_ratio = batch_tokens / (config.base_batch_tokens or batch_tokens)
        optim = rescale_optim(
            optim, batch_ratio, tokens / (config.base_tokens or tokens)
        )
    lr = optim.lr
    if config.lr_N_exponent and config.lr_N:
        lr *= (count_matmul(model) / config.lr_N) ** -config.lr_N_exponent
    else:
        exponent = config.lr_width_exponent
        if exponent is None:
            exponent = get_width_exponent(model.parametrization)
        lr *= (model.width / model.base_width) ** -exponent
    if config.lr_D_exponent and config.lr_D:
        lr *= (tokens / config.lr_D) ** -config.lr_D_exponent
    return dataclasses.replace(optim, lr=lr)


def _list_isoflop_candidates(
    config: PlanConfig, sizes: list[ArchitectureConfig]
) -> Iterator[Candidates]:
    """For each budget all sizes, ordered by |ln(tokens per parameter / target)|."""
    for budget in sorted(config.budgets):
        distances = {}
        runs = {}
        for model in sizes:
            tokens = max(1, round(budget / flops_per_token(model)))
            ratio = tokens / count_matmul(model) / config.tokens_per_parameter
            distances[model] = abs(math.log(ratio))
            runs[model] = make_run(config, model, tokens, budget)
        nearest = sorted(sizes, key=distances.__getitem__)
        yield Candidates([runs[model] for model in nearest], config.sizes_per_budget)


def _list_grid_candidates(
    config: PlanConfig, sizes: list[ArchitectureConfig]
) -> Iterator[Candidates]:
    """For each size a run of each number of tokens."""
    for model in sizes:
        runs = []
        for tokens in sorted(config.tokens):
            runs.append(make_run(config, model, int(tokens), budget=None))
        yield Candidates(runs, wanted=len(runs))


def explain_skip(config: PlanConfig, run: RunConfig) -> str:
    """Why a run is too short for a law to hold; empty if it is not."""
    size = f"width {run.model.width}"
    if run.steps < config.min_steps:
        return f"{size}: {run.steps} steps, fewer than min_steps = {config.min_steps}"
    ratio = run.tokens / count_matmul(run.model)
    limit = config.min_tokens_per_parameter
    if ratio < limit:
        return f"{size}: {ratio:.1f} tokens per parameter, fewer than {limit:g}"
    is_cosine = run.optim.schedule == "cosine"
    end = run.steps if is_cosine else run.branch_step
    warmup = run.optim.warmup_tokens
    if end * run.batch_tokens < warmup:
        event = "run ends" if is_cosine else "cooldown begins"
        return f"{size}: warm-up of {warmup:,} tokens does not end before the {event}"
    return ""
