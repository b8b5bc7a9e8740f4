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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from scaling.config import (
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
from scaling.model.flops import count_parameters, flops_per_token, trunk_flops
from scaling.planning.lr_rules import (
    get_width_exponent,
    replace_optim,
    rescale,
    set_warmup,
)
from scaling.store import run_dirs
from scaling.store.files import write_atomically


@dataclass(frozen=True)
class PlanConfig:
    """What to plan: compute budgets with sizes around each one's centre, or a rectangle
    of widths and tokens.

    `widths` are the sizes to choose from; the depth of each follows from `aspect`: a number
    is width / depth, None keeps `model.depth`.

    The learning rate of a run is `optim.lr` x (width /
    model.base_width)^-`lr_width_exponent`, by default 0.7 under `sp` and constant under
    every other parametrization, or `optim.lr` x (n_matmul / `lr_N`)^-`lr_N_exponent`;
    either x (tokens / `lr_D`)^-`lr_D_exponent`; and each run is planned at each of
    `lr_factors` times that rate, for `analysis.table.tuned` to keep the best. With
    `base_tokens` or `base_batch_tokens`, `optim` is the recipe of a run of those, moved
    to each run's own by `scaling.planning.lr_rules.rescale`. A rule that depends on
    tokens leaves a size's runs
    without a common trunk: the quickstart's plan would cost 1.3 times as much.

    The warm-up is `warmup_fraction` of the shortest run on each trunk: a plan with
    other budgets may have other ones.
    """

    name: str = "sweep"
    budgets: tuple[float, ...] = ()  # FLOPs; an IsoFLOP plan
    sizes_per_budget: int = 5
    tokens_per_parameter: float = (
        20.0  # centre of each budget's sizes, tokens over n_matmul
    )
    widths: tuple[int, ...] = (
        24,
        32,
        40,
        48,
        56,
        64,
        80,
        96,
        112,
        128,
        160,
        192,
        224,
        256,
        320,
        384,
        448,
        512,
    )
    aspect: float | None = None
    tokens: tuple[
        int, ...
    ] = ()  # a rectangular plan: every width at every one of these
    seeds: tuple[int, ...] = (0,)
    min_steps: int = 400  # runs below either limit are skipped: no law holds for them (docs/notes/recipe.md)
    min_tokens_per_parameter: float = 4.0
    lr_width_exponent: float | None = (
        None  # None: 0.7 under sp (docs/notes/recipe.md), else 0
    )
    lr_N_exponent: float = 0.0  # in the place of lr_width_exponent
    lr_D_exponent: float = 0.0
    lr_N: float | None = None  # n_matmul at which optim.lr holds
    lr_D: float | None = None  # tokens at which optim.lr holds
    lr_factors: tuple[float, ...] = (1.0,)  # a grid of rates about the rule's
    base_tokens: int | None = (
        None  # tokens of the run that optim was tuned for; None: each run's own
    )
    base_batch_tokens: int | None = (
        None  # tokens per step of that run; None: the plan's
    )
    warmup_fraction: float | None = (
        None  # of the shortest run on each trunk; None: optim.warmup_tokens
    )
    model: ModelConfig = field(default_factory=ModelConfig)
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
            if name != "seeds" and any(v <= 0 for v in values):
                raise ConfigError(f"{name} = {values}: must be positive")
            if len(set(values)) != len(values):
                raise ConfigError(f"{name} = {values}: must not repeat")
            if name in ("widths", "seeds", "lr_factors") and not values:
                raise ConfigError(f"{name} = {values}: must hold at least one")
        if self.sizes_per_budget < 1:
            raise ConfigError(
                f"sizes_per_budget = {self.sizes_per_budget}: must be at least 1"
            )
        self._check_rules()

    def _check_rules(self) -> None:
        if self.warmup_fraction is not None:
            if not 0 <= self.warmup_fraction <= 1:
                raise ConfigError(
                    f"warmup_fraction = {self.warmup_fraction}: must lie in [0, 1]"
                )
            if (tokens := self.optim.warmup_tokens) != OptimConfig.warmup_tokens:
                values = f"warmup_fraction = {self.warmup_fraction}, optim.warmup_tokens = {tokens}"
                raise ConfigError(
                    f"{values}: give one of the two; warmup_fraction is None for a fixed warm-up"
                )
        for name in ("lr_N", "lr_D", "base_tokens", "base_batch_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} = {value}: must be positive")
        for name in ("lr_N", "lr_D"):
            exponent = getattr(self, f"{name}_exponent")
            if exponent and getattr(self, name) is None:
                raise ConfigError(
                    f"{name}_exponent = {exponent}: give {name} too, where optim.lr holds"
                )
        for one, other in (
            ("lr_N_exponent", "lr_width_exponent"),
            ("lr_D_exponent", "base_tokens"),
        ):
            if getattr(self, one) and getattr(self, other):
                values = (
                    f"{one} = {getattr(self, one)}, {other} = {getattr(self, other)}"
                )
                raise ConfigError(
                    f"{values}: two rules for one thing, give one of the two"
                )


@dataclass(frozen=True)
class Plan:
    """Runs to train, and the runs that were skipped, each with the reason."""

    name: str
    runs: tuple[RunConfig, ...]
    refused: tuple[tuple[RunConfig, str], ...] = ()

    def __iter__(self) -> Iterator[RunConfig]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def trunks(self) -> list[Trunk]:
        """The runs by the trunk they share, the most expensive trunk first."""
        trunks = group_by_trunk(sorted(self.runs, key=lambda run: run.tokens))
        return sorted(trunks, key=trunk_flops, reverse=True)

    def table(self, train_tokens: int | None = None) -> pd.DataFrame:
        """One row per run: N under every convention, D, C, steps, and with
        `train_tokens`, the length of the training stream, how many of its tokens are
        repeats."""
        rows = []
        for run in self.runs:
            row = run_dirs.describe_run(run)
            keep = (
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
            extra: dict[str, Any] = {
                "steps": run.steps,
                "tokens_per_parameter": row["tokens"] / row["n_matmul"],
            }
            if train_tokens is not None:
                extra["repeated_tokens"] = max(0, row["tokens"] - train_tokens)
            rows.append({name: row[name] for name in keep} | extra)
        return pd.DataFrame(rows)

    @property
    def flops(self) -> float:
        """FLOPs that the plan costs, shared trunks counted once."""
        return sum(trunk_flops(trunk) for trunk in self.trunks())

    @property
    def shapes(self) -> int:
        """Number of distinct models, batches and optimizers: of programs to compile."""
        return len({run.shape for run in self.runs})

    @property
    def rates_follow_tokens(self) -> bool:
        """Whether a size has other rates at other token budgets, so that its runs share
        no trunk.
        """
        rates: dict[Any, dict[int, set[float]]] = {}
        for run in self.runs:
            rates.setdefault((run.model, run.seed), {}).setdefault(
                run.tokens, set()
            ).add(run.optim.lr)
        return any(
            len(set(map(frozenset, of_size.values()))) > 1 for of_size in rates.values()
        )

    def to_json(self, path: str | Path) -> None:
        """Write the plan; `from_json` reads it back."""
        refused = [
            {"run": to_dict(run), "reason": reason} for run, reason in self.refused
        ]
        content = {
            "name": self.name,
            "runs": [to_dict(run) for run in self.runs],
            "refused": refused,
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
            ConfigError: no such file, no JSON, or an unknown key.
        """
        try:
            content = json.loads(Path(path).read_text())
            refused = (
                (from_dict(RunConfig, entry["run"]), entry["reason"])
                for entry in content.get("refused", ())
            )
            runs = (from_dict(RunConfig, run) for run in content["runs"])
            return Plan(content["name"], tuple(runs), tuple(refused))
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


def make_plan(config: PlanConfig) -> Plan:
    """The runs of a plan, without those too short for a law to hold.

    Raises:
        ConfigError: nothing is left, or a size's shape is invalid.
    """
    sizes = [_make_model(config, width) for width in sorted(config.widths)]
    slices = (
        _make_isoflop_slices(config, sizes)
        if config.budgets
        else _make_grid_slices(config, sizes)
    )
    runs: list[RunConfig] = []
    refused: list[tuple[RunConfig, str]] = []
    for candidates, wanted in slices:
        accepted = []
        for rank, run in enumerate(candidates):
            reason = _explain_skip(config, run)
            if reason and rank < wanted:
                refused.append((run, reason))
            elif not reason:
                accepted.append(run)
            if len(accepted) == wanted:
                break
        ordered = sorted(
            accepted, key=lambda run: (count_parameters(run.model).n_matmul, run.tokens)
        )
        runs += [run for base in ordered for run in _repeat_run(config, base)]
    if not runs:
        raise ConfigError(
            f"plan {config.name!r}: every run is skipped; the first: {refused[0][1]}"
        )
    if config.warmup_fraction is not None:
        runs = set_warmup(runs, config.warmup_fraction)
    return Plan(config.name, tuple(runs), tuple(refused))


def _repeat_run(config: PlanConfig, run: RunConfig) -> Iterator[RunConfig]:
    for factor in config.lr_factors:
        for seed in config.seeds:
            yield replace_optim(
                dataclasses.replace(run, seed=seed), lr=run.optim.lr * factor
            )


def _make_model(config: PlanConfig, width: int) -> ModelConfig:
    model = config.model
    depth = (
        model.depth if config.aspect is None else max(1, round(width / config.aspect))
    )
    return dataclasses.replace(model, width=width, depth=depth)


def _make_run(
    config: PlanConfig, model: ModelConfig, tokens: int, budget: float | None
) -> RunConfig:
    tokens = max(tokens, config.optim.batch_size * model.context)
    run = RunConfig(
        model,
        config.data,
        _derive_optim(config, model, tokens),
        tokens,
        config.seeds[0],
        config.eval_tokens,
        budget,
    )
    return (
        run
        if config.warmup_fraction is None
        else set_warmup([run], config.warmup_fraction)[0]
    )


def _derive_optim(config: PlanConfig, model: ModelConfig, tokens: int) -> OptimConfig:
    """The recipe of a run, by the plan's rules."""
    optim = config.optim
    if config.base_tokens or config.base_batch_tokens:
        batch_tokens = optim.batch_size * model.context
        batch_ratio = batch_tokens / (config.base_batch_tokens or batch_tokens)
        optim = rescale(optim, batch_ratio, tokens / (config.base_tokens or tokens))
    lr = optim.lr
    if config.lr_N_exponent and config.lr_N:
        lr *= (count_parameters(model).n_matmul / config.lr_N) ** -config.lr_N_exponent
    else:
        exponent = config.lr_width_exponent
        exponent = (
            get_width_exponent(model.parametrization) if exponent is None else exponent
        )
        lr *= (model.width / model.base_width) ** -exponent
    if config.lr_D_exponent and config.lr_D:
        lr *= (tokens / config.lr_D) ** -config.lr_D_exponent
    return dataclasses.replace(optim, lr=lr)


Slice = tuple[
    list[RunConfig], int
]  # candidates, best first, and how many of them are wanted


def _make_isoflop_slices(
    config: PlanConfig, sizes: list[ModelConfig]
) -> Iterator[Slice]:
    """Per budget the sizes, nearest to the centre in log tokens per
    parameter first.
    """
    for budget in sorted(config.budgets):
        tokens = {
            model: max(1, round(budget / flops_per_token(model))) for model in sizes
        }

        def distance(
            model: ModelConfig, tokens: dict[ModelConfig, int] = tokens
        ) -> float:
            return abs(
                math.log(
                    tokens[model]
                    / count_parameters(model).n_matmul
                    / config.tokens_per_parameter
                )
            )

        nearest = sorted(sizes, key=distance)
        yield (
            [_make_run(config, model, tokens[model], budget) for model in nearest],
            config.sizes_per_budget,
        )


def _make_grid_slices(config: PlanConfig, sizes: list[ModelConfig]) -> Iterator[Slice]:
    for model in sizes:
        yield (
            [
                _make_run(config, model, int(tokens), None)
                for tokens in sorted(config.tokens)
            ],
            len(config.tokens),
        )


def _explain_skip(config: PlanConfig, run: RunConfig) -> str:
    if run.steps < config.min_steps:
        return f"width {run.model.width}: {run.steps} steps, fewer than min_steps = {config.min_steps}"
    ratio = run.tokens / count_parameters(run.model).n_matmul
    if ratio < config.min_tokens_per_parameter:
        limit = config.min_tokens_per_parameter
        return f"width {run.model.width}: {ratio:.1f} tokens per parameter, fewer than {limit:g}"
    warmup = run.optim.warmup_tokens
    end, event = (
        (run.steps, "run ends")
        if run.optim.schedule == "cosine"
        else (run.branch_step, "cooldown begins")
    )
    if end * run.batch_tokens < warmup:
        return f"width {run.model.width}: warm-up of {warmup:,} tokens does not end before the {event}"
    return ""
