"""The runs that serve the claims, in two sizes: `QUICK`, minutes on two cores, and
`FULL`, hours.

All read the `code` source as bytes and share one folder, so that a run which two claims
need is trained once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from scaling.config import DataConfig, ModelConfig, OptimConfig, RunConfig

# The rule of the learning rate is fitted in docs/notes/recipe.md.
RATE = 5e-3
RATE_EXPONENT = 0.7
RATE_WIDTH = 64

METHODS: tuple[Literal["adamw", "rmsprop", "sgd"], ...] = ("adamw", "rmsprop", "sgd")

RATE_CENTERS = {"adamw": 1.0, "rmsprop": 1.0, "sgd": 64.0}
"""Center of each optimizer's grid of rates over AdamW's. A step of SGD has the size of
the gradient, not of its sign."""

SCHEMES = {
    "sp": 1.0,
    "mup": 1.0,
    "unit": 64.0,
    "normalized": 1.0,
    "normalized_literal": 64.0,
}
"""S13: center of each parametrization's grid of rates over that of `sp`. It was moved
from 1 until the best rate was not at the edge of the grid."""


@dataclass(frozen=True)
class Remedy:
    """What S12 tries against over-fitting.

    Attributes:
        dropout: of the model.
        weight_decay: per step.
        data_factor: how many times the repeated tokens are there.
    """

    dropout: float = 0.0
    weight_decay: float = 0.0
    data_factor: int = 1


REMEDIES = {
    "none": Remedy(),
    "dropout 0.2": Remedy(dropout=0.2),
    "weight decay": Remedy(weight_decay=2e-3),
    "4 times the data": Remedy(data_factor=4),
}
"""The arms of S12 by name."""


@dataclass(frozen=True)
class Size:
    """How large the evidence is; token numbers are whole steps of 4 x 128.

    Attributes:
        name: `quick` or `full`.
        widths: of the family.
        tokens: budgets of each width of the family. The second one is also that of the
            depths, the first one that of the optimizers' grids.
        seeds: of what is compared seed by seed, or not trained.
        few_seeds: of everything else.
        depths: of the models of one width.
        spread: learning rates as multiples of the recipe's; the middle one is 1.
        batches: batch sizes in windows.
        batch_tokens: budgets of each batch size.
        short: tokens of the runs that show only whether a rate trains.
        repeated: tokens that S12 repeats.
        epochs: how often S12 repeats them.
        probe_depths: depths of the models that are measured without training.
        deep: blocks of the models whose layers are measured one by one.
        head_dims: head dimensions that are measured without training.
        eval_tokens: held-out tokens of each run.
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
FULL = replace(
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
    head_dims=(4, 16, 64, 256, 1024, 4096),
    eval_tokens=131_072,
)

BASE_WIDTH = 32
"""The width of every grid but the family."""

MODEL = ModelConfig(width=BASE_WIDTH, depth=2, n_heads=4, head_dim=16)
OPTIM = OptimConfig(warmup_tokens=20_480)
DATA = DataConfig()


def _make_run(
    size: Size,
    tokens: int,
    seed: int,
    model: ModelConfig = MODEL,
    optim: OptimConfig = OPTIM,
    data: DataConfig = DATA,
    rate_factor: float = 1.0,
) -> RunConfig:
    """A run of the recipe, whose learning rate is `rate_factor` times the rule's for
    its width.
    """
    rate = RATE * (model.width / RATE_WIDTH) ** -RATE_EXPONENT
    return RunConfig(
        model=model,
        data=data,
        optim=replace(optim, lr=rate * rate_factor),
        tokens=tokens,
        seed=seed,
        eval_tokens=size.eval_tokens,
    )


def make_family_runs(size: Size) -> list[RunConfig]:
    """Widths x token budgets x seeds at depth 2."""
    return [
        _make_run(size, tokens, seed, replace(MODEL, width=width))
        for width in size.widths
        for seed in size.few_seeds
        for tokens in size.tokens
    ]


def make_depth_runs(size: Size) -> list[RunConfig]:
    """Depths at fixed width and tokens."""
    tokens = size.tokens[1]
    return [
        _make_run(size, tokens, seed, replace(MODEL, depth=depth))
        for depth in size.depths
        for seed in size.few_seeds
    ]


def make_optimizer_runs(size: Size) -> list[RunConfig]:
    """A grid of learning rates per optimizer, each around a center of its own."""
    return [
        _make_run(
            size,
            size.tokens[0],
            seed,
            optim=replace(OPTIM, optimizer=method),
            rate_factor=factor * RATE_CENTERS[method],
        )
        for method in METHODS
        for factor in size.spread
        for seed in size.few_seeds
    ]


def make_batch_runs(size: Size) -> list[RunConfig]:
    """Batch sizes x token budgets, each at three rates around one that grows as the
    root of the batch.
    """
    return [
        _make_run(
            size,
            tokens,
            seed,
            optim=replace(OPTIM, batch_size=batch, warmup_tokens=8192),
            rate_factor=(batch / 4) ** 0.5 * factor,
        )
        for batch in size.batches
        for factor in (0.5, 1.0, 2.0)
        for seed in size.few_seeds
        for tokens in size.batch_tokens
    ]


def make_repeat_runs(size: Size) -> list[RunConfig]:
    """Epochs over few tokens at a constant rate, with and without each remedy: points
    along one trunk per arm.
    """
    runs = []
    for remedy in REMEDIES.values():
        model = replace(MODEL, width=64, dropout=remedy.dropout)
        optim = replace(OPTIM, cooldown_fraction=0.0, weight_decay=remedy.weight_decay)
        unique = size.repeated * remedy.data_factor
        data = DataConfig(unique_tokens=unique + 1)
        for seed in size.seeds:
            for epochs in size.epochs:
                tokens = size.repeated * epochs
                runs.append(_make_run(size, tokens, seed, model, optim, data))
    return runs


def make_norm_runs(size: Size) -> list[RunConfig]:
    """A wide grid of learning rates with layer norm and without any norm, depth 4,
    gradients not clipped.
    """
    norms: tuple[Literal["layernorm", "none"], ...] = ("layernorm", "none")
    return [
        _make_run(
            size,
            size.short,
            seed,
            replace(MODEL, depth=4, norm=norm, qk_norm=False),
            replace(OPTIM, clip_norm=None),
            rate_factor=factor,
        )
        for norm in norms
        for factor in size.spread
        for seed in size.few_seeds
    ]


def make_scheme_runs(size: Size) -> list[RunConfig]:
    """A wide grid of learning rates under each parametrization, depth 4."""
    return [
        _make_run(
            size,
            size.short,
            seed,
            replace(MODEL, depth=4, parametrization=scheme),
            rate_factor=factor * center,
        )
        for scheme, center in SCHEMES.items()
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
"""The grids that a claim can need, by name."""


def find_arm(run: RunConfig, size: Size) -> str:
    """The name in `REMEDIES` of a run of the grid `repeats`."""
    for arm, remedy in REMEDIES.items():
        if (
            run.model.dropout == remedy.dropout
            and run.optim.weight_decay == remedy.weight_decay
            and run.data.unique_tokens == size.repeated * remedy.data_factor + 1
        ):
            return arm
    raise ValueError(f"run {run.run_id} is not in the grid of repeated data")
