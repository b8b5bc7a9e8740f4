"""What the laws of curves read of a schedule, at some of its steps.

The laws sum over all earlier changes of the learning rate. Changes that are about equally
old are summed as one group, at the mean of their places: the youngest have a group for
each step, and older ones groups whose ages differ by a factor of `RATIO` at most. The
steps of the warm-up, whose learning rates differ by more than that, have groups of their
own. G and lambda^age change little within a group.

Shapes: T steps, n rows, K groups.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from analysis.curves.schedule import Schedule

RATIO = 1.25
SINGLE_AGES = 4
WARMUP_GROUPS = 16
# Learning rates below this share of the peak count as so much where a logarithm is taken.
SMALLEST_SHARE = 1e-9


class _Sums(NamedTuple):
    """[T + 1] sums over the steps up to each, of the changes' sizes times a quantity."""

    change: np.ndarray
    size: np.ndarray
    log_lr: np.ndarray
    S: np.ndarray
    step: np.ndarray


def compute_features(
    schedule: Schedule,
    steps: Int[np.ndarray, " n"],
    warmup: str = "rises",
    longest: int | None = None,
) -> dict[str, np.ndarray]:
    """The variables that `analysis.laws.curves` names, at some steps.

    Args:
        schedule: learning rates.
        steps: from 1 to the last step of the schedule.
        warmup: how the warm-up counts, as `CurveLaw.warmup`.
        longest: the most steps of any run that is fitted with this one, which gives K.

    Returns:
        S1 [n]; drop, log_lr, S and age [n, K].

    Raises:
        ValueError: a step outside the schedule.
    """
    steps = np.asarray(steps)
    if len(steps) and not (steps.min() >= 1 and steps.max() <= schedule.steps):
        raise ValueError(
            f"steps run from {steps.min()} to {steps.max()}; "
            f"the schedule has steps 1 to {schedule.steps}"
        )
    lr = np.array(schedule.lr)
    if warmup == "peak":
        lr[: schedule.warmup_steps] = lr[schedule.warmup_steps]
    area = np.cumsum(lr) - lr[0]
    sums = _sum_changes(lr, area)
    warmup_steps = 0 if warmup == "peak" else schedule.warmup_steps
    age_edges = make_age_edges(longest or schedule.steps)
    # The step of a change of age a is steps + 1 - a.
    age_limits = np.maximum(steps[:, None] - age_edges[None, ::-1] + 1, warmup_steps)
    age_limits = np.minimum(age_limits, steps[:, None])
    limits = age_limits
    if warmup != "peak":
        edges = make_warmup_edges(warmup_steps)
        warmup_limits = np.minimum(edges[None, :], steps[:, None])
        limits = np.concatenate([warmup_limits, age_limits], axis=1)
    first, last = limits[:, :-1], limits[:, 1:]

    def sum_groups(values: np.ndarray) -> np.ndarray:
        return values[last] - values[first]

    size = sum_groups(sums.size)
    is_empty = size <= 0
    divisor = np.where(is_empty, 1.0, size)
    area_at_rows = area[steps][:, None]
    S = area_at_rows - sum_groups(sums.S) / divisor
    age = steps[:, None] + 1 - sum_groups(sums.step) / divisor
    return {
        "S1": area[steps],
        "drop": np.where(is_empty, 0.0, -sum_groups(sums.change)),
        "log_lr": np.where(is_empty, 0.0, sum_groups(sums.log_lr) / divisor),
        "S": np.where(is_empty, 1.0, np.maximum(S, 0.0)),
        "age": np.where(is_empty, 1.0, age),
    }


def _sum_changes(lr: np.ndarray, area: np.ndarray) -> _Sums:
    change = np.diff(lr, prepend=lr[:1])
    size = np.abs(change)
    smallest = SMALLEST_SHARE * lr.max()
    area_before = np.concatenate([[0.0], area[:-1]])
    return _Sums(
        change=np.cumsum(change),
        size=np.cumsum(size),
        log_lr=np.cumsum(size * np.log(np.maximum(lr, smallest))),
        S=np.cumsum(size * area_before),
        step=np.cumsum(size * np.arange(len(lr))),
    )


def make_age_edges(longest: int) -> Int[np.ndarray, " edges"]:
    """[K + 1] ages at which groups begin; the last is above `longest`."""
    edges = list(range(1, SINGLE_AGES + 2))
    while edges[-1] <= longest:
        # At least one more, because RATIO adds 1 to SINGLE_AGES.
        edges.append(int(edges[-1] * RATIO))
    return np.array(edges)


def make_warmup_edges(warmup_steps: int) -> Int[np.ndarray, " edges"]:
    """[`WARMUP_GROUPS` + 1] steps at which the groups of the warm-up end, closer to one
    another towards its end: 0, ..., the last step of the warm-up.
    """
    left = np.linspace(1.0, 0.0, WARMUP_GROUPS + 1)
    return np.round(warmup_steps * (1 - left**3)).astype(int)
