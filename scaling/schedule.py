"""Learning-rate schedules: the factor on the peak rate at each step.

NumPy only, so that the run table can ask whether a run's decay was too short without
importing JAX.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from scaling.config import RunConfig


def learning_rate_factor(
    run: RunConfig, steps: np.ndarray, stage: Literal["trunk", "run"]
) -> np.ndarray:
    """Factor in [0, 1] on the peak rate at each of `steps` (0-based), float64.

    Linear warm-up over `warmup_tokens`, then by `optim.schedule`:
    wsd_linear, wsd_1sqrt: constant, then over the last `cooldown_fraction` of the run
    down to 0, linearly or as 1 - sqrt(progress) (Haegele et al. 2024, arXiv:2405.18392,
    section 3); cosine: to a tenth over the whole run (Hoffmann et al. 2022, appendix
    B); inverse_sqrt: sqrt(warm-up / step) (Vaswani et al. 2017, section 5.3). The trunk
    of a wsd schedule never cools down.
    """
    config, total = run.optim, run.steps
    warmup = max(1, round(config.warmup_tokens / run.batch_tokens))
    t = steps + 1.0  # the first step has a rate above 0
    factor = np.minimum(t / warmup, 1.0)
    if config.schedule == "inverse_sqrt":
        return np.minimum(factor, np.sqrt(warmup / t))
    if config.schedule == "cosine":
        progress = np.clip((t - warmup) / max(1, total - warmup), 0.0, 1.0)
        return factor * (0.55 + 0.45 * np.cos(np.pi * progress))
    if stage == "trunk" or run.branch_step == total:
        return factor
    progress = np.clip((steps - run.branch_step) / (total - run.branch_step), 0.0, 1.0)
    return factor * (
        1.0 - (progress if config.schedule == "wsd_linear" else np.sqrt(progress))
    )


def is_decay_too_short(run: RunConfig) -> bool:
    """Whether the rate at the end is still above a tenth of its peak: the loss then
    understates the model.
    """
    return bool(learning_rate_factor(run, np.array([run.steps - 1]), "run")[0] > 0.101)
