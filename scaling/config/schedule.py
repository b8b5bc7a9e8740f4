"""Learning-rate schedules: the factor on the peak rate at each step.

NumPy only, so that the run table can ask whether a run's decay was too short without
importing JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from scaling.config import RunConfig

COOLDOWNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "wsd_linear": lambda progress: 1.0 - progress,
    "wsd_1sqrt": lambda progress: 1.0 - np.sqrt(progress),
}
"""By schedule, the factor in the cooldown, of its progress in [0, 1]."""


def learning_rate_factor(
    run: RunConfig, steps: np.ndarray, stage: Literal["trunk", "run"]
) -> np.ndarray:
    """Factor in [0, 1] on the peak rate at each of `steps` (0-based), float64.

    After a linear warm-up over `warmup_tokens` it depends on `optim.schedule`:

    - wsd_linear, wsd_1sqrt: constant, then over the last `cooldown_fraction` of the run
      down to 0, linearly or as 1 - sqrt(progress) (Haegele et al. 2024,
      arXiv:2405.18392, section 3). The trunk never cools down.
    - cosine: to a tenth over the whole run (Hoffmann et al. 2022, appendix B).
    - inverse_sqrt: sqrt(warm-up / step) (Vaswani et al. 2017, section 5.3).
    """
    schedule = run.optim.schedule
    warmup = max(1, round(run.optim.warmup_tokens / run.batch_tokens))
    t = steps + 1.0  # the first step has a rate above 0
    factor = np.minimum(t / warmup, 1.0)
    if schedule == "inverse_sqrt":
        return np.minimum(factor, np.sqrt(warmup / t))
    if schedule == "cosine":
        progress = np.clip((t - warmup) / max(1, run.steps - warmup), 0.0, 1.0)
        return factor * (0.55 + 0.45 * np.cos(np.pi * progress))
    if stage == "trunk" or run.branch_step == run.steps:
        return factor
    cooldown_steps = run.steps - run.branch_step
    progress = np.clip((steps - run.branch_step) / cooldown_steps, 0.0, 1.0)
    return factor * COOLDOWNS[schedule](progress)


def is_decay_too_short(run: RunConfig) -> bool:
    """Whether the rate at the end is still above a tenth of its peak: the loss then
    understates the model.
    """
    last_step = np.array([run.steps - 1])
    return bool(learning_rate_factor(run, last_step, "run")[0] > 0.101)
