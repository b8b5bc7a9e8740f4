"""What options of the model are worth in compute: train one sweep with each, and compare
it with the sweep of the default model.

    python -m experiments.compare_architectures --out runs/architectures

Each option trains the same budgets with the recipe of the default, whose learning rate is
not tuned again: the multiplier is that of an option that is switched on and nothing else.
FLOPs are those of the model's products, so that an option that saves or adds some is
compared at equal FLOPs. Heads that share keys and values are also compared with fewer
heads whose cache has as many bytes. Writes `multipliers.csv`, `table.md` and
`multipliers.png`. Expect most options to lie within their interval of 1 at this scale.
docs/notes/architectures.md has the table.

To compare another option, add a row to `ARMS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import tyro

from analysis.plots.style import save_figure
from experiments.multipliers import (
    Interval,
    explain_mark,
    find_common_budget,
    format_multiplier,
    format_rows,
    measure_multiplier,
    plot_multipliers,
    save_multipliers,
    train_sweeps,
)
from scaling import ModelConfig, PlanConfig, RunConfig, make_plan
from scaling.cli.plan_sweep import find_preset
from scaling.config import read_toml
from scaling.inference.cost import count_cache_bytes
from scaling.model.flops import count_parameters, flops_per_token

DEFAULT = "default"
SHOWN_WIDTH = 64
"""The width at which the table gives sizes."""


@dataclass(frozen=True)
class Arm:
    """A model that is compared: the default with other values of some fields.

    Attributes:
        model: of `ModelConfig`.
        optim: of `OptimConfig`.
    """

    model: Mapping[str, object] = field(default_factory=dict)
    optim: Mapping[str, object] = field(default_factory=dict)


ARMS: dict[str, Arm] = {
    DEFAULT: Arm(),
    "2 heads of keys and values": Arm({"n_kv_heads": 2}),
    "1 head of keys and values": Arm({"n_kv_heads": 1}),
    "8 heads, 4 of keys and values": Arm({"n_heads": 8, "n_kv_heads": 4}),
    "2 heads": Arm({"n_heads": 2}),
    "1 head": Arm({"n_heads": 1}),
    "gated attention": Arm({"attention_gate": True}),
    "attention sinks": Arm({"attention_sink": True}),
    "parallel branches": Arm({"parallel_blocks": True}),
    "values mixed with the first layer's": Arm({"value_residual": True}),
    "windows of 32 in every other layer": Arm({"layer_pattern": "wf", "window": 32}),
    "no positions in every other layer": Arm({"layer_pattern": "fn"}),
    "learned positions": Arm({"position": "learned"}),
    "logits capped at 30": Arm({"logit_cap": 30.0}),
    "z-loss of 1e-4": Arm(optim={"z_loss": 1e-4}),
    "no norm of queries and keys": Arm({"qk_norm": False}),
    "layer norm": Arm({"norm": "layernorm"}),
    "SwiGLU, as many weights": Arm({"activation": "swiglu", "ff_ratio": 8 / 3}),
    "squared ReLU": Arm({"activation": "relu2"}),
    "one further token predicted": Arm({"future_tokens": 1}),
}
"""What is compared, the default first."""

SAME_CACHE = {
    "2 heads of keys and values": "2 heads",
    "1 head of keys and values": "1 head",
}
"""Models whose cache has as many bytes, which are compared with each other too."""


@dataclass(frozen=True)
class Architectures:
    """What to train.

    Attributes:
        out: folder of the runs, the table and the figure.
        arms: names of `ARMS`; the default is always trained.
        preset: the sweep that each trains.
        budgets: FLOPs, in place of the preset's.
        draws: of the parameters.
        workers: processes. Default: one per core on CPU.
    """

    out: Path = Path("runs/architectures")
    arms: tuple[str, ...] = tuple(ARMS)
    preset: str = "isoflop"
    budgets: tuple[float, ...] = (1e11, 2.8e11, 8e11)
    draws: int = 1000
    workers: int | None = None

    def __post_init__(self) -> None:
        for name in self.arms:
            if name not in ARMS:
                known = ", ".join(ARMS)
                raise ValueError(f"arms: {name!r} is unknown; arms are {known}")


class Multiplier(NamedTuple):
    """What an arm is worth: a row of the table.

    Attributes:
        arm: its name.
        baseline: that of the arm it is compared with.
        budget: FLOPs of the largest budget.
        multiplier: FLOPs of the baseline over those of the arm at equal loss there.
        low: end of its 90 % interval.
        high: the other end.
        shares_shape: whether both bear one shape of the law.
        parameters: that multiply activations, at width 64.
        flops: of training, per token, at width 64.
        cache_bytes: of keys and values per token, at width 64.
    """

    arm: str
    baseline: str
    budget: float
    multiplier: float
    low: float
    high: float
    shares_shape: bool
    parameters: float
    flops: float
    cache_bytes: float


def plan_arm(args: Architectures, arm: Arm) -> list[RunConfig]:
    """The sweep of an arm: the sizes and tokens of the default, with other options."""
    preset = read_toml(find_preset(args.preset), PlanConfig)
    plan = make_plan(dataclasses.replace(preset, budgets=args.budgets))
    runs = []
    for run in plan:
        model = dataclasses.replace(run.model, **arm.model)
        optim = dataclasses.replace(run.optim, **arm.optim)
        runs.append(dataclasses.replace(run, model=model, optim=optim))
    return runs


def train_arms(args: Architectures) -> dict[str, pd.DataFrame]:
    """The run table of each arm, the default first."""
    names = dict.fromkeys((DEFAULT, *args.arms))
    plans = {name: plan_arm(args, ARMS[name]) for name in names}
    return train_sweeps("architectures", plans, args.out, args.workers)


def list_comparisons(names: Iterable[str]) -> list[tuple[str, str]]:
    """Each arm with the default, then with the arm whose cache has as many bytes."""
    trained = list(names)
    pairs = [(name, DEFAULT) for name in trained if name != DEFAULT]
    for name, baseline in SAME_CACHE.items():
        if name in trained and baseline in trained:
            pairs.append((name, baseline))
    return pairs


def measure_multipliers(
    tables: Mapping[str, pd.DataFrame], draws: int
) -> list[Multiplier]:
    """Each arm compared with its baselines, at the largest budget that both have."""
    rows = []
    for name, baseline in list_comparisons(tables):
        arms = {baseline: tables[baseline], name: tables[name]}
        found = measure_multiplier(arms, find_common_budget(arms.values()), draws)
        sizes = measure_model(ARMS[name])
        rows.append(
            Multiplier(
                arm=name,
                baseline=baseline,
                **found._asdict(),
                parameters=sizes["parameters"],
                flops=sizes["flops"],
                cache_bytes=sizes["cache_bytes"],
            )
        )
    return rows


def name_row(row: Multiplier) -> str:
    """The arm, and its baseline where that is not the default."""
    if row.baseline == DEFAULT:
        return row.arm
    return f"{row.arm}, over {row.baseline}"


def measure_model(arm: Arm) -> dict[str, float]:
    """Size, FLOPs and cache of an arm's model at one width."""
    base = ModelConfig(width=SHOWN_WIDTH, depth=2, n_heads=4, head_dim=16)
    config = dataclasses.replace(base, **arm.model)
    return {
        "parameters": count_parameters(config).n_matmul,
        "flops": flops_per_token(config),
        "cache_bytes": count_cache_bytes(config),
    }


def format_table(rows: list[Multiplier]) -> str:
    """The multipliers as a Markdown table, over what the baseline has."""
    header = ["option", "multiplier, 90 % interval"]
    header += ["weights", "FLOPs a token", "cache bytes"]
    cells = []
    for row in rows:
        baseline = measure_model(ARMS[row.baseline])
        sizes = [
            row.parameters / baseline["parameters"],
            row.flops / baseline["flops"],
            row.cache_bytes / baseline["cache_bytes"],
        ]
        interval = format_multiplier(row)
        cells.append([name_row(row), interval, *(f"{size:.2f}" for size in sizes)])
    return "\n".join(format_rows(header, cells) + explain_mark(rows))


def main() -> None:
    """Train, compare, draw."""
    args = tyro.cli(Architectures, description=__doc__)
    rows = measure_multipliers(train_arms(args), args.draws)
    save_multipliers(rows, format_table(rows), args.out)
    intervals = []
    for row in rows:
        name = name_row(row)
        intervals.append(Interval(name, row.multiplier, row.low, row.high))
    figure = plot_multipliers(intervals, "default or what is named")
    print(save_figure(figure, args.out / "multipliers.png"))


if __name__ == "__main__":
    main()
