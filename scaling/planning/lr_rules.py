"""How a recipe follows the run it is planned for: rules from its shape, tokens and
batch to `OptimConfig`.

A quantity that depends on a run's tokens alone keeps the runs of a size from sharing a
trunk; the warm-up is therefore that of the trunk.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from scaling.config import ConfigError, OptimConfig, RunConfig

WIDTH_EXPONENT = {
    "sp": 0.7
}  # best rate ~ width^-exponent, docs/notes/recipe.md; 0 where rates transfer or none was measured


def width_exponent(parametrization: str) -> float:
    """Exponent of the default rule, rate ~ (width / base width)^-exponent, of a
    parametrisation.
    """
    return WIDTH_EXPONENT.get(parametrization, 0.0)


def with_optim(run: RunConfig, **changes: Any) -> RunConfig:
    """The run with changes to its recipe."""
    return dataclasses.replace(run, optim=dataclasses.replace(run.optim, **changes))


def warm_up(runs: Iterable[RunConfig], fraction: float) -> list[RunConfig]:
    """The runs with a warm-up of `fraction` of the shortest run that shares their
    trunk.

    So all runs of a trunk have one warm-up, and none has more than `fraction` of its
    tokens.
    """
    cold = [with_optim(run, warmup_tokens=0) for run in runs]
    shortest: dict[str, int] = {}
    for run in cold:
        tokens = run.steps * run.batch_tokens
        shortest[run.trunk_id] = min(tokens, shortest.get(run.trunk_id, tokens))
    return [
        with_optim(run, warmup_tokens=int(fraction * shortest[run.trunk_id]))
        for run in cold
    ]


def rescale(
    optim: OptimConfig, batch_ratio: float = 1.0, data_ratio: float = 1.0
) -> OptimConfig:
    """An AdamW recipe moved to another batch and duration by the rules of Complete(d)P
    (arXiv:2512.22382).

    With r = batch_ratio / data_ratio: rate x sqrt(r), epsilon / sqrt(r), (1 - beta) x r
    for both betas. The weight decay of AdamW, lambda in w <- w - rate lambda w, goes
    with sqrt(r); ours is the product rate lambda (w <- w - decay w), so it goes with r.
    Batch and tokens growing alike (r = 1) change nothing. `batch_size` stays
    as it is: the ratios say what the run does.

    Args:
        batch_ratio: tokens per step over those of the run that `optim` was tuned for.
        data_ratio: tokens of the run over those of the run that `optim` was tuned for.

    Raises:
        ConfigError: another optimiser than adamw, a ratio that is not positive, or a
        beta that would leave [0, 1).
    """
    if optim.optimizer != "adamw":
        raise ConfigError(
            f"optim.optimizer = {optim.optimizer!r}: the batch and duration rules are those of adamw"
        )
    for name, value in (("batch_ratio", batch_ratio), ("data_ratio", data_ratio)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} = {value}: must be positive")
    r = batch_ratio / data_ratio
    for name in ("beta1", "beta2"):
        limit = 1.0 / (1.0 - getattr(optim, name))
        if r > limit:
            remedy = f"becomes negative above batch_ratio / data_ratio = {limit:g}, and {r:g} is asked for: lower it"
            raise ConfigError(
                f"optim.{name} = {getattr(optim, name)}: {remedy}, or raise optim.{name}"
            )
    betas = (
        {name: 1.0 - (1.0 - getattr(optim, name)) * r for name in ("beta1", "beta2")}
        if r != 1.0
        else {}
    )
    return dataclasses.replace(
        optim,
        lr=optim.lr * math.sqrt(r),
        epsilon=optim.epsilon / math.sqrt(r),
        weight_decay=optim.weight_decay * r,
        **betas,
    )
