"""Rules that derive the hyper-parameters of a run (`OptimConfig`) from its width, its
tokens and its batch.

Runs of one size share a trunk only if their hyper-parameters agree. A rule that depends
on the tokens of a single run therefore gives every run a trunk of its own. The warm-up
follows the shortest run of a trunk, so that it does not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from scaling.config import ConfigError, OptimConfig, RunConfig

# The best learning rate ~ width^-exponent (docs/notes/recipe.md). Parametrizations that
# are not listed have exponent 0: rates transfer, or no exponent was measured.
WIDTH_EXPONENT = {"sp": 0.7}


def get_width_exponent(parametrization: str) -> float:
    """Exponent of the default rule, rate ~ (width / base width)^-exponent."""
    return WIDTH_EXPONENT.get(parametrization, 0.0)


def replace_optim(run: RunConfig, **changes: Any) -> RunConfig:
    """The run with other values for fields of its `OptimConfig`."""
    return dataclasses.replace(run, optim=dataclasses.replace(run.optim, **changes))


def set_warmup(runs: Iterable[RunConfig], fraction: float) -> list[RunConfig]:
    """The runs with a warm-up of `fraction` of the shortest run that shares their
    trunk.

    All runs of a trunk then have the same warm-up, and no run has a longer warm-up than
    `fraction` of its tokens.
    """
    without_warmup = [replace_optim(run, warmup_tokens=0) for run in runs]
    shortest: dict[str, int] = {}
    for run in without_warmup:
        tokens = run.steps * run.batch_tokens
        shortest[run.trunk_id] = min(tokens, shortest.get(run.trunk_id, tokens))
    return [
        replace_optim(run, warmup_tokens=int(fraction * shortest[run.trunk_id]))
        for run in without_warmup
    ]


def rescale_optim(
    optim: OptimConfig, batch_ratio: float = 1.0, data_ratio: float = 1.0
) -> OptimConfig:
    """Move AdamW's hyper-parameters to another batch and duration by the rules of
    Complete(d)P (arXiv:2512.22382).

    With r = batch_ratio / data_ratio, the rate is multiplied by sqrt(r), epsilon is
    divided by sqrt(r), and 1 - beta is multiplied by r for both betas. The weight decay
    lambda of AdamW, in w <- w - rate lambda w, is multiplied by sqrt(r). Ours is the
    product rate lambda (w <- w - decay w), so it is multiplied by r. If batch and
    tokens grow by the same factor (r = 1), nothing changes. `batch_size` stays as it
    is: the ratios describe the run.

    Args:
        batch_ratio: tokens per step over those of the run that `optim` was tuned for.
        data_ratio: tokens of the run over those of the run that `optim` was tuned for.

    Raises:
        ConfigError: the optimizer is not adamw, a ratio is not positive, or a beta
            would leave [0, 1).
    """
    if optim.optimizer != "adamw":
        raise ConfigError(
            f"optim.optimizer = {optim.optimizer!r}: the batch and duration rules are "
            f"those of adamw; use it, or leave out base_tokens and base_batch_tokens"
        )
    for name, value in (("batch_ratio", batch_ratio), ("data_ratio", data_ratio)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} = {value}: must be positive")
    r = batch_ratio / data_ratio
    for name in ("beta1", "beta2"):
        beta = getattr(optim, name)
        limit = 1.0 / (1.0 - beta)
        if r > limit:
            raise ConfigError(
                f"optim.{name} = {beta}: becomes negative above batch_ratio / "
                f"data_ratio = {limit:g}, and {r:g} is asked for: lower it, or raise "
                f"optim.{name}"
            )
    betas = {"beta1": optim.beta1, "beta2": optim.beta2}
    if r != 1.0:  # 1 - (1 - beta) may differ from beta in its last digit
        betas = {name: 1.0 - (1.0 - beta) * r for name, beta in betas.items()}
    return dataclasses.replace(
        optim,
        lr=optim.lr * math.sqrt(r),
        epsilon=optim.epsilon / math.sqrt(r),
        weight_decay=optim.weight_decay * r,
        **betas,
    )
