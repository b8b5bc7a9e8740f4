"""The runs that serve the claims, in two sizes: `QUICK`, minutes on two cores, and
`FULL`.

All read the `code` source as bytes and share one folder, so that a run which two claims
need is trained once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from scaling.config import DataConfig, ModelConfig, OptimConfig, RunConfig

RATE, RATE_EXPONENT, RATE_WIDTH = 5e-3, 0.7, 64  # docs/notes/recipe.md
METHODS: tuple[Literal["adamw", "rmsprop", "sgd"], ...] = ("adamw", "rmsprop", "sgd")
SGD_FACTOR = 64.0  # centre of SGD's grid over AdamW's: its step has the gradient's size, not its sign's
SCHEMES = {  # S13: centre of its rates over SP's, moved from 1 until the best rate was not at the grid's edge
    "sp": 1.0,
    "mup": 1.0,
    "unit": 64.0,
    "normalized": 1.0,
    "normalized_literal": 64.0,
}
REMEDIES: dict[str, dict[str, Any]] = {  # S12: arm -> changes by dotted path
    "none": {},
    "dropout 0.2": {"model.dropout": 0.2},
    "weight decay": {"optim.weight_decay": 2e-3},
    "4 times the data": {},
}


@dataclass(frozen=True)
class Size:
    """How large the evidence is; token numbers are whole steps of 4 x 128.

    Attributes:
        tokens: of each width of the family; the second one also of the depths, the
        first of optimisers' rates.
        seeds: of what is compared seed by seed or not trained, few_seeds: of all else.
        spread: learning rates as multiples of the recipe's; the middle one is 1.
        short: tokens of the runs that ask only whether a rate trains.
        repeated: tokens seen again and again for S12, epochs: how many times.
        probe_depths, deep (blocks of models whose layers are apart), head_dims: of what
        is measured without training.
    """

    name: str
    widths: tuple[int, ...]
    tokens: tuple[int, ...]
    seeds: tuple[int, ...]
    few_seeds: tuple[int, ...]
    depths: tuple[int, ...]
    spread: tuple[float, ...]
    batches: tuple[int, ...]
    batch_tokens: tuple[int, ...]
    short: int
    repeated: int
    epochs: tuple[int, ...]
    probe_depths: tuple[int, ...]
    deep: int
    head_dims: tuple[int, ...]
    eval_tokens: int


QUICK = Size(
    name="quick",
    widths=(16, 24, 32, 48, 64, 96),
    tokens=(76_800, 153_600, 307_200),
    seeds=(0, 1, 2),
    few_seeds=(0, 1),
    depths=(1, 2, 4, 6),
    spread=(1 / 16, 1 / 4, 1.0, 4.0, 16.0),
    batches=(2, 8, 32),
    batch_tokens=(16_384, 32_768, 65_536, 131_072),
    short=49_152,
    repeated=16_384,
    epochs=(1, 2, 4, 8, 12),
    probe_depths=(2, 6, 16),
    deep=8,
    head_dims=(4, 8, 16, 32, 64, 128, 256),
    eval_tokens=32_768,
)
FULL = dataclasses.replace(
    QUICK,
    name="full",
    widths=(16, 24, 32, 48, 64, 96, 128, 192),
    tokens=(409_600, 819_200, 1_638_400, 3_276_800),
    seeds=(0, 1, 2, 3, 4),
    few_seeds=(0, 1, 2, 3),
    depths=(1, 2, 4, 8, 12),
    spread=(1 / 64, 1 / 16, 1 / 4, 1.0, 4.0, 16.0, 64.0),
    batches=(1, 2, 8, 32, 128),
    batch_tokens=(65_536, 131_072, 262_144, 524_288, 1_048_576, 2_097_152),
    short=409_600,
    repeated=65_536,
    epochs=(1, 2, 4, 8, 16, 32, 64),
    probe_depths=(2, 4, 8, 16, 32),
    deep=32,
    eval_tokens=131_072,
)
BASE_WIDTH = 32  # of every grid but the family


def _make_run(size: Size, tokens: int, seed: int, **changes: Any) -> RunConfig:
    """A run of the recipe at `BASE_WIDTH`, with changes by dotted path written with two
    underscores.
    """
    groups: dict[str, dict[str, Any]] = {"model": {}, "data": {}, "optim": {}}
    for path, value in changes.items():
        table, _, name = path.partition("__")
        groups[table][name] = value
    width = groups["model"].setdefault("width", BASE_WIDTH)
    rate = RATE * (width / RATE_WIDTH) ** -RATE_EXPONENT
    groups["optim"]["lr"] = rate * groups["optim"].get("lr", 1.0)
    model = ModelConfig(**{"depth": 2, "n_heads": 4, "head_dim": 16, **groups["model"]})
    optim = OptimConfig(**{"warmup_tokens": 20_480, **groups["optim"]})
    return RunConfig(
        model, DataConfig(**groups["data"]), optim, tokens, seed, size.eval_tokens
    )


def make_family_runs(size: Size) -> list[RunConfig]:
    """Widths x token budgets x seeds at depth 2."""
    return [
        _make_run(size, tokens, seed, model__width=width)
        for width in size.widths
        for seed in size.few_seeds
        for tokens in size.tokens
    ]


def make_depth_runs(size: Size) -> list[RunConfig]:
    """Depths at fixed width and tokens."""
    tokens = size.tokens[1]
    return [
        _make_run(size, tokens, seed, model__depth=depth)
        for depth in size.depths
        for seed in size.few_seeds
    ]


def make_optimizer_runs(size: Size) -> list[RunConfig]:
    """A grid of learning rates per optimiser, each around a centre of its own."""
    return [
        _make_run(
            size,
            size.tokens[0],
            seed,
            optim__optimizer=method,
            optim__lr=factor * _get_rate_center(method),
        )
        for method in METHODS
        for factor in size.spread
        for seed in size.few_seeds
    ]


def _get_rate_center(method: str) -> float:
    return SGD_FACTOR if method == "sgd" else 1.0


def make_batch_runs(size: Size) -> list[RunConfig]:
    """Batch sizes x token budgets, each at three rates around one that grows as the
    root of the batch.
    """
    return [
        _make_run(
            size,
            tokens,
            seed,
            optim__batch_size=batch,
            optim__lr=(batch / 4) ** 0.5 * factor,
            optim__warmup_tokens=8192,
        )
        for batch in size.batches
        for factor in (0.5, 1.0, 2.0)
        for seed in size.few_seeds
        for tokens in size.batch_tokens
    ]


def make_repeat_runs(size: Size) -> list[RunConfig]:
    """Epochs over little text at a constant rate, with and without each remedy: points
    along one trunk per arm.
    """
    runs = []
    for arm, changes in REMEDIES.items():
        unique = size.repeated * (4 if arm == "4 times the data" else 1)
        options = {path.replace(".", "__"): value for path, value in changes.items()}
        for seed in size.seeds:
            for epochs in size.epochs:
                data = {
                    "data__unique_tokens": unique + 1,
                    "optim__cooldown_fraction": 0.0,
                }
                runs.append(
                    _make_run(
                        size,
                        size.repeated * epochs,
                        seed,
                        model__width=64,
                        **data,
                        **options,
                    )
                )
    return runs


def make_norm_runs(size: Size) -> list[RunConfig]:
    """A wide grid of learning rates with layer norm and without any norm, depth 4,
    gradients not clipped.
    """
    return [
        _make_run(
            size,
            size.short,
            seed,
            model__depth=4,
            model__norm=norm,
            model__qk_norm=False,
            optim__lr=factor,
            optim__clip_norm=None,
        )
        for norm in ("layernorm", "none")
        for factor in size.spread
        for seed in size.few_seeds
    ]


def make_scheme_runs(size: Size) -> list[RunConfig]:
    """A wide grid of learning rates under each parametrisation, depth 4."""
    return [
        _make_run(
            size,
            size.short,
            seed,
            model__depth=4,
            model__parametrization=scheme,
            optim__lr=factor * centre,
        )
        for scheme, centre in SCHEMES.items()
        for factor in size.spread
        for seed in size.few_seeds
    ]


GRIDS: dict[str, Callable[[Size], list[RunConfig]]] = {
    "family": make_family_runs,
    "depths": make_depth_runs,
    "optimizers": make_optimizer_runs,
    "batches": make_batch_runs,
    "repeats": make_repeat_runs,
    "norms": make_norm_runs,
    "schemes": make_scheme_runs,
}


def find_arm(run: RunConfig, size: Size) -> str:
    """The remedy of a run of `repeats`."""
    if run.model.dropout:
        return "dropout 0.2"
    if run.optim.weight_decay:
        return "weight decay"
    return "none" if run.data.unique_tokens == size.repeated + 1 else "4 times the data"
